"""Files of arrays with a JSON text `metadata`, which says the version of the format."""

import json
import os
from typing import Any

import jax
import numpy as np

from dd_jax.datasets import npz
from dd_jax.files import atomic

FORMAT_VERSION = 2
# What version 1 called otherwise: field -> (field, {value: value}).
_RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "trajectory": ("inner_algorithm", {
        "inner_trajectory": "unroll", "implicit_trajectory": "implicit",
        "ridge_trajectory": "ridge"}),
    "inner_loss": ("inner_loss", {"mean cross-entropy of images[s]": "classification"}),
}


# What fields hold that this package reads; a network or loss of one's own may have no name.
_TYPES: dict[str, tuple[type, ...]] = {
    "dataset": (str,), "model": (str, type(None)), "inner_loss": (str, type(None)),
    "objective": (dict,), "init": (dict,), "num_classes": (int,), "num_eval_inits": (int,),
    "seed": (int,), "mean": (list,), "std": (list,)}


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray],
          metadata: dict[str, Any] | None) -> None:
  """Writes a .npz file, whole or not at all.

  Args:
    path: ends in .npz.
    arrays: by name.
    metadata: anything JSON can hold.

  Raises:
    ValueError: metadata that JSON cannot hold.
    OSError: it cannot be written.
  """
  content: dict[str, Any] = {**arrays, "metadata": np.array(encode_metadata(metadata))}
  atomic.write(path, lambda file: np.savez(file, **content))


def read(path: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays and the metadata of a file.

  Args:
    path: a file of `write`.
    kind: what it should be, in the message.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a file, it is damaged, or its format is newer than this package.
  """
  try:
    arrays = npz.read(path)
  except FileNotFoundError:
    raise
  except Exception as error:  # numpy and zipfile meet a bad byte with nearly any exception.
    raise ValueError(f"{path} must be {kind}; it cannot be read: "
                     f"{' '.join(str(error).split())}") from error
  check_present(path, arrays, ("metadata",))
  text = arrays.pop("metadata")
  if text.dtype.kind != "U" or text.ndim:
    raise ValueError(f"{path} must hold metadata as text; got {text.dtype} {list(text.shape)}")
  metadata = decode_metadata(path, str(text))
  for name, array in arrays.items():
    npz.numeric(array, f"{path} must hold {name!r} as an array")
  return arrays, metadata


def check_present(path: str | os.PathLike, arrays: dict[str, Any], required: tuple[str, ...]
                  ) -> None:
  """A ValueError that lists the names that are not there."""
  missing = [name for name in required if name not in arrays]
  if missing:
    raise ValueError(f"{path} must hold {list(required)}; missing {missing}")


def encode_metadata(metadata: dict[str, Any] | None) -> str:
  """JSON text of the metadata and of the format's version; ValueError for what JSON cannot hold."""
  try:
    return json.dumps({**(metadata or {}), "format_version": FORMAT_VERSION})
  except TypeError as error:
    raise ValueError(f"metadata must be JSON: {error}") from error


def decode_metadata(path: str | os.PathLike, text: str) -> dict[str, Any]:
  """The metadata in a text of `encode_metadata`, those of an older version by today's names.

  Args:
    path: begins the messages.
    text: JSON.

  Raises:
    ValueError: it is not such a text, or of a newer version than this package reads.
  """
  rule = f"{path} must hold metadata as a JSON object with its format_version"
  try:
    metadata = json.loads(text)
    version = metadata.pop("format_version")
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f"{rule}; got {type(error).__name__}: {error}") from error
  if type(version) is not int or version < 1:
    raise ValueError(f"{rule}, an integer from 1; got {str(version)[:40]!r}")
  if version > FORMAT_VERSION:
    raise ValueError(f"{path} has format version {version}; this package reads up to "
                     f"{FORMAT_VERSION}: install a newer dd_jax")
  metadata = _renamed(metadata) if version == 1 else metadata
  for name, types in _TYPES.items():
    if name in metadata and not isinstance(metadata[name], types):
      raise ValueError(f"{path}: {name} of the metadata must be "
                       f"{' or '.join(of.__name__ for of in types)}; got {metadata[name]!r}")
  return metadata


def canonical(where: str, array: np.ndarray) -> np.ndarray:
  """`array` in the type that JAX holds it in, which is 32-bit unless it is told otherwise.

  Raises:
    ValueError: a value is lost in it; `where` begins the message.
  """
  dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  if array.dtype == dtype:
    return array
  with np.errstate(over="ignore"):  # Becomes inf, which is refused below.
    narrow = array.astype(dtype)
  lost = np.isfinite(array) & (~np.isfinite(narrow) if dtype.kind == "f" else narrow != array)
  if lost.any():
    raise ValueError(f"{where} must fit {dtype}, or jax_enable_x64 be set; got {array[lost][0]}")
  return narrow


def _renamed(metadata):
  renamed = {}
  for name, value in metadata.items():
    name, values = _RENAMED.get(name, (name, {}))
    renamed[name] = values.get(value, value) if isinstance(value, str) else value
  return renamed
