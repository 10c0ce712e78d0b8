"""datasets.load of one's own tables, Parquet files and MedMNIST's: which reader, which classes."""

import re

import numpy as np
import pytest

from dd_jax import datasets
from tests.dataset_files import csv_text
from tests.dataset_files import encoded
from tests.dataset_files import random_bytes
from tests.dataset_files import write_parquet

LABELS = np.arange(24) % 3


def check(dataset, images, names, num_test):
  """A set of the rows of `images`, of which every row is of the class `LABELS` says."""
  assert (len(dataset.train_labels), len(dataset.test_labels)) == (24 - num_test, num_test)
  found = np.concatenate([dataset.train_images, dataset.test_images])
  order = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in found]
  assert sorted(order) == list(range(24)) and dataset.train_images.dtype == images.dtype
  labels = np.concatenate([dataset.train_labels, dataset.test_labels])
  np.testing.assert_array_equal(labels, LABELS[order])
  assert dataset.class_names == names


@pytest.mark.parametrize("folder", [False, True])
def test_csv(tmp_path, folder):
  numbers = np.random.default_rng(0).normal(size=(24, 4))
  labels = np.array(["ape", "bee", "cow"])[LABELS]
  parts = {"train": slice(18), "test": slice(18, 24)} if folder else {"table": slice(24)}
  for name, part in parts.items():
    (tmp_path / f"{name}.csv").write_text(csv_text("abcd", numbers[part], labels[part], 2, "kind"))
  path = tmp_path if folder else tmp_path / "table.csv"
  dataset = datasets.load(path, reading=datasets.Reading(label="kind", test_fraction=.25))
  check(dataset, numbers.reshape(24, 1, 1, 4), ("ape", "bee", "cow"), 6)
  assert dataset.name == path.stem


@pytest.mark.parametrize("folder", [False, True])
def test_parquet(tmp_path, folder):
  images = random_bytes((24, 5, 4))
  parts = {"data/train-00000-of-00002": slice(10), "data/train-00001-of-00002": slice(10, 18),
           "data/validation-00000-of-00001": slice(18, 24)} if folder else {"a": slice(24)}
  for name, part in parts.items():
    write_parquet(tmp_path / f"{name}.parquet", {
        "image": [encoded(image) for image in images[part]], "label": LABELS[part]}, "xyz")
  path = tmp_path if folder else tmp_path / "a.parquet"
  dataset = datasets.load(path, reading=datasets.Reading(test_fraction=.25))
  check(dataset, images[..., None], ("x", "y", "z"), 6)


def medmnist(tmp_path, labels):
  """A file of 12 training, 6 validation and 6 test images."""
  images, arrays = random_bytes((24, 5, 4, 3)), {}
  for split, part in (("train", slice(12)), ("val", slice(12, 18)), ("test", slice(18, 24))):
    arrays |= {f"{split}_images": images[part], f"{split}_labels": labels[part]}
  np.savez(tmp_path / "bloodmnist.npz", **arrays)
  return images


def test_medmnist(tmp_path):
  images = medmnist(tmp_path, LABELS[:, None].astype(np.uint8))
  check(datasets.load(tmp_path / "bloodmnist.npz"), images, (), 6)


def test_medmnist_of_several_labels_says_what_to_do(tmp_path):
  labels = np.eye(14, dtype=np.uint8)[LABELS]
  labels[5, 8] = 1
  medmnist(tmp_path, labels)
  with pytest.raises(ValueError, match=re.escape(
      f"{tmp_path}/bloodmnist.npz: train_labels must have one label for each example; got 2 labels "
      "at index 5: keep one of them, or leave the example out")):
    datasets.load(tmp_path / "bloodmnist.npz")
