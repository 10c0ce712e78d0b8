"""Parquet files, one or a folder of shards as Hugging Face lays them out; read with pyarrow.

Letters: n rows, D columns of numbers, H W C height, width and channels, K classes.
"""

import contextlib
import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dd_jax import extras
from dd_jax.datasets import arrow_columns
from dd_jax.datasets import formats
from dd_jax.datasets import host_memory
from dd_jax.datasets import picture_files
from dd_jax.datasets import tables
from dd_jax.datasets.splits import Splits

_IMAGE_COLUMNS = ("image", "img")
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation"}
_SHARD = re.compile(rf"({'|'.join(_SPLITS)})(?:-(\d+)-of-(\d+)(?:-[0-9a-f]+)?)?\.parquet", re.ASCII)
_INDEX = re.compile(r"__index_level_\d+__")  # of pandas, no column of the table


class _Part(NamedTuple):
  """What one file holds."""
  columns: tuple[str, ...]  # The D names of a table; empty: images, of a column of their own.
  images: np.ndarray  # [n, H, W, C], or [n, D] numbers
  labels: np.ndarray  # [n], or [n, K] numbers
  class_names: tuple[str, ...]
  frame: picture_files.Frame | None = None  # Of encoded pictures.


def is_parquet(path):
  """Whether `read` is for this path, a file or a folder."""
  return path.suffix == ".parquet" or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))


def read(path, reading):
  """A Parquet file, or a folder of shards `SPLIT-00000-of-00002.parquet`, of which none may lack.

  The shards lie in the folder itself or in one of its sub-folders, `data` or another. Validation
  is the test split where there is none of that name, else it is appended to train.

  Images are the column `image` or `img`: encoded pictures, with or without their path, or nested
  lists of numbers `[H][W]` or `[H][W][C]`; a list `[D]` is a row of a table. Without such a column
  every column but that of the labels is one of numbers, of a table.
  Sources: https://parquet.apache.org/docs/file-format/,
  https://huggingface.co/docs/hub/datasets-file-names-and-splits

  Args:
    path: the file or the folder.
    reading: `label` names the column of labels; beside images it may have any name, if there is
      but one other column of integers or text. `image_shape` and `resize` are for encoded
      pictures, as in folders of them; `image_shape` also makes images of the rows of a table.

  Returns:
    `Splits`; whole numbers in 0..255 are uint8 images, and tables float64 `[n, 1, 1, D]`. A single
    file, or a folder of one split, has no test split. Names of classes are those of a ClassLabel.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: a file is damaged or breaks a rule, in one line that names it.
    ImportError: pyarrow is not installed.
  """
  path = pathlib.Path(path)
  splits = _shards(path) if path.is_dir() else {"train": [path]}
  test = splits.get("test") or splits.get("validation", [])
  train = splits["train"] + (splits.get("validation", []) if "test" in splits else [])
  first, *_ = parts = [_read_file(train[0], reading)]
  for file in train[1:] + test:
    parts.append(_like(first, train[0], _read_file(file, reading, first.frame), file))
  images, labels = _joined(parts[:len(train)])
  test_images, test_labels = _joined(parts[len(train):]) if test else (None, None)
  if images.ndim == 2:
    images, test_images = tables.as_images(path, first.columns, images, test_images,
                                           reading.image_shape)
  else:
    images, test_images = _as_pixels(images, test_images)
  return Splits(images, labels, test_images, test_labels, first.class_names)


def _joined(parts):
  """`(images, labels)` of several files."""
  if len(parts) == 1:
    return parts[0].images, parts[0].labels
  host_memory.check("the shards together", sum(part.images.nbytes for part in parts))
  return (np.concatenate([part.images for part in parts]),
          np.concatenate([part.labels for part in parts]))


def read_columns(path):
  """`{name: values}` of one file, without the index of pandas; errors as of `read`."""
  with _opened(path) as (file, _, names):
    with _told(path):
      content = file.read(names)
      content.validate(full=True)
  return content.to_pydict()


def _shards(path):
  """`{"train" and maybe "test", "validation": files in their order}`."""
  for folders in ([path], sorted(child for child in path.iterdir() if child.is_dir())):
    found = {folder: matches for folder in folders
             if (matches := list(filter(None, map(_SHARD.fullmatch, _names(folder)))))}
    if found:
      break
  if len(found) > 1:
    raise ValueError(f"{path}: expected train.parquet or its shards in one folder; found them in "
                     f"{tables.listed([folder.name for folder in found])}")
  splits = {}
  for folder, matches in found.items():
    for split in dict.fromkeys(match[1] for match in matches):
      files = [match for match in matches if match[1] == split]
      _check_shards(folder, split, files)
      splits.setdefault(_SPLITS[split], []).extend(folder / match[0] for match in files)
  if "train" not in splits:
    raise ValueError(f"{path}: expected train.parquet, or train-00000-of-00001.parquet and so on; "
                     f"found {tables.listed(_names(path)) if path.is_dir() else 'nothing'}")
  return splits


def _names(folder):
  return sorted(child.name for child in folder.iterdir())


def _check_shards(folder, split, matches):
  counts = {match[3] for match in matches}
  numbers = sorted(int(match[2] or 0) for match in matches)
  whole = len(counts) == 1 and len(numbers) == int(matches[0][3] or 1)
  if not whole or numbers != list(range(len(numbers))):
    raise ValueError(f"{folder}: expected one file of {split}, or each of its shards once; "
                     f"found {tables.listed([match[0] for match in matches])}")


def _like(first, first_file, part, file):
  """`part` with its columns in the order of the first, which it must be alike."""
  if first.columns and part.columns:
    part = part._replace(columns=first.columns, images=tables.in_order(
        file, part.columns, part.images, first_file, first.columns))
  for what, found, expected in (
      ("images", _kind(part.images), _kind(first.images)),
      ("labels", _kind(part.labels), _kind(first.labels)),
      ("names of classes", list(part.class_names), list(first.class_names))):
    if found != expected:
      raise ValueError(f"{file}: expected {what} as those of {first_file}, {expected}; "
                       f"found {found}")
  return part


def _kind(array):
  name = "text" if array.dtype.kind == "U" else array.dtype.name
  return f"{name} {list(array.shape[1:])}"


def _as_pixels(images, test_images):
  """uint8 of whole numbers in 0..255, float64 of others; float16, which no set has, widened."""
  parts = [part for part in (images, test_images) if part is not None]
  if images.dtype.kind in "iu" and images.dtype not in (np.uint8, np.uint16):
    within = all(part.min() >= 0 and part.max() <= 255 for part in parts)
    parts = [part.astype(np.uint8 if within else np.float64) for part in parts]
  if images.dtype == np.float16:
    parts = [part.astype(np.float32) for part in parts]
  return parts[0], parts[1] if len(parts) > 1 else None


@contextlib.contextmanager
def _opened(path):
  """`(file, its schema, names of its columns)`; each name is there once."""
  parquet = extras.load("pyarrow.parquet", "a .parquet file needs pyarrow", "parquet")
  formats.require_file(path)
  with _told(path):
    file = parquet.ParquetFile(path, page_checksum_verification=True)
  with file:
    with _told(path):
      schema = file.schema_arrow
    names = [name for name in schema.names if not _INDEX.fullmatch(name)]
    if len(set(names)) < len(names):
      raise ValueError(f"{path}: expected a name of its own for every column; found "
                       f"{tables.listed(names)}")
    yield file, schema, names


def _read_file(path, reading, frame=None):
  with _opened(path) as (file, schema, names):
    image, label = _find_columns(path, schema, names, reading.label)
    with _told(path):
      content = file.read([image, label] if image else names)
      content.validate(full=True)
      class_names = _class_names(schema, label)
  if not len(content):
    raise ValueError(f"{path}: expected at least one row; found none")
  labels = arrow_columns.labels(path, label, content.column(label), class_names)
  if image:
    images, frame = arrow_columns.images(path, image, content.column(image), reading, frame)
    return _Part((), images, labels, class_names, frame)
  columns = [name for name in names if name != label]
  return _Part(tuple(columns), arrow_columns.table(path, columns, content), labels, class_names)


@contextlib.contextmanager
def _told(path):
  try:
    yield
  except Exception as error:  # pyarrow meets a bad byte with many an exception
    raise ValueError(f"{path}: expected a Parquet file; found {formats.one_line(error)}") from error


def _find_columns(path, schema, names, label):
  """`(name of the column of images or None, name of that of labels)`."""
  image = next((name for name in _IMAGE_COLUMNS if name in names and name != label), None)
  others = [name for name in names
            if name != image and arrow_columns.may_be_labels(schema.field(name).type)]
  if label in names and len(names) > 1:
    return image, label
  if image and len(others) == 1:
    return image, others[0]
  raise ValueError(f"{path}: expected a column {label!r} of labels (data.label) beside one of "
                   f"images or those of numbers; found {tables.listed(names)}")


def _class_names(schema, label):
  """Those of a ClassLabel, from what Hugging Face's datasets keep in the file."""
  stored = (schema.metadata or {}).get(b"huggingface")
  info = json.loads(stored).get("info") if stored else None
  feature = ((info or {}).get("features") or {}).get(label)
  names = feature.get("names", []) if isinstance(feature, dict) else []
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError(f"names of classes {str(names)[:80]!r}")
  return tuple(names)
