"""Every command of experiments/ is run by a test: one that no test runs fails here."""

import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
# Where it is not a process of its own that a test runs it in.
_IN_PROCESS = {"results.tables": "tables.main(", "measurements.storage": "storage.measure("}


def _commands():
  """Their modules below experiments."""
  folder = _ROOT / "experiments"
  return sorted(".".join(path.relative_to(folder).with_suffix("").parts)
                for path in folder.rglob("*.py")
                if re.search(r"^if __name__ == .__main__.", path.read_text(), re.MULTILINE))


def test_every_command_is_run_by_a_test():
  texts = "\n".join(path.read_text() for path in (_ROOT / "tests").glob("*_test.py"))
  commands = _commands()
  assert {"main", "study", "measurements.bench", "results.tables"} <= set(commands)
  for command in commands:
    process = rf'("-m", |_run\(|launch\(|start_anew\()"(experiments\.)?{re.escape(command)}"'
    assert re.search(process, texts) or _IN_PROCESS.get(command, process) in texts, command


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
