"""Fingerprints by which data that changed are recognised."""

import hashlib

import numpy as np

from dd_jax.datasets import rows
from dd_jax.datasets.dataset import Dataset

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def digest(dataset: Dataset) -> dict[str, str]:
  """`{array: "dtype [shape] hash"}` of a set's images and labels; equal for equal arrays alone.

  The hash is BLAKE2b of 16 bytes (RFC 7693), a second for a gigabyte.
  """
  return {name: of_array(getattr(dataset, name)) for name in _ARRAYS}


def of_array(array: np.ndarray | rows.Rows) -> str:
  """`"dtype [shape] hash"` of one array."""
  content = hashlib.blake2b(digest_size=16)
  for block in rows.blocks(array):
    content.update(np.ascontiguousarray(block).data.cast("B"))
  return f"{array.dtype} {list(array.shape)} {content.hexdigest()}"
