"""Every command of experiments/ is run by a test: one that nobody listed here fails."""

import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
# Command -> the test file that runs it, as a process or by its function, and how it says so.
_RUN_BY = {
    "apply": ("apply_test", r'_run\("apply"'),
    "baselines": ("commands_test", r'"baselines"'),
    "bench": ("measurements_test", r"experiments\.bench"),
    "devices": ("devices_test", r"experiments\.devices"),
    "export": ("exports_test", r"experiments\.export"),
    "linear": ("measurements_test", r"experiments\.linear"),
    "main": ("launcher_test", r"experiments\.main"),
    "memory": ("measurements_test", r"experiments\.memory"),
    "pretrain": ("launcher_test", r"experiments\.pretrain"),
    "reference": ("reference_test", r"experiments\.reference"),
    "report": ("report_test", r"experiments\.report"),
    "resilience": ("resilience_test", r"experiments\.resilience"),
    "results": ("results_test", r"results\.main\("),
    "study": ("commands_test", r'"study"'),
    "transfer": ("commands_test", r'"transfer"'),
}


def test_every_command_is_run_by_a_test():
  commands = {path.stem for path in (_ROOT / "experiments").glob("*.py")
              if re.search(r"^if __name__ == .__main__.", path.read_text(), re.MULTILINE)}
  assert commands == set(_RUN_BY), "add the command here, and a test that runs it"
  for command, (name, call) in _RUN_BY.items():
    assert re.search(call, (_ROOT / f"tests/{name}.py").read_text()), command


def _run(command, workdir, *arguments):
  process = subprocess.run(
      [sys.executable, "-m", f"experiments.{command}", f"--workdir={workdir}", *arguments],
      cwd=_ROOT, capture_output=True, text=True, timeout=500)
  assert process.returncode == 0, process.stderr
  return process


@pytest.mark.slow
def test_baselines_a_study_and_a_transfer_as_a_user_starts_them(tmp_path):
  """Of a network that compiles at once."""
  small = ("--config=experiments/configs/digits_fixed_init.py:smoke", "--config.model.name=mlp")
  _run("baselines", tmp_path / "baselines", *small)
  assert (tmp_path / "baselines/baselines.json").is_file()
  _run("study", tmp_path / "study", "--study=epochs", *small)
  assert list((tmp_path / "study").glob("*.csv"))
  _run("main", tmp_path / "run", *small)
  _run("transfer", tmp_path / "transfer", "--config=experiments/configs/transfer.py:smoke",
       f"--config.distilled={tmp_path / 'run/distilled.npz'}")
  assert (tmp_path / "transfer/transfer.json").is_file()
