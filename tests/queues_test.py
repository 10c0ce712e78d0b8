"""A queue of runs: its order, its end at a checkpoint, its list, and a real one."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from dd_jax.runs import queues
from dd_jax.runs import workdirs
from experiments.results import queue_file
from tests.launches import ROOT, error_of, launch, start_anew

# A run that takes a step in every tenth of a second, and writes its result at the last one.
_RUN = """
import json, pathlib, signal, sys, time
directory, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
directory.mkdir(exist_ok=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
lines = directory / "metrics.jsonl"
step = len(lines.read_text().splitlines()) if lines.exists() else 0
while step < last:
  if stopped:
    sys.exit(143)
  time.sleep(.1)
  step += 1
  with lines.open("a") as file:
    file.write(json.dumps({"step": step}) + "\\n")
(directory / "result.json").write_text(json.dumps({"outer_steps": step}))
"""


def _entry(path, name, last, script=_RUN):
  return queues.Entry(name, [sys.executable, "-c", script, str(path / name), str(last)],
                      path / name, last)


def test_the_fewest_steps_come_first_and_all_end(tmp_path, capfd):
  first, second = _entry(tmp_path, "first", 4), _entry(tmp_path, "second", 3)
  first.workdir.mkdir()
  (first.workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
  assert [run["state"] for run in queues.work([first, second], 0.)] == ["begun", "waiting"]
  runs = queues.work([first, second], 60.)
  assert runs == [{"name": "first", "steps": 4, "num_steps": 4, "state": "finished"},
                  {"name": "second", "steps": 3, "num_steps": 3, "state": "finished"}]
  assert capfd.readouterr().err.splitlines()[-2:] == ["second: from step 0", "first: from step 2"]
  more = first._replace(num_steps=5)  # A finished one that is to have more.
  assert queues.is_finished(first) and not queues.is_finished(more)


def test_it_stops_the_one_that_runs_when_the_time_is_over(tmp_path, monkeypatch):
  metrics = tmp_path / "long/metrics.jsonl"
  monkeypatch.setattr(queues, "time", types.SimpleNamespace(  # Over at the first line.
      sleep=time.sleep, monotonic=lambda: 1e9 if metrics.exists() else 0.))
  (run,) = queues.work([_entry(tmp_path, "long", 10_000)], 2.)
  assert run["state"] == "begun" and 0 < run["steps"] < 10_000
  lines = metrics.read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(1, run["steps"] + 1))


def test_one_that_fails_is_left_alone(tmp_path):
  failing = _entry(tmp_path, "failing", 3, "import sys; sys.exit(7)")
  runs = queues.work([failing, _entry(tmp_path, "other", 2)], 60.)
  assert [run["state"] for run in runs] == ["failed with exit status 7", "finished"]


def test_a_signal_to_all_processes_is_no_failure(tmp_path):
  """As a scheduler sends it: the run may have ended before it is asked to."""
  told = _entry(tmp_path, "told", 3, "import os, signal, sys\n"
                "os.kill(os.getppid(), signal.SIGTERM); sys.exit(143)")
  runs = queues.work([told, _entry(tmp_path, "other", 2)], 60.)
  assert [run["state"] for run in runs] == ["waiting", "waiting"]


def test_a_damaged_result_is_no_end(tmp_path, capfd):
  """As a power failure may leave one."""
  damaged, other = _entry(tmp_path, "damaged", 2), _entry(tmp_path, "other", 2)
  damaged.workdir.mkdir()
  (damaged.workdir / "result.json").write_bytes(b"\0\0\0")
  assert [run["state"] for run in queues.work([damaged, other], 60.)] == 2 * ["finished"]
  assert "damaged/result.json is damaged and made anew" in capfd.readouterr().err


def _listed(tmp_path, text):
  path = tmp_path / "list.toml"
  path.write_text(text)
  return queue_file.read(str(path), tmp_path)


def test_the_list_names_directories_as_results_are_named(tmp_path):
  entries = _listed(tmp_path, """
      [[runs]]
      config = "mnist_fixed_init"
      seeds = [5, 6]
      [[runs]]
      config = "mnist_fixed_init:paper"
      num_steps = 100
      note = "wide"
      flags = ["--config.model.width=64"]
  """)
  assert [entry.name for entry in entries] == [
      "mnist_fixed_init-seed5", "mnist_fixed_init-seed6", "mnist_fixed_init-paper-wide-seed0"]
  assert [entry.num_steps for entry in entries] == [None, None, 100]
  *_, config, workdir, seed, width, steps = entries[2].command
  assert config.endswith("configs/mnist_fixed_init.py:paper")
  assert workdir == f"--workdir={tmp_path / 'mnist_fixed_init-paper-wide-seed0'}"
  assert (seed, width, steps) == ("--config.seed=0", "--config.model.width=64",
                                  "--config.outer.num_steps=100")


@pytest.mark.parametrize("text, message", [
    ("runs = 3", r"must hold tables \[\[runs\]\]"),
    ("[[run]]", r"must hold tables \[\[runs\]\] and nothing else; got \['run'\]"),
    ("[[runs", "must be a TOML file"),
    ("", "must hold one run or more"),
    ("[[runs]]\nconfig = 'cifar'", "run 1: config must be the name of a file of .*; got 'cifar'"),
    ("[[runs]]\nseeds = [1]", "run 1: config must be the name of a file"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nseeds = 3", "seeds = 3"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nseeds = [-1]", r"run 1: seeds must lie in 0\.\."),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nseeds = ['1']", r"run 1: seeds must lie in 0\.\."),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nstepz = 3", "must have the fields .*; got stepz = 3"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nflags = ['--x']", "must have a note"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nnote = 'a'\nflags = [1]", r"texts; got \[1\]"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nnote = '../up'", r"without / and \\; got '\.\./up'"),
    ("[[runs]]\nconfig = 'mnist_fixed_init'\nseeds = [1, 1]",
     r"got \['mnist_fixed_init-seed1'\] twice"),
])
def test_a_list_that_is_none_is_one_line(tmp_path, text, message):
  with pytest.raises(ValueError, match=message) as error:
    _listed(tmp_path, text)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments, message", [
    (["--budget_minutes=1"], "FILE must be given beside the flags"),
    (["none.toml", "--budget_minutes=1"], "No such file or directory: 'none.toml'"),
    (["none.toml", "--budget_minutes=-1"], "budget_minutes"),
    (["none.toml", "two.toml", "--budget_minutes=1"],
     "every other argument must be a flag; got 'two.toml'"),
])
def test_a_command_that_is_none_is_one_line(tmp_path, arguments, message):
  assert message in error_of(launch("experiments.queue", *arguments, f"--workdir={tmp_path}"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_queue_stops_and_goes_on(tmp_path):
  path, workdir = tmp_path / "list.toml", tmp_path / "runs"
  path.write_text("""
      [[runs]]
      config = "digits_fixed_init:smoke"
      seeds = [0, 1]
      num_steps = 800
      note = "mlp"
      flags = ["--config.model.name=mlp"]
  """)
  arguments = "experiments.queue", path, f"--workdir={workdir}"
  states = []
  while states[-1:] != [["finished", "finished"]]:
    assert len(states) < 60
    process = start_anew(*arguments, "--budget_minutes=0.5")
    assert process.returncode == 0, process.stderr
    states.append([run["state"] for run in json.loads(process.stdout.splitlines()[-1])["runs"]])
  for seed in (0, 1):
    result = json.loads((workdir / f"digits_fixed_init-smoke-mlp-seed{seed}/result.json"
                         ).read_text())
    assert result["seed"] == seed and result["outer_steps"] == 800


def test_one_that_another_process_holds_comes_last(tmp_path, capfd):
  first, second = _entry(tmp_path, "first", 2), _entry(tmp_path, "second", 3)
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdirs.held(first.workdir))
    threading.Timer(2., stack.pop_all().close).start()
    assert [run["state"] for run in queues.work([first, second], 60.)] == ["finished"] * 2
  assert capfd.readouterr().err.splitlines() == ["second: from step 0", "first: from step 0"]
  with workdirs.held(first.workdir):  # All the time there is.
    (run,) = queues.work([first._replace(num_steps=4)], 1.)
  assert run["state"] == "begun"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="the run of a killed queue ends on Linux")
def test_killed_at_any_moment_it_loses_no_more_than_a_checkpoint_interval(tmp_path):
  """The queue alone, whose run Linux then asks to end, or both at once, as when a machine stops."""
  path = tmp_path / "list.toml"
  path.write_text("""
      [[runs]]
      config = "digits_fixed_init:smoke"
      seeds = [0, 1]
      num_steps = 4000
      note = "mlp"
      flags = ["--config.model.name=mlp", "--config.log_every=200",
               "--config.checkpoint_every=200", "--config.validation.every=4000"]
  """)
  names = [f"digits_fixed_init-smoke-mlp-seed{seed}" for seed in (0, 1)]

  def start(workdir):
    with (tmp_path / "log").open("w") as log:
      return subprocess.Popen(
          [sys.executable, "-m", "experiments.queue", str(path), "--budget_minutes=5",
           f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log)

  def begun():
    """`{name: step}` of the runs that the last queue has begun."""
    return dict(re.findall(r"^(\S+): from .*?begins at outer step (\d+)",
                           (tmp_path / "log").read_text(), re.M | re.S))

  def steps(workdir):
    return {name: queues.steps_taken(queues.Entry(name, [], workdir / name)) for name in names}

  assert start(tmp_path / "whole").wait(timeout=300) == 0
  broken, draw, kept = tmp_path / "broken", random.Random(0), dict.fromkeys(names, 0)
  for alone in [True, False] * 3:
    process = start(broken)
    while process.poll() is None and not begun():
      time.sleep(.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(timeout=draw.uniform(0, 4))
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    for child in [] if alone else children:
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(child), signal.SIGKILL)
    process.wait(timeout=60)
    for name, step in begun().items():
      assert int(step) >= kept[name] - 200
    kept = steps(broken)  # At least: what it left may still be writing when the next one begins.
  assert start(broken).wait(timeout=300) == 0
  for name in names:
    first, second = ((tmp_path / part / name / "distilled.npz").read_bytes()
                     for part in ("whole", "broken"))
    assert first == second
