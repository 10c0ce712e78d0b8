"""Pools of trained networks as files: `params/...` `[P, ...]`, by `trees`, and metadata."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from dd_jax.files import archive
from dd_jax.files import trees
from dd_jax.types import Params


class Pool(NamedTuple):
  """What `load` returns."""
  params: Params  # Each leaf [P, ...].
  metadata: dict[str, Any]


def save(path: str | os.PathLike, params: Params, metadata: dict[str, Any]) -> None:
  """Writes a pool of networks, whole or not at all.

  Args:
    path: ends in .npz.
    params: weights of P networks, dicts, lists and tuples of arrays `[P, ...]`.
    metadata: anything JSON can hold.

  Raises:
    ValueError: weights that are something else (cast bfloat16 to float32 first) or have no common
      leading axis, or metadata that JSON cannot hold.
  """
  arrays = trees.flatten(params, "params", "params")
  _check("params", params)
  archive.write(path, arrays, metadata)


def load(path: str | os.PathLike) -> Pool:
  """Reads a file written by `save`: weights as numpy arrays, to be spread over the devices.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a file, it is damaged, or its format is newer than this package.
  """
  arrays, metadata = archive.read(path, "a pool of networks (.npz)")
  params = trees.unflatten(arrays, "params", path)
  if params is None:
    raise ValueError(f"{path} must be a pool of networks (.npz); it holds no weights params/...")
  _check(path, params)
  return Pool(params, metadata)


def _check(where, params):
  """Raises ValueError unless all weights have one leading axis, of the networks."""
  counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
  if len(counts) != 1 or counts & {(), (0,)}:
    raise ValueError(f"{where} must be arrays [P, ...] of one number of networks P; "
                     f"got {sorted(counts)}")
