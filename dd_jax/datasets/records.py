"""Tables of numbers and categories as rows of numbers, and back.

Letters: n rows, D numbers of a row.

The rules: numbers are standardised by the training split; a category is one-hot. A number that is
missing is the column's mean, and where the training split misses some a further column says where;
a missing category is one of its own. One that the training split does not have is zeros.
"""

import math
from typing import NamedTuple

import numpy as np

from dd_jax.datasets import host_memory
from dd_jax.datasets import tables
from dd_jax.datasets.columns import Columns

MISSING = "(missing)"  # The category of an empty field.
_LARGEST = float(np.finfo(np.float32).max)


class Field(NamedTuple):
  """A column, and how it becomes numbers."""
  name: str
  categories: tuple[str, ...] = ()  # Of a column of categories; none of numbers.
  mean: float = 0.
  std: float = 1.
  tells_missing: bool = False  # Whether a further number says where it is missing.

  @property
  def width(self) -> int:
    """Numbers of a row that it takes."""
    return len(self.categories) or 1 + self.tells_missing


def fit(columns: Columns) -> tuple[Field, ...]:
  """The fields of a training split.

  Raises:
    ValueError: no column, one without a single value, or one of numbers that are infinite or too
      large for a standard deviation.
  """
  if not columns:
    raise ValueError("columns must hold at least one beside the label; got none")
  return tuple(_fit(name, values) for name, values in columns.items())


def encode(fields: tuple[Field, ...], columns: Columns) -> np.ndarray:
  """Rows `[n, D]`, float32.

  Raises:
    ValueError: a column that is not there, of which no category was ever seen, or of something else
      than finite numbers; or rows for which there is no memory.
  """
  for field in fields:
    if field.name not in columns:
      raise ValueError(f"columns must hold {field.name!r}, as the training split; got "
                       f"{list(columns)}")
  shape = len(columns[fields[0].name]), sum(field.width for field in fields)
  needed, free = 4 * math.prod(shape), host_memory.free_bytes()
  if free is not None and needed > free:
    widest = max(fields, key=lambda field: field.width)
    raise ValueError(f"columns must fit into memory as numbers: {needed / 1e9:.3g} GB for "
                     f"{shape[0]} rows and {free / 1e9:.3g} GB are free; column {widest.name!r} "
                     f"alone has {len(widest.categories)} categories")
  rows, place = np.zeros(shape, np.float32), 0
  for field in fields:
    encode_field = _encode_categories if field.categories else _encode_numbers
    encode_field(field, columns[field.name], rows[:, place:place + field.width])
    place += field.width
  return rows


def decode(fields: tuple[Field, ...], rows: np.ndarray) -> list:
  """Rows `[..., D]` to be read: of each a list of texts, one for each field, nested as the rows."""
  if rows.ndim > 1:
    return [decode(fields, part) for part in rows]
  texts, place = [], 0
  for field in fields:
    part = rows[place:place + field.width]
    place += field.width
    if field.categories:
      texts.append(field.categories[int(part.argmax())])
    else:
      missing = field.tells_missing and part[1] >= .5
      texts.append(MISSING if missing else f"{part[0] * field.std + field.mean:.4g}")
  return texts


def numbers(name: str, values: list) -> np.ndarray:
  """A column of numbers, all there and finite, float64; a ValueError that names the first other."""
  found = np.array([_number(value) for value in values], np.float64)
  wrong = np.flatnonzero(~np.isfinite(found))
  if wrong.size:
    raise ValueError(f"targets must be finite numbers; column {name!r} has "
                     f"{values[wrong[0]]!r} in row {wrong[0] + 1}")
  return found


def _fit(name, values):
  present = [value for value in values if value is not None]
  if not present:
    raise ValueError(f"column {name!r} must have a value in some row of the training split; all "
                     f"{len(values)} are missing")
  found = np.array([_number(value) for value in present])
  some_missing = len(present) < len(values)
  if not np.isnan(found).any():
    return Field(name, (), *_moments(name, found), some_missing)
  known = sorted({str(value) for value in present})
  return Field(name, (*known, *([MISSING] if some_missing else [])))


def _moments(name, found):
  """Mean and standard deviation; a constant column becomes zeros."""
  if np.isinf(found).any():
    raise ValueError(f"column {name!r} must hold finite numbers; got {found[np.isinf(found)][0]}")
  if (found == found[0]).all():  # Its computed deviation may be another than 0.
    return float(found[0]), 1.
  with np.errstate(over="ignore", invalid="ignore"):
    mean, std = float(found.mean()), float(found.std())
  if not (math.isfinite(std) and std > 0):
    raise ValueError(f"column {name!r} must hold numbers whose standard deviation is positive and "
                     f"finite in float64; got {std} of {found.min()}..{found.max()}")
  return mean, std


def _encode_numbers(field, values, rows):
  for row, value in enumerate(values):
    if value is not None:
      number = _number(value)
      if not math.isfinite(number):
        raise ValueError(f"column {field.name!r} must hold finite numbers, as in the training "
                         f"split; got {value!r}")
      number = (number - field.mean) / field.std
      if not abs(number) <= _LARGEST:
        raise ValueError(f"column {field.name!r} must hold numbers that float32 holds once "
                         f"standardised; got {value!r}")
      rows[row, 0] = number
    elif field.tells_missing:
      rows[row, 1] = 1


def _encode_categories(field, values, rows):
  places = {category: place for place, category in enumerate(field.categories)}
  texts = [MISSING if value is None else str(value) for value in values]
  for row, text in enumerate(texts):
    if text in places:
      rows[row, places[text]] = 1
  if texts and not rows.any():
    raise ValueError(f"column {field.name!r} must hold categories of the training split, "
                     f"{list(field.categories)[:10]}; got {texts[0]!r} and no other that is there")


def _number(value):
  """The number that a value is, infinite ones too; NaN of anything else."""
  try:
    number = float(value)
    return tables.to_number(value) if isinstance(value, str) and math.isfinite(number) else number
  except (TypeError, ValueError, OverflowError):
    return math.nan
