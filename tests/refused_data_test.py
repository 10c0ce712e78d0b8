"""Data of one's own that would be taken for something else, and are not."""

import os

import numpy as np
from PIL import Image
import pytest

from dd_jax import datasets
from dd_jax import runs
from dd_jax.datasets import columns
from dd_jax.datasets import npy_files
from dd_jax.datasets import picture_files
from dd_jax.datasets import tables
from dd_jax.datasets.labels import as_classes

_IMAGES = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4, 1)


def _from_arrays(train_labels, images=_IMAGES):
  return datasets.from_arrays(images, train_labels, _IMAGES[:3], ["a", "b", "a"])


@pytest.mark.parametrize("call, message", [
    # Of a test split without one class, as pandas.get_dummies makes them: class c would become b.
    (lambda: as_classes(np.eye(3)[[0, 1, 2]], [[1, 0], [0, 1]]),
     "test_labels must be one-hot rows of as many classes as train_labels; got 2 and 3"),
    (lambda: _from_arrays(["a", "b", float("nan")] * 4), "train_labels must be .n. integers or"),
    (lambda: _from_arrays([1, "1", 2] * 4), "train_labels must be .n. integers or strings"),
    (lambda: _from_arrays(np.ma.array([0, 1] * 6, mask=[1] + [0] * 11)),
     "train_labels must have every value; got a masked array"),
    (lambda: _from_arrays(["a", "b"] * 6, np.ma.array(_IMAGES, mask=_IMAGES == 7)),
     "train_images must have every value; got a masked array"),
    (lambda: datasets.normalize(_IMAGES, [.1, .2, .3], [1, 1, 1]),
     r"mean and std must be \[1\], as the channels of images; got \[3\] and \[3\]"),
    (lambda: columns.listed({"x": np.zeros((12, 2))}, "train"),
     r"train must hold columns \[n\]; got ndarray \[12, 2\] as 'x'"),
    (lambda: columns.listed({"x": 5}, "train"),
     r"train must hold columns \[n\]; got int \[\] as 'x'"),
    (lambda: columns.listed({"x": "ab"}, "train"), r"train must hold columns \[n\]; got str"),
    (lambda: datasets.load("./none.npz", reading=datasets.Reading(image_shape=28)),
     r"image_shape must be three positive integers \(H, W, C\); got 28"),
    (lambda: datasets.reframe(datasets.load("digits"), (32., 32, 1)),
     r"image_shape must be three positive integers \(H, W, C\); got \(32.0, 32, 1\)"),
    (lambda: datasets.reframe(datasets.load("digits"), ()), "image_shape must be three positive"),
])
def test_what_would_be_read_as_something_else(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_large_labels_of_several_types_are_the_same_classes():
  """NumPy compares uint64 with int64 as float64, in which neighbours of 2**60 are one."""
  values = [2 ** 60 + 1, 2 ** 60 + 2, 2 ** 60 + 3]
  train, test, _ = as_classes(np.array(values, np.uint64), np.array(values, np.int64))
  assert train.tolist() == test.tolist() == [0, 1, 2]


@pytest.mark.parametrize("texts, labels, message", [
    (["a b", None], [0, 1], "train must hold texts; got NoneType in row 2"),
    ([1, "a b"], [0, 1], "train must hold texts; got int in row 1"),
    (["a b", "c"], ["x", None], "train must hold a label for each text; got none in row 2"),
    (["a b", "c"], ["x", float("nan")], "train must hold a label for each text; got none in row 2"),
])
def test_texts_that_are_none(texts, labels, message):
  with pytest.raises(ValueError, match=message):
    runs.from_texts((texts, labels), (["a"], [0]), num_validation=2, vectors="random")


def test_a_masked_number_is_a_missing_one():
  values = np.ma.array([1., 2., 3.], mask=[0, 1, 0])
  assert columns.listed({"x": values}, "train") == {"x": [1., None, 3.]}


def test_a_validation_split_is_not_left_out(tmp_path):
  for name in ("train", "val"):
    (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\nof {name}\t1\n")
  train, test = columns.read_splits(tmp_path)  # It stands for a missing test split.
  assert (train["text"], test["text"]) == (["of train"], ["of val"])
  (tmp_path / "test.tsv").write_text("text\tlabel\nof test\t1\n")
  train, test = columns.read_splits(tmp_path)
  assert (train["text"], test["text"]) == (["of train", "of val"], ["of test"])

  folder = tmp_path / "csv"
  folder.mkdir()
  for name in ("train", "test", "val"):
    (folder / f"{name}.csv").write_text("a,label\n1,0\n2,1\n")
  with pytest.raises(ValueError, match=r"val.csv: expected train.csv and test.csv alone"):
    tables.read_csv(folder, datasets.Reading())

  np.save(tmp_path / "train_images.npy", _IMAGES)
  np.save(tmp_path / "train_labels.npy", np.arange(12) % 2)
  np.save(tmp_path / "val_images.npy", _IMAGES)
  with pytest.raises(ValueError, match="val_images.npy: expected images of train and test alone"):
    npy_files.read(tmp_path)


def test_a_class_of_leading_zeros_is_another(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("a,label\n" + "1,007\n2,7\n3,1\n" * 4)
  assert datasets.load(str(path)).class_names == ("007", "1", "7")


def test_classes_that_no_integer_holds_are_texts():
  table = {"x": list(range(24)), "y": [10 ** 25, 10 ** 25 + 1] * 12}
  data = runs.from_columns(table, label="y", num_validation=4)
  assert data.class_names == (str(10 ** 25), str(10 ** 25 + 1))


@pytest.mark.parametrize("kind", ["npy", "pictures"])
def test_streamed_images_are_those_of_the_folder_that_was_named(tmp_path, monkeypatch, kind):
  for folder, value in (("a", 1), ("b", 9)):
    where = tmp_path / folder / "mine"
    images = np.full((12, 4, 4, 1), value, np.uint8)
    images[:, 0] = 0
    if kind == "npy":
      where.mkdir(parents=True)
      np.save(where / "train_images.npy", images)
      np.save(where / "train_labels.npy", np.arange(12) % 2)
    else:
      for label in (0, 1):
        (where / f"class{label}").mkdir(parents=True)
        for i in range(6):
          Image.fromarray(images[i, ..., 0]).save(where / f"class{label}/{i}.png")
  monkeypatch.chdir(tmp_path / "a")
  found = datasets.load("./mine", reading=datasets.Reading(in_files=True))
  monkeypatch.chdir(tmp_path / "b")
  assert (found.train_images.read(np.arange(3))[:, 1:] == 1).all()


def test_white_shows_through_transparent_grey_of_16_bits(tmp_path):
  pixels = np.array([[7, 7000], [65535, 0]], np.uint16)
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path, transparency=7)
  picture = picture_files.read(path)
  frame = picture_files.frame_of(path, picture, datasets.Reading())
  found = picture_files.framed(path, picture, frame)
  np.testing.assert_array_equal(found[..., 0], [[65535, 7000], [65535, 0]])


def test_a_class_folder_whose_name_is_no_text_can_be_shown(tmp_path):
  for name in (b"caf\xe9", b"tea"):
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    for i in range(3):
      Image.fromarray(_IMAGES[i, ..., 0]).save(os.path.join(os.fsdecode(folder), f"{i}.png"))
  assert datasets.load(f"{tmp_path}/").class_names == (r"caf\xe9", "tea")
