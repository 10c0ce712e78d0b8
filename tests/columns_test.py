"""Files of columns, and their rows as numbers and back."""

import gzip
import re

import numpy as np
import pytest

from dd_jax.datasets import columns
from dd_jax.datasets import host_memory
from dd_jax.datasets import records

_CSV = "age,colour,label\n1,red,a\n3,,b\n,blue,a\n"


def test_every_format_gives_the_same_columns(tmp_path):
  expected = {"age": ["1", "3", None], "colour": ["red", None, "blue"], "label": ["a", "b", "a"]}
  (tmp_path / "a.csv").write_text(_CSV)
  (tmp_path / "a.tsv").write_text(_CSV.replace(",", "\t"))
  (tmp_path / "a.csv.gz").write_bytes(gzip.compress(_CSV.encode()))
  for name in ("a.csv", "a.tsv", "a.csv.gz"):
    assert columns.read_splits(tmp_path / name) == (expected, None)
  (tmp_path / "b.tsv").write_text('text\nsays "yes, and\n')
  assert columns.read(tmp_path / "b.tsv") == {"text": ['says "yes, and']}


def test_parquet_keeps_its_types(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow
  parquet.write_table(pyarrow.table({"age": [1., None, float("nan")], "name": ["x", "y", None]}),
                      tmp_path / "a.parquet")
  assert columns.read(tmp_path / "a.parquet") == {
      "age": [1., None, None], "name": ["x", "y", None]}


def test_the_index_of_pandas_is_no_column(tmp_path):
  """As it numbers the rows, it would tell their classes where these lie in order."""
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow
  parquet.write_table(pyarrow.table({"age": [1., 2.], "__index_level_0__": [7, 3]}),
                      tmp_path / "a.parquet")
  assert columns.read(tmp_path / "a.parquet") == {"age": [1., 2.]}


def test_a_folder_has_both_splits(tmp_path):
  for split in ("train", "test"):
    (tmp_path / f"{split}.tsv").write_text(f"text\tlabel\nof {split}\t1\n")
  train, test = columns.read_splits(tmp_path)
  assert (train["text"], test["text"]) == (["of train"], ["of test"])
  (tmp_path / "test.tsv").write_text("other\n1\n")
  with pytest.raises(ValueError, match=r"expected the columns of .*, \['text', 'label'\]"):
    columns.read_splits(tmp_path)


def test_no_split_of_a_folder_is_passed_over(tmp_path):
  with pytest.raises(FileNotFoundError, match="expected one of train.csv, .*; found none"):
    columns.read_splits(tmp_path)
  (tmp_path / "train.csv.gz").write_bytes(gzip.compress(_CSV.encode()))
  (tmp_path / "train.backup.csv").write_text("other\n1\n")
  (tmp_path / "test.csv").write_text(_CSV)
  train, test = columns.read_splits(tmp_path)
  assert train == test
  (tmp_path / "train.tsv").write_text(_CSV.replace(",", "\t"))
  with pytest.raises(ValueError, match="one file of train; found train.csv.gz, train.tsv"):
    columns.read_splits(tmp_path)


class _Series:
  """Values that are looked up by the labels of their rows, as those of pandas."""

  def __init__(self, values):
    self.values = values

  def __iter__(self):
    return iter(self.values)

  def __getitem__(self, label):
    return self.values[-1 - label]


def test_columns_of_any_kind_keep_the_order_of_their_rows():
  found = columns.listed({"a": np.array([1., np.nan]), "b": _Series(["x", "y"])}, "train")
  assert found == {"a": [1., None], "b": ["x", "y"]}
  with pytest.raises(ValueError, match=re.escape(
      "train must hold as many values in every column; got {'a': 2, 'b': 1}")):
    columns.listed({"a": [1, 2], "b": [1]}, "train")


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", b"a,b\n1\n", "expected 2 fields in line 2, as in the header; found 1"),
    ("a.csv", b"a,a\n1,2\n", "a name of its own for every column"),
    ("a.csv", b"x, x\n1,2\n", "a name of its own for every column"),
    ("a.csv", b"a,b\n", "expected lines behind the header; found none"),
    ("a.csv", b"", "expected lines behind the header; found none"),
    ("a.csv", b"a\n\xff\n", "expected text in UTF-8"),
    ("a.csv.gz", b"a\n1\n", "expected a whole .gz file; found BadGzipFile: Not a gzipped file"),
    ("a.csv.gz", gzip.compress(b"a\n1\n", mtime=0)[:10] + 20 * b"\xff",
     "a whole .gz file; found error"),
    ("a.txt", b"a\n1\n", "expected a file that ends in")])
def test_a_file_that_is_none_is_one_line(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    columns.read_splits(tmp_path / name)
  assert "\n" not in str(error.value)
  with pytest.raises(FileNotFoundError):
    columns.read_splits(tmp_path / "none.csv")


def test_a_column_that_is_asked_for_has_all_its_values(tmp_path):
  (tmp_path / "a.csv").write_text(_CSV)
  found = columns.read(tmp_path / "a.csv")
  assert columns.column("a.csv", found, "label", "data.label") == ["a", "b", "a"]
  with pytest.raises(ValueError, match="data.text must name a column of a.csv"):
    columns.column("a.csv", found, "text", "data.text")
  with pytest.raises(ValueError, match=r"expected a value of 'age' \(data.label\) in row 3"):
    columns.column("a.csv", found, "age", "data.label")


_TRAIN = {"age": ["1", "3", None, "5"], "colour": ["red", "blue", "red", None],
          "size": [1., 2., 3., 2.]}


def test_rows_follow_the_rules():
  fields = records.fit(_TRAIN)
  rows = records.encode(fields, _TRAIN)
  assert rows.dtype == np.float32 and rows.shape == (4, 2 + 3 + 1)
  std = np.std([1, 3, 5])
  np.testing.assert_allclose(rows[:, 0], np.array([-2, 0, 0, 2]) / std, rtol=1e-6)
  np.testing.assert_array_equal(rows[:, 1], [0, 0, 1, 0])  # Says where the age is missing.
  np.testing.assert_array_equal(rows[:, 2:5], [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
  np.testing.assert_allclose(rows[:, 5].std(), 1, rtol=1e-6)
  # Another split, by the training split's numbers.
  other = records.encode(fields, {"size": [2.], "colour": ["blue"], "age": [7]})
  np.testing.assert_allclose(other, [[4 / std, 0, 1, 0, 0, 0]], rtol=1e-6)


def test_a_category_that_training_lacks_is_zeros():
  fields = records.fit({"colour": ["red", "blue"], "age": ["1", "2"]})
  rows = records.encode(fields, {"colour": ["green", "red", None], "age": [1, None, 2]})
  np.testing.assert_array_equal(rows, [[0, 0, -1], [0, 1, 0], [0, 0, 1]])


def test_text_is_a_number_only_where_it_reads_as_one():
  fields = records.fit({"version": ["1_1", "1_2"], "size": ["1e1", "-2."]})
  assert [field.categories for field in fields] == [("1_1", "1_2"), ()]


def test_rows_without_memory_name_the_column(monkeypatch):
  names = {"colour": ["red", "blue"] * 10, "id": [f"of {i}" for i in range(20)]}
  fields = records.fit(names)
  monkeypatch.setattr(host_memory, "free_bytes", lambda: 4 * 20 * 22 - 1)
  with pytest.raises(ValueError, match="column 'id' alone has 20 categories"):
    records.encode(fields, names)
  monkeypatch.setattr(host_memory, "free_bytes", lambda: 4 * 20 * 22)
  assert records.encode(fields, names).shape == (20, 22)


def test_rows_come_back_to_be_read():
  fields = records.fit(_TRAIN)
  rows = records.encode(fields, _TRAIN)
  assert records.decode(fields, rows[None]) == [[
      ["1", "red", "1"], ["3", "blue", "2"], ["(missing)", "red", "3"],
      ["5", "(missing)", "2"]]]


@pytest.mark.parametrize("value", [3., .1, "1.1"])
def test_a_constant_column_is_zeros(value):
  """Also where the mean of many, and with it their deviation, is not exact."""
  fields = records.fit({"a": 150 * [value]})
  np.testing.assert_allclose(records.encode(fields, {"a": [value, float(value) + 1]}), [[0], [1]],
                             rtol=1e-6)


def test_numbers_too_large_are_named():
  with pytest.raises(ValueError, match="'a' must hold numbers whose standard deviation"):
    records.fit({"a": [1e308, -1.5e308]})
  with pytest.raises(ValueError, match="'a' must hold numbers that float32 holds .* got 1e\\+39"):
    records.encode(records.fit({"a": [1., 2.]}), {"a": [1e39]})


def test_text_that_reads_as_infinite_is_none_among_numbers_and_a_category_among_others():
  with pytest.raises(ValueError, match="'a' must hold finite numbers; got inf"):
    records.fit({"a": ["1", "inf", "2.5"]})
  field, = records.fit({"a": ["Infinity", "Beach"]})
  assert field.categories == ("Beach", "Infinity")


def test_what_pandas_calls_missing_is():
  missing = [type(name, (), {})() for name in ("NAType", "NaTType")]
  found = columns.listed({"a": [1, *missing, np.float32("nan"), None, 4]}, "train")
  assert found == {"a": [1, None, None, None, None, 4]}


@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_the_index_of_pandas_in_text_is_no_column(tmp_path, suffix, delimiter):
  path = tmp_path / f"table{suffix}"
  path.write_text("\n".join(["|x|label", "0|5|a", "1|6|b", ""]).replace("|", delimiter))
  assert columns.read(path) == {"x": ["5", "6"], "label": ["a", "b"]}
  path.write_text("\n".join(["|x|label", "7|5|a", "1|6|b", ""]).replace("|", delimiter))
  with pytest.raises(ValueError, match="expected a name for every column in line 1, but"):
    columns.read(path)


def test_long_texts_and_the_lines_of_a_file(tmp_path):
  path = tmp_path / "table.csv"
  path.write_text(f'a,b\n"{150_000 * "x"}",1\n')
  assert len(columns.read(path)["a"][0]) == 150_000
  path.write_text('a,b\n\n"two\nlines",1\n\n5\n')
  with pytest.raises(ValueError, match="expected 2 fields in line 6, as in the header; found 1"):
    columns.read(path)


@pytest.mark.parametrize("columns, message", [
    ({"age": [1], "colour": ["green"], "size": [1.]},
     "column 'colour' must hold categories of the training split, ['(missing)'"),
    ({"age": ["old"], "colour": ["red"], "size": [1.]},
     "column 'age' must hold finite numbers, as in the training split; got 'old'"),
    ({"age": [1], "colour": ["red"], "size": [float("inf")]},
     "column 'size' must hold finite numbers, as in the training split; got inf"),
    ({"age": [1], "colour": ["red"]}, "columns must hold 'size', as the training split")])
def test_what_was_never_seen_is_named(columns, message):
  message = message.replace("['(missing)'", "['blue', 'red', '(missing)']; got 'green' and no")
  with pytest.raises(ValueError, match=re.escape(message)):
    records.encode(records.fit(_TRAIN), columns)


def test_columns_are_finite():
  with pytest.raises(ValueError, match="column 'a' must hold finite numbers; got -inf"):
    records.fit({"a": [1., -np.inf, None]})


def test_targets_are_finite_numbers():
  np.testing.assert_array_equal(records.numbers("y", ["1", 2., "-3e1"]), [1, 2, -30])
  for wrong in ("inf", None, "x", float("nan")):
    with pytest.raises(
        ValueError, match=r"targets must be finite numbers; column 'y' has .* row 2"):
      records.numbers("y", ["1", wrong])
