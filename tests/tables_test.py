"""dd_jax.datasets.tables: values of CSV files, and what broken ones say."""

import gzip

import numpy as np
import pytest

from dd_jax.datasets import tables
from dd_jax.datasets.splits import Reading
from tests.dataset_files import csv_text
from tests.dataset_files import random_bytes
from tests.one_line import raises_of_file as raises

NUMBERS = np.array([[.5, -1e300, 3], [1.7e9, 0, 2**53 + 1.], [-.1, 1 / 3, 1e-300]])
COLUMNS = ("a", "b, the second", 'c "quoted"')


LABELS = [["cat", "dog, brown", "a \"b\""], [3, 1, 7], ["1.0", "2.", "-1e0"], [10**17 + 1, 2, 3]]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_one_file(tmp_path, labels, place, suffix):
  path = tmp_path / f"table.csv{suffix}"
  text = csv_text(COLUMNS, NUMBERS, labels, place, "kind of")
  path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
  splits = tables.read_csv(path, Reading(label="kind of"))
  assert splits.train_images.dtype == np.float64
  np.testing.assert_array_equal(splits.train_images, NUMBERS.reshape(3, 1, 1, 3))
  expected = np.array(labels)
  if expected.dtype.kind == "U" and "cat" not in labels:
    expected = expected.astype(float)
  np.testing.assert_array_equal(splits.train_labels, expected)
  assert splits.train_labels.dtype.kind == ("U" if "cat" in labels else "i")
  assert splits.test_images is splits.test_labels is None and splits.class_names == ()


@pytest.mark.parametrize("text", [
    "\ufefflabel,x,y\r\nq, 1 ,+2\r\n\r\np,3e0,4.\r\n", "x,y,label\n1,2,q\n3,4,p",
    'label,"x",y\rq,"1",2\r"p",3,4\r', "label , x , y\n q,1,2\n\np ,3,4\n\n"])
def test_ways_to_write_the_same(tmp_path, text):
  (tmp_path / "a.csv").write_bytes(text.encode())
  splits = tables.read_csv(tmp_path / "a.csv", Reading())
  assert splits.train_images.ravel().tolist() == [1, 2, 3, 4]
  assert splits.train_labels.tolist() == ["q", "p"]


def test_two_files_with_their_columns_in_any_order(tmp_path):
  (tmp_path / "train.csv").write_text(csv_text(COLUMNS, NUMBERS, "aba"))
  (tmp_path / "test.csv").write_text(csv_text(COLUMNS[::-1], NUMBERS[:2, ::-1], "ba"))
  splits = tables.read_csv(tmp_path, Reading())
  np.testing.assert_array_equal(splits.train_images, NUMBERS.reshape(3, 1, 1, 3))
  np.testing.assert_array_equal(splits.test_images, NUMBERS[:2].reshape(2, 1, 1, 3))
  assert splits.test_labels.tolist() == ["b", "a"]
  (tmp_path / "test.csv").write_text(csv_text(("a", "d"), NUMBERS[:, :2], "aba"))
  with raises(ValueError, tmp_path / "test.csv", f"expected the columns of {tmp_path}/train.csv; "
              "found 'b, the second', 'c \"quoted\"', 'd' in one file alone"):
    tables.read_csv(tmp_path, Reading())
  (tmp_path / "test.csv").unlink()
  with raises(FileNotFoundError, tmp_path / "test.csv", "no such file"):
    tables.read_csv(tmp_path, Reading())


def test_labels_are_of_one_type_in_both_files(tmp_path):
  (tmp_path / "train.csv").write_text("x,label\n1,1\n2,2\n3,A\n")
  (tmp_path / "test.csv").write_text("x,label\n4,2\n")
  splits = tables.read_csv(tmp_path, Reading())
  assert splits.train_labels.tolist() == ["1", "2", "A"] and splits.test_labels.tolist() == ["2"]


def test_the_index_of_pandas_is_no_column(tmp_path):
  (tmp_path / "a.csv").write_text(",x,label\n0,5,a\n1,6,b\n")
  np.testing.assert_array_equal(tables.read_csv(tmp_path / "a.csv", Reading()).train_images.ravel(),
                                [5, 6])
  (tmp_path / "a.csv").write_text(",x,label\n4,5,a\n1,6,b\n")
  with raises(ValueError, tmp_path / "a.csv", "expected a name for every column in line 1, but for"
              " an index 0, 1, 2, ...; found one that has none"):
    tables.read_csv(tmp_path / "a.csv", Reading())


@pytest.mark.parametrize("scale, dtype", [(1, np.uint8), (.5, np.float64), (-1, np.float64),
                                          (2, np.float64)])
def test_rows_become_images(tmp_path, scale, dtype):
  """uint8 if the numbers of both splits are bytes: Kaggle's layout of MNIST."""
  pixels = random_bytes((1100, 12)).astype(int)  # More than one block.
  columns = [f"pixel{i}" for i in range(12)]
  (tmp_path / "train.csv").write_text(csv_text(columns, pixels, np.arange(1100) % 3))
  (tmp_path / "test.csv").write_text(csv_text(columns, pixels[:5] * scale, range(5)))
  splits = tables.read_csv(tmp_path, Reading(image_shape=(2, 3, 2)))
  assert splits.train_images.dtype == splits.test_images.dtype == dtype
  np.testing.assert_array_equal(splits.train_images, pixels.reshape(-1, 2, 3, 2))
  np.testing.assert_array_equal(splits.test_images, pixels[:5].reshape(-1, 2, 3, 2) * scale)
  with raises(ValueError, tmp_path / "test.csv", "expected 6 numbers in a row for image_shape="
              "(2, 3, 1); found 12: 'pixel0', 'pixel1'"):
    tables.read_csv(tmp_path / "test.csv", Reading(image_shape=(2, 3, 1)))


@pytest.mark.parametrize("image_shape", [None, (1, 1, 3)])
def test_a_table_of_bytes_stays_one(tmp_path, image_shape):
  (tmp_path / "a.csv").write_text(csv_text(COLUMNS, random_bytes((4, 3)), range(4)))
  splits = tables.read_csv(tmp_path / "a.csv", Reading(image_shape=image_shape))
  assert splits.train_images.dtype == np.float64 and splits.train_images.shape == (4, 1, 1, 3)


def lines(text, count=1):
  """`text` with a line before it that is too long for a block, or `count` of them."""
  return "label,x\n" + count * "0,1\n" + text


@pytest.mark.parametrize("text, message", [
    ("", "expected a column 'label' (data.label) and columns of numbers in line 1; found no"),
    ("\n\n", "expected a column 'label' (data.label)"),
    ("label\n1\n", "and columns of numbers in line 1; found 'label'"),
    ("a,b\n1,2\n", "expected a column 'label' (data.label) and columns of numbers in line 1; found "
                   "'a', 'b'"),
    (",".join(f"c{i}" for i in range(12)), "'c8', 'c9' and 2 more"),
    ("label,x,y,x\n1,2,3,4\n", "a name of its own for every column in line 1; found 'x' twice"),
    ("label,x, x\n1,2,3\n", "a name of its own for every column in line 1; found 'x' twice"),
    ("label,x\n", "expected lines behind the header; found none"),
    (lines("0,\n"), "expected a number in line 3, column 'x'; found ''"),
    (lines("0,\n", 600), "expected a number in line 602, column 'x'; found ''"),
    (lines("0,1e\n0,2\n", 499), "expected a number in line 501, column 'x'; found '1e'"),
    (lines("0,nan"), "expected a number in line 3, column 'x'; found 'nan'"),
    (lines("0,-inf"), "expected a number in line 3, column 'x'; found '-inf'"),
    (lines("0,1e999"), "expected a number in line 3, column 'x'; found '1e999'"),
    (lines("0,1_0"), "expected a number in line 3, column 'x'; found '1_0'"),
    (lines("0,\u0661"), "expected a number in line 3, column 'x'; found '\u0661'"),
    (lines(f"0,{'9' * 50}x"), f"column 'x'; found '{'9' * 40}'"),
    (lines("\n\n0,x"), "expected a number in line 5, column 'x'; found 'x'"),
    (lines('"0\n1",x'), "expected a number in line 4, column 'x'; found 'x'"),
    (lines("0,1,2"), "expected 2 fields in line 3, as in the header; found 3"),
    (lines("0"), "expected 2 fields in line 3, as in the header; found 1"),
    (lines(" \n"), "expected 2 fields in line 3, as in the header; found 1"),
    (lines(",1"), "expected a label of 1..200 characters in line 3, column 'label'; found ''"),
    (lines(f"{'a' * 201},1"), f"in line 3, column 'label'; found '{'a' * 40}'"),
    (lines("0.5,1"),
     "expected whole numbers below 2**53, or text, in column 'label'; found '0.5'"),
    (lines(f"{10**18},1"), f"or text, in column 'label'; found '{10**18}'"),
    (lines('"0"1,1'), "expected CSV in line 3; found Error: ',' expected after '\"'"),
    (lines('"0,1'), "expected CSV in line 3; found Error: unexpected end of data"),
    (lines("0,1\n\udcff,1"), "expected text in UTF-8 in line 4; found UnicodeDecodeError"),
])
def test_corrupt(tmp_path, text, message):
  path = tmp_path / "a.csv"
  path.write_bytes(text.encode(errors="surrogateescape"))
  with raises(ValueError, path, message):
    tables.read_csv(path, Reading())


def test_missing_or_cut_short(tmp_path):
  path = tmp_path / "a.csv.gz"
  with raises(FileNotFoundError, path, "no such file"):
    tables.read_csv(path, Reading())
  path.write_bytes(gzip.compress(lines("").encode())[:-9])
  with raises(ValueError, path, "expected a whole .gz file; found EOFError"):
    tables.read_csv(path, Reading())
