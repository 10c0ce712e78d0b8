"""The command that breaks a run: it finds runs identical that are, and different that are not."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.measurements import resilience

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "term", "truncate", "disk"])
def test_a_broken_run_ends_like_one_left_in_peace(tmp_path, how):
  mount = ["mount", "-t", "tmpfs", "tmpfs", tmp_path]
  if how == "disk" and subprocess.run(mount, timeout=60).returncode:
    pytest.skip("only root may mount the small file system that is filled")
  elif how == "disk":
    subprocess.run(["umount", tmp_path], check=True, timeout=60)
  process = subprocess.run(
      [sys.executable, "-m", "experiments.measurements.resilience", f"--workdir={tmp_path / 'run'}",
       f"--break={how}", "--times=4", "--config=experiments/configs/digits_fixed_init.py:smoke",
       "--config.model.name=mlp", "--config.outer.num_steps=400"],
      cwd=_ROOT, capture_output=True, text=True, timeout=500)
  assert process.returncode == 0, process.stderr
  report = json.loads((tmp_path / "run/report.json").read_text())
  assert report["restores"] >= 1 and len(report["statuses"]) == 4
  assert report["bytes_lost"] == 0 < report["bytes"] and report["lines_differing"] == 0


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
