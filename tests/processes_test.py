"""Several processes share one run, each launched as the README says; one of them dies."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dd_jax.runs import processes
from tests.launches import free_address

_ROOT = pathlib.Path(__file__).parents[1]
# Of a network that compiles at once, four networks a step.
_ARGUMENTS = ("--config=experiments/configs/digits_fixed_init.py:smoke", "--config.model.name=mlp",
              "--config.init.name=random", "--config.outer.num_inits=4",
              "--config.eval.num_inits=6", "--config.validation.num_inits=3")


def _start(workdir, num_devices, *arguments):
  return subprocess.Popen(
      [sys.executable, "-m", "experiments.main", *_ARGUMENTS, f"--workdir={workdir}", *arguments],
      cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu",
           "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"})


def _start_pair(workdir, *arguments, of_second=()):
  coordinator = f"--coordinator={free_address()}"
  return [_start(workdir, 2, coordinator, "--num_processes=2", f"--process_id={index}", *arguments,
                 *(of_second if index else ())) for index in (0, 1)]


def _finish(processes, timeout=300):
  """Statuses, outputs and errors."""
  texts = [process.communicate(timeout=timeout) for process in processes]
  return [process.returncode for process in processes], *zip(*texts)


def test_bytes_of_any_size_reach_the_others_in_pieces(monkeypatch):
  monkeypatch.setattr(processes, "_PIECE_BYTES", 3)
  for content in (b"", b"ab", b"abc", b"abcdefgh"):
    assert processes._from_first_bytes(content) == content


@pytest.mark.slow
def test_sigterm_ends_a_process_that_has_joined_others_and_not_begun():
  process = subprocess.Popen(
      [sys.executable, "-c", "import time; from dd_jax.runs import processes; "
       f"processes.start('{free_address()}', 1, 0); print('ready', flush=True); time.sleep(60)"],
      cwd=_ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  try:
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM
  finally:
    process.kill()
    process.stdout.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A finished run of two processes with two devices each: its directory and its outputs."""
  workdir = tmp_path_factory.mktemp("pair")
  statuses, outputs, errors = _finish(_start_pair(workdir))
  assert statuses == [0, 0], errors
  return workdir, outputs


def _result(workdir):
  return json.loads((workdir / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["host", "stream"])
def test_processes_that_read_their_shares_get_the_same_arrays(pair, tmp_path, storage):
  statuses, _, errors = _finish(_start_pair(tmp_path, f"--config.data.storage={storage}"))
  assert statuses == [0, 0], errors
  with np.load(tmp_path / "distilled.npz") as actual, \
      np.load(pair[0] / "distilled.npz") as expected:
    for name in ("images", "labels", "step_sizes"):
      np.testing.assert_array_equal(actual[name], expected[name])
  assert _result(tmp_path)["accuracy_mean"] == _result(pair[0])["accuracy_mean"]


@pytest.mark.slow
def test_two_processes_equal_one(pair, tmp_path):
  """The same four devices; and one device up to rounding, which Adam enlarges step by step."""
  workdir, outputs = pair
  assert json.loads(outputs[0].splitlines()[-1]) == _result(workdir)
  assert "accuracy" not in outputs[1]
  assert _result(workdir)["device"] == "4 x cpu"
  for name, num_devices in (("four", 4), ("one", 1)):
    statuses, _, errors = _finish([_start(tmp_path / name, num_devices)])
    assert statuses == [0], errors
    first = [json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
             for directory in (workdir, tmp_path / name)]
    for measured in ("loss", "hypergradient_norm"):
      np.testing.assert_allclose(first[0][measured], first[1][measured], rtol=1e-4)
    np.testing.assert_allclose(_result(workdir)["accuracy_mean"],
                               _result(tmp_path / name)["accuracy_mean"], atol=.01)
  with np.load(workdir / "distilled.npz") as actual, \
      np.load(tmp_path / "four/distilled.npz") as expected:
    for name in ("images", "step_sizes"):
      np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_of_two_processes_dies_the_other_ends_and_the_pair_continues(tmp_path, dies):
  # So many steps that it cannot end first.
  arguments = ("--config.outer.num_steps=2000", "--config.checkpoint_every=200",
               "--config.validation.every=200")
  processes = _start_pair(tmp_path / "run", *arguments)
  try:
    while not any(path.name.isdigit() for path in (tmp_path / "run/checkpoints").glob("*")):
      assert all(process.poll() is None for process in processes)
      time.sleep(.05)
    processes[dies].send_signal(signal.SIGKILL)
    _, error = processes[1 - dies].communicate(timeout=60)
    assert processes[1 - dies].returncode not in (0, None)
    assert "error: another process of this run has ended or cannot be reached" in error, error
  finally:
    for process in processes:
      process.kill()
      process.wait(timeout=60)
  statuses, _, errors = _finish(_start_pair(tmp_path / "run", *arguments))
  assert statuses == [0, 0], errors
  assert int(re.search(r"begins at outer step (\d+)", errors[0])[1]) >= 200
  assert _result(tmp_path / "run")["outer_steps"] == 2000


@pytest.mark.slow
def test_processes_of_different_configs_end_with_the_difference(tmp_path):
  statuses, _, errors = _finish(_start_pair(tmp_path / "run", of_second=["--config.seed=3"]))
  assert statuses == [1, 1]
  for error in errors:
    assert ("error: every process must be given the same config; seed is 0 in process 0 and 3 in "
            "process 1") in error
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_pmap_over_the_devices_and_what_they_cannot_share(tmp_path):
  statuses, _, errors = _finish([_start(tmp_path / "run", 4, "--config.parallel=pmap")])
  assert statuses == [0], errors
  statuses, _, errors = _finish([_start(tmp_path / "bad", 4, "--config.parallel=pmap",
                                        "--config.outer.num_inits=6")])
  assert statuses == [1] and not (tmp_path / "bad").exists()
  assert "num_inits must be a multiple of the 4 devices for parallel='pmap'; got 6" in errors[0]


@pytest.mark.parametrize("arguments, message", [
    ((None, None, 0), "must be given together; missing --coordinator"),
    (("localhost:1", 2, None), "missing --process_id"),
    (("localhost:1", 2, 2), r"--process_id must lie in 0..1 \(--num_processes=2\); got 2"),
    (("localhost", 2, 0), "--coordinator must be host:port; got 'localhost'"),
])
def test_a_mistake_in_naming_the_processes_is_one_line(arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    processes.start(*arguments)
  assert "\n" not in str(error.value)


def test_one_process_alone_joins_nobody(monkeypatch):
  monkeypatch.setattr(processes, "_watch", None)
  processes.start(None, None, None)


@pytest.mark.slow
def test_a_mistake_of_the_command_leaves_nothing(tmp_path):
  (status,), _, (error,) = _finish([_start(tmp_path / "run", 1, "--process_id=0")])
  assert status == 1 and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()
  assert error.startswith("error: --coordinator, --num_processes and --process_id must be given")
