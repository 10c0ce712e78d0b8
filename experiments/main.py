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

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file of experiments/configs, with :smoke for a tiny run.",
    lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; created where missing.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Checkpointing reports every save otherwise.
  # Imported here so that --help and a mistaken flag answer at once.
  from experiments import train

  if jax.config.jax_compilation_cache_dir is None:  # Set by JAX_COMPILATION_CACHE_DIR.
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/dd_jax/xla"))
  try:
    result = train.distill_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError, ImportError, FloatingPointError) as error:
    if logging.level_debug():
      raise
    sys.exit(f"error: {' '.join(str(error).split())}")
  print(json.dumps(result))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
