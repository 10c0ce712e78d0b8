"""Parsers of the original distribution files: paths in, numpy arrays out.

Images come out as uint8 `[n, H, W, C]`, labels as int32 `[n]`. Nothing is ever unpickled.
Every parser raises FileNotFoundError for a missing file, and ValueError for one that is
truncated or corrupt, in one line that names the file.
"""

import bz2
import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from dd_jax.datasets import npz
from dd_jax.datasets import matlab

_KERAS_NAMES = {"x_train": "train_images", "y_train": "train_labels", "x_test": "test_images",
                "y_test": "test_labels"}
_MOST_BYTES = 2**30  # decompressed: a bz2 file can grow a million times


def read_idx(images_path, labels_path):
  """The IDX pair of MNIST, Fashion-MNIST or KMNIST, plain or gzipped.

  Source: http://yann.lecun.com/exdb/mnist/, "File formats".

  Returns:
    `(images [n, H, W, 1], labels [n])`.
  """
  images = _idx_array(images_path, rank=3)
  labels = _idx_array(labels_path, rank=1)
  if len(images) != len(labels):
    raise ValueError(f"{labels_path}: expected one label for each of the {len(images)} images "
                     f"of {images_path}; found {len(labels)}")
  return images[..., None], labels.astype(np.int32)


def read_emnist(images_path, labels_path, *, first, num_classes):
  """The IDX pair of a split of EMNIST, whose images are stored with rows and columns swapped.

  Source: https://www.nist.gov/itl/products-and-services/emnist-dataset, "How to use".

  Args:
    images_path: `emnist-VARIANT-SPLIT-images-idx3-ubyte.gz`.
    labels_path: `emnist-VARIANT-SPLIT-labels-idx1-ubyte.gz`.
    first: the least label, which becomes 0: 1 of letters.
    num_classes: of the variant.

  Returns:
    `(images [n, H, W, 1], labels [n])`.
  """
  images, labels = read_idx(images_path, labels_path)
  labels = integer_labels(labels_path, labels, first, first + num_classes - 1) - first
  return np.ascontiguousarray(images.swapaxes(1, 2)), labels


def read_svhn(path):
  """One split of SVHN, cropped digits: `train_32x32.mat` or `test_32x32.mat` (MATLAB 5).

  Source: http://ufldl.stanford.edu/housenumbers/, "Format 2". The digit 0, stored as 10,
  becomes 0.

  Returns:
    `(images [n, 32, 32, 3], labels [n])`.
  """
  try:
    stored = matlab.read(read_bytes(path))
  except (ValueError, zlib.error) as error:
    raise ValueError(f"{path}: expected a MATLAB 5 file; found {one_line(error)}") from error
  if not {"X", "y"} <= stored.keys():
    raise ValueError(f"{path}: expected the variables X and y; found {sorted(stored)}")
  images, labels = stored["X"], stored["y"]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
    raise ValueError(f"{path}: expected X as uint8 [32, 32, 3, n]; "
                     f"found {images.dtype} {list(images.shape)}")
  if labels.shape != (images.shape[3], 1):
    raise ValueError(f"{path}: expected y as {[images.shape[3], 1]}; found {list(labels.shape)}")
  labels = integer_labels(path, labels[:, 0], 1, 10) % 10
  return np.ascontiguousarray(np.moveaxis(images, 3, 0)), labels


def read_usps_libsvm(path):
  """One split of USPS in libsvm's sparse text: `usps.bz2` or `usps.t.bz2`.

  A line is `label index:value ...` with labels 1..10 for the digits 0..9, indices 1..256 and
  values -1..1; an index left out is the value 0.
  Source: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps

  Returns:
    `(images [n, 16, 16, 1], labels [n])`.
  """
  lines = read_bytes(path).splitlines()
  labels, values = np.zeros(len(lines)), np.zeros((len(lines), 256))
  for row, line in enumerate(lines):
    try:
      label, *pairs = line.split()
      labels[row] = float(label)
      pairs = [pair.split(b":") for pair in pairs]
      index = np.array([int(i) for i, _ in pairs], int)
      pixels = [float(value) for _, value in pairs]
    except (OverflowError, ValueError) as error:
      raise ValueError(f"{path}: expected 'label index:value ...' in line {row + 1}; "
                       f"found {_excerpt(line)}") from error
    if index.size and not (1 <= index.min() and index.max() <= 256):
      raise ValueError(f"{path}: expected indices 1..256 in line {row + 1}; "
                       f"found {index.min()}..{index.max()}")
    if (np.diff(index) <= 0).any():
      raise ValueError(f"{path}: expected ascending indices in line {row + 1}; "
                       f"found {_excerpt(line)}")
    values[row, index - 1] = pixels
  labels = integer_labels(path, labels, 1, 10) - 1
  return _usps_images(path, values), labels


def read_usps_text(path):
  """One split of USPS in plain text, gzipped or not: `zip.train.gz`, `zip.test`, ...

  A line is the digit and 256 values in -1..1.
  Source: https://hastie.su.domains/ElemStatLearn/, "ZIP code".

  Returns:
    `(images [n, 16, 16, 1], labels [n])`.
  """
  raw = read_bytes(path)
  if not raw:
    raise ValueError(f"{path}: expected 257 numbers in every line; found no line")
  try:
    rows = np.loadtxt(raw.decode("ascii").splitlines(), dtype=np.float64, ndmin=2, comments=None)
  except ValueError as error:
    raise ValueError(f"{path}: expected 257 numbers in every line; "
                     f"found {one_line(error)}") from error
  if rows.shape[1] != 257:
    raise ValueError(f"{path}: expected 257 numbers in every line; found {rows.shape[1]}")
  return _usps_images(path, rows[:, 1:]), integer_labels(path, rows[:, 0], 0, 9)


def read_npz(path):
  """The arrays `train_images train_labels test_images test_labels` of a npz file, as stored.

  Those of a validation split, `val_images` and `val_labels` as MedMNIST has them, are appended to
  the training split. Source: https://medmnist.com, "MedMNIST .npz". `x_train`, `y_train`, `x_test`
  and `y_test`, as Keras has them, are read as well.
  """
  names = ("train_images", "train_labels", "test_images", "test_labels")
  validation = ("val_images", "val_labels")
  require_file(path)
  try:
    arrays = npz.read(path, (*names, *validation, *_KERAS_NAMES))
  except Exception as error:  # numpy and zipfile meet a bad byte with nearly any exception
    raise ValueError(f"{path}: expected a npz file of plain arrays; "
                     f"found {one_line(error)}") from error
  if arrays.keys() == _KERAS_NAMES.keys():
    arrays = {_KERAS_NAMES[name]: array for name, array in arrays.items()}
  if not arrays.keys() >= set(names) or len(arrays) == len(names) + 1:
    with np.load(path, allow_pickle=False) as stored:
      found = ", ".join(sorted(stored.files)) or "none"
    raise ValueError(f"{path}: expected the arrays {', '.join(names)}, and "
                     f"{' and '.join(validation)} or neither; found {found}")
  for train, more in zip(names, validation):
    if more in arrays:
      arrays[train] = _joined(path, train, arrays[train], more, arrays[more])
  return tuple(arrays[name] for name in names)


def _joined(path, name, array, more_name, more):
  are_text = array.dtype.kind == more.dtype.kind == "U"
  if not array.ndim or array.shape[1:] != more.shape[1:] or array.dtype != more.dtype and (
      not are_text):
    raise ValueError(f"{path}: expected {more_name} like {name}, {array.dtype} "
                     f"{list(array.shape[1:])} for an example; found {more.dtype} "
                     f"{list(more.shape[1:])}")
  return np.concatenate([array, more])


def _idx_array(path, *, rank):
  raw = read_bytes(path)
  expected = bytes([0, 0, 8, rank])  # unsigned bytes, of this rank
  if raw[:4] != expected:
    raise ValueError(f"{path}: expected an IDX file that starts with {expected.hex()}; "
                     f"found {raw[:4].hex() or 'nothing'}")
  start = 4 + 4 * rank
  if len(raw) < start:
    raise ValueError(f"{path}: expected an IDX header of {start} bytes; found {len(raw)}")
  shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", rank, 4))
  if 0 in shape:
    raise ValueError(f"{path}: expected at least one image of at least one pixel; "
                     f"found the shape {list(shape)}")
  if len(raw) - start != math.prod(shape):
    raise ValueError(f"{path}: expected {math.prod(shape)} bytes for the shape {list(shape)}; "
                     f"found {len(raw) - start}")
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _usps_images(path, values):
  if not (np.abs(values) <= 1).all():  # false for NaN too
    raise ValueError(f"{path}: expected pixels in -1..1; "
                     f"found {values.min():g}..{values.max():g}")
  return np.rint((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16, 1)


def integer_labels(path, labels, least, most):
  wrong = np.flatnonzero(~((labels >= least) & (labels <= most) & (labels == np.floor(labels))))
  if not len(labels) or wrong.size:
    found = f"{labels[wrong[0]]} at index {wrong[0]}" if wrong.size else "no line"
    raise ValueError(f"{path}: expected labels {least}..{most}; found {found}")
  return labels.astype(np.int32)


def read_bytes(path):
  """The content of a file, decompressed when its name ends in .gz or .bz2."""
  path = pathlib.Path(path)
  require_file(path)
  decompressing = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix)
  if decompressing is None:
    return path.read_bytes()
  try:
    with decompressing(path) as file:
      raw = file.read(_MOST_BYTES + 1)
  except (EOFError, OSError, ValueError, zlib.error) as error:
    raise ValueError(f"{path}: expected a whole {path.suffix} file; "
                     f"found {one_line(error)}") from error
  if len(raw) > _MOST_BYTES:
    raise ValueError(f"{path}: expected at most {_MOST_BYTES} bytes once decompressed; found more")
  return raw


def require_file(path):
  if not os.path.isfile(path):  # false for a name that no file system takes, too
    raise FileNotFoundError(f"{path}: no such file")


def one_line(error):
  return " ".join(f"{type(error).__name__}: {error}".split())


def _excerpt(line):
  return repr(line[:40].decode("ascii", "replace"))
