"""One command as several processes of this machine: cores, signals, failures, a real run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dd_jax.runs import local_processes
from tests import launches

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
_NEEDS_TWO = pytest.mark.skipif(_CORES < 2, reason="needs two cores")
# What a child of the tests is told, as its last arguments.
_PLACE = "place = sys.argv[-1].removeprefix('--process_id=')"


def _child(code):
  return [sys.executable, "-c", f"import os, pathlib, signal, sys, time\n{_PLACE}\n{code}"]


@pytest.mark.parametrize("num_inits, real_batch, cores, expected", [
    (4, 64, 2, 2), (4, 64, 16, 4), (3, 64, 2, 1), (1, 64, 6, 4), (6, 64, 16, 6), (1, 63, 2, 1)])
def test_auto_takes_the_most_that_share_the_work(monkeypatch, num_inits, real_batch, cores,
                                                 expected):
  monkeypatch.setattr(local_processes, "_cores", lambda: list(range(cores)))
  assert local_processes.number("auto", num_inits, real_batch) == expected


@pytest.mark.parametrize("wanted, num_inits, message", [
    ("3", 4, "--local_processes must divide outer.num_inits=4; got 3"),
    ("3", 1, "--local_processes must divide outer.batch_size=64; got 3"),
    ("9", 9, "--local_processes must be auto or a number from 1 to the 8 cores .*; got '9'"),
    ("0", 4, "--local_processes must be auto or .*; got '0'"),
    ("two", 4, "--local_processes must be auto or .*; got 'two'")])
def test_numbers_that_cannot_be(monkeypatch, wanted, num_inits, message):
  monkeypatch.setattr(local_processes, "_cores", lambda: list(range(8)))
  with pytest.raises(ValueError, match=message):
    local_processes.number(wanted, num_inits, 64)


def test_the_command_says_so_in_one_line(tmp_path):
  process = launches.launch("experiments.main", launches.SMOKE, f"--workdir={tmp_path / 'run'}",
                            "--local_processes=1000")
  assert launches.error_of(process).startswith(
      "error: --local_processes must be auto or a number from 1 to the ")
  assert not (tmp_path / "run").exists()


@_NEEDS_TWO
def test_each_process_has_cores_of_its_own(tmp_path):
  command = _child(f"pathlib.Path({str(tmp_path)!r}, place).write_text("
                   "' '.join(map(str, os.sched_getaffinity(0))) + '\\n' + ' '.join(sys.argv[1:]))")
  before = os.sched_getaffinity(0)
  assert local_processes.run(command, 2) == 0
  assert os.sched_getaffinity(0) == before
  texts = [(tmp_path / str(place)).read_text().splitlines() for place in range(2)]
  cores = [set(map(int, text[0].split())) for text in texts]
  assert cores[0] | cores[1] == before and not cores[0] & cores[1]
  flags = [dict(flag.split("=") for flag in text[1].split()) for text in texts]
  assert [flag["--process_id"] for flag in flags] == ["0", "1"]
  assert flags[0]["--coordinator"] == flags[1]["--coordinator"]
  assert {flag["--num_processes"] for flag in flags} == {"2"}


@_NEEDS_TWO
def test_where_one_fails_the_others_are_ended_and_it_is_said_why(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(local_processes, "_GRACE", .2)
  command = _child(f"begun = pathlib.Path({str(tmp_path)!r})\n"
                   "(begun / ('new' + place)).write_text(str(os.getpid()))\n"
                   "(begun / ('new' + place)).rename(begun / place)\n"
                   "until = time.monotonic() + 100\n"
                   "while place == '1' and time.monotonic() < until:\n"
                   "  if (begun / '0').exists():\n"
                   "    print('error: of the second', file=sys.stderr)\n"
                   "    sys.exit(7)\n"
                   "time.sleep(200)")
  assert local_processes.run(command, 2) == 7
  assert capfd.readouterr().err == "error: of the second\n"
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / "0").read_text()), 0)


@_NEEDS_TWO
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_every_process_once(tmp_path, number):
  """Where the first one is killed without a word the others are asked to end."""
  child = _child(f"received = []\ndirectory = pathlib.Path({str(tmp_path)!r})\n"
                 "for number in (signal.SIGINT, signal.SIGTERM):\n"
                 "  signal.signal(number, lambda number, _: received.append(number))\n"
                 "(directory / ('begun' + place)).touch()\n"
                 "until = time.monotonic() + 200\n"
                 "while not received and time.monotonic() < until:\n  time.sleep(.02)\n"
                 "time.sleep(.5)\n"
                 "(directory / 'new').with_suffix('.' + place).write_text(repr(received))\n"
                 "(directory / 'new').with_suffix('.' + place).rename(directory / place)\n"
                 "sys.exit(128 + received[0])")
  parent = subprocess.Popen([sys.executable, "-c", "import sys\n"
                             "from dd_jax.runs import local_processes\n"
                             f"sys.exit(local_processes.run({child!r}, 2))"],
                            cwd=launches.ROOT, start_new_session=True)
  until = time.monotonic() + 100
  while not all((tmp_path / f"begun{place}").exists() for place in range(2)):
    assert parent.poll() is None and time.monotonic() < until
    time.sleep(.05)
  os.killpg(parent.pid, number)  # As a terminal does.
  killed = number == signal.SIGKILL
  assert parent.wait(timeout=100) == (-number if killed else 128 + number)
  while not all((tmp_path / str(place)).exists() for place in range(2)):
    assert time.monotonic() < until
    time.sleep(.05)
  received = [json.loads((tmp_path / str(place)).read_text()) for place in range(2)]
  if killed:  # Of a parent of several threads Linux may tell more than once.
    assert [{*numbers} for numbers in received] == [{signal.SIGTERM}] * 2
  else:
    assert received == [[number]] * 2


def _result(workdir: pathlib.Path):
  return (json.loads((workdir / "result.json").read_text()),
          json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0]))


@pytest.mark.slow
@_NEEDS_TWO
@pytest.mark.parametrize("num_inits", [4, 1])
def test_a_run_shared_is_the_run_alone(tmp_path, num_inits):
  """In its first steps, before Adam enlarges what sums in another order differ by.

  One network shares the real examples. Both are tested on the same networks.
  """
  results = []
  for processes in ("1", "2"):
    workdir = tmp_path / processes
    process = launches.start_anew(
        "experiments.main", launches.SMOKE, "--config.model.name=mlp", "--config.init.name=random",
        f"--config.outer.num_inits={num_inits}", "--config.eval.num_inits=6",
        f"--workdir={workdir}", f"--local_processes={processes}")
    assert process.returncode == 0, process.stderr
    results.append(_result(workdir))
    assert json.loads(process.stdout.splitlines()[-1]) == results[-1][0]
  (alone, first), (shared, first_shared) = results
  assert shared["device"] == "2 x cpu" and alone["device"] == "1 x cpu"
  for name in ("loss", "hypergradient_norm"):
    assert first_shared[name] == pytest.approx(first[name], rel=1e-3)
  assert shared["accuracy_before_mean"] == pytest.approx(alone["accuracy_before_mean"], abs=2e-3)
  assert shared["num_eval_inits"] == alone["num_eval_inits"] == 6
  assert shared["outer_steps"] == alone["outer_steps"]
