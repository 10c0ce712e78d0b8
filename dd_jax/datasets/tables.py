"""Tables: CSV files, and rows of numbers as images.

Letters: n rows, D columns of numbers, H W C height, width and channels of an image.
"""

import csv
import io
import itertools
import math
import pathlib
import re

import numpy as np

from dd_jax.datasets import formats
from dd_jax.datasets.splits import Splits

LONGEST_LABEL = 200  # An array of text takes as much for every label.

_BLOCK = 500  # lines converted at once
_MOST_KEPT = 2**16  # numbers that are looked up, not converted again
_CODE = re.compile(r"[+-]?0\d+", re.ASCII)  # 007 is another class than 7.
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


def is_csv(path):
  """Whether `read_csv` is for this path, a file or a folder."""
  return path.name.endswith((".csv", ".csv.gz")) or _of_split(path, "train").is_file()


def read_csv(path, reading):
  """A CSV file with a header, or a folder with train.csv and test.csv.

  One column holds the labels, integers or text, and all others hold numbers. Fields may be quoted.
  Source: https://www.rfc-editor.org/rfc/rfc4180

  Args:
    path: the file or the folder.
    reading: `label` names the column of labels; `image_shape` makes images of the rows.

  Returns:
    `Splits` with the images of `as_images`; labels `[n]` are int64 where those of both splits are
    whole numbers, else text. A single file has no test split. The index that pandas writes, a first
    column without a name, is left out.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: a file is damaged or breaks a rule, in one line that names the line and the column.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    columns, rows, labels = _read_file(path, reading.label)
    images, _ = as_images(path, columns, rows, None, reading.image_shape)
    return Splits(images, *_labels(reading.label, {path: labels}), None, None)
  train, test, validation = (_of_split(path, name) for name in ("train", "test", "val"))
  if validation.exists():
    raise ValueError(f"{validation}: expected train.csv and test.csv alone; append these lines to "
                     "one of them")
  columns, rows, labels = _read_file(train, reading.label)
  test_columns, test_rows, test_labels = _read_file(test, reading.label)
  test_rows = in_order(test, test_columns, test_rows, train, columns)
  images, test_images = as_images(path, columns, rows, test_rows, reading.image_shape)
  labels, test_labels = _labels(reading.label, {train: labels, test: test_labels})
  return Splits(images, labels, test_images, test_labels)


def _of_split(folder, name):
  """Its CSV file, the one that is gzipped where there is that one alone."""
  plain, zipped = folder / f"{name}.csv", folder / f"{name}.csv.gz"
  return zipped if zipped.exists() and not plain.exists() else plain


def in_order(path, columns, rows, first_path, first_columns):
  """The rows `[n, D]` of a file with its columns in the order of those of the first file."""
  if sorted(columns) != sorted(first_columns):
    extra = sorted(set(columns) ^ set(first_columns))
    raise ValueError(f"{path}: expected the columns of {first_path}; found {listed(extra)} in one "
                     "file alone")
  return rows[:, [columns.index(name) for name in first_columns]]


def check_index(path, values):
  """A ValueError unless a column without a name is the index that pandas writes, 0, 1, 2, ...

  It is no column of the table: of one that is sorted by its classes it would tell them.
  """
  if [str(value).removesuffix(".0") for value in values] != [str(i) for i in range(len(values))]:
    raise ValueError(f"{path}: expected a name for every column in line 1, but for an index "
                     "0, 1, 2, ...; found one that has none")


def as_images(path, columns, rows, test_rows, image_shape):
  """Rows of numbers as images, of both splits.

  Args:
    path: for the message.
    columns: the D names, for the message; None where they have none.
    rows: `[n, D]`.
    test_rows: `[n, D]` or None.
    image_shape: `(H, W, C)` with H*W*C = D: row after row, channels last. None, and a single
      pixel: a table.

  Returns:
    `(images, test images or None)`: float64 `[n, 1, 1, D]` of a table; `[n, H, W, C]` of images,
    uint8 where all numbers are whole and in 0..255, else float64.
  """
  parts = [part for part in (rows, test_rows) if part is not None]
  shape = tuple(image_shape or (1, 1, rows.shape[1]))
  if math.prod(shape) != rows.shape[1]:
    named = f": {listed(columns)}" if columns else ""
    raise ValueError(f"{path}: expected {math.prod(shape)} numbers in a row for image_shape="
                     f"{shape}; found {rows.shape[1]}{named}")
  dtype = np.dtype(np.float64)
  if shape[:2] != (1, 1) and all(_are_bytes(part) for part in parts):
    dtype = np.dtype(np.uint8)
  images = [part.astype(dtype, copy=False).reshape(-1, *shape) for part in parts]
  return images[0], images[1] if len(images) > 1 else None


def listed(names):
  """The first ten names, for a message."""
  shown = ", ".join(repr(name[:40]) for name in names[:10]) or "no column"
  return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _are_bytes(rows):
  return (rows.dtype == np.uint8
          or bool(((rows >= 0) & (rows <= 255) & (rows == np.floor(rows))).all()))


def _read_file(path, label):
  """`(names of the D columns, rows [n, D] float64, n labels as they are written)`."""
  raw = formats.read_bytes(path)
  try:
    raw.decode()
  except UnicodeDecodeError as error:
    line = raw.count(b"\n", 0, error.start) + 1
    raise ValueError(f"{path}: expected text in UTF-8 in line {line}; "
                     f"found {formats.one_line(error)}") from error
  reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline=""), strict=True)
  header = [name.strip() for name in next(_lines(path, reader), [])]
  twice = [name for i, name in enumerate(header) if name in header[:i]]
  if twice:
    raise ValueError(f"{path}: expected a name of its own for every column in line 1; found "
                     f"{twice[0]!r} twice")
  if label not in header or len(header) < 2:
    raise ValueError(f"{path}: expected a column {label!r} (data.label) and columns of numbers in "
                     f"line 1; found {listed(header)}")
  place = header.index(label)
  columns = header[:place] + header[place + 1:]
  labels, parts, number = [], [], _Numbers()
  lines = _lines(path, reader)
  while block := list(itertools.islice(((reader.line_num, row) for row in lines), _BLOCK)):
    for line, row in block:
      if len(row) != len(header):
        raise ValueError(f"{path}: expected {len(header)} fields in line {line}, as in the header; "
                         f"found {len(row)}")
      labels.append(row.pop(place).strip())
      if not 0 < len(labels[-1]) <= LONGEST_LABEL:
        raise ValueError(f"{path}: expected a label of 1..{LONGEST_LABEL} characters in line "
                         f"{line}, column {label!r}; found {labels[-1][:40]!r}")
    fields = itertools.chain.from_iterable(row for _, row in block)
    try:
      part = np.fromiter(map(number.__getitem__, fields), np.float64, len(block) * len(columns))
    except ValueError as error:
      line, name, field = next((line, name, field) for line, row in block
                               for name, field in zip(columns, row) if not _is_number(field))
      raise ValueError(f"{path}: expected a number in line {line}, column {name!r}; "
                       f"found {field[:40]!r}") from error
    parts.append(part.reshape(len(block), -1))
  if not parts:
    raise ValueError(f"{path}: expected lines behind the header; found none")
  rows = np.concatenate(parts)
  if "" in columns and len(columns) > 1:
    index = columns.index("")
    check_index(path, rows[:, index])
    columns, rows = columns[:index] + columns[index + 1:], np.delete(rows, index, 1)
  return columns, rows, labels


def _lines(path, reader):
  """Yields the fields of every line that is not empty."""
  try:
    yield from filter(None, reader)
  except csv.Error as error:
    raise ValueError(f"{path}: expected CSV in line {reader.line_num}; "
                     f"found {formats.one_line(error)}") from error


class _Numbers(dict):
  """`{field: number}` of what was converted: a table of pixels has few that differ."""

  def __missing__(self, field):
    number = to_number(field)
    if len(self) < _MOST_KEPT:
      self[field] = number
    return number


def to_number(field: str) -> float:
  """The finite number that a text is; a ValueError of any other."""
  number = float(field)
  # Python alone takes 1_000, and digits of other scripts.
  if "_" in field or not field.isascii() or not math.isfinite(number):
    raise ValueError(field)
  return number


def _is_number(field):
  try:
    to_number(field)
  except ValueError:
    return False
  return True


def _labels(column, splits):
  """Labels of every split `{path: n texts}`, of one type in all of them."""
  texts = [text for split in splits.values() for text in split]
  if any(map(_CODE.fullmatch, texts)):
    return [np.array(split) for split in splits.values()]
  if all(map(_INTEGER.fullmatch, texts)):
    return [np.array(split).astype(np.int64) for split in splits.values()]
  if not all(map(_is_number, texts)):
    return [np.array(split) for split in splits.values()]
  found = []
  for path, split in splits.items():
    values = np.array(split).astype(np.float64)
    wrong = np.flatnonzero((values % 1 != 0) | (np.abs(values) >= 2**53))
    if wrong.size:
      raise ValueError(f"{path}: expected whole numbers below 2**53, or text, in column "
                       f"{column!r}; found {split[wrong[0]]!r}")
    found.append(values.astype(np.int64))
  return found
