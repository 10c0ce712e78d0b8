"""Directories held by one process, runs that go on, and what the command line takes and refuses."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dd_jax.files import artifacts
from dd_jax.files import exports
from dd_jax import step_sizes
from dd_jax.files import torch_files
from experiments import applications
from experiments import compare
from experiments import launcher
from experiments import paths
from experiments import pools
from experiments import sweeps
from experiments import train
from experiments import transfers
from experiments import workdirs
from experiments.configs import default
from experiments.configs import digits_fixed_init
from experiments.configs import digits_lenet_pool
from experiments.configs import pool_default
from experiments.configs import transfer

_ROOT = pathlib.Path(__file__).parent.parent
_SMOKE = "--config=experiments/configs/digits_fixed_init.py:smoke"

# The trees of optax's Adam need promotion; the launcher's own processes have no strict setting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


def _config(**updates):
  """Twenty steps of a network that compiles at once, with a schedule that no length changes."""
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({
      "model.name": "mlp", "outer.num_steps": 20, "outer.schedule": "halving", **updates})
  return config


def _launch(module, *arguments, **environment):
  return subprocess.run([sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
                        cwd=_ROOT, capture_output=True, text=True, timeout=300,
                        env={**os.environ, **environment})


def _error(process):
  """The one line of a process that was refused."""
  assert process.returncode == 1 and process.stdout == "", process.stderr
  (line,) = process.stderr.splitlines()
  return line


def _assert_same_files(workdir, expected):
  with np.load(workdir / "distilled.npz") as actual, \
      np.load(expected / "distilled.npz") as reference:
    assert set(actual) == set(reference)
    for name in set(reference) - {"metadata"}:
      np.testing.assert_array_equal(actual[name], reference[name])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of twenty steps."""
  workdir = tmp_path_factory.mktemp("finished")
  with jax.numpy_dtype_promotion("standard"):
    train.distill_and_evaluate(_config(), workdir)
  return workdir


# One process for a directory


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_one_lives_and_not_after_it(tmp_path):
  command = [_SMOKE, "--config.model.name=mlp", "--config.outer.num_steps=100000",
             f"--workdir={tmp_path / 'run'}"]
  first = subprocess.Popen([sys.executable, "-m", "experiments.main", *command], cwd=_ROOT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/checkpoints/4").exists() and time.monotonic() < deadline:
      assert first.poll() is None
      time.sleep(.05)
    before = (tmp_path / "run/config.json").stat().st_mtime_ns
    assert _error(_launch("main", *command)).startswith(
        "error: workdir must be written by one process at a time; "
        f"{tmp_path / 'run'} is held by process {first.pid} of ")
    assert (tmp_path / "run/config.json").stat().st_mtime_ns == before
    assert first.poll() is None
  finally:
    first.kill()
    first.wait(timeout=60)
  last = max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()
             if path.name.isdigit())
  second = subprocess.Popen([sys.executable, "-m", "experiments.main", *command], cwd=_ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  try:
    begins = next(line for line in second.stderr if "error" in line or "begins at" in line)
    assert int(begins.split()[-1]) >= last - 4
  finally:
    second.kill()
    second.communicate(timeout=60)


@pytest.mark.parametrize("command", [
    lambda workdir: train.distill_and_evaluate(_config(), workdir),
    lambda workdir: pools.pretrain_pools(digits_lenet_pool.get_config("smoke"), workdir),
    lambda workdir: compare.compare_baselines(_config(), workdir),
    lambda workdir: sweeps.sweep(_config(), workdir, "steps", [0]),
])
def test_every_command_refuses_a_directory_that_is_held(tmp_path, command):
  with workdirs.held(tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"held by process {os.getpid()} of "):
      command(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_transfer_refuses_a_directory_that_is_held(finished, tmp_path):
  config = transfer.get_config("smoke")
  config.distilled = str(finished / "distilled.npz")
  with workdirs.held(tmp_path):
    with pytest.raises(ValueError, match="one process at a time"):
      transfers.compare_networks(config, tmp_path)


# Seeds


@pytest.mark.parametrize("seed", [-1, 2 ** 32])
def test_seeds_of_more_than_32_bits_are_refused_by_name(tmp_path, seed):
  def with_seed(config):
    config.seed = seed
    return config

  for name, command in (
      ("seed", lambda: train.distill_and_evaluate(_config(seed=seed), tmp_path / "run")),
      ("seed", lambda: compare.compare_baselines(_config(seed=seed), tmp_path / "run")),
      ("seed", lambda: pools.pretrain_pools(
          with_seed(digits_lenet_pool.get_config("smoke")), tmp_path / "run")),
      ("seed", lambda: transfers.compare_networks(
          with_seed(transfer.get_config("smoke")), tmp_path / "run")),
      ("--seeds", lambda: sweeps.sweep(_config(), tmp_path / "run", "steps", [0, seed])),
      ("--seed", lambda: applications.apply_file(tmp_path / "none.npz", seed=seed))):
    with pytest.raises(ValueError) as error:
      command()
    assert str(error.value) == f"{name} must lie in 0..4294967295; got {seed}"
  assert not (tmp_path / "run").exists()


def test_the_largest_seed_is_another_one_than_zero():
  from experiments import problem
  draws = [np.asarray(jax.random.normal(problem.make_keys(seed)["init"], (3,)))
           for seed in (0, 2 ** 32 - 1)]
  assert (draws[0] != draws[1]).all()


# Fields that may be empty


@pytest.mark.parametrize("fields, file", [
    (default.get_config(), "default"), (pool_default.get_config(), "pool_default"),
    (transfer.get_config(), "transfer")])
def test_every_empty_field_can_be_set_and_emptied_again(tmp_path, fields, file):
  values = {float: .5, int: 3, str: "'some'", tuple: (3, 2)}
  empty = [name for name in launcher.field_names(fields)
           if launcher.value_of(fields, name) is None]
  assert empty
  setting = "\n".join(
      f"  config.{name} = {values[_type_of(fields, name)]}" for name in empty)
  (tmp_path / "filled.py").write_text(
      f"from experiments.configs import {file}\ndef get_config():\n"
      f"  config = {file}.get_config()\n{setting}\n  return config\n")
  script = ("import json, sys\nfrom experiments import launcher\n"
            f"from experiments.configs import {file}\n"
            "launcher.launch(lambda config, workdir: json.loads(config.to_json()),\n"
            f"                {file}.get_config())")

  def run(*arguments):
    process = subprocess.run(
        [sys.executable, "-c", script, f"--config={tmp_path / 'filled.py'}", "--workdir=none",
         *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return workdirs.flatten(json.loads(process.stdout.splitlines()[-1]))

  filled, emptied = run(), run(*(f"--config.{name}=None" for name in empty))
  assert all(filled[name] is not None and emptied[name] is None for name in empty)
  assert emptied == workdirs.flatten(json.loads(fields.to_json()))


def _type_of(config, name):
  *sections, field = name.split(".")
  for section in sections:
    config = config[section]
  return config.get_type(field)


@pytest.mark.parametrize("field", ["seed", "data.dir", "outer.learning_rate", "inner.learned"])
def test_a_field_that_needs_a_value_is_not_emptied(tmp_path, field):
  line = _error(_launch("main", _SMOKE, f"--config.{field}=None", f"--workdir={tmp_path / 'run'}"))
  assert line.startswith("error: ") and field in line and "None" in line
  assert not (tmp_path / "run").exists()


# More outer steps


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps(finished, tmp_path):
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  shutil.copytree(finished, workdir)
  # An end between two dispatches, too: 31 is no multiple of log_every.
  train.distill_and_evaluate(_config(**{"outer.num_steps": 31}), workdir)
  result = train.distill_and_evaluate(_config(**{"outer.num_steps": 40}), workdir)
  expected = train.distill_and_evaluate(_config(**{"outer.num_steps": 40}), whole)
  _assert_same_files(workdir, whole)
  assert result["outer_steps"] == 40
  assert result["accuracy_mean"] == expected["accuracy_mean"]
  assert json.loads((workdir / "result.json").read_text()) == result
  assert json.loads((workdir / "config.json").read_text()) == result["config"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert lines[-1]["step"] == 40 and [line["step"] for line in lines][:10] == [*range(2, 21, 2)]
  assert "40" in (workdir / "report.html").read_text()


def test_a_run_that_is_being_lengthened_may_be_broken_off(finished, tmp_path):
  """After config.json, before the first new step: the longer command goes on."""
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  longer = _config(**{"outer.num_steps": 24})
  assert workdirs.open_run(longer, tmp_path) is None
  assert not (tmp_path / "result.json").exists()
  assert train.distill_and_evaluate(longer, tmp_path)["outer_steps"] == 24


@pytest.mark.parametrize("updates, message", [
    ({"outer.num_steps": 10}, "outer.num_steps is 20 there and 10 here"),
    ({"outer.num_steps": 30, "seed": 1}, "seed is 0 there and 1 here"),
])
def test_other_changes_of_a_finished_run_are_refused(finished, updates, message):
  before = (finished / "result.json").read_bytes()
  with pytest.raises(ValueError, match=f"but for a larger outer.num_steps; in .*{message}"):
    train.distill_and_evaluate(_config(**updates), finished)
  assert (finished / "result.json").read_bytes() == before


# A start from a finished file


def test_a_run_starts_from_a_finished_file(finished, tmp_path):
  start = str(finished / "distilled.npz")
  for name, labels in (("soft", "soft"), ("hard", "hard")):
    from experiments import problem
    built = problem.build(_config(**{"distill.start": start, "distill.labels": labels, "seed": 3}))
    actual, expected = built.decode(built.state.trainable), artifacts.load(start).distilled
    np.testing.assert_array_equal(actual.images, expected.images)
    np.testing.assert_allclose(actual.raw_step_sizes, expected.raw_step_sizes, rtol=1e-5)
    np.testing.assert_array_equal(
        actual.labels, expected.labels if name == "hard" else np.eye(10)[expected.labels])
  result = train.distill_and_evaluate(
      _config(**{"distill.start": start, "distill.labels": "soft", "outer.num_steps": 2}),
      tmp_path / "soft")
  # The soft labels of that run are a start too.
  again = problem.build(_config(**{"distill.start": str(tmp_path / "soft/distilled.npz"),
                                   "distill.labels": "soft"}))
  np.testing.assert_array_equal(again.decode(again.state.trainable).labels,
                                artifacts.load(tmp_path / "soft/distilled.npz").distilled.labels)
  assert result["config"]["distill"]["start"] == start


@pytest.mark.parametrize("updates, message", [
    ({"distill.images_per_class": 2},
     r"images \[S, B, H, W, C\] \[1, 20, 28, 28, 1\]; .* has \[1, 10"),
    ({"distill.num_epochs": 2}, r"step sizes \[E, S\] \[2, 1\]; .* has \[3, 1\]"),
    ({"data.whitening": .1}, r"whitening 0\.1; .* has None"),
    ({"distill.labels": "tied"}, "distill.labels must be 'soft' to start from the labels of"),
    ({"distill.images": "bases"}, "distill.images must be 'pixels' for distill.start="),
    ({"distill.start": "zeros"}, "distill.start must be 'noise', 'real' or the path of a disti"),
    ({"distill.start": "none.npz"}, "none.npz"),
])
def test_a_start_that_does_not_fit_is_refused(finished, tmp_path, updates, message):
  config = _config(**{"distill.start": str(finished / "distilled.npz"), **updates})
  with pytest.raises((ValueError, OSError), match=message):
    train.distill_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sharing, start, shape", [
    ("per_step", [[.1, .2], [.3, .4]], (2, 2)), ("per_epoch", [[.1, .1], [.3, .3]], (2, 1)),
    ("tied", [[.1, .1], [.1, .1]], (1, 1))])
@pytest.mark.parametrize("scale", ["softplus", "log"])
def test_step_sizes_start_at_given_ones(sharing, start, shape, scale):
  part = step_sizes.learned(2, 2, np.array(start, np.float32), scale=scale, sharing=sharing)
  learned = part.init(jax.random.key(0))
  assert learned.shape == shape
  np.testing.assert_allclose(jax.nn.softplus(part.decode(learned)), start, rtol=1e-5)
  if sharing != "per_step":
    with pytest.raises(ValueError, match="must be alike where step sizes are shared"):
      step_sizes.learned(2, 2, np.array([[.1, .2], [.3, .4]]), sharing=sharing)
  with pytest.raises(ValueError, match=r"a number or \[E, S\] = \[3, 2\]; got \[2, 2\]"):
    step_sizes.learned(3, 2, np.array(start), sharing=sharing)


# Paths


@pytest.mark.slow
def test_the_home_directory_is_expanded_and_addresses_are_refused(tmp_path):
  address = _launch("main", _SMOKE, "--workdir=gs://bucket/run")
  assert _error(address) == "error: workdir must be a local path; got 'gs://bucket/run'"
  assert not (_ROOT / "gs:").exists()
  process = _launch("main", _SMOKE, "--config.model.name=mlp", "--workdir=~/x", HOME=str(tmp_path))
  assert process.returncode == 0, process.stderr
  assert (tmp_path / "x/result.json").exists() and not (_ROOT / "~").exists()
  for module, arguments in (
      ("export", ["--distilled=~/x/distilled.npz", "--to=png", "--out=~/png"]),
      ("report", ["~/x", "--out=~/page.html"]),
      ("apply", ["--distilled=~/x/distilled.npz"])):
    process = _launch(module, *arguments, HOME=str(tmp_path))
    assert process.returncode == 0, process.stderr
  assert (tmp_path / "png").is_dir() and (tmp_path / "page.html").exists()


def test_a_path_that_is_an_address_names_its_flag():
  with pytest.raises(ValueError, match="--out must be a local path; got 's3://a/b'"):
    paths.local("s3://a/b", "--out")


# Machines


@pytest.mark.parametrize("platform", ["cuda", pytest.param("unheard", marks=pytest.mark.slow)])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platform):
  if platform == "cuda" and jax.default_backend() == "gpu":
    pytest.skip("This machine has one.")
  for module, arguments in (
      ("main", [_SMOKE, f"--workdir={tmp_path / 'run'}"]),
      ("linear", [f"--out={tmp_path / 'linear.json'}"])):
    process = _launch(module, *arguments, JAX_PLATFORMS=platform)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()  # linear has printed the head of its table before.
    assert line.startswith("error: JAX_PLATFORMS must name platforms that this machine has; got "
                           f"'{platform}'")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_needs_no_module_of_unix_alone(tmp_path):
  """As on Windows, but for the lock, which is another module's there."""
  script = ("import runpy, sys\nsys.modules['resource'] = None\n"
            "runpy.run_module('experiments.main', run_name='__main__', alter_sys=True)")
  process = subprocess.run(
      [sys.executable, "-c", script, _SMOKE, "--config.model.name=mlp",
       f"--workdir={tmp_path / 'run'}"], cwd=_ROOT, capture_output=True, text=True, timeout=300)
  assert process.returncode == 0, process.stderr
  result = json.loads(process.stdout.splitlines()[-1])
  assert result["peak_memory_bytes"] is None or jax.default_backend() == "gpu"
  assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("content, message", [
    ("raise OSError('libcudart.so.12: cannot open\\nshared object file')",
     r"a \.pt file needs PyTorch 2\.6 or newer; the one installed cannot be loaded: "
     r"libcudart\.so\.12: cannot open shared object file$"),
    ("import torch_part_that_is_missing", "cannot be loaded: No module named 'torch_part_that"),
    ("raise ImportError('libcublas.so.12: cannot open')", "cannot be loaded: libcublas"),
    ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
     r'newer: pip install "dd_jax\[export\]"$'),
])
def test_a_pytorch_that_cannot_be_loaded_is_not_called_missing(
    tmp_path, monkeypatch, content, message):
  (tmp_path / "torch.py").write_text(content)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "torch", raising=False)
  with pytest.raises(ImportError, match=message):
    torch_files.import_torch(".pt")
  (tmp_path / "file.pt").write_bytes(b"nothing")
  with pytest.raises(ImportError, match=message):
    exports.load(tmp_path / "file.pt", "tensors")
