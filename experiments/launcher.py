"""What every command shares: flags, the names of a config's fields, one-line errors, the result."""

from collections.abc import Callable
import functools
import json
import operator
import os
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import ConfigDict
from ml_collections import config_flags

from dd_jax.runs import machine
from dd_jax.runs import paths
from dd_jax.runs import processes
from dd_jax.runs.interruptions import Interrupted


def run(command: Callable[..., dict], parse: Callable | None = None, *,
        positional: tuple[str, ...] = ()) -> None:
  """Parses the flags and prints what `command()` returns as JSON on the last line.

  Args:
    command: imports what it needs itself, so that --help and a mistaken flag answer at once.
    parse: `argv -> the arguments that are no flags`. None: `parse_flags`.
    positional: names of the arguments that are no flags, which the command gets.
  """
  def main(argv):
    given = argv[1:]
    if len(given) < len(positional):
      sys.exit(f"error: {positional[len(given)]} must be given beside the flags")
    if len(given) > len(positional):
      sys.exit(f"error: every {'other ' * bool(positional)}argument must be a flag; got "
               f"{given[len(positional)]!r}")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Checkpointing reports every save otherwise.
    if jax.config.jax_compilation_cache_dir is None:  # Set by JAX_COMPILATION_CACHE_DIR.
      jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/dd_jax/xla"))
    machine.keep_freed_memory()
    result = with_one_line_errors(lambda: command(*given))
    if processes.is_first():
      print(json.dumps(result))

  app.run(main, flags_parser=parse or parse_flags)


def run_config(command: Callable[[ConfigDict | None, str], dict], fields: ConfigDict,
               instead: str | None = None) -> None:
  """`run` of `command(config, workdir)`, with the flags --config and --workdir.

  Args:
    command: as of `run`.
    fields: a config with every field that may be set.
    instead: a flag that may stand in the place of --config, which is None then.
  """
  for type_, parser in ((float, flags.FloatParser), (int, flags.IntegerParser),
                        (str, flags.ArgumentParser)):
    config_flags.register_flag_parser_for_type(type_, _or_none(parser))
  config = config_flags.DEFINE_config_file(
      "config", None, "The experiment: a file of experiments/configs, with :smoke for a tiny run. "
      "--config.FIELD=VALUE sets one of its fields, which experiments/configs/default.py explains.",
      lock_config=True)
  workdir = flags.DEFINE_string(
      "workdir", None, "Directory of the run, DIR above; created where missing.")
  for name in ("config", "workdir"):  # --help shows the flags of the launched module alone.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  flags.mark_flag_as_required("workdir")
  if instead is None:
    flags.mark_flag_as_required("config")
  else:
    flags.mark_flags_as_mutual_exclusive(["config", instead], required=True)
  run(lambda: command(config.value and check_not_empty(config.value, fields),
                      str(paths.local(workdir.value, "workdir"))),
      lambda argv: _parse_config_flags(argv, field_names(fields)))


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


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with every mistake in one line."""
  try:
    remaining = flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")
  if flags.FLAGS.help or flags.FLAGS.helpshort or flags.FLAGS.helpfull:
    return app.parse_flags_with_usage(argv)
  return remaining


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


def numbers(flag: str, texts: list[str], kind: type) -> list:
  """The numbers that a list flag holds; a ValueError that names the one that is none."""
  found = []
  for text in texts:
    try:
      found.append(kind(text))
    except ValueError:
      raise ValueError(f"--{flag} must be {'integers' if kind is int else 'numbers'} with commas "
                       f"between them; got {text!r}") from None
  return found


def value_of(config: ConfigDict, name: str) -> Any:
  """What a field holds, by its dotted name."""
  return functools.reduce(operator.getitem, name.split("."), config)


def _or_none(parser):
  """The parser of absl, to which None means that a field is empty again."""
  class OrNone(parser):
    def parse(self, argument):
      return None if argument == "None" else super().parse(argument)

  return OrNone()


def _parse_config_flags(argv, fields):
  """The flags, of which those of the config must be its fields."""
  for argument in argv[1:]:
    name = argument.lstrip("-").split("=")[0]
    if name.startswith("config.") and name.removeprefix("config.") not in fields:
      sys.exit(f"error: {name} must be one of config.{{{', '.join(fields)}}}")
  return parse_flags(argv)


def _has_devices():
  try:
    return bool(jax.devices())
  except (RuntimeError, AssertionError):
    return False


def _exit_with(message, status):
  """Ends the process; at once where others of the run may be gone, which jax would wait for."""
  print(message, file=sys.stderr, flush=True)
  if jax.process_count() > 1:
    processes.leave(status)
  sys.exit(status)


def _one_line(error):
  return " ".join(str(error).split())
