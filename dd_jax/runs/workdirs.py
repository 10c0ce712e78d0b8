"""The directory of a run: opened once per config, its files written whole or not at all."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import platform
import sys
from typing import Any

import filelock

from dd_jax.files import atomic
from dd_jax.runs import paths
from dd_jax.runs import processes

_LOCK = ".lock"
# Fields that runs of earlier versions do not have, with what those did.
_ADDED = {"distill.num_starts": 1, "settings.num_starts": 1}
_ABSENT = "absent"  # In a message, of a field that a config does not have.


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Creates the directory and holds it while the context lasts; the first process does it for all.

  The lock is the operating system's: however a process ends, it holds nothing any more.

  Raises:
    ValueError: another process holds it, or it is not local.
    OSError: it cannot be written.
  """
  workdir = paths.local(workdir, "workdir")
  lock = filelock.FileLock(workdir / _LOCK)

  def hold():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      lock.acquire(timeout=0)
    except filelock.Timeout:
      raise ValueError(f"workdir must be written by one process at a time; {workdir} is held by "
                       f"{_owner(workdir)}") from None
    except OSError as error:
      raise _not_writable(workdir, error) from error
    with contextlib.suppress(OSError):  # A full disk: the name is for messages alone.
      (workdir / ".owner").write_text(f"process {os.getpid()} of {platform.node()}")

  processes.on_first(hold)
  try:
    yield workdir
  finally:
    lock.release()


def is_held(workdir: pathlib.Path) -> bool:
  """Whether a process holds it; one that cannot be written is held by none."""
  if not (workdir / _LOCK).exists():
    return False
  try:
    with filelock.FileLock(workdir / _LOCK, timeout=0):
      return False
  except filelock.Timeout:
    return True
  except OSError:
    return False


def as_json(config: dict) -> dict:
  """The config as it is read back: tuples are lists.

  Raises:
    ValueError: it holds what JSON cannot.
  """
  try:
    return json.loads(json.dumps(config))
  except TypeError as error:
    raise ValueError(f"config must be what JSON can hold; got {error}") from error


def open_workdir(config: dict, workdir: pathlib.Path) -> None:
  """Begins a directory, or recognises one of the same config; a ValueError of another one."""
  theirs = _read_config(workdir)
  if theirs is None:
    _write_config(workdir, config)
  elif theirs != config:
    raise ValueError(f"workdir must be empty or of the same config; in {workdir} "
                     f"{differences(theirs, config, 'there', 'here')}")


def check_run(config: dict, workdir: pathlib.Path) -> None:
  """A ValueError unless the directory is empty, or holds a run that this one may go on from."""
  theirs = _read_config(workdir)
  if theirs is not None and not continues(theirs, config):
    raise ValueError(f"workdir must be empty or of the same config, but for a larger "
                     f"outer.num_steps; in {workdir} "
                     f"{differences(_filled(theirs, config), config, 'there', 'here')}")


def open_run(config: dict, workdir: pathlib.Path) -> dict | None:
  """Opens a directory that `check_run` let pass.

  Returns:
    What result.json of a finished run holds, or None. Where the config has more outer steps than
    the directory's, the result is removed, and the run goes on.
  """
  theirs, result = _read_config(workdir), workdir / "result.json"
  if theirs is None or _filled(theirs, config) != flatten(config):
    result.unlink(missing_ok=True)  # First: no result of another config stays.
    _write_config(workdir, config)
  return read_result(result)


def read_result(path: pathlib.Path) -> dict | None:
  """What a finished piece of work wrote; None where it did not, or where the file is damaged."""
  try:
    return dict(json.loads(path.read_text())) if path.exists() else None
  except (ValueError, TypeError) as error:
    print(f"warning: {path} is damaged and made anew: {error}", file=sys.stderr)
    return None


def continues(earlier: dict, config: dict) -> bool:
  """Whether a run of `config` may go on from one of `earlier`: only outer.num_steps may grow."""
  earlier, config = _filled(earlier, config), flatten(config)
  growing = "outer.num_steps"
  return earlier == config or (
      growing in config and earlier.get(growing, config[growing]) < config[growing]
      and {**earlier, growing: config[growing]} == config)


def _filled(earlier, config):
  """`earlier` flattened, with what later versions call what it did, where `config` has the name."""
  names = flatten(config)
  return {**{name: value for name, value in _ADDED.items() if name in names}, **flatten(earlier)}


def check_same(value: dict, rule: str) -> None:
  """A ValueError in every process that begins with `rule`, unless all have the same value."""
  first, *others = processes.gather_json(value)
  for index, other in enumerate(others, start=1):
    if differing := differences(first, other, "in process 0", f"in process {index}"):
      raise ValueError(f"{rule}; {differing}")


def write_json(path: pathlib.Path, content: Any) -> None:
  """One JSON value, for people to read."""
  atomic.write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_lines(path: pathlib.Path, lines: list) -> None:
  """One JSON value a line."""
  atomic.write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def append_line(path: pathlib.Path, content: Any) -> None:
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
  if path.exists():
    write_lines(path, lines)
  return lines


def _read_config(workdir):
  """What config.json holds; None where there is none."""
  path = workdir / "config.json"
  try:
    return json.loads(path.read_text()) if path.exists() else None
  except OSError as error:
    raise _not_writable(workdir, error) from error
  except json.JSONDecodeError as error:
    raise ValueError(f"workdir must be empty or of the same config; {path} is damaged: "
                     f"{error}") from error


def _write_config(workdir, config):
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config)
  except OSError as error:
    raise _not_writable(workdir, error) from error


def _owner(workdir):
  with contextlib.suppress(OSError):  # It has locked, and not written its name yet.
    return (workdir / ".owner").read_text()
  return "another process"


def _not_writable(workdir, error):
  return OSError(f"workdir must be a directory that can be written; got {workdir}: "
                 f"{error.strerror}")


def differences(first: dict, second: dict, where_first: str, where_second: str) -> str:
  """The fields that differ, in words; empty where none does."""
  first, second = flatten(first), flatten(second)
  pairs = {name: [tree.get(name, _ABSENT) for tree in (first, second)] for name in first | second}
  return ", ".join(f"{name} is {one!r} {where_first} and {other!r} {where_second}"
                   for name, (one, other) in pairs.items() if one != other)


def flatten(tree, prefix=""):
  """`{"section.field": value}` of nested dicts."""
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {name: leaf for key, value in tree.items()
          for name, leaf in flatten(value, f"{prefix}{key}.").items()}
