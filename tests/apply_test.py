"""experiments.apply: a file gives in another process what its run reported."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import dd_jax
from dd_jax import datasets
from dd_jax import models
from dd_jax.files import artifacts
from dd_jax.files import pools
from dd_jax.runs import application
from dd_jax.runs import transfer
from experiments import problem
from experiments.names import applied
from tests.launches import ROOT, error_of, launch, smoke

_FIGURES = [f"accuracy{before}_{statistic}" for before in ("", "_before")
            for statistic in ("mean", "std")]

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def fixed(quick_runs, tmp_path_factory):
  """The directory of a run of a fixed init."""
  return problem.distill(smoke(), tmp_path_factory.mktemp("fixed")).workdir


@pytest.fixture(scope="module")
def poisoned(quick_runs, tmp_path_factory):
  """The directory of a run with many ingredients, on the user's own data and fresh networks."""
  workdir = tmp_path_factory.mktemp("poisoned")
  digits = datasets.load("digits")
  np.savez(workdir / "own.npz", **{
      name: getattr(digits, name)[:, 8:20, 8:20] if "images" in name else getattr(digits, name)
      for name in ("train_images", "train_labels", "test_images", "test_labels")})
  config = smoke(**{
      "data.name": str(workdir / "own.npz"), "data.whitening": .1, "model.name": "convnet",
      "model.width": 3, "model.depth": 1, "model.norm": "group", "init.name": "random",
      "init.weights": "kaiming_fan_in", "objective.name": "poisoning",
      "objective.attack_class": 3, "distill.labels": "soft", "distill.num_steps": 2,
      "inner.optimizer": "momentum", "inner.augmentation": "shift", "outer.num_inits": 2,
      "outer.num_steps": 2, "eval.num_inits": 25, "validation.num_inits": 2, "seed": 5})
  return problem.distill(config, workdir).workdir


def _result(workdir):
  return json.loads((workdir / "result.json").read_text())


def test_a_fixed_init_gives_its_accuracy_in_another_process(fixed):
  process = launch("experiments.apply", f"--distilled={fixed / 'distilled.npz'}")
  assert process.returncode == 0, process.stderr
  line, last = process.stdout.splitlines()
  found, expected = json.loads(last), _result(fixed)
  assert found["num_networks"] == 1 and found["network"] == "mlp" and found["init"] == "stored"
  assert found["num_test"] == 500 and found["dataset"] == "digits"
  np.testing.assert_allclose([found[name] for name in _FIGURES],
                             [expected[name] for name in _FIGURES], atol=1e-3)
  before, after = (f"{100 * expected[f'accuracy{name}_mean']:.1f}" for name in ("_before", ""))
  assert line == f"accuracy: {before} ± 0.0 % before, {after} ± 0.0 % after, of 1 networks"


def test_train_on_gives_the_weights_of_the_run(fixed):
  """Those of its inner algorithm, and its accuracy."""
  artifact = artifacts.load(fixed / "distilled.npz")
  built = problem.make_problem(smoke())
  expected, _ = built.train(jax.random.key(0), artifact.init_params, artifact.distilled)
  params = dd_jax.train_on(artifact)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, 1e-5, 1e-6), params, expected)
  data = datasets.load("digits")
  logits = dd_jax.network(artifact).apply(params, artifact.normalize(data.test_images))
  accuracy = np.mean(np.argmax(logits, -1) == data.test_labels)
  np.testing.assert_allclose(accuracy, _result(fixed)["accuracy_mean"], atol=1e-3)


@pytest.mark.slow
def test_the_run_s_own_networks_are_drawn_again(poisoned):
  """Whitening, augmentation, momentum, options of the network: all as the file says."""
  found, expected = applied.apply(poisoned / "distilled.npz"), _result(poisoned)
  names = _FIGURES + [f"{name}{before}_{statistic}" for before in ("", "_before")
                      for statistic in ("mean", "std")
                      for name in ("attack_success", "others_accuracy")]
  np.testing.assert_allclose([found[name] for name in names], [expected[name] for name in names],
                             atol=1e-3)
  assert found["num_networks"] == 25 and found["init"] == "kaiming_fan_in"
  assert found["accuracy_std"] > 0
  assert [line.split(":")[0] for line in application.describe(found).splitlines()] == [
      "accuracy", "attack success", "others accuracy"]


@pytest.mark.slow
def test_a_ridge_regression_of_the_run_is_solved_again(tmp_path):
  config = smoke(**{
      "inner.hypergradient": "ridge", "inner.num_features": 16, "init.name": "random",
      "eval.num_inits": 20, "outer.num_steps": 2, "distill.start": "real"})
  expected = problem.distill(config, tmp_path).figures
  found = applied.apply(tmp_path / "distilled.npz")
  np.testing.assert_allclose([found[name] for name in _FIGURES],
                             [expected[name] for name in _FIGURES], atol=1e-3)
  other = applied.apply(tmp_path / "distilled.npz", network="mlp", num_networks=2)
  assert other["accuracy_mean"] > .2  # A regression on random features of ten real images.


def test_the_metadata_describe_the_run(poisoned):
  metadata = artifacts.load(poisoned / "distilled.npz").metadata
  expected = {
      "num_train": 1097, "num_validation": 200, "num_test": 500, "num_classes": 10,
      "image_shape": [12, 12, 1], "pixel_scale": 255, "whitening": .1, "model": "convnet",
      "model_options": {"width": 3, "depth": 1, "norm": "group"}, "inner_siamese": False,
      "inner_optimizer": "momentum", "inner_algorithm": "unroll", "seed": 5,
      "objective": {"name": "poisoning", "attack_class": 3, "target_class": 1},
      "precision": "highest", "jax_version": jax.__version__,
      "dd_jax_version": dd_jax.__version__}
  assert {name: metadata[name] for name in expected} == expected
  assert metadata["init"]["weights"] == "kaiming_fan_in" and metadata["init"]["scale"] is None
  result = _result(poisoned)
  for name in (*_FIGURES, "attack_success_mean", "device", "num_eval_inits", "outer_steps"):
    assert metadata[name] == result[name]


def test_another_network_another_init_and_data_that_moved(poisoned, tmp_path):
  """The dataset of the file is looked for in data_dir."""
  (tmp_path / "own.npz").write_bytes((poisoned / "own.npz").read_bytes())
  artifact = artifacts.load(poisoned / "distilled.npz")
  artifacts.save(tmp_path / "a.npz", artifact.distilled, whitening=artifact.whitening,
                 metadata={**artifact.metadata, "dataset": "/another/machine/own.npz"})
  found = applied.apply(tmp_path / "a.npz", network="mlp", init="orthogonal",
                                  data_dir=str(tmp_path), num_networks=2, seed=1)
  assert (found["network"], found["init"], found["num_networks"]) == ("mlp", "orthogonal", 2)
  with pytest.raises((FileNotFoundError, ValueError), match="/another/machine/own.npz"):
    applied.apply(tmp_path / "a.npz")


def _blocks(path, language):
  return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def _python(code, directory, *arguments):
  return subprocess.run([sys.executable, "-c", code, *arguments], cwd=directory, text=True,
                        capture_output=True, timeout=300,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_the_readme_s_blocks_run_on_a_run_s_file(fixed, tmp_path):
  (block,) = (block for block in _blocks("README.md", "python") if "train_on" in block)
  (tmp_path / "runs").mkdir()
  shutil.copytree(fixed, tmp_path / "runs/digits")
  process = _python(block + "\nprint((logits.argmax(-1) == datasets.load('digits').test_labels)"
                    ".mean())", tmp_path)
  assert process.returncode == 0, process.stderr
  np.testing.assert_allclose(float(process.stdout), _result(fixed)["accuracy_mean"], atol=1e-3)

  (block,) = re.findall(r"<!-- apply -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(),
                        re.DOTALL)
  process = subprocess.run(
      ["bash", "-euc", block.replace(".venv/bin/python", sys.executable)], cwd=tmp_path, text=True,
      capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert process.returncode == 0, process.stderr
  first, written, last = map(json.loads, re.findall(r"^\{.*", process.stdout, re.MULTILINE))
  assert first["accuracy_mean"] == pytest.approx(_result(fixed)["accuracy_mean"], abs=1e-3)
  assert written["num_distilled_images"] == 10
  assert last["network"] == "convnet:width=16:depth=2" and last["num_networks"] == 5
  assert len(list((tmp_path / "runs/png").glob("*.png"))) == 10


def test_the_document_s_script_reads_a_file_with_numpy_alone(poisoned):
  (script,) = _blocks("docs/format.md", "python")
  assert len(script.splitlines()) <= 15
  assert set(re.findall(r"^import (\w+)", script, re.MULTILINE)) == {"json", "sys", "numpy"}
  distilled = artifacts.load(poisoned / "distilled.npz").distilled
  process = _python(script, poisoned, str(poisoned / "distilled.npz"))
  assert process.returncode == 0, process.stderr
  first, *lines = process.stdout.splitlines()
  assert first.startswith("images (2, 10, 12, 12, 1) of ")
  found = [re.fullmatch(r"epoch (\d), step (\d): step size (\S+), labels (.*)", line).groups()
           for line in lines]
  assert [(int(e), int(s)) for e, s, *_ in found] == list(np.ndindex(distilled.step_sizes.shape))
  for e, s, step_size, labels in found:
    np.testing.assert_allclose(float(step_size), distilled.step_sizes[int(e), int(s)], atol=6e-5)
    np.testing.assert_array_equal(np.float32(json.loads(labels)), distilled.labels[int(s)])


def test_the_document_s_script_trains_in_plain_pytorch(fixed, tmp_path):
  """To the accuracy of this library, after steps large enough to learn something."""
  pytest.importorskip("torch")
  (script,) = _blocks("docs/pytorch.md", "python")
  assert len(script.splitlines()) <= 60
  assert set(re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE)) == {
      "json", "sys", "numpy", "sklearn", "torch"}
  artifact = artifacts.load(fixed / "distilled.npz")
  data = datasets.load("digits")
  images = datasets.normalize(data.train_images, data.mean, data.std)
  rows = [np.flatnonzero(data.train_labels == label)[0]
          for label in artifact.distilled.labels[0]]
  distilled = dd_jax.DistilledData(images[rows][None].astype(np.float32), artifact.distilled.labels,
                                   np.full_like(artifact.distilled.step_sizes, .1))
  lenet = models.lenet(num_classes=10, image_shape=(28, 28, 1))
  artifacts.save(tmp_path / "distilled.npz", distilled,
                 init_params=jax.tree.map(np.asarray, lenet.init(jax.random.key(0))),
                 metadata={**artifact.metadata, "model": "lenet", "model_options": {}})
  process = _python(script, tmp_path, str(tmp_path / "distilled.npz"))
  assert process.returncode == 0, process.stderr
  accuracy = float(re.fullmatch(r"accuracy: (\S+) %\n", process.stdout)[1])
  expected = 100 * applied.apply(tmp_path / "distilled.npz")["accuracy_mean"]
  assert expected > 15  # 10.4 before training.
  np.testing.assert_allclose(accuracy, expected, atol=.1)


def test_the_document_explains_every_field(fixed, poisoned):
  text = (ROOT / "docs/format.md").read_text()
  for workdir in (fixed, poisoned):
    with np.load(workdir / "distilled.npz") as file:
      names = set(file) | set(json.loads(str(file["metadata"])))
    for name in names:
      name = re.sub(r"^(accuracy_before|attack_success|others_accuracy)_.*", r"\1_...", name)
      name = re.sub(r"^init/.*", "init/LAYER/NAME", re.sub("^hyper/.*", "hyper/NAME", name))
      assert f"`{name}`" in text, name


def test_a_pool_of_the_stored_network_gives_its_accuracy(fixed, tmp_path):
  params = artifacts.load(fixed / "distilled.npz").init_params
  pools.save(tmp_path / "pool.npz", jax.tree.map(lambda x: np.stack([x] * 3), params), {})
  found = applied.apply(fixed / "distilled.npz", init=str(tmp_path / "pool.npz"))
  assert found["num_networks"] == 3
  np.testing.assert_allclose([found["accuracy_mean"], found["accuracy_std"]],
                             [_result(fixed)["accuracy_mean"], 0], atol=1e-6)


@pytest.mark.parametrize("arguments, message", [
    ({"init": "he"}, r"--init must be stored, one of \['kaiming_fan_in', .*; got 'he'"),
    ({"init": "nowhere.npz"}, "nowhere.npz"),
    ({"network": "resnet"}, r"--network must be one of \['alexcifarnet', .*; got 'resnet'"),
    ({"network": "alexnet"}, r"--network must be .* \(28, 28, 1\); got 'alexnet' \(image_shape"),
    ({"network": "lenet", "init": "stored"},
     r"--init=stored must go with the network of the run with Conv_0/bias \(6,\); in the file it "
     "is absent"),
    ({"num_networks": 0}, "--num_networks must be positive; got 0"),
    ({"num_networks": 2}, "num_inits must be 1 for a fixed init; got 2"),
])
def test_what_does_not_fit_is_named(fixed, arguments, message):
  with pytest.raises((ValueError, OSError), match=message):
    applied.apply(fixed / "distilled.npz", **arguments)


@pytest.mark.parametrize("metadata, message", [
    ({"dataset": "mnist"}, "mnist: nothing found in "),
    ({"dataset": "cifar10"}, "cifar10: nothing found in "),
    ({}, "metadata must hold 'dataset'; the file has"),
])
def test_a_file_without_its_dataset_is_one_line(tmp_path, metadata, message):
  distilled = dd_jax.DistilledData(np.zeros((1, 2, 28, 28, 1), np.float32),
                                   np.array([[0, 1]], np.int32), np.zeros((1, 1), np.float32))
  artifacts.save(tmp_path / "a.npz", distilled, metadata=metadata)
  assert message in error_of(launch("experiments.apply", f"--distilled={tmp_path / 'a.npz'}",
                                    f"--data_dir={tmp_path}"))


def test_examples_of_classes_that_the_file_does_not_know_are_named(fixed):
  artifact = artifacts.load(fixed / "distilled.npz")
  images, labels = np.arange(24 * 784).astype(np.uint8).reshape(24, 28, 28, 1), np.arange(24) % 12
  data = datasets.from_arrays(images, labels, images, labels)
  with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, the classes .*; got 0\.\.11"):
    application.apply_distilled(artifact, data)


def test_a_run_from_a_pool_needs_to_be_told_which(fixed, tmp_path):
  artifact = artifacts.load(fixed / "distilled.npz")
  init = {**artifact.metadata["init"], "name": "pretrained"}
  artifacts.save(tmp_path / "a.npz", artifact.distilled,
                 metadata={**artifact.metadata, "init": init})
  with pytest.raises(ValueError, match="init must be given: .* its networks are 'pretrained'"):
    applied.apply(tmp_path / "a.npz")
  with pytest.raises(ValueError, match="the file holds no weights"):
    applied.apply(tmp_path / "a.npz", init="stored")


def test_a_table_is_read_again_and_others_are_refused(tmp_path):
  """By its own name, below another directory, by the name of another table, and when it changed."""
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  rows = rng.normal(size=(60, 2)) + labels[:, None]

  def write(path, rows):
    path.write_text("a,b,y\n" + "".join(
        f"{a},{b},{label}\n" for (a, b), label in zip(rows, labels)))

  (tmp_path / "first").mkdir()
  path = tmp_path / "first/own.csv"
  write(path, rows)
  config = smoke(**{"data.kind": "table", "data.name": "own.csv", "data.label": "y",
                    "data.dir": str(path.parent), "data.num_validation": 6, "model.name": "mlp",
                    "init.name": "random", "eval.num_inits": 20, "outer.batch_size": 8})
  result = problem.distill(config, tmp_path / "run")
  file = result.workdir / "distilled.npz"
  assert result.artifact.metadata["reading"] == {
      "kind": "table", "label": "y", "predict": "class", "num_validation": 6,
      "test_fraction": config.data.test_fraction}
  moved = path.rename(tmp_path / "own.csv")
  for found in (applied.apply(file, data_dir=str(tmp_path)), applied.apply(file, data=str(moved))):
    assert [found[name] for name in _FIGURES] == pytest.approx(
        [result.figures[name] for name in _FIGURES], abs=1e-6)
  other = tmp_path / "other.csv"
  other.write_text(moved.read_text().replace("a,b,y", "a,height,y"))
  with pytest.raises(ValueError, match=r"data must have the columns of the file, \['a', 'b'\]; got "
                                       r"\['a', 'height'\]"):
    applied.apply(file, data=str(other))
  write(moved, rows ** 2)
  with pytest.raises(ValueError, match="data must be given: 'own.csv' has other rows than the run"):
    applied.apply(file, data_dir=str(tmp_path))
  for reading, message in (({"kind": "table"}, "got 'table' with \\[\\]"),
                           ({"kind": "table", "name": "x"}, "must say how a table is read"),
                           ({"kind": "sound"}, "got 'sound' with")):
    artifacts.save(tmp_path / "a.npz", result.artifact.distilled,
                   metadata={**result.artifact.metadata, "reading": reading})
    with pytest.raises(ValueError, match=f"reading .*{message}"):
      applied.apply(tmp_path / "a.npz", data_dir=str(tmp_path))


def test_classes_of_other_names_are_not_taken_for_those_of_the_file():
  """A set without the first class would number the others anew."""
  images = np.arange(12 * 9, dtype=np.uint8).reshape(12, 3, 3, 1)
  pets, fewer = (datasets.from_arrays(images, labels, images[:3], labels[:3]) for labels in (
      ["ape", "bee", "cow"] * 4, ["bee", "cow", "dog"] * 4))
  distilled = dd_jax.DistilledData(jax.numpy.zeros((1, 3, 3, 3, 1)), jax.numpy.arange(3)[None],
                                   jax.numpy.full((1, 1), .1))
  metadata = {"num_classes": 3, "pixel_scale": 255, "mean": pets.mean.tolist(),
              "std": pets.std.tolist(), "class_names": ["ape", "bee", "cow"]}
  artifact = dd_jax.Artifact(distilled, None, metadata)
  model = models.linear(num_classes=3, image_shape=(3, 3, 1))
  options = {"model": model, "init": "xavier_normal", "num_networks": 2}
  assert application.apply_distilled(artifact, pets, **options)["num_test"] == 3
  message = r"must have the classes of the file, \['ape', 'bee', 'cow'\]; got \['bee', 'cow', 'dog"
  with pytest.raises(ValueError, match=f"^data {message}"):
    application.apply_distilled(artifact, fewer, **options)
  with pytest.raises(ValueError, match=f"^dataset {message}"):
    transfer.compare_networks(artifact, fewer, {"linear": model}, "unused", training=None)


def test_texts_are_read_again_by_their_name(tmp_path):
  """Below another directory: the words and vectors are those of the run; others are refused."""
  lines = [f"{who} {what} number {i} ?\t{label}\n" for i in range(12) for who, what, label in (
      ("who", "is", "human"), ("where", "lies", "place"), ("when", "was", "time"))]

  def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", lines[:27]), ("test", lines[27:])):
      (folder / f"{split}.tsv").write_text("".join(["text\tlabel\n", *part]))

  write(tmp_path / "first/own", lines)
  config = smoke(**{"data.kind": "texts", "data.name": "own", "data.text": "text",
                    "data.label": "label", "data.dir": str(tmp_path / "first"),
                    "data.num_validation": 6, "data.length": 4, "data.dim": 5,
                    "model.name": "text_convolution", "init.name": "random",
                    "eval.num_inits": 20, "outer.batch_size": 8})
  result = problem.distill(config, tmp_path / "run")
  file = result.workdir / "distilled.npz"
  (tmp_path / "first").rename(tmp_path / "second")
  for found in (applied.apply(file, data_dir=str(tmp_path / "second")),
                applied.apply(file, data=str(tmp_path / "second/own"))):
    assert [found[name] for name in _FIGURES] == pytest.approx(
        [result.figures[name] for name in _FIGURES], abs=1e-6)
  named = applied.apply(file, data_dir=str(tmp_path / "second"), network="text_convolution")
  assert named["accuracy_mean"] == pytest.approx(result.figures["accuracy_mean"], abs=1e-6)
  with pytest.raises(ValueError, match=r"distill.start must hold inputs that are one array"):
    config.data.dir, config.distill.start = str(tmp_path / "second"), str(file)
    problem.make_problem(config)
  write(tmp_path / "second/own", [line.replace("number", "who") for line in lines])
  with pytest.raises(ValueError, match="data must be given: 'own' has other"):
    applied.apply(file, data_dir=str(tmp_path / "second"))
