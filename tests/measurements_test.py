"""The measuring commands: rows that agree with PyTorch's, exponents, settings that are refused."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import dd_jax
from dd_jax import datasets
from dd_jax.files import artifacts
from dd_jax.runs.provenance import source
from experiments.configs import digits_fixed_init
from experiments.measurements import bench
from experiments.measurements import jax_side
from experiments.measurements import linear
from experiments.measurements import memory
from experiments.measurements import plain_jax
from experiments.measurements import same_figures
from experiments.measurements import storage
from tests.launches import SMOKE, error_of, launch, start_anew

_ROOT = pathlib.Path(__file__).parent.parent
_MEASUREMENTS = _ROOT / "experiments" / "measurements"


def _run(*arguments):
  return subprocess.run([sys.executable, "-m", *arguments], cwd=_ROOT, capture_output=True,
                        text=True, timeout=500, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_bench_refuses_an_unknown_setting(tmp_path):
  process = _run("experiments.measurements.bench", f"--out={tmp_path / 'bench.json'}",
                 "--settings=mnist")
  assert process.returncode == 1
  assert "error: settings must be of ['cifar10_fixed_n1'" in process.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.SETTINGS)
def test_bench_writes_every_row(tmp_path, name):
  """With PyTorch where it is installed, and then only if both sides agree."""
  out = tmp_path / "bench.json"
  process = _run("experiments.measurements.bench", f"--out={out}", f"--settings={name}",
                 "--rounds=1", "--real_batch=16", "--num_steps=1")
  assert process.returncode == 0, process.stderr
  (row,) = json.loads(out.read_text())["settings"]
  assert row["name"] == name and row["matmul_gflops"] > 0
  assert f"{row['matmul_gflops']:.0f}" == process.stdout.split()[-1]
  assert min(row["samples"]["ours"]) <= row["seconds_ours"] <= max(row["samples"]["ours"])
  # Multiplications and additions of a forward pass, two operations each: LeNet has 0.42
  # million, AlexCifarNet 33; those with a border's zeros are not counted.
  setting = bench.SETTINGS[name]
  forward = row["gflop"] * 1e3 / (3 * 16 + 9 * 30) / setting.num_inits
  assert {"lenet": .8, "alexcifarnet": 60}[setting.network] < forward
  assert forward < {"lenet": 1, "alexcifarnet": 66}[setting.network]
  assert row["gflops"] == pytest.approx(row["gflop"] / row["seconds_ours"])
  assert ("ratio" in row) == (importlib.util.find_spec("torch") is not None)


@pytest.mark.usefixtures("optax_promotion")
def test_both_sides_of_a_row_agree():
  pytest.importorskip("torch")
  from experiments.measurements import torch_reference
  setting = bench.SETTINGS["mnist_random_n4"]._replace(num_steps=1, real_batch=16)
  ours = jax_side.JaxSide(setting, "highest")
  theirs = torch_reference.TorchSide(setting._asdict(), ours.inputs(), "cpu", "highest")
  for mode in theirs.modes():
    bench._check_agreement(mode, theirs.hypergradient64(mode), ours.hypergradient64())


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_the_hypergradient_of_a_row_is_the_mean_over_its_networks():
  """That of four networks one after the other, against four rows of one network each."""
  setting = bench.SETTINGS["mnist_random_n4"]._replace(num_steps=1, real_batch=16)
  four = jax_side.JaxSide(setting, "highest")
  loss, gradient = four.hypergradient64()
  networks = four._theta_0
  one = jax_side.JaxSide(setting._replace(num_inits=1), "highest")
  singles = []
  for n in range(4):
    one._theta_0 = jax.tree.map(lambda leaf, n=n: leaf[n:n + 1], networks)
    singles.append(one.hypergradient64())
  assert loss == pytest.approx(np.mean([single[0] for single in singles]), rel=1e-10)
  for leaf, expected in gradient.items():
    mean = np.mean([single[1][leaf] for single in singles], axis=0)
    np.testing.assert_allclose(expected, mean, rtol=0, atol=1e-10 * np.abs(mean).max())


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", ["mnist_fixed_n1", "mnist_random_n4", "cifar10_random_n4"])
def test_the_step_by_hand_is_the_same_step(name):
  setting = bench.SETTINGS[name]._replace(num_steps=1, real_batch=16)
  ours = jax_side.JaxSide(setting, "highest")
  by_hand = plain_jax.PlainSide(setting._asdict(), ours.inputs(), "highest")
  expected = ours.hypergradient64()
  bench._check_agreement("by hand", by_hand.hypergradient64(), expected)
  by_hand.step()
  assert by_hand.report()["plain_temporary_bytes"] > 0
  _, in_float32 = ours.hypergradient()
  for leaf, values in expected[1].items():  # 1e-4; 1e-3 where a ReLU flips on a rounding error.
    assert np.linalg.norm(in_float32[leaf] - values) < 1e-2 * np.linalg.norm(values)


@pytest.mark.slow
@pytest.mark.parametrize("part, expected", [
    ("precision", {"setting": ["mnist_random"], "precision": ["highest"]}),
    ("rows", {"num_inits": [2]}), ("memory", {"memory": [3, 3], "T": [10, 20]}),
    ("convolution", {"convolution": ["lax", "the backend's"]}),
    ("dispatch", {"steps_per_dispatch": [1, 3]})])
def test_the_accelerator_s_script_runs_in_small(tmp_path, part, expected):
  out = tmp_path / "accelerator.json"
  process = _run("experiments.measurements.accelerator", f"--out={out}", "--small",
                 f"--parts={part}")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  assert report["small"] and report["machine"]["backend"] == "cpu"
  rows = report[part]
  assert {name: [row[name] for row in rows] for name in expected} == expected
  for row in rows:
    assert row.get("error_inputs", 0) < 1e-4
    for name in ("ratio_by_hand", "seconds", "steps_per_second", "temporary_bytes"):
      assert row.get(name, 1) > 0


def test_the_accelerator_s_script_without_one(tmp_path):
  process = _run("experiments.measurements.accelerator", f"--out={tmp_path / 'out.json'}")
  assert process.returncode == 1 and process.stderr.splitlines() == [
      "error: --small must be given where there is no accelerator; the backend is 'cpu'"]
  assert not list(tmp_path.iterdir())


def test_sides_that_disagree_end_the_bench():
  with pytest.raises(SystemExit, match="both sides must agree to 0.0001; vmap: .*'images': 0.5"):
    bench._check_agreement("vmap", (1., {"images": np.ones(3)}), (1., {"images": np.full(3, 2.)}))


@pytest.mark.slow
def test_memory_writes_rows_and_a_plot(tmp_path):
  out = tmp_path / "memory.json"
  process = _run("experiments.measurements.memory", f"--out={out}", "--lengths=100,400",
                 "--memory=nested,4", "--gradient=reverse")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  assert [(row["memory"], row["T"]) for row in report["rows"]] == [
      (4, 100), (4, 400), ("nested", 100), ("nested", 400)]
  assert report["exponents"]["nested, reverse"] < .6  # 2 sqrt(T) sets of weights and a constant.
  assert report["exponents"]["4, reverse"] < .1
  assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_storages_take_turns_to_the_same_state():
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({"model.name": "mlp", "log_every": 2})
  rows = storage.measure(config, turns=2)
  assert [row["storage"] for row in rows] == ["device", "host", "stream"]
  for row in rows:
    assert row["outer_steps_per_second"] == pytest.approx(2 / np.median(row["samples"]))


def test_the_large_set_is_one_that_is_read_from_its_files(tmp_path):
  number = storage.write_large(tmp_path / "large", .03)
  assert number == 9765
  dataset = datasets.load(tmp_path / "large", reading=datasets.Reading(in_files=True))
  assert isinstance(dataset.train_images, datasets.Rows) and dataset.num_classes == 2
  bright = dataset.train_images.read(np.arange(10))[:, :16].mean((1, 2, 3)) > 110
  np.testing.assert_array_equal(bright, dataset.train_labels[:10])


def test_the_exponent_is_the_slope_of_the_logarithms():
  rows = [{"T": length, "temporary_bytes": 7 * length ** .5} for length in (10, 100, 400, 3000)]
  assert memory.exponent(rows) == pytest.approx(.5)


@pytest.mark.parametrize("num_points, bound", [(1, 1.), (2, 0.)])
def test_a_row_of_the_linear_case_reaches_the_bound(x64, optax_promotion, num_points, bound):
  rows = linear.measure(num_points, dimension=2, std=1., num_seeds=2, num_steps=500)
  assert [(row["M"], row["seed"], row["bound"]) for row in rows] == [
      (num_points, 0, bound), (num_points, 1, bound)]
  assert all(abs(row["residual"] - bound) < 1e-3 < row["residual_before"] for row in rows)


@pytest.mark.slow
def test_linear_writes_rows_and_a_plot(tmp_path):
  out = tmp_path / "new" / "linear.json"
  process = _run("experiments.measurements.linear", f"--out={out}", "--dimension=2", "--seeds=2",
                 "--steps=500")
  assert process.returncode == 0, process.stderr
  rows = json.loads(out.read_text())["rows"]
  assert [(row["M"], row["seed"], row["bound"]) for row in rows] == [
      (1, 0, 1.), (1, 1, 1.), (2, 0, 0.), (2, 1, 0.), (3, 0, 0.), (3, 1, 0.)]
  assert all(abs(row["residual"] - row["bound"]) < 1e-3 < row["residual_before"] for row in rows)
  assert out.with_suffix(".png").stat().st_size > 1000


def test_the_kept_measurement_of_the_linear_case_reaches_the_bound_for_every_m():
  rows = json.loads((_MEASUREMENTS / "linear.json").read_text())["rows"]
  assert {row["M"] for row in rows} == set(range(1, 7))
  for row in rows:
    assert row["bound"] == row["sigma"] ** 2 * max(row["D"] - row["M"], 0)
    assert row["residual"] == pytest.approx(row["bound"], abs=1e-3)


@pytest.mark.slow
def test_time_to_accuracy_of_two_seeds(tmp_path):
  out = tmp_path / "times.json"
  process = start_anew("experiments.measurements.time_to_accuracy", "--seeds=1,2", f"--out={out}",
                       f"--command={SMOKE} --config.model.name=mlp")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  assert report == json.loads(process.stdout.splitlines()[-1])
  assert [row["seed"] for row in report["runs"]] == [1, 2]
  assert all(row["seconds"] > row["compile_seconds"] > 0 for row in report["runs"])
  assert report["accuracy_mean"] == pytest.approx(
      sum(row["accuracy_mean"] for row in report["runs"]) / 2)
  failed = start_anew("experiments.measurements.time_to_accuracy", "--seeds=1", f"--out={out}",
                      f"--command={SMOKE} --config.model.name=none")
  assert failed.returncode == 1 and "error: seed 0 ended with 1: error: " in failed.stderr


@pytest.mark.slow
def test_two_halves_are_distilled_and_merged(tmp_path):
  """In small, on the smaller digits in MNIST's place, enough to set its validation images aside."""
  images, labels = load_digits(return_X_y=True)
  images = np.pad(images.reshape(-1, 8, 8).astype(np.uint8) * 15, ((0, 0), (10, 10), (10, 10)))
  np.savez(tmp_path / "mnist.npz", train_images=np.tile(images[:1500], (4, 1, 1)),
           train_labels=np.tile(labels[:1500], 4), test_images=images[1500:],
           test_labels=labels[1500:])
  out = tmp_path / "merging.json"
  process = _run("experiments.measurements.merging", f"--data_dir={tmp_path}", f"--out={out}",
                 f"--workdir={tmp_path / 'runs'}", "--variant=smoke")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  for name in ("low", "high", "all"):
    result = json.loads((tmp_path / f"runs/{name}/result.json").read_text())
    assert report[name]["accuracy_mean"] == result["accuracy_mean"]
  merged = dd_jax.files.merge([artifacts.load(tmp_path / f"runs/{name}/distilled.npz")
                               for name in ("low", "high")])
  assert merged.distilled.labels.tolist() == [[*range(10)]] * 10


def test_last_bits_are_changed_as_a_user_starts_it(tmp_path):
  (path,) = (_ROOT / "experiments/results/distilled").glob("digits_fixed_init-*.npz")
  out = tmp_path / "rounding.json"
  process = launch("experiments.measurements.rounding", f"--files={path}", "--times=2",
                   f"--out={out}")
  assert process.returncode == 0, process.stderr
  (found,) = json.loads(out.read_text())["files"].values()
  assert found["accuracies"] == pytest.approx([found["reported"]] * 3, abs=1e-3)
  (other,) = (_ROOT / "experiments/results/distilled").glob("wine_*.npz")
  process = launch("experiments.measurements.rounding", f"--files={other}", f"--out={out}")
  assert "files must hold the weights of one network" in error_of(process)


@pytest.mark.slow
def test_the_same_code_gives_the_same_figures_and_another_run_others(tmp_path):
  runs = [same_figures.figures(_ROOT, tmp_path / str(i), "", {"wine_random_init": num_steps})
          for i, num_steps in enumerate((2, 2, 3))]
  assert runs[0] == runs[1] and runs[0][0] == source()
  assert runs[2][1]["wine_random_init"] != runs[0][1]["wine_random_init"]


def test_versions_are_compared_of_checkouts_alone(tmp_path):
  process = launch("experiments.measurements.same_figures", f"--before={tmp_path}",
                   f"--out={tmp_path / 'out.json'}")
  assert error_of(process) == f"error: before must be a checkout of this project; got {tmp_path}"
  assert not list(tmp_path.iterdir())
