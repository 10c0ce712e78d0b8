"""Commands of experiments/ as processes that start at once: forks of one that has imported JAX."""

from collections.abc import Callable
import multiprocessing
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import tempfile
from typing import Any

from experiments.configs import digits_fixed_init

ROOT = pathlib.Path(__file__).parent.parent
SMOKE = "--config=experiments/configs/digits_fixed_init.py:smoke"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["experiments.problem", "experiments.names.applied", "experiments.launcher"])


def smoke(**updates: Any):
  """The config of SMOKE, with a network that compiles at once."""
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({"model.name": "mlp", **updates})
  return config


def launch(command: str | Callable, *arguments: object, cwd: pathlib.Path = ROOT, **environment: str
           ) -> subprocess.CompletedProcess:
  """What `python -m command arguments` gives, or a function of a test's, in its own process.

  Variables that JAX reads when it is imported come too late: those need `start_anew`.
  """
  with tempfile.TemporaryDirectory() as directory:
    out, err = (pathlib.Path(directory) / name for name in ("out", "err"))
    process = _CONTEXT.Process(target=_run, args=(
        command, [str(argument) for argument in arguments], cwd, environment, out, err))
    process.start()
    process.join(200)
    if process.is_alive():
      process.kill()
      raise subprocess.TimeoutExpired(str(command), 200, out.read_text(), err.read_text())
    return subprocess.CompletedProcess(
        [command, *arguments], process.exitcode, out.read_text(), err.read_text())


def start_anew(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
  """The same in a fresh interpreter, as a user starts it."""
  return subprocess.run(
      [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True,
      text=True, timeout=600, env={**os.environ, **environment})


def free_address() -> str:
  """Of this machine, where processes may meet."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def error_of(process: subprocess.CompletedProcess) -> str:
  """The one line of a process that was refused."""
  assert process.returncode == 1 and process.stdout == "", process.stderr
  (line,) = process.stderr.splitlines()
  assert line.startswith("error: ")
  return line


def _run(command, arguments, cwd, environment, out, err):
  for stream, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
  os.chdir(cwd)
  os.environ.update(environment)
  sys.argv = [str(command), *arguments]
  if callable(command):
    command()
  else:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
