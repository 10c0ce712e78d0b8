"""The launcher as a user meets it: real processes on real digits, its files, its errors."""

import importlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from matplotlib import image as mpl_image
import numpy as np
import pytest

import dd_jax
from dd_jax.files import artifacts
from dd_jax import datasets
from dd_jax import losses
from dd_jax import models
from experiments import launcher
from experiments import train
from experiments import workdirs
from experiments.configs import default
from experiments.configs import digits_fixed_init
from experiments.configs import digits_lenet_pool
from experiments.configs import pool_default
from experiments.pools import pretrain_pools

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = "experiments/configs/digits_fixed_init.py"
_CONFIGS = sorted(p.stem for p in (_ROOT / "experiments/configs").glob("*.py")
                  if p.stem not in ("default", "pool_default", "adaptation", "transfer"))
_RESULT_FIELDS = {
    "accuracy_mean", "accuracy_std", "accuracy_before_mean", "num_eval_inits",
    "num_distilled_images", "outer_steps", "wall_seconds", "compile_seconds",
    "seconds_per_outer_step", "peak_memory_bytes", "selection", "device", "jax_version", "seed",
    "config"}

# The trees of optax's Adam need promotion; the launcher's own processes have no strict setting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


def _command(workdir, *arguments, variant=":smoke"):
  return [sys.executable, "-m", "experiments.main", f"--config={_CONFIG}{variant}",
          f"--workdir={workdir}", *arguments]


def _launch(workdir, *arguments, **options):
  return subprocess.run(_command(workdir, *arguments, **options), cwd=_ROOT, capture_output=True,
                        text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished smoke run: its directory and its process."""
  workdir = tmp_path_factory.mktemp("run")
  process = _launch(workdir)
  assert process.returncode == 0, process.stderr
  return workdir, process


def test_a_run_leaves_what_its_contract_says(finished):
  workdir, process = finished
  result = json.loads(process.stdout.splitlines()[-1])
  assert result == json.loads((workdir / "result.json").read_text())
  assert _RESULT_FIELDS <= result.keys()
  assert result["outer_steps"] == 6 and result["num_distilled_images"] == 10
  assert result["num_eval_inits"] == 1 and result["config"]["data"]["name"] == "digits"
  assert result["wall_seconds"] > result["compile_seconds"] > 0
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [2, 4, 6]
  assert json.loads((workdir / "config.json").read_text()) == result["config"]
  assert "validation" in process.stderr and "step/s" in process.stderr
  for name in ("distilled.png", "curves.png"):
    picture = mpl_image.imread(workdir / name)
    assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > .05


def test_the_file_gives_the_reported_accuracy(finished):
  """Everything needed lies in distilled.npz: weights, order, step sizes, normalisation."""
  workdir, process = finished
  distilled, params, metadata, _ = artifacts.load(workdir / "distilled.npz")
  assert distilled.images.shape == (1, 10, 28, 28, 1) and distilled.step_sizes.shape == (3, 1)
  model = getattr(models, metadata["model"])(num_classes=metadata["num_classes"],
                                             image_shape=distilled.images.shape[2:])
  loss = losses.classification(model.apply)
  trained, _ = dd_jax.inner_trajectory(loss, params, distilled)
  data = datasets.load(metadata["dataset"])
  images = datasets.normalize(data.test_images, metadata["mean"], metadata["std"])
  predicted = np.argmax(model.apply(trained, images), -1)
  accuracy = json.loads(process.stdout.splitlines()[-1])["accuracy_mean"]
  np.testing.assert_allclose(np.mean(predicted == data.test_labels), accuracy, atol=1e-6)


def test_a_finished_run_is_not_repeated(finished):
  workdir, process = finished
  before = (workdir / "result.json").stat().st_mtime_ns
  again = _launch(workdir)
  assert again.stdout == process.stdout
  assert (workdir / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_images(finished, tmp_path):
  """Killed once its first checkpoint lies there, then run again: bit for bit the same result."""
  with subprocess.Popen(_command(tmp_path / "run"), cwd=_ROOT, stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL) as process:
    while process.poll() is None and not (tmp_path / "run/checkpoints/4").exists():
      time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
  # Whether or not the kill came before the end, the command completes the run.
  process = _launch(tmp_path / "run")
  assert process.returncode == 0, process.stderr
  with np.load(tmp_path / "run/distilled.npz") as actual, \
      np.load(finished[0] / "distilled.npz") as expected:
    for name in ("images", "raw_step_sizes", "init/Conv_0/kernel"):
      np.testing.assert_array_equal(actual[name], expected[name])
  steps = [json.loads(line)["step"]
           for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert steps == [2, 4, 6]


@pytest.mark.slow
def test_the_main_job_of_the_readme_reaches_85_percent(tmp_path):
  process = _launch(tmp_path / "run", variant="")
  assert process.returncode == 0, process.stderr
  result = json.loads(process.stdout.splitlines()[-1])
  assert result["accuracy_mean"] >= .85 and result["num_distilled_images"] == 10
  assert result["accuracy_before_mean"] < .3


@pytest.mark.parametrize("arguments, variant, message", [
    (["--config.outer.num_stepz=3"], ":smoke",
     r"config\.outer\.num_stepz must be one of config\.\{.*outer\.num_steps.*\}"),
    (["--config.outer.num_steps=many"], ":smoke", r"outer\.num_steps=many: invalid literal"),
    (["--config.model.name=resnet"], ":smoke",
     r"model\.name must be one of \['alexcifarnet', 'alexnet', .*, 'vit'\]; got 'resnet'"),
    ([], ":tiny", "config variant must be '', 'smoke' or 'paper'; got 'tiny'"),
    (["now"], ":smoke", "every argument must be a flag; got 'now'"),
])
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_nothing(
    tmp_path, arguments, variant, message):
  process = _launch(tmp_path / "run", *arguments, variant=variant)
  assert process.returncode == 1 and process.stdout == ""
  assert len(process.stderr.splitlines()) == 1, process.stderr
  assert process.stderr.startswith("error: ")
  assert re.search(message, process.stderr), process.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field, value, message", [
    ("data.name", "imagenet", "name must be one of digits, mnist.*; got 'imagenet'"),
    ("data.num_validation", 5, r"num_validation must lie in 10\.\..*; got 5"),
    ("init.name", "trained",
     r"init\.name must be one of \['fixed', 'fixed_pretrained', 'imagenet', "
     r"'pretrained', 'random'\]"),
    ("init.weights", "he", r"init\.weights must be one of \['kaiming_fan_in'.*; got 'he'"),
    ("model.convolution", "fft",
     r"convolution must be one of \['fastest', .* 'winograd'\] or None; got 'fft'"),
    ("model.width", 3, "model.width must be left out for lenet, which has no such option; got 3"),
    ("model.name", "alexcifarnet", r"image_shape of alexcifarnet must be 32x32 .*\(28, 28, 1\)"),
    ("distill.num_steps", 0, "num_steps must be at least 1; got 0"),
    ("distill.num_epochs", 0, "num_epochs must be at least 1; got 0"),
    ("distill.images_per_class", -1, "images_per_class must be at least 1; got -1"),
    ("distill.step_size", 0., "step_size must be positive; got 0.0"),
    ("distill.step_size_scale", "exp", r"step_size_scale must be one of .*; got 'exp'"),
    ("distill.memory", "disk", r"memory must be one of .*; got 'disk'"),
    ("distill.gradient", "none", r"gradient must be one of .*; got 'none'"),
    ("outer.num_inits", 0, "num_inits must be at least 1; got 0"),
    ("outer.num_inits", 2, "num_inits must be 1 for a fixed init; got 2"),
    ("outer.batch_size", 1098, r"batch_size must lie in 1\.\.1097 .*; got 1098"),
    ("outer.chunk_size", 0, "chunk_size must be at least 1; got 0"),
    ("outer.learning_rate", -.1, r"outer\.learning_rate must be positive; got -0\.1"),
    ("outer.learning_rate", float("nan"), r"outer\.learning_rate must be positive; got nan"),
    ("outer.step_size_learning_rate", 0., r"outer\.step_size_learning_rate must be positive"),
    ("outer.weight_decay", -.1, r"outer\.weight_decay must not be negative; got -0\.1"),
    ("outer.clip_norm", 0., r"outer\.clip_norm must be positive; got 0\.0"),
    ("outer.schedule", "linear", r"outer\.schedule must be one of \['cosine', 'halving', 's"),
    ("outer.num_steps", 0, r"outer\.num_steps must be positive; got 0"),
    ("eval.num_inits", 200, "num_inits must be 1 for a fixed init; got 200"),
    ("eval.batch_size", 0, "batch_size must be at least 1; got 0"),
    ("checkpoint_every", 3, "checkpoint_every must be a multiple of log_every=2; got 3"),
    ("validation.every", 0, r"validation\.every must be a multiple of log_every=2; got 0"),
    ("validation.selection", "last",
     r"validation\.selection must be one of \['best', 'final'\]; got 'last'"),
    ("outer.on_nonfinite", "ignore",
     r"outer\.on_nonfinite must be one of \['halve', 'stop'\]; got 'ignore'"),
    ("parallel", "threads", r"parallel must be one of \['jit', 'pmap'\]; got 'threads'"),
    ("checkpoints_kept", 0, "checkpoints_kept must be positive; got 0"),
])
def test_a_bad_field_is_named_before_anything_is_written(tmp_path, field, value, message):
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message) as error:
    train.distill_and_evaluate(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_data_files_that_cannot_be_used_are_named(tmp_path):
  config = digits_fixed_init.get_config("smoke")
  for name, content, error, message in (
      ("mnist", None, FileNotFoundError, "mnist: nothing found in .*download=True"),
      (str(tmp_path / "own.npz"), b"PK\x03\x04 cut short", ValueError, "own.npz: expected a npz")):
    config.data.name, config.data.dir = name, str(tmp_path)
    if content:
      pathlib.Path(name).write_bytes(content)
    with pytest.raises(error, match=message):
      train.distill_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_refused(finished):
  config = digits_fixed_init.get_config("smoke")
  config.outer.learning_rate = .5
  with pytest.raises(ValueError, match=r"outer\.learning_rate is 0\.05 there and 0\.5 here"):
    workdirs.open_workdir(config, finished[0])


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("mine")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(OSError, match="workdir must be a directory that can be written; got"):
      workdirs.open_workdir(digits_fixed_init.get_config("smoke"), workdir)
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", _CONFIGS)
def test_every_config_is_documented_and_has_the_default_fields(name):
  module = importlib.import_module(f"experiments.configs.{name}")
  is_pool = name.endswith("_pool")
  fields = launcher.field_names((pool_default if is_pool else default).get_config())
  for variant in ("", "smoke"):
    config = module.get_config(variant)
    assert launcher.field_names(config) == fields
    if not is_pool:
      assert config.validation.every % config.log_every == 0
      assert config.checkpoint_every % config.log_every == 0
    if not is_pool and config.init.pool:
      pool = importlib.import_module(f"experiments.configs.{config.init.pool.split('/')[-1]}")
      assert pool.get_config().data.name == (config.init.source or config.data.name)
      assert f"--config=experiments/configs/{pool.__name__.split('.')[-1]}.py" in module.__doc__
  assert f"--config=experiments/configs/{name}.py" in module.__doc__


# Pre-trained networks and the objectives that need them


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
  """Smoke pools of digits: their directory and the result."""
  workdir = tmp_path_factory.mktemp("pools")
  process = subprocess.run(
      [sys.executable, "-m", "experiments.pretrain", f"--workdir={workdir}",
       "--config=experiments/configs/digits_lenet_pool.py:smoke"],
      cwd=_ROOT, capture_output=True, text=True, timeout=300)
  assert process.returncode == 0, process.stderr
  return workdir, json.loads(process.stdout.splitlines()[-1])


def _pretrained_config(pools, **updates):
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({
      "init.name": "pretrained", "init.pool": str(pools[0]), "init.num_validation": 1,
      "outer.num_inits": 2, "eval.num_inits": 3, **updates})
  return config


def test_pools_hold_networks_of_disjoint_seeds_with_their_accuracy(pools):
  workdir, result = pools
  train_pool, heldout_pool = (artifacts.load_pool(workdir / f"{role}.npz")
                              for role in ("train", "heldout"))
  weights = np.concatenate([pool.params["Conv_0"]["kernel"].reshape(3, -1)
                            for pool in (train_pool, heldout_pool)])
  distances = np.linalg.norm(weights[:, None] - weights, axis=-1)
  assert (distances + np.eye(6) > .5).all()  # Six different networks.
  data = datasets.load("digits")
  images = datasets.normalize(data.test_images, data.mean, data.std)
  model = models.lenet(num_classes=10, image_shape=(28, 28, 1))
  for network, accuracy in enumerate(heldout_pool.metadata["accuracy"]):
    params = {layer: {name: leaf[network] for name, leaf in leaves.items()}
              for layer, leaves in heldout_pool.params.items()}
    predicted = np.argmax(model.apply(params, images), -1)
    np.testing.assert_allclose(np.mean(predicted == data.test_labels), accuracy, atol=1e-6)
  np.testing.assert_allclose(result["heldout_accuracy_mean"],
                             np.mean(heldout_pool.metadata["accuracy"]))
  assert result["num_train"] == result["num_heldout"] == 3


@pytest.mark.slow
def test_an_interrupted_pool_continues_to_the_same_networks(pools, tmp_path):
  config = digits_lenet_pool.get_config("smoke")
  expected = artifacts.load_pool(pools[0] / "heldout.npz").params
  (tmp_path / "blocks").mkdir()
  for name in ("train-00000.npz", "heldout-00000.npz"):  # Of two blocks each.
    shutil.copy(pools[0] / "blocks" / name, tmp_path / "blocks")
  pretrain_pools(config, tmp_path)
  actual = artifacts.load_pool(tmp_path / "heldout.npz").params
  for layer, leaves in expected.items():
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(actual[layer][name], leaf)


@pytest.mark.slow
def test_a_run_from_a_pool_is_tested_on_the_networks_held_out(pools, tmp_path):
  result = train.distill_and_evaluate(_pretrained_config(pools), tmp_path / "run")
  np.testing.assert_allclose(result["accuracy_before_mean"], pools[1]["heldout_accuracy_mean"],
                             atol=1e-6)
  assert result["num_eval_inits"] == 3


@pytest.mark.slow
def test_a_run_from_one_network_of_a_pool_stores_it(pools, tmp_path):
  config = _pretrained_config(pools, **{"init.name": "fixed_pretrained", "outer.num_inits": 1,
                                        "eval.num_inits": 1, "validation.num_inits": 1})
  result = train.distill_and_evaluate(config, tmp_path / "run")
  pool = artifacts.load_pool(pools[0] / "train.npz")
  np.testing.assert_allclose(result["accuracy_before_mean"], pool.metadata["accuracy"][0],
                             atol=1e-6)
  params = artifacts.load(tmp_path / "run/distilled.npz").init_params
  np.testing.assert_array_equal(params["Conv_0"]["kernel"], pool.params["Conv_0"]["kernel"][0])


def test_poisoning_reports_both_of_its_figures(pools, tmp_path):
  config = _pretrained_config(pools, **{"objective.name": "poisoning", "distill.num_epochs": 1})
  result = train.distill_and_evaluate(config, tmp_path / "run")
  for name in ("attack_success", "others_accuracy"):
    for suffix in ("mean", "std", "before_mean", "before_std"):
      assert 0 <= result[f"{name}_{suffix}"] <= 1
  last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
  assert {"validation_attack_success", "validation_others_accuracy"} <= last.keys()


@pytest.mark.parametrize("updates, message", [
    ({"init.pool": ""}, "init.pool must be a directory that experiments.pretrain wrote; got ''"),
    ({"init.name": "imagenet"}, "init.checkpoint must be a file .* weights; got ''"),
    ({"init.name": "imagenet", "init.checkpoint": "weights.bin"},
     r"path must end in .safetensors, .npz, .pth; got weights.bin"),
    ({"init.pool": "nowhere"}, "No such file .*nowhere/train.npz"),
    ({"init.source": "mnist"},
     "init.pool must hold networks of dataset 'mnist'; those of .*train.npz have 'digits'"),
    ({"model.name": "mlp"},
     "init.pool must hold networks of model 'mlp'; those of .*train.npz have 'lenet'"),
    ({"data.image_shape": (32, 32, 3)}, r"networks of image_shape \[32, 32, 3\]; .*\[28, 28, 1\]"),
    ({"outer.num_inits": 3}, "num_inits must be at most the pool's 2 networks; got 3"),
    ({"validation.num_inits": 2}, "num_inits must be at most the pool's 1 networks; got 2"),
    ({"init.num_validation": 3}, r"init.num_validation must lie in 1\.\.2 .*; got 3"),
    ({"eval.num_inits": 4}, "num_inits must be at most the pool's 3 networks; got 4"),
    ({"objective.name": "poisoning", "objective.target_class": 0},
     "target_class must differ from attack_class; got 0 for both"),
    ({"objective.name": "poisoning", "objective.attack_class": 10},
     r"attack_class must lie in 0\.\.9; got 10"),
    ({"objective.name": "attack"}, "objective.name must be one of .*poisoning"),
])
def test_a_pool_or_objective_that_does_not_fit(pools, tmp_path, updates, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.distill_and_evaluate(_pretrained_config(pools, **updates), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change, message", [
    (lambda params, metadata: params["Dense_0"].pop("bias"),
     r"with Dense_0/bias \(120,\); in .*train.npz it is absent"),
    (lambda params, metadata: params.update(extra={"w": np.zeros((3, 2))}),
     r"with extra/w absent; in .*train.npz it is \(2,\)"),
    (lambda params, metadata: params["Conv_0"].update(bias=np.zeros((3, 7))),
     r"with Conv_0/bias \(6,\); in .*train.npz it is \(7,\)"),
    (lambda params, metadata: metadata.update(role="heldout"), "two pools of different seeds"),
])
def test_a_pool_that_was_tampered_with(pools, tmp_path, change, message):
  for role in ("train", "heldout"):
    shutil.copy(pools[0] / f"{role}.npz", tmp_path)
  params, metadata = artifacts.load_pool(tmp_path / "train.npz")
  change(params, metadata)
  artifacts.save_pool(tmp_path / "train.npz", params, metadata)
  with pytest.raises(ValueError, match=message):
    train.build(_pretrained_config((tmp_path,)))


def test_no_command_defines_a_flag_of_another():
  """All of them in one process, as a test suite imports them."""
  names = [path.stem for path in (_ROOT / "experiments").glob("*.py")
           if path.stem != "torch_reference"]
  program = "; ".join(f"import experiments.{name}" for name in sorted(names))
  process = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True,
                           text=True, timeout=100)
  assert process.returncode == 0, process.stderr
