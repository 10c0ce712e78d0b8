"""What every launched experiment shares: its two flags, one-line errors, and the caches."""

from collections.abc import Callable
import json
import os
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import ConfigDict
from ml_collections import config_flags

from experiments import machine
from experiments import processes
from experiments.interruptions import Interrupted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file of experiments/configs, with :smoke for a tiny run.",
    lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; created where missing.")


def launch(run: Callable[[ConfigDict, str], dict], fields: ConfigDict) -> None:
  """Parses the flags and prints `run(config, workdir)` as JSON on the last line.

  Args:
    run: imports what it needs itself, so that --help and a mistaken flag answer at once.
    fields: a config with every field that may be set.
  """
  def main(argv):
    if len(argv) > 1:
      sys.exit(f"error: every argument must be a flag; got {argv[1]!r}")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Checkpointing reports every save otherwise.
    if jax.config.jax_compilation_cache_dir is None:  # Set by JAX_COMPILATION_CACHE_DIR.
      jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/dd_jax/xla"))
    machine.keep_freed_memory()
    try:
      result = run(_CONFIG.value, _WORKDIR.value)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
      if logging.level_debug():
        raise
      _exit_with(f"error: {_one_line(error)}", 1)
    except Interrupted as interrupted:
      _exit_with(str(interrupted), 128 + interrupted.number)
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1:
        raise
      _exit_with(f"{processes.OTHERS_ENDED}: {_one_line(error)[:300]}", 1)
    if processes.is_first():
      print(json.dumps(result))

  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=lambda argv: _parse_flags(argv, field_names(fields)))


def _exit_with(message, status):
  """Ends the process; at once where others of the run may be gone, which jax would wait for."""
  print(message, file=sys.stderr, flush=True)
  if jax.process_count() > 1:
    processes.leave(status)
  sys.exit(status)


def _one_line(error):
  return " ".join(str(error).split())


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
  """The dotted names of all fields, as the command line writes them."""
  names = []
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      names += field_names(value, f"{prefix}{name}.")
    else:
      names.append(prefix + name)
  return names


def _parse_flags(argv, fields):
  """absl's parser, with every mistake in one line."""
  for argument in argv[1:]:
    name = argument.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      sys.exit(f"error: {name} must be one of config.{{{', '.join(fields)}}}")
  try:
    remaining = flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return app.parse_flags_with_usage(argv)
  return remaining
