"""The directory of a run: opened once per config, its files written whole or not at all."""

import json
import pathlib

import jax
from ml_collections import ConfigDict

import dd_jax
from dd_jax import artifacts
from experiments import processes


def open_workdir(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Creates the directory, or recognises one of the same config."""
  mine = json.loads(config.to_json())
  path = workdir / "config.json"
  try:
    if not path.exists():
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(path, mine)
      return workdir
    theirs = json.loads(path.read_text())
  except OSError as error:
    raise OSError(f"workdir must be a directory that can be written; got {workdir}: "
                  f"{error.strerror}") from error
  except json.JSONDecodeError as error:
    raise ValueError(f"workdir must be empty or of the same config; {path} is damaged: "
                     f"{error}") from error
  differing = _differences(theirs, mine, "there", "here")
  if differing:
    raise ValueError(f"workdir must be empty or of the same config; in {workdir} {differing}")
  return workdir


def open_run(config: ConfigDict, workdir: pathlib.Path, name: str = "result.json"):
  """Opens the directory; what the file `name` marks as a finished run holds, or None."""
  path = open_workdir(config, workdir) / name
  return json.loads(path.read_text()) if path.exists() else None


def check_same_config(config: ConfigDict) -> None:
  """A ValueError in every process unless all were given the same config."""
  first, *others = processes.gather_json(json.loads(config.to_json()))
  for index, other in enumerate(others, start=1):
    differing = _differences(first, other, "in process 0", f"in process {index}")
    if differing:
      raise ValueError(f"every process must be given the same config; {differing}")


def provenance(config: ConfigDict) -> dict:
  """The fields of every result that say where it comes from."""
  return {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
          "jax_version": jax.__version__, "dd_jax_version": dd_jax.__version__,
          "seed": config.seed, "config": json.loads(config.to_json())}


def write_json(path: pathlib.Path, content) -> None:
  """One JSON value, for people to read."""
  text = json.dumps(content, indent=2) + "\n"
  artifacts.write_atomically(path, lambda file: file.write(text.encode()))


def write_lines(path: pathlib.Path, lines: list) -> None:
  """One JSON value a line."""
  text = "".join(json.dumps(line) + "\n" for line in lines)
  artifacts.write_atomically(path, lambda file: file.write(text.encode()))


def append_line(path: pathlib.Path, content) -> None:
  """One more line of a file of `write_lines`."""
  try:
    with path.open("a") as file:
      file.write(json.dumps(content) + "\n")
  except OSError as error:
    raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def read_lines(path: pathlib.Path, field: str) -> list[dict]:
  """The whole lines of such a file, each with this field; none of a file that is not there."""
  lines = []
  for text in path.read_bytes().splitlines() if path.exists() else ():
    try:
      line = json.loads(text.decode())
      line[field]
    except (ValueError, TypeError, KeyError):  # Cut off, or zeros, when its machine was stopped.
      break
    lines.append(line)
  return lines


def reopen_lines(path: pathlib.Path, field: str) -> list[dict]:
  """The same, and the file holds just these from now on."""
  lines = read_lines(path, field)
  if lines:
    write_lines(path, lines)
  return lines


def _differences(first, second, where_first, where_second):
  """The fields that differ, in words; empty where none does."""
  first, second = flatten(first), flatten(second)
  return ", ".join(f"{name} is {first.get(name)!r} {where_first} and {value!r} {where_second}"
                   for name, value in second.items() if first.get(name) != value)


def flatten(tree, prefix=""):
  """`{"section.field": value}` of nested dicts."""
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {name: leaf for key, value in tree.items()
          for name, leaf in flatten(value, f"{prefix}{key}.").items()}
