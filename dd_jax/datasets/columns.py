"""Files of named columns: CSV, tab-separated values and Parquet, each field as it is written.

Letters: n rows.
"""

import csv
import gzip
import io
import pathlib

import numpy as np

from dd_jax import extras

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MISSING = ("", "NA", "NaN", "nan")

Columns = dict[str, list]  # By name; fields of text, or of Parquet of any type, None where missing.


def read_splits(path: str | pathlib.Path) -> tuple[Columns, Columns | None]:
  """Of a file, or of a folder with train.SUFFIX and test.SUFFIX.

  Args:
    path: ends in .csv, .tsv (each may end in .gz) or .parquet; or the folder.

  Returns:
    The training columns, and those of the test split or None. Fields that are empty, NA or NaN are
    None.

  Raises:
    FileNotFoundError: there is nothing, or no train file.
    ValueError: a file that cannot be read as that, in one line that names it.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_dir():
    return read(path), None
  trains = sorted(path.glob("train.*"))
  if not trains:
    raise FileNotFoundError(f"{path}: expected train.csv, train.tsv or train.parquet; found none")
  test = trains[0].with_name(trains[0].name.replace("train", "test", 1))
  columns = read(trains[0])
  if not test.exists():
    return columns, None
  others = read(test)
  if others.keys() != columns.keys():
    raise ValueError(f"{test}: expected the columns of {trains[0]}, {list(columns)}; "
                     f"found {list(others)}")
  return columns, others


def read(path: pathlib.Path) -> Columns:
  """One file; errors as of `read_splits`."""
  if path.suffix == ".parquet":
    columns = _read_parquet(path)
  else:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in _DELIMITERS:
      raise ValueError(f"{path}: expected a file that ends in .csv, .tsv, .gz or .parquet")
    columns = _read_text(path, _DELIMITERS[plain.suffix])
  if not columns or not next(iter(columns.values())):
    raise ValueError(f"{path}: expected lines behind the header; found none")
  return columns


def column(path: str | pathlib.Path, columns: Columns, name: str, field: str) -> list:
  """One of them; a ValueError that names the `field` of the config, or a row without a value."""
  if name not in columns:
    raise ValueError(f"{field} must name a column of {path}, {list(columns)}; got {name!r}")
  for row, value in enumerate(columns[name], start=1):
    if value is None:
      raise ValueError(f"{path}: expected a value of {name!r} ({field}) in row {row}; found none")
  return columns[name]


def _read_text(path, delimiter):
  try:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    # Tab-separated text as others write it: a quotation mark is one.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting,
                           strict=delimiter == ","))
  except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
    raise ValueError(f"{path}: expected text in UTF-8 with columns; found "
                     f"{' '.join(str(error).split())}") from error
  rows = [row for row in rows if row]
  header, *rows = rows or [[]]
  if len({*header}) < len(header):
    raise ValueError(f"{path}: expected a name of its own for every column; found {header}")
  for line, row in enumerate(rows, start=2):
    if len(row) != len(header):
      raise ValueError(f"{path}: expected {len(header)} fields in line {line}, as in the header; "
                       f"found {len(row)}")
  return {name.strip(): [None if field.strip() in _MISSING else field.strip() for field in fields]
          for name, fields in zip(header, zip(*rows))}


def _read_parquet(path):
  parquet = extras.load("pyarrow.parquet", "a .parquet file needs pyarrow", "parquet")
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file")
  try:
    table = parquet.read_table(path)
  except Exception as error:  # pyarrow meets a bad byte with many kinds.
    raise ValueError(f"{path}: expected a Parquet file; found "
                     f"{' '.join(str(error).split())[:200]}") from error
  return {name: [None if isinstance(value, float) and np.isnan(value) else value
                 for value in values] for name, values in table.to_pydict().items()}
