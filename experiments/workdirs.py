"""The directory of a run: opened once per config, its files written whole or not at all."""

import json
import pathlib

import jax
from ml_collections import ConfigDict

import dd_jax
from dd_jax import artifacts


def open_workdir(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Creates the directory, or recognises one of the same config."""
  mine = json.loads(config.to_json())
  path = workdir / "config.json"
  try:
    if not path.exists():
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(path, mine)
      return workdir
    theirs = _flatten(json.loads(path.read_text()))
  except OSError as error:
    raise OSError(f"workdir must be a directory that can be written; got {workdir}: "
                  f"{error.strerror}") from error
  except json.JSONDecodeError as error:
    raise ValueError(f"workdir must be empty or of the same config; {path} is damaged: "
                     f"{error}") from error
  differing = [f"{name} is {theirs.get(name)!r} there and {value!r} here"
               for name, value in _flatten(mine).items() if theirs.get(name) != value]
  if differing:
    raise ValueError(f"workdir must be empty or of the same config; in {workdir} "
                     + ", ".join(differing))
  return workdir


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


def _flatten(tree, prefix=""):
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {name: leaf for key, value in tree.items()
          for name, leaf in _flatten(value, f"{prefix}{key}.").items()}
