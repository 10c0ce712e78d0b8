"""Columns of pyarrow as numpy arrays: pictures, nested lists of numbers, labels.

Every function takes the path and the name of a column for its messages: one line that names both.
Letters: n rows, D columns of numbers, H W C height, width and channels, K classes.
"""

import math

import numpy as np

from dd_jax import extras
from dd_jax.datasets import host_memory
from dd_jax.datasets import picture_files
from dd_jax.datasets import tables


def may_be_labels(kind):
  """Whether a column of this type can be told to be that of labels: integers or text."""
  types = _types()
  if types.is_dictionary(kind):
    kind = kind.value_type
  return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def images(path, name, column, reading, frame):
  """Images `[n, H, W, C]` of a column, or rows `[n, D]` of one of lists `[D]`, and their frame.

  Args:
    path, name: for the messages.
    column: of pyarrow.
    reading: of pictures, where there is no frame yet.
    frame: that of the pictures of the files before; None: their first decides.
  """
  types = _types()
  kind = column.type
  if types.is_struct(kind) and "bytes" in kind.names:
    return _pictures(path, name, column, reading, frame)
  if types.is_binary(kind) or types.is_large_binary(kind):
    return _pictures(path, name, column, reading, frame)
  values = _numbers(path, name, column)
  if values.ndim not in (2, 3, 4):
    raise ValueError(f"{path}: expected pictures or lists [H][W] or [H][W][C] in column {name!r}; "
                     f"found {kind}")
  return (values[..., None] if values.ndim == 3 else values), None


def table(path, names, content):
  """The rows `[n, D]` float64 of these columns of numbers."""
  types = _types()
  rows = np.empty((len(content), len(names)))
  for place, name in enumerate(names):
    column = content.column(name)
    if types.is_dictionary(column.type) or not _is_number(column.type):
      raise ValueError(f"{path}: expected numbers in column {name!r}; found {column.type}")
    rows[:, place] = _numbers(path, name, column)
  return rows


def labels(path, name, column, class_names):
  """Labels `[n]` of integers or text, or rows of them `[n, K]`.

  Args:
    path: for the message.
    name: for the message.
    column: of pyarrow.
    class_names: K; those that the labels are numbers of. Empty: the labels may be any.
  """
  types = _types()
  if types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  if types.is_string(column.type) or types.is_large_string(column.type):
    _check_nulls(path, name, column)
    values = column.to_pylist()
    wrong = [i for i, value in enumerate(values) if not 0 < len(value) <= tables.LONGEST_LABEL]
    if wrong:
      raise ValueError(f"{path}: expected labels of 1..{tables.LONGEST_LABEL} characters in column "
                       f"{name!r}; found {values[wrong[0]][:40]!r} in row {wrong[0]}")
    return np.array(values)
  values = _numbers(path, name, column)
  wrong = np.argwhere((values < 0) | (values >= len(class_names))) if class_names else ()
  if len(wrong):
    raise ValueError(f"{path}: expected labels 0..{len(class_names) - 1}, of which column {name!r} "
                     f"has the names; found {values[tuple(wrong[0])]} in row {wrong[0][0]}")
  return values


def _types():
  return extras.load("pyarrow.types", "a .parquet file needs pyarrow", "parquet")


def _is_number(kind):
  types = _types()
  return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _check_nulls(path, name, column):
  if column.null_count:
    row = np.flatnonzero(column.is_null().to_numpy())[0]
    raise ValueError(f"{path}: expected a value in every row of column {name!r}; found none in row "
                     f"{row}")


def _numbers(path, name, column):
  """`[n, ...]` of a column of numbers, or of lists of lists of them, all of one length."""
  types = _types()
  _check_nulls(path, name, column)
  parts = []
  for chunk in filter(len, column.chunks):
    shape = [len(chunk)]
    while types.is_list(chunk.type) or types.is_large_list(chunk.type) or types.is_fixed_size_list(
        chunk.type):
      lengths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False))
      chunk = chunk.flatten()
      if len(lengths) > 1 or chunk.null_count or not lengths.all():
        found = ("an empty place" if chunk.null_count else f"{lengths[0]} and {lengths[1]}"
                 if len(lengths) > 1 else "empty ones")
        raise ValueError(f"{path}: expected lists of one length in column {name!r}; found {found}")
      shape += lengths.tolist()
    if not _is_number(chunk.type):
      raise ValueError(f"{path}: expected pictures, numbers or text in column {name!r}; "
                       f"found {column.type}")
    parts.append(chunk.to_numpy(zero_copy_only=False).reshape(shape))
  if len({part.shape[1:] for part in parts}) > 1:
    raise ValueError(f"{path}: expected lists of one length in column {name!r}; found "
                     f"{[list(part.shape[1:]) for part in parts][:2]}")
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pictures(path, name, column, reading, frame):
  """`[n, H, W, C]` of encoded pictures, bare or in structs `{bytes, path}`; their frame."""
  images = None
  for row, value in enumerate(value for chunk in column.chunks for value in chunk):
    raw = value.as_py()
    raw = raw["bytes"] if isinstance(raw, dict) else raw
    if not raw:
      raise ValueError(f"{path}: expected the bytes of a picture in column {name!r}; found none in "
                       f"row {row}")
    where = f"{path}: row {row}"
    picture = picture_files.read(where, raw)
    frame = frame or picture_files.frame_of(where, picture, reading)
    if images is None:
      host_memory.check(path, math.prod((len(column), *frame.shape, frame.dtype.itemsize)))
      images = np.empty((len(column), *frame.shape), frame.dtype)
    images[row] = picture_files.framed(where, picture, frame)
  return images, frame
