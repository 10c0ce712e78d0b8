"""Folders of .npy files: labels in memory, images that stay in their files.

Letters: n images, H W C height, width and channels.
"""

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from dd_jax.datasets import formats
from dd_jax.datasets import normalization
from dd_jax.datasets.splits import Splits

TRAIN_IMAGES = "train_images.npy"


class _Header(NamedTuple):
  shape: tuple[int, ...]
  dtype: np.dtype  # As stored, in any byte order.
  start: int  # Where the first number lies.


class NpyRows:
  """The rows of a .npy file `[n, H, W, C]` or `[n, H, W]`.

  They are read and not mapped: mapped pages would count as this process's memory.
  """

  def __init__(self, path: str | os.PathLike):
    """Checks the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or holds something else.
    """
    self._path, self._header = os.path.abspath(path), _read_header(path)
    shape, stored, _ = self._header
    if len(shape) not in (3, 4) or 0 in shape:
      raise ValueError(f"{path}: expected images [n, H, W, C] or [n, H, W]; found {list(shape)}")
    if stored.newbyteorder("=") not in (np.uint8, np.uint16) and stored.kind != "f":
      raise ValueError(f"{path}: expected uint8, uint16 or floating point; found {stored}")
    self.shape = shape if len(shape) == 4 else (*shape, 1)
    self.dtype = np.dtype(stored.newbyteorder("=") if stored.kind == "u" else
                          normalization.precision(np.empty(0, stored)))

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    images = np.empty((len(places), *self.shape[1:]), self.dtype)
    size = math.prod(self.shape[1:]) * self._header.dtype.itemsize
    with open(self._path, "rb") as file:
      for image, place in zip(images, places):
        file.seek(self._header.start + int(place) * size)
        raw = file.read(size)
        if len(raw) < size:
          raise ValueError(f"{self._path}: expected {size} bytes of image {place}; "
                           f"found {len(raw)}")
        image[:] = np.frombuffer(raw, self._header.dtype).reshape(image.shape)
    return images


def read(path: str | os.PathLike) -> Splits:
  """The splits of `train_images.npy`, `train_labels.npy` and the same of test, which may lack.

  Raises:
    FileNotFoundError: one of a pair is missing.
    ValueError: a file is damaged, or holds something else; nothing is unpickled.
  """
  path = pathlib.Path(path)
  test_images, test_labels = path / "test_images.npy", path / "test_labels.npy"
  if (validation := path / "val_images.npy").exists():
    raise ValueError(f"{validation}: expected images of train and test alone; append these to one "
                     "of them")
  train = NpyRows(path / TRAIN_IMAGES), _read_array(path / "train_labels.npy")
  if not test_images.exists() and not test_labels.exists():
    return Splits(*train, None, None)
  return Splits(*train, NpyRows(test_images), _read_array(test_labels))


def _read_array(path):
  shape, dtype, start = _read_header(path)
  array = np.fromfile(path, dtype, math.prod(shape), offset=start).reshape(shape)
  return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(path):
  """Of a file that is as long as it says."""
  formats.require_file(path)
  try:
    with open(path, "rb") as file:
      version = np.lib.format.read_magic(file)
      if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
      read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0) else
                     np.lib.format.read_array_header_2_0)
      shape, fortran_order, dtype = read_header(file)
      header = _Header(shape, dtype, file.tell())
  except Exception as error:  # numpy meets a bad byte with nearly any exception
    raise ValueError(f"{path}: expected a .npy file; found {formats.one_line(error)}") from error
  if dtype.kind not in "biufUS" or not dtype.itemsize:
    raise ValueError(f"{path}: expected numbers or strings; found {dtype}")
  if fortran_order:
    raise ValueError(f"{path}: expected rows one after another; found Fortran's order: save "
                     "numpy.ascontiguousarray of it")
  size, expected = os.path.getsize(path), header.start + math.prod(shape) * dtype.itemsize
  if min(shape, default=1) < 0 or size != expected:
    raise ValueError(f"{path}: expected {expected} bytes for {dtype} {list(shape)}; found {size}")
  return header
