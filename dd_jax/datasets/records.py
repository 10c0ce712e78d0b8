"""Tables of numbers and categories as rows of numbers, and back.

Letters: n rows, D numbers of a row.

The rules: numbers are standardised by the training split; a category is one-hot. A number that is
missing is the column's mean, and where the training split misses some a further column says where;
a missing category is one of its own, where the training split has it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from dd_jax.datasets.columns import Columns

MISSING = "(missing)"  # The category of an empty field.


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
    ValueError: no column, or one without a single value.
  """
  if not columns:
    raise ValueError("columns must hold at least one beside the label; got none")
  return tuple(_fit(name, values) for name, values in columns.items())


def encode(fields: tuple[Field, ...], columns: Columns) -> np.ndarray:
  """Rows `[n, D]`, float32.

  Raises:
    ValueError: a column that is not there, a category never seen, or something else than a number.
  """
  parts = []
  for field in fields:
    if field.name not in columns:
      raise ValueError(f"columns must hold {field.name!r}, as the training split; got "
                       f"{list(columns)}")
    parts.append((_encode_categories if field.categories else _encode_numbers)(
        field, columns[field.name]))
  return np.concatenate(parts, 1).astype(np.float32)


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
  if np.isfinite(found).all():
    # A constant column becomes zeros.
    return Field(name, (), float(found.mean()), float(found.std()) or 1., some_missing)
  known = sorted({_text(value) for value in present})
  return Field(name, (*known, *([MISSING] if some_missing else [])))


def _encode_numbers(field, values):
  found = np.array([math.nan if value is None else _number(value, field.name) for value in values])
  missing = np.isnan(found)
  scaled = np.where(missing, 0., (found - field.mean) / field.std)
  return np.stack([scaled, missing] if field.tells_missing else [scaled], 1)


def _encode_categories(field, values):
  places = {category: place for place, category in enumerate(field.categories)}
  rows = np.zeros((len(values), len(places)))
  for row, value in enumerate(values):
    text = MISSING if value is None else _text(value)
    if text not in places:
      raise ValueError(f"column {field.name!r} must hold categories of the training split, "
                       f"{list(field.categories)[:10]}; got {text!r} in row {row + 1}")
    rows[row, places[text]] = 1
  return rows


def _text(value: Any) -> str:
  return str(value)


def _number(value, name=None):
  """The number that a value is; NaN of anything else, or with a name a ValueError."""
  try:
    return float(value)
  except (TypeError, ValueError) as error:
    if name is None:
      return math.nan
    raise ValueError(f"column {name!r} must hold numbers, as in the training split; got "
                     f"{value!r}") from error
