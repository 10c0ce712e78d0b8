"""What every command shares: one-line errors, its result as JSON on the last line, the caches."""

from collections.abc import Callable
import json
import os
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax

from experiments import machine
from experiments import processes
from experiments.interruptions import Interrupted


def run(command: Callable[[], dict], parse: Callable | None = None) -> None:
  """Parses the flags and prints what `command()` returns as JSON on the last line.

  Args:
    command: imports what it needs itself, so that --help and a mistaken flag answer at once.
    parse: `argv -> the arguments that are no flags`. None: `parse_flags`.
  """
  def main(argv):
    if len(argv) > 1:
      sys.exit(f"error: every argument must be a flag; got {argv[1]!r}")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Checkpointing reports every save otherwise.
    if jax.config.jax_compilation_cache_dir is None:  # Set by JAX_COMPILATION_CACHE_DIR.
      jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/dd_jax/xla"))
    machine.keep_freed_memory()
    result = with_one_line_errors(command)
    if processes.is_first():
      print(json.dumps(result))

  app.run(main, flags_parser=parse or parse_flags)


def with_one_line_errors(command: Callable[[], Any]) -> Any:
  """What `command()` returns; a mistake or an interruption ends the process in one line."""
  try:
    return command()
  except (ValueError, OSError, ImportError, FloatingPointError) as error:
    if logging.level_debug():
      raise
    _exit_with(f"error: {_one_line(error)}", 1)
  except Interrupted as interrupted:
    _exit_with(str(interrupted), 128 + interrupted.number)
  except (RuntimeError, AssertionError) as error:  # Of JAX, both where a platform is missing.
    if not _has_devices():
      sys.exit("error: JAX_PLATFORMS must name platforms that this machine has; got "
               f"{jax.config.jax_platforms!r} {_one_line(error)}".rstrip())
    if jax.process_count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
      raise
    _exit_with(f"{processes.OTHERS_ENDED}: {_one_line(error)[:300]}", 1)


def _has_devices():
  try:
    return bool(jax.devices())
  except (RuntimeError, AssertionError):
    return False


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with every mistake in one line."""
  try:
    remaining = flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return app.parse_flags_with_usage(argv)
  return remaining


def _exit_with(message, status):
  """Ends the process; at once where others of the run may be gone, which jax would wait for."""
  print(message, file=sys.stderr, flush=True)
  if jax.process_count() > 1:
    processes.leave(status)
  sys.exit(status)


def _one_line(error):
  return " ".join(str(error).split())
