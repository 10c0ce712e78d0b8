"""Paths as a user writes them."""

import os
import pathlib


def local(path: str | os.PathLike, name: str) -> pathlib.Path:
  """The path with `~` and `~user` expanded.

  Raises:
    ValueError: it is an address, such as gs://bucket/run; the message names the flag or field.
  """
  text = os.fspath(path)
  if "://" in text:
    raise ValueError(f"{name} must be a local path; got {text!r}")
  return pathlib.Path(text).expanduser()


def output(path: str | os.PathLike, name: str) -> pathlib.Path:
  """As `local`, of a file that is to be written; its folder is made at once."""
  found = local(path, name)
  found.parent.mkdir(parents=True, exist_ok=True)
  return found
