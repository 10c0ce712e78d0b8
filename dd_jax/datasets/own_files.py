"""Image sets and tables in files of one's own: which reader a path is for."""

import os
import pathlib

import numpy as np

from dd_jax.datasets import dataset
from dd_jax.datasets import formats
from dd_jax.datasets import npy_files
from dd_jax.datasets import parquet
from dd_jax.datasets import picture_folders
from dd_jax.datasets import rows
from dd_jax.datasets import tables
from dd_jax.datasets.labels import as_classes
from dd_jax.datasets.splits import Reading, Splits, check_shape

# What a path can be, how it is told, and its reader, in the order of asking.
_READERS = (
    ("a .npz file", lambda path: path.suffix == ".npz",
     lambda path, reading: Splits(*formats.read_npz(path))),
    ("a folder of .npy files", lambda path: (path / npy_files.TRAIN_IMAGES).is_file(),
     lambda path, reading: npy_files.read(path)),
    ("a .csv file, or a folder with train.csv and test.csv", tables.is_csv, tables.read_csv),
    ("a .parquet file, or a folder of them", parquet.is_parquet, parquet.read),
    ("a folder of pictures", pathlib.Path.is_dir, picture_folders.read),
)
_SUFFIXES = (".npz", ".csv", ".csv.gz", ".parquet")
_RESIZE = ("border", "crop", "stretch")


def is_path(name: str | os.PathLike) -> bool:
  """Whether a dataset's name is a path."""
  return (isinstance(name, os.PathLike) or "/" in name or os.sep in name
          or name.endswith(_SUFFIXES))


def read(path: str | os.PathLike, reading: Reading) -> Splits:
  """The splits of a path; where it has one, a part of every class is chosen for testing.

  Raises:
    ValueError, OSError: no reader is for it, what lies there is damaged, or `reading` does not fit;
      one line names it.
  """
  path = pathlib.Path(path).expanduser()
  _check(reading)
  for _, fits, reader in _READERS:
    if fits(path):
      return _with_test(path, reader(path, reading), reading)
  kinds = ", ".join(kind for kind, _, _ in _READERS)
  if not os.path.exists(path):
    raise FileNotFoundError(f"{path}: no such file or folder; it may be {kinds}")
  raise ValueError(f"{path}: expected {kinds}; found another file")


def _with_test(path, splits, reading):
  """The splits, of which the test one is a function of the labels and the fraction."""
  images, labels, test_images, *_ = splits
  if test_images is not None:
    return splits
  try:
    classes, _, names = as_classes(labels, labels)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if len(classes) != images.shape[0]:
    raise ValueError(f"{path}: expected one label for each of the {images.shape[0]} images; "
                     f"found {len(classes)}")
  if splits.class_names:
    names = [splits.class_names[label] for label in np.unique(labels)]
  names, counts = names or range(len(classes)), np.bincount(classes)
  if counts.min() < 2:
    raise ValueError(f"{path}: expected at least two examples of every class, one of them for "
                     f"testing; found {counts.min()} of {names[counts.argmin()]!r}")
  number = np.clip(round(reading.test_fraction * len(classes)), len(counts),
                   len(classes) - len(counts))
  test = dataset.stratified_indices(classes, int(number), num_classes=len(counts), seed=0)
  train = np.setdiff1d(np.arange(len(classes)), test)
  return Splits(rows.choose(images, train), labels[train], rows.choose(images, test), labels[test],
                splits.class_names)


def _check(reading):
  shape, resize, label, fraction, _ = reading
  if shape is not None:
    check_shape(shape)
  if resize not in _RESIZE:
    raise ValueError(f"resize must be one of {', '.join(_RESIZE)}; got {resize!r}")
  if not isinstance(label, str):
    raise ValueError(f"label must be the name of a column; got {label!r}")
  if not (isinstance(fraction, (int, float)) and 0 < fraction < 1):
    raise ValueError(f"test_fraction must lie in (0, 1); got {fraction!r}")
