"""experiments.machine: launchers on systems that lack what they would ask for."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_ARGUMENTS = ["--config=experiments/configs/digits_fixed_init.py:smoke"]


def _run(code, *arguments, **environment):
  return subprocess.run([sys.executable, *code, *arguments], cwd=_ROOT, capture_output=True,
                        text=True, timeout=300, env={**os.environ, **environment})


@pytest.mark.parametrize("platform", ["cuda", "no_such_platform"])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platform):
  process = _run(["-m", "experiments.main"], *_ARGUMENTS, f"--workdir={tmp_path / 'run'}",
                 JAX_PLATFORMS=platform)
  assert process.returncode == 1 and not process.stdout
  (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
  assert line.startswith("error: JAX_PLATFORMS must name backends that jax can use here, like cpu; "
                         f"got '{platform}': ")
  assert "Traceback" not in process.stderr and not (tmp_path / "run").exists()


def test_a_run_where_there_is_no_module_resource(tmp_path):
  """As on Windows: the peak memory is not told, all else is as ever."""
  code = ("import runpy, sys; sys.modules['resource'] = None; "
          "runpy.run_module('experiments.main', run_name='__main__', alter_sys=True)")
  process = _run(["-c", code], *_ARGUMENTS, f"--workdir={tmp_path / 'run'}")
  assert process.returncode == 0, process.stderr
  assert '"peak_memory_bytes": 0' in process.stdout
  assert "not told by this system" in (tmp_path / "run/report.html").read_text()
