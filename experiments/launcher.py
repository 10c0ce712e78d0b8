"""What every launched experiment shares: its two flags, and the names of its config's fields."""

from collections.abc import Callable
import sys

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags

from experiments import commands

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file of experiments/configs, with :smoke for a tiny run. "
    "--config.FIELD=VALUE sets one of its fields, which experiments/configs/default.py explains.",
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, DIR above; created where missing.")


def launch(run: Callable[[ConfigDict, str], dict], fields: ConfigDict) -> None:
  """Parses the flags and prints `run(config, workdir)` as JSON on the last line.

  Args:
    run: imports what it needs itself, so that --help and a mistaken flag answer at once.
    fields: a config with every field that may be set.
  """
  for name in ("config", "workdir"):  # --help shows the flags of the launched module alone.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  flags.mark_flags_as_required(["config", "workdir"])
  commands.run(lambda: run(_CONFIG.value, _WORKDIR.value),
               lambda argv: _parse_flags(argv, field_names(fields)))


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
  """The flags, of which those of the config must be its fields."""
  for argument in argv[1:]:
    name = argument.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      sys.exit(f"error: {name} must be one of config.{{{', '.join(fields)}}}")
  return commands.parse_flags(argv)
