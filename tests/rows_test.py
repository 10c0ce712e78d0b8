"""Images that stay in files: chosen, changed, counted and read as the arrays they stand for."""

import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.datasets import normalization
from dd_jax.datasets import rows
from dd_jax.datasets import tfds_source
from tests import dataset_files
from tests import prepared_sets
from tests.dataset_files import InFile


def _images(dtype, n=50):
  images = np.random.default_rng(0).integers(0, 256, (n, 5, 4, 2))
  return (images if np.issubdtype(dtype, np.integer) else images / 7 - 5).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_statistics_are_those_of_all_images_in_memory_or_in_files(dtype, monkeypatch):
  monkeypatch.setattr(rows, "_BLOCK_NUMBERS", 7 * 40)
  images = _images(dtype)
  images[..., 1] = 3
  found = normalization.statistics(images)
  pixels = images.astype(float) / (255 if dtype == np.uint8 else 1)
  for statistic, expected in (("mean", pixels.mean((0, 1, 2))), ("std", pixels.std((0, 1, 2))),
                              ("low", pixels.min((0, 1, 2))), ("high", pixels.max((0, 1, 2)))):
    np.testing.assert_allclose(getattr(found, statistic), expected, rtol=1e-13, atol=1e-15)
  assert found.std[1] == 0
  for a, b in zip(found, normalization.statistics(InFile(images)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_dataset_of_rows_is_that_of_its_arrays(dtype):
  images, labels = _images(dtype), np.arange(50) % 3
  sets = [datasets.from_arrays(wrap(images[:40]), labels[:40], wrap(images[40:]), labels[40:])
          for wrap in (lambda images: images, InFile)]
  assert datasets.digest(sets[0]) == datasets.digest(sets[1])
  for a, b in zip(sets[0], sets[1], strict=True):
    if isinstance(b, datasets.Rows):
      a, b = rows.in_memory(a), rows.in_memory(b)
    np.testing.assert_array_equal(a, b)
  splits = [datasets.split_validation(datasets.reframe(dataset, (9, 8, 2)), 6, seed=1)
            for dataset in sets]
  (rest, validation, labels), (rest_of_rows, validation_rows, _) = splits
  assert isinstance(validation_rows, datasets.Rows) and validation_rows.shape == (6, 9, 8, 2)
  np.testing.assert_array_equal(rows.in_memory(validation_rows), validation)
  places = np.array([3, 0, 3])
  np.testing.assert_array_equal(rest_of_rows.train_images.read(places),
                                rest.train_images[places])


def test_rows_that_are_not_finite_are_refused():
  images = _images(np.float32)
  images[17, 2, 1, 0] = np.nan
  labels = np.arange(50) % 3
  with pytest.raises(ValueError, match="train_images must be finite"):
    datasets.from_arrays(InFile(images), labels, InFile(images), labels)


def test_a_prepared_set_stays_in_its_files(tmp_path):
  arrays = {f"{split}_{kind}": value for split, seed in (("train", 0), ("test", 1))
            for kind, value in (("images", dataset_files.random_bytes((20, 28, 28, 1), seed)),
                                ("labels", np.arange(20) % 10))}
  directory = prepared_sets.write_array_record(tmp_path, arrays)
  train_images, train_labels, *_ = tfds_source.read_prepared(directory)
  assert isinstance(train_images, datasets.Rows)
  # tensorflow-datasets shuffles what it writes; an image belongs to its label.
  order = [np.flatnonzero((arrays["train_images"] == image).all((1, 2, 3))).item()
           for image in rows.in_memory(train_images)]
  assert sorted(order) == list(range(20))
  np.testing.assert_array_equal(arrays["train_labels"][order], train_labels)
  places = np.array([7, 7, 2])
  np.testing.assert_array_equal(train_images.read(places),
                                arrays["train_images"][np.array(order)[places]])
