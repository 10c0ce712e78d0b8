"""dd_jax.datasets.parquet: values of every layout and kind of column, and what broken ones say."""

import sys

import numpy as np
import pyarrow
import pytest

from dd_jax.datasets import host_memory
from dd_jax.datasets import own_files
from dd_jax.datasets import parquet
from dd_jax.datasets.splits import Reading
from tests.dataset_files import encoded
from tests.dataset_files import random_bytes
from tests.dataset_files import write_parquet
from tests.one_line import raises_of_file as raises


def in_structs(pictures):
  return [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)]


# Images


@pytest.mark.parametrize("name", ["image", "img"])
@pytest.mark.parametrize("wrap", [list, in_structs])
@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_encoded_pictures(tmp_path, name, wrap, shape):
  images = random_bytes((7, *shape))
  path = tmp_path / "a.parquet"
  write_parquet(path, {name: wrap(map(encoded, images)), "label": [0, 1, 1, 0, 1, 0, 0]},
                ("cat", "dog"), row_group_size=3, use_dictionary=False)
  splits = parquet.read(path, Reading())
  assert splits.train_images.dtype == np.uint8
  np.testing.assert_array_equal(splits.train_images, images.reshape(7, 6, 5, -1))
  assert splits.train_labels.tolist() == [0, 1, 1, 0, 1, 0, 0]
  assert splits.train_labels.dtype == np.int64
  assert splits.test_images is splits.test_labels is None
  assert splits.class_names == ("cat", "dog")


def test_pictures_are_brought_to_a_shape_as_in_folders(tmp_path):
  pixels = random_bytes((4, 6))
  write_parquet(tmp_path / "a.parquet", {"image": [encoded(pixels), encoded(pixels[:, 1:5])],
                                         "label": [0, 1]})
  reading = Reading(image_shape=(4, 4, 3), resize="crop")
  images = parquet.read(tmp_path / "a.parquet", reading).train_images
  np.testing.assert_array_equal(images, np.broadcast_to(pixels[:, 1:5, None], (2, 4, 4, 3)))


def nested(images, kind):
  """The images as lists of lists of this type."""
  values = pyarrow.array(images.ravel(), kind)
  for size in images.shape[:0:-1]:
    values = pyarrow.FixedSizeListArray.from_arrays(values, size)
  return values


@pytest.mark.parametrize("kind, scale, expected", [
    ("uint8", 1, "uint8"), ("int64", 1, "uint8"), ("int64", 2, "float64"), ("int32", -1, "float64"),
    ("uint16", 9, "uint16"), ("float", .5, "float32"), ("halffloat", 1, "float32"),
    ("double", .1, "float64")])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("lists", [True, False])
def test_lists_of_numbers(tmp_path, kind, scale, expected, shape, lists):
  images = random_bytes((7, *shape)).astype(float) * scale
  kind = pyarrow.type_for_alias(kind)
  column = nested(images.astype(kind.to_pandas_dtype()), kind)
  if lists:  # As datasets of Hugging Face keeps them.
    outer = pyarrow.list_(pyarrow.list_(kind) if len(shape) == 2 else
                          pyarrow.list_(pyarrow.list_(kind)))
    column = pyarrow.array(column.to_pylist(), outer)
  write_parquet(tmp_path / "a.parquet", {"image": column, "label": list("abcdefg")},
                row_group_size=2)
  splits = parquet.read(tmp_path / "a.parquet", Reading())
  assert splits.train_images.dtype == expected
  np.testing.assert_array_equal(
      splits.train_images, images.astype(expected).reshape(7, 4, 3, -1))
  assert splits.train_labels.tolist() == list("abcdefg")


def test_lists_without_nesting_are_rows(tmp_path):
  rows = np.random.default_rng(0).normal(size=(5, 6))
  write_parquet(tmp_path / "a.parquet", {"image": rows.tolist(), "label": range(5)})
  splits = parquet.read(tmp_path / "a.parquet", Reading())
  np.testing.assert_array_equal(splits.train_images, rows.reshape(5, 1, 1, 6))
  splits = parquet.read(tmp_path / "a.parquet", Reading(image_shape=(2, 3, 1)))
  np.testing.assert_array_equal(splits.train_images, rows.reshape(5, 2, 3, 1))


# Tables


def test_columns_of_numbers(tmp_path):
  columns = {"a": [1, 2, 2**53 + 1], "species": ["x", "y", "x"], "b": [.5, -1e300, 0.],
             "c": [True, False, True], "__index_level_0__": [7, 8, 9]}
  write_parquet(tmp_path / "a.parquet", columns)
  splits = parquet.read(tmp_path / "a.parquet", Reading(label="species"))
  rows = np.array([columns["a"], columns["b"], columns["c"]], float).T
  np.testing.assert_array_equal(splits.train_images, rows.reshape(3, 1, 1, 3))
  assert splits.train_images.dtype == np.float64 and splits.train_labels.tolist() == list("xyx")


def test_columns_of_pixels(tmp_path):
  pixels = random_bytes((5, 6))
  columns = {f"p{i}": pixels[:, i] for i in range(6)} | {"label": range(5)}
  write_parquet(tmp_path / "a.parquet", columns)
  splits = parquet.read(tmp_path / "a.parquet", Reading(image_shape=(3, 2, 1)))
  assert splits.train_images.dtype == np.uint8
  np.testing.assert_array_equal(splits.train_images, pixels.reshape(5, 3, 2, 1))
  with raises(ValueError, tmp_path / "a.parquet", "expected 4 numbers in a row for image_shape="
              "(2, 2, 1); found 6: 'p0', "):
    parquet.read(tmp_path / "a.parquet", Reading(image_shape=(2, 2, 1)))


# Labels


@pytest.mark.parametrize("column, expected", [
    (pyarrow.array([3, 1, 3], "int8"), [3, 1, 3]), (["a", "b", "a"], ["a", "b", "a"]),
    (pyarrow.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    (pyarrow.array(["a", "b", "a"], "large_string"), ["a", "b", "a"]),
    ([True, False, True], [True, False, True]), ([1., 2., 1.], [1., 2., 1.]),
    ([[0, 1], [1, 0], [1, 1]], [[0, 1], [1, 0], [1, 1]])])
def test_labels(tmp_path, column, expected):
  write_parquet(tmp_path / "a.parquet", {"image": np.zeros((3, 2, 2)).tolist(), "label": column,
                                         "other": ["x", "y", "z"]})
  assert parquet.read(tmp_path / "a.parquet", Reading()).train_labels.tolist() == expected


def test_the_column_of_labels_is_told_or_the_only_one(tmp_path):
  columns = {"img": np.zeros((2, 2, 2)).tolist(), "fine_label": [0, 1], "score": [.5, .6]}
  path = tmp_path / "a.parquet"
  write_parquet(path, columns, "ab", label="fine_label")
  splits = parquet.read(path, Reading())
  assert splits.train_labels.tolist() == [0, 1] and splits.class_names == ("a", "b")
  write_parquet(path, columns | {"coarse_label": ["x", "y"]})
  assert parquet.read(path, Reading(label="coarse_label")).train_labels.tolist() == ["x", "y"]
  with raises(ValueError, path, "expected a column 'label' of labels (data.label) beside one of "
              "images or those of numbers; found 'img', 'fine_label', 'score', 'coarse_label'"):
    parquet.read(path, Reading())


# Folders


def write_shards(folder, names):
  """A row for each file, its label and pixels the place among the names."""
  for i, name in enumerate(names):
    write_parquet(folder / f"{name}.parquet", {"image": [encoded(np.full((2, 2), i))],
                                               "label": [i]})


@pytest.mark.parametrize("folder", [".", "data", "plain_text"])
@pytest.mark.parametrize("names, train, test", [
    (["train"], [0], None),
    (["train-00000-of-00001"], [0], None),
    (["train", "test"], [0], [1]),
    (["train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"], [1, 0], [2]),
    (["train-00000-of-00001-0a1b2c", "valid-00000-of-00001-3d4e5f"], [0], [1]),
    (["train", "validation-00000-of-00002", "validation-00001-of-00002", "test", "extra"],
     [0, 1, 2], [3]),
    (["train", "dev"], [0], [1]),
])
def test_folders(tmp_path, folder, names, train, test):
  write_shards(tmp_path / folder, names)
  (tmp_path / "README.md").write_text("text")
  splits = parquet.read(tmp_path, Reading())
  for images, labels, expected in ((splits.train_images, splits.train_labels, train),
                                   (splits.test_images, splits.test_labels, test)):
    if expected is None:
      assert images is labels is None
    else:
      assert labels.tolist() == expected and images.shape == (len(expected), 2, 2, 1)
      np.testing.assert_array_equal(images[:, 0, 0, 0], expected)


@pytest.mark.parametrize("names, text", [
    ([], "expected train.parquet, or train-00000-of-00001.parquet and so on; found 'README.md'"),
    (["test"], "train-00000-of-00001.parquet and so on; found 'README.md', 'test.parquet'"),
    (["train-00000-of-00002"], "expected one file of train, or each of its shards once; "
                               "found 'train-00000-of-00002.parquet'"),
    (["train", "test-00001-of-00002"], "one file of test, or each of its shards once; found "
                                       "'test-00001-of-00002.parquet'"),
    (["train-00000-of-00002", "train-00001-of-00003"], "of train, or each of its shards once"),
    (["train", "train-00000-of-00001"], "one file of train, or each of its shards once; found"),
    (["train-00000-of-00001-aa", "train-00000-of-00001-bb"],
     "found 'train-00000-of-00001-aa.parquet', "
     "'train-00000-of-00001-bb.parquet'"),
])
def test_incomplete_folders(tmp_path, names, text):
  write_shards(tmp_path, names)
  (tmp_path / "README.md").write_text("text")
  with raises(ValueError, tmp_path, text):
    parquet.read(tmp_path, Reading())


def test_two_sets_in_a_folder(tmp_path):
  for folder in ("a", "b"):
    write_shards(tmp_path / folder, ["train"])
  with raises(ValueError, tmp_path, "expected train.parquet or its shards in one folder; found "
              "them in 'a', 'b'"):
    parquet.read(tmp_path, Reading())


def test_shards_have_the_same_columns_in_any_order(tmp_path):
  write_parquet(tmp_path / "train.parquet", {"a": [1.], "b": [2.], "label": [0]})
  test = tmp_path / "test.parquet"
  write_parquet(test, {"label": [1], "b": [3.], "a": [4.]})
  assert parquet.read(tmp_path, Reading()).test_images.ravel().tolist() == [4, 3]
  write_parquet(test, {"label": [1], "b": [3.], "c": [4.]})
  with raises(ValueError, test, f"expected the columns of {tmp_path}/train.parquet; found 'a', 'c' "
              "in one file alone"):
    parquet.read(tmp_path, Reading())
  for columns, text in (
      ({"label": ["x"], "b": [3.], "a": [4.]}, "expected labels as those of "
       f"{tmp_path}/train.parquet, int64 []; found text []"),
      ({"label": [0], "image": [encoded(np.zeros((2, 2)))]}, "expected images as those of "
       f"{tmp_path}/train.parquet, float64 [2]; found uint8 [2, 2, 1]")):
    write_parquet(test, columns)
    with raises(ValueError, test, text):
      parquet.read(tmp_path, Reading())
  write_parquet(test, {"a": [1.], "b": [2.], "label": [0]}, "xy")
  with raises(ValueError, test, "expected names of classes as those of "
              f"{tmp_path}/train.parquet, []; found ['x', 'y']"):
    parquet.read(tmp_path, Reading())


# What broken files say


GREY = encoded(np.zeros((2, 2)))


@pytest.mark.parametrize("columns, text", [
    ({"image": [GREY, encoded(np.zeros((2, 3)))], "label": [0, 1]},
     "row 1: expected a picture of (H, W) = (2, 2), as "),
    ({"image": [GREY, encoded(np.zeros((2, 2, 3)))], "label": [0, 1]},
     "row 1: expected a grey picture, as "),
    ({"image": [GREY, None], "label": [0, 1]},
     "expected the bytes of a picture in column 'image'; found none in row 1"),
    ({"image": [{"bytes": None, "path": "a.png"}], "label": [0]},
     "expected the bytes of a picture in column 'image'; found none in row 0"),
    ({"image": [GREY, b"<html>"], "label": [0, 1]}, "row 1: expected a whole PNG or JPEG picture"),
    ({"image": [GREY[:-20]], "label": [0]}, "row 0: expected a whole PNG or JPEG picture"),
    ({"image": [[[1, 2], [3]]], "label": [0]},
     "expected lists of one length in column 'image'; found 1 and 2"),
    ({"image": [[[1, None]]], "label": [0]},
     "expected lists of one length in column 'image'; found an empty place"),
    ({"image": [[[1]], None], "label": [0, 1]},
     "expected a value in every row of column 'image'; found none in row 1"),
    ({"image": [[], []], "label": [0, 1]}, "lists of one length in column 'image'; found empty"),
    ({"image": [[[]], [[]]], "label": [0, 1]}, "of one length in column 'image'; found empty"),
    ({"image": [[[[[1]]]]], "label": [0]}, "expected pictures or lists [H][W] or [H][W][C] in "
                                           "column 'image'; found list<"),
    ({"image": [1], "label": [0]}, "expected pictures or lists [H][W] or [H][W][C] in column"),
    ({"image": ["a.png"], "label": [0]}, "expected pictures, numbers or text in column 'image'; "
                                         "found string"),
    ({"a": [1.], "label": [None]}, "expected a value in every row of column 'label'"),
    ({"a": [1.], "label": ["a" * 201]}, "expected labels of 1..200 characters in column 'label'; "
                                        f"found '{'a' * 40}' in row 0"),
    ({"a": [1.], "label": [""]}, "labels of 1..200 characters in column 'label'; found '' in"),
    ({"a": [1.], "label": [b"a"]}, "expected pictures, numbers or text in column 'label'"),
    ({"a": ["x"], "label": [0]}, "expected numbers in column 'a'; found string"),
    ({"a": [None, 1.], "label": [0, 1]}, "in every row of column 'a'; found none in row 0"),
    ({"a": [1.], "b": [0]}, "expected a column 'label' of labels"),
    ({"label": [0]}, "expected a column 'label' of labels"),
    ({"a": pyarrow.array([], "double"), "label": pyarrow.array([], "int64")},
     "expected at least one row; found none"),
])
def test_other_columns(tmp_path, columns, text):
  path = tmp_path / "a.parquet"
  write_parquet(path, columns)
  with raises(ValueError, path, text):
    parquet.read(path, Reading())


def test_pictures_of_all_shards_follow_the_first(tmp_path):
  """Grey ones become colour wherever a shard begins."""
  images = random_bytes((4, 3, 2, 3))
  images[2] = images[2, :, :, :1]
  for shard in range(2):
    write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", {
        "image": [encoded(image[..., 0] if (image == image[..., :1]).all() else image)
                  for image in images[2 * shard:2 * shard + 2]], "label": [0, 1]})
  np.testing.assert_array_equal(parquet.read(tmp_path, Reading()).train_images, images)


def test_pictures_that_memory_has_no_room_for_are_refused(tmp_path, monkeypatch):
  for shard in range(2):
    write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", {
        "image": [encoded(image) for image in random_bytes((2, 3, 2))], "label": [0, 1]})
  for free, where in ((11, tmp_path / "train-00000-of-00002.parquet"), (12, "the shards together")):
    monkeypatch.setattr(host_memory, "free_bytes", lambda free=free: free)
    with raises(ValueError, where, "of memory are free"):
      parquet.read(tmp_path, Reading())


def test_pictures_of_another_shape_than_that_asked_for(tmp_path):
  path = tmp_path / "a.parquet"
  write_parquet(path, {"image": [GREY], "label": [0]})
  with raises(ValueError, path, "row 0: expected a picture of (H, W) = (3, 3) less an even border"):
    parquet.read(path, Reading(image_shape=(3, 3, 1)))


def test_a_name_twice(tmp_path):
  table = pyarrow.Table.from_arrays([pyarrow.array([1])] * 3, ["a", "a", "label"])
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  with raises(ValueError, tmp_path / "a.parquet", "a name of its own for every column; found 'a'"):
    parquet.read(tmp_path / "a.parquet", Reading())


def test_names_of_classes(tmp_path):
  path = tmp_path / "a.parquet"
  columns = {"image": [GREY, GREY], "label": [0, -1]}
  write_parquet(path, columns, "xy")
  with raises(ValueError, path, "expected labels 0..1, of which column 'label' has the names; "
              "found -1 in row 1"):
    parquet.read(path, Reading())
  table = pyarrow.table(columns).replace_schema_metadata({"huggingface": b'{"info": null}'})
  pyarrow.parquet.write_table(table, path)
  assert parquet.read(path, Reading()).class_names == ()
  for metadata in (b"{", b'{"info": {"features": {"label": {"names": "xy"}}}}', b"[]"):
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, path)
    with raises(ValueError, path, "expected a Parquet file; found "):
      parquet.read(path, Reading())


def test_the_class_that_has_too_few_examples_is_named(tmp_path):
  """Classes are numbered anew where one is not there; their names are not."""
  path = tmp_path / "a.parquet"
  write_parquet(path, {"image": [GREY] * 5, "label": [0, 0, 0, 0, 2]}, ["ape", "bee", "cow"])
  with raises(ValueError, path, "two examples of every class, one of them for testing; found 1 of "
              "'cow'"):
    own_files.read(path, Reading())


def test_no_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  with raises(FileNotFoundError, path, "no such file"):
    parquet.read(path, Reading())
  for raw in (b"", b"<html>" * 10, b"PAR1" + bytes(20) + b"PAR1"):
    path.write_bytes(raw)
    with raises(ValueError, path, "expected a Parquet file; found"):
      parquet.read(path, Reading())


def test_without_pyarrow(tmp_path, monkeypatch):
  write_parquet(tmp_path / "a.parquet", {"a": [1.], "label": [0]})
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ImportError, match=r'^a .parquet file needs pyarrow: pip install "dd_jax\['
                                        r'parquet\]"$'):
    parquet.read(tmp_path / "a.parquet", Reading())
