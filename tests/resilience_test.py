"""The command that breaks a run: it finds runs identical that are, and different that are not."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.measurements import resilience

_ROOT = pathlib.Path(__file__).parents[1]


def _measure(workdir, how, *arguments):
  process = subprocess.run(
      [sys.executable, "-m", "experiments.measurements.resilience", f"--workdir={workdir}",
       f"--break={how}", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=500)
  assert process.returncode == 0, process.stderr
  report = json.loads((workdir / "report.json").read_text())
  assert report == json.loads(process.stdout.splitlines()[-1])
  assert report["restores"] >= 1 and len(report["statuses"]) == report["times"]
  assert report["bytes_lost"] == 0 < report["bytes"] and report["lines_differing"] == 0
  return report


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "term", "truncate", "disk"])
def test_a_broken_run_ends_like_one_left_in_peace(tmp_path, how):
  mount = ["mount", "-t", "tmpfs", "tmpfs", tmp_path]
  if how == "disk" and subprocess.run(mount, timeout=60).returncode:
    pytest.skip("only root may mount the small file system that is filled")
  elif how == "disk":
    subprocess.run(["umount", tmp_path], check=True, timeout=60)
  report = _measure(tmp_path / "run", how, "--times=4",
                    "--config=experiments/configs/digits_fixed_init.py:smoke",
                    "--config.model.name=mlp",
                    "--config.outer.num_steps=400")
  assert report["seed"] == 0 and report["outer_steps"] == 400


@pytest.mark.slow
def test_so_does_a_run_of_a_problem_of_one_s_own(tmp_path):
  report = _measure(tmp_path / "run", "kill", "--times=2", "--num_steps=2000",
                    "--problem=tests.small_runs:problem")
  assert report["config"]["problem"] == "tests.small_runs:problem"


@pytest.mark.parametrize("arguments, message", [
    ([], "Exactly one of (config, problem) must have a value"),
    pytest.param(["--problem=tests.small_runs:nothing"],
                 "error: --problem must be package.module:function of", marks=pytest.mark.slow),
])
def test_what_is_broken_is_a_config_or_a_problem(tmp_path, arguments, message):
  process = subprocess.run(
      [sys.executable, "-m", "experiments.measurements.resilience", f"--workdir={tmp_path / 'run'}",
       *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=100)
  assert process.returncode == 1 and message in process.stderr
  assert len(process.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_what_was_lost_is_counted(tmp_path):
  for name, content in (("expected", b"abcd"), ("same", b"abcd"), ("short", b"ab"),
                        ("other", b"xbcde")):
    (tmp_path / name).write_bytes(content)
  lost = {name: resilience._differing_bytes(tmp_path / "expected", tmp_path / name)
          for name in ("same", "short", "other")}
  assert lost == {"same": 0, "short": 2, "other": 2}


def test_a_run_that_ends_as_it_should_not_is_an_error(tmp_path):
  resilience._log(tmp_path).write_text("10%\nTraceback: KeyError\n")
  with pytest.raises(OSError, match="must end with a status of .*; got 1: 10% Traceback: KeyErro"):
    resilience._check_status(1, (1, 0), tmp_path)
  resilience._log(tmp_path).write_text("10%\nerror: No space left on device\n")
  resilience._check_status(1, (1, 0), tmp_path)


def test_flags_of_the_config_are_handed_on_however_they_are_written():
  given = ["--config", "c.py:smoke", "--break=kill", "-config.seed=3", "--config.model.name", "mlp",
           "--config.tensorboard", "--times", "2", "--configure=1"]
  assert resilience._config_flags(given) == [
      "--config", "c.py:smoke", "-config.seed=3", "--config.model.name", "mlp",
      "--config.tensorboard"]
