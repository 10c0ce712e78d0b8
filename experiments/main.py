"""Distils a dataset and evaluates the result.

    python -m experiments.main --config=experiments/configs/digits_fixed_init.py --workdir=DIR

Any field of the config can be set on the command line: --config.outer.num_steps=100.
Running the same command again continues an interrupted run. The last line on
standard output is the content of DIR/result.json.
"""

import json
import os
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from experiments import machine
from experiments.configs import default

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file of experiments/configs, with :smoke for a tiny run.",
    lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; created where missing.")


def main(argv):
  if len(argv) > 1:
    sys.exit(f"error: every argument must be a flag; got {argv[1]!r}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Checkpointing reports every save otherwise.
  if jax.config.jax_compilation_cache_dir is None:  # Set by JAX_COMPILATION_CACHE_DIR.
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/dd_jax/xla"))
  machine.keep_freed_memory()
  # Imported here so that --help and a mistaken flag answer at once.
  from experiments import train

  try:
    result = train.distill_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError, ImportError, FloatingPointError) as error:
    if logging.level_debug():
      raise
    sys.exit(f"error: {' '.join(str(error).split())}")
  print(json.dumps(result))


def _parse_flags(argv):
  """absl's parser, with every mistake in one line."""
  fields = default.field_names(default.get_config())
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


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=_parse_flags)
