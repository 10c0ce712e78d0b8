"""Commands of experiments/ as processes that start at once: forks of one that has imported JAX."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = "--config=experiments/configs/digits_fixed_init.py:smoke"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["experiments.problem", "experiments.names.applied", "experiments.launcher"])


def launch(module: str, *arguments: object, cwd: pathlib.Path = ROOT, **environment: str
           ) -> subprocess.CompletedProcess:
  """What `python -m module arguments` gives, in a process of its own.

  Variables that JAX reads when it is imported come too late: those need `start_anew`.
  """
  with tempfile.TemporaryDirectory() as directory:
    out, err = (pathlib.Path(directory) / name for name in ("out", "err"))
    process = _CONTEXT.Process(target=_run, args=(
        module, [str(argument) for argument in arguments], cwd, environment, out, err))
    process.start()
    process.join(200)
    if process.is_alive():
      process.kill()
      raise subprocess.TimeoutExpired(module, 200, out.read_text(), err.read_text())
    return subprocess.CompletedProcess(
        [module, *arguments], process.exitcode, out.read_text(), err.read_text())


def start_anew(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
  """The same in a fresh interpreter, as a user starts it."""
  return subprocess.run(
      [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True,
      text=True, timeout=600, env={**os.environ, **environment})


def error_of(process: subprocess.CompletedProcess) -> str:
  """The one line of a process that was refused."""
  assert process.returncode == 1 and process.stdout == "", process.stderr
  (line,) = process.stderr.splitlines()
  assert line.startswith("error: ")
  return line


def _run(module, arguments, cwd, environment, out, err):
  for stream, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
  os.chdir(cwd)
  os.environ.update(environment)
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name="__main__", alter_sys=True)
