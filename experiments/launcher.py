"""What every launched experiment shares: its two flags, and the names of its config's fields."""

from collections.abc import Callable
import functools
import operator
import sys

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags

from experiments import commands
from experiments import paths



def _or_none(parser):
  """The parser of absl, to which None means that a field is empty again."""
  class OrNone(parser):
    def parse(self, argument):
      return None if argument == "None" else super().parse(argument)

  return OrNone()


for _type, _parser in ((float, flags.FloatParser), (int, flags.IntegerParser),
                       (str, flags.ArgumentParser)):
  config_flags.register_flag_parser_for_type(_type, _or_none(_parser))

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
  commands.run(lambda: run(check_not_empty(_CONFIG.value, fields),
                           str(paths.local(_WORKDIR.value, "workdir"))),
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


def check_not_empty(config: ConfigDict, fields: ConfigDict) -> ConfigDict:
  """The config; a ValueError where a field is None that is not None in `fields`."""
  may_be_empty = [name for name in field_names(fields) if value_of(fields, name) is None]
  for name in field_names(config):
    if value_of(config, name) == (None,):  # What ml_collections makes of None for a tuple.
      config.update_from_flattened_dict({name: None})
    if value_of(config, name) is None and name not in may_be_empty:
      raise ValueError(f"config.{name} must have a value; got None, which is for {may_be_empty}")
  return config


def value_of(config: ConfigDict, name: str):
  """What a field holds, by its dotted name."""
  return functools.reduce(operator.getitem, name.split("."), config)


def _parse_flags(argv, fields):
  """The flags, of which those of the config must be its fields."""
  for argument in argv[1:]:
    name = argument.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      sys.exit(f"error: {name} must be one of config.{{{', '.join(fields)}}}")
  return commands.parse_flags(argv)
