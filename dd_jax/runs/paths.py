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
