"""Files of named columns: CSV, tab-separated values and Parquet, each field as it is written.

Letters: n rows.
"""

from collections.abc import Iterable, Mapping
import csv
import io
import pathlib
from typing import Any

import numpy as np

from dd_jax.datasets import formats
from dd_jax.datasets import parquet
from dd_jax.datasets import tables

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_VALIDATION = ("val", "validation", "valid", "dev")
_MISSING = ("", "NA", "NaN", "nan")

Columns = dict[str, list]  # By name; fields of text, or of Parquet of any type, None where missing.


def read_splits(path: str | pathlib.Path) -> tuple[Columns, Columns | None]:
  """Of a file, or of a folder with one file of each split, such as train.csv and test.csv.

  A validation file, such as val.csv, stands for a missing test file, and belongs to the training
  split beside one.

  Args:
    path: ends in .csv, .tsv (each may end in .gz) or .parquet; or the folder.

  Returns:
    The training columns, and those of the test split or None. Fields of text files that are empty,
    NA or NaN are None, of Parquet those that are null or NaN. The index that pandas writes, numbers
    from 0 on, is left out.

  Raises:
    FileNotFoundError: there is nothing, or no train file.
    ValueError: several files of a split, or a file that cannot be read as that, in one line that
      names it.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder")
  if not path.is_dir():
    return read(path), None
  train, test, validation = (_of_split(path, *names) for names in (
      ("train",), ("test",), _VALIDATION))
  if train is None:
    raise FileNotFoundError(f"{path}: expected one of "
                            f"{', '.join(f'train{suffix}' for suffix in _SUFFIXES)}; found none")
  columns, *others = [read(file) for file in (train, validation, test) if file is not None]
  for file, other in zip([file for file in (validation, test) if file is not None], others):
    if other.keys() != columns.keys():
      raise ValueError(f"{file}: expected the columns of {train}, {list(columns)}; "
                       f"found {list(other)}")
  if len(others) == 2:
    columns = {name: columns[name] + others[0][name] for name in columns}
  return columns, others[-1] if others else None


def read(path: pathlib.Path) -> Columns:
  """One file; errors as of `read_splits`."""
  if path.suffix == ".parquet":
    columns = listed(parquet.read_columns(path), str(path))
  else:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in _DELIMITERS:
      raise ValueError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    columns = _read_text(path, _DELIMITERS[plain.suffix])
  if not columns or not next(iter(columns.values())):
    raise ValueError(f"{path}: expected lines behind the header; found none")
  return columns


def listed(columns: Mapping[str, Iterable], what: str) -> Columns:
  """Columns of any kind, arrays, lists or those of a DataFrame, as lists by their rows' order.

  Args:
    columns: by name, `[n]` each; None, NaN and the NA and NaT of pandas are missing values.
    what: the argument, for the message.

  Raises:
    ValueError: columns of several lengths, or what is none.
  """
  for name in columns:
    values = columns[name]
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or getattr(
        values, "ndim", 1) != 1:
      raise ValueError(f"{what} must hold columns [n]; got {type(values).__name__} "
                       f"{list(getattr(values, 'shape', []))} as {name!r}")
  found = {name: [None if is_missing(value) else value for value in columns[name]]
           for name in columns}
  lengths = {name: len(values) for name, values in found.items()}
  if len({*lengths.values()}) > 1:
    raise ValueError(f"{what} must hold as many values in every column; got {lengths}")
  return found


def column(path: str | pathlib.Path, columns: Columns, name: str, field: str) -> list:
  """One of them; a ValueError that names the `field` of the config, or a row without a value."""
  if name not in columns:
    raise ValueError(f"{field} must name a column of {path}, {list(columns)}; got {name!r}")
  for row, value in enumerate(columns[name], start=1):
    if value is None:
      raise ValueError(f"{path}: expected a value of {name!r} ({field}) in row {row}; found none")
  return columns[name]


def _of_split(folder, *splits):
  """The one file of a split, by any of its names, or None."""
  found = [name for split in splits for suffix in _SUFFIXES
           if (folder / (name := f"{split}{suffix}")).exists()]
  if len(found) > 1:
    raise ValueError(f"{folder}: expected one file of {splits[0]}; found {', '.join(found)}")
  return folder / found[0] if found else None


def _read_text(path, delimiter):
  raw = formats.read_bytes(path)
  try:
    text = raw.decode("utf-8-sig")
    # Tab-separated text as others write it: a quotation mark is one.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # The module's limit, of 128 kB a field, is too short for texts.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting,
                        strict=delimiter == ",")
    lines = [(reader.line_num, row) for row in reader if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path}: expected text in UTF-8 with columns; found "
                     f"{formats.one_line(error)}") from error
  (_, header), *lines = lines or [(1, [])]
  header = [name.strip() for name in header]
  if len({*header}) < len(header):
    raise ValueError(f"{path}: expected a name of its own for every column; found {header}")
  for line, row in lines:
    if len(row) != len(header):
      raise ValueError(f"{path}: expected {len(header)} fields in line {line}, as in the header; "
                       f"found {len(row)}")
  found = {name: [None if field.strip() in _MISSING else field.strip() for field in fields]
           for name, fields in zip(header, zip(*(row for _, row in lines)))}
  if "" in found:
    tables.check_index(path, found.pop(""))
  return found


def is_missing(value: Any) -> bool:
  """None, NaN, masked, or what pandas writes for it."""
  # NAType and NaTType are those of pandas, which need not be there.
  if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
    return True
  return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
