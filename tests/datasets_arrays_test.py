"""dd_jax.datasets of arrays: checks, splits, framing, normalisation."""

import re

import numpy as np
import pytest

from dd_jax import datasets
from tests.dataset_files import assert_holds
from tests.dataset_files import random_bytes
from tests.dataset_files import tiny
from tests.one_line import raises

pytestmark = pytest.mark.usefixtures("offline")


# from_arrays


def test_from_arrays_keeps_values_and_fixes_types():
  arrays = tiny((5, 4, 3))
  dataset = datasets.from_arrays(**arrays, name="mine")
  assert_holds(dataset, arrays)
  assert dataset.name == "mine" and dataset.num_classes == 10
  assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
  assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
  pixels = arrays["train_images"].astype(float) / 255
  assert dataset.mean.dtype == dataset.std.dtype == np.float64
  np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_from_arrays_float_images_are_taken_as_given():
  arrays = tiny((5, 4, 2))
  for split in ("train_images", "test_images"):
    arrays[split] = arrays[split] * np.array([3.0, 0.0]) + 0.1  # the second channel is constant
  with pytest.warns(UserWarning, match=r"mine: 1 of 2 channels are constant.*\(std 1\): 1$"):
    dataset = datasets.from_arrays(**arrays, name="mine")
  assert dataset.train_images.dtype == dataset.test_images.dtype == np.float64
  assert_holds(dataset, {"test_images": arrays["test_images"]})
  np.testing.assert_allclose(dataset.mean, arrays["train_images"].mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, [arrays["train_images"][..., 0].std(), 1], rtol=1e-12)
  for dtype in (np.float16, np.float32):
    narrow = {name: array.astype(dtype) if "images" in name else array[:, ...]
              for name, array in arrays.items()}
    kept = datasets.from_arrays(**narrow, mean=[0, 0], std=[1, 1])
    assert kept.train_images.dtype == np.float32
    np.testing.assert_array_equal(kept.train_images, narrow["train_images"].astype(np.float32))


@pytest.mark.parametrize("offset, spread", [(1.7e9, 100.), (4.5e6, .2), (1e100, 1e95)])
def test_a_column_far_from_zero_keeps_its_digits(offset, spread):
  arrays = tiny((1, 1, 2))
  for split in ("train_images", "test_images"):
    arrays[split] = offset + spread * (arrays[split] / 255.)
  dataset = datasets.from_arrays(**arrays)
  expected = (tiny((1, 1, 2))["train_images"] / 255.)
  expected = (expected - expected.mean(0)) / expected.std(0)
  normal = datasets.normalize(dataset.train_images, dataset.mean, dataset.std)
  assert normal.dtype == np.float32
  np.testing.assert_allclose(normal, expected, atol=1e-5)
  back = datasets.denormalize(normal, dataset.mean, dataset.std, clip=False)
  np.testing.assert_allclose(back - offset, arrays["train_images"] - offset, atol=1e-6 * spread)
  assert dataset.pixel_range == (arrays["train_images"].min(), arrays["train_images"].max())


def test_uint8_is_normalised_in_float32():
  dataset = datasets.from_arrays(**tiny((5, 4, 3)))
  pixels = dataset.train_images.astype(np.float32) / np.float32(255)
  np.testing.assert_array_equal(
      datasets.normalize(dataset.train_images, dataset.mean, dataset.std),
      (pixels - dataset.mean.astype(np.float32)) / dataset.std.astype(np.float32))
  assert dataset.pixel_range == (0, 1)


def test_what_float32_cannot_hold_once_normalised_is_refused():
  arrays = tiny((1, 1))
  arrays["train_images"] = arrays["train_images"] / 255.
  arrays["test_images"] = replaced(arrays["test_images"] / 255., (3, 0, 0), 1e300)
  with raises(ValueError, "test_images must be finite float32 once normalised; got inf of 1e+300"):
    datasets.from_arrays(**arrays)
  with raises(ValueError, "images must be finite float32 once normalised; got -inf of -1e+300"):
    datasets.normalize(np.full((1, 1, 1, 1), -1e300), [0.], [1.])
  with raises(ValueError, "std must be finite; got [inf]"):
    datasets.from_arrays(**{**arrays, "train_images": replaced(
        arrays["train_images"], (3, 0, 0), 1e300)})


def test_many_constant_channels_are_named_in_one_line():
  images = np.zeros((4, 1, 1, 30))
  with pytest.warns(UserWarning, match=r"^arrays: 30 of 30 .*: 0, .*, 9, \.\.\.$") as found:
    datasets.from_arrays(images, [0, 1, 0, 1], images, [0, 1, 0, 1])
  assert len(found) == 1 and found[0].filename == __file__


def test_from_arrays_adds_a_channel_and_takes_mean_std_and_num_classes():
  arrays = tiny((5, 4))
  dataset = datasets.from_arrays(**arrays, num_classes=10, mean=[.5], std=(.25,))
  assert dataset.train_images.shape == (20, 5, 4, 1)
  np.testing.assert_array_equal([dataset.mean, dataset.std], [[.5], [.25]])


def test_from_arrays_takes_any_integer_labels_and_absent_test_classes():
  arrays = tiny((2, 2))
  arrays["train_labels"] = arrays["train_labels"].astype(np.uint64)
  arrays["test_labels"] = np.zeros(10, np.int8)
  assert datasets.from_arrays(**arrays).train_labels.tolist() == 2 * list(range(10))


@pytest.mark.parametrize("relabelled, names", [
    (lambda x: x, ()),
    (lambda x: x[:, None], ()),
    (lambda x: x.astype(float), ()),
    (lambda x: np.eye(10, dtype=np.uint8)[x], ()),
    (lambda x: x + 1, tuple("123456789") + ("10",)),
    (lambda x: np.array(list("abcdefghij"))[x], tuple("abcdefghij")),
    (lambda x: np.where(x == 9, 40, x).tolist(), (*"012345678", "40")),
])
def test_from_arrays_makes_classes_of_labels_and_keeps_their_names(relabelled, names):
  arrays = tiny((2, 2, 1))
  changed = {name: relabelled(array) if "labels" in name else array
             for name, array in arrays.items()}
  dataset = datasets.from_arrays(**changed)
  assert_holds(dataset, arrays)
  assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
  assert (dataset.num_classes, dataset.class_names) == (10, names)


def test_from_arrays_takes_names_of_classes():
  names = tuple("abcdefghij")
  dataset = datasets.from_arrays(**tiny((2, 2)), class_names=list(names))
  assert (dataset.num_classes, dataset.class_names) == (10, names)
  for wrong, text in ((names[:9], "class_names must be of num_classes=10 classes; got 9"),
                      ((*names[:9], "a"), "class_names must be different strings; got ('a', "),
                      (range(10), "class_names must be different strings; got (0, 1")):
    with raises(ValueError, text):
      datasets.from_arrays(**tiny((2, 2)), num_classes=10, class_names=wrong)


def test_from_arrays_of_16_bits():
  arrays = tiny((5, 4, 3))
  for split in ("train_images", "test_images"):
    arrays[split] = arrays[split].astype(np.uint16) * 16  # 12 bits of them.
  dataset = datasets.from_arrays(**arrays)
  assert dataset.train_images.dtype == np.uint16
  assert_holds(dataset, arrays)
  pixels = arrays["train_images"] / 65535
  np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-12)
  assert dataset.pixel_range == (pixels.min(), pixels.max())
  normal = datasets.normalize(arrays["train_images"], dataset.mean, dataset.std)
  np.testing.assert_allclose(normal, (pixels - dataset.mean) / dataset.std, atol=1e-5)
  shown = datasets.pictures(normal, dataset.mean, dataset.std, pixel_range=dataset.pixel_range)
  np.testing.assert_allclose(
      shown, (pixels - pixels.min()) / (pixels.max() - pixels.min()), atol=1e-5)
  swapped = datasets.from_arrays(**{**arrays, "train_images": arrays["train_images"].astype(">u2")})
  assert swapped.train_images.dtype == np.uint16
  np.testing.assert_array_equal(swapped.mean, dataset.mean)
  framed_set = datasets.reframe(dataset._replace(pixel_range=(.5, 1.)), (7, 6, 3))
  assert not framed_set.train_images[:, 0].any()
  assert datasets.reframe(dataset, (5, 4, 3)) is dataset


def replaced(array, index, value):
  array = np.array(array)
  array[index] = value
  return array


@pytest.mark.parametrize("argument, change, message", [
    ("train_images", lambda x: x[0], "train_images must be [n, H, W, C] or [n, H, W]; "
                                     "got shape (4, 3)"),
    ("test_images", lambda x: x[..., None, None], "test_images must be [n, H, W, C] or [n, H, W]; "
                                                  "got shape (10, 4, 3, 1, 1)"),
    ("train_images", lambda x: x.astype(int),
     "train_images must be uint8, uint16 or floating point; got int64"),
    ("train_images", lambda x: x[:0], "train_images must hold at least one image of at least one "
                                      "pixel; got shape (0, 4, 3)"),
    ("test_images", lambda x: x[:, :0], "test_images must hold at least one image of at least one "
                                        "pixel; got shape (10, 0, 3)"),
    ("test_images", lambda x: replaced(x.astype(float), (3, 1, 1), np.nan),
     "test_images must be finite; got NaN or infinity in image 3"),
    ("train_images", lambda x: replaced(x.astype(float), (7, 0, 0), -np.inf),
     "train_images must be finite; got NaN or infinity in image 7"),
    ("test_images", lambda x: x[:, 1:], "test_images must have the image shape of train_images, "
                                        "(4, 3, 1); got (3, 3, 1)"),
    ("test_images", lambda x: x.astype(np.float32),
     "test_images must have the dtype of train_images, uint8; got float32"),
    ("train_labels", lambda x: x[:, None], "train_labels must be [n]; got shape (20, 1)"),
    ("train_labels", lambda x: x + 0.5, "train_labels must be integers; got float64"),
    ("test_labels", lambda x: x[:-1],
     "test_labels must have one label per image of test_images, 10; got 9"),
    ("num_classes", lambda _: 1, "num_classes must be at least 2; got 1"),
    ("train_labels", lambda x: replaced(x, 5, 12),
     "train_labels must lie in 0..9 (num_classes=10); got 12 at index 5"),
    ("test_labels", lambda x: replaced(x, 9, -1),
     "test_labels must lie in 0..9 (num_classes=10); got -1 at index 9"),
    ("train_labels", lambda x: np.where(x == 4, 5, x),
     "train_labels must hold every class of 0..9; got none of class 4"),
    ("num_classes", lambda _: 11, "train_labels must hold every class of 0..10; got none of class "
                                  "10"),
    ("mean", lambda _: [.1, .2], "mean must be [C] with C=1; got shape (2,)"),
    ("std", lambda _: .5, "std must be [C] with C=1; got shape ()"),
    ("mean", lambda _: [np.nan], "mean must be finite; got [nan]"),
    ("std", lambda _: [0.], "std must be positive; got [0.0]"),
])
def test_from_arrays_refuses(argument, change, message):
  arguments = {**tiny((4, 3)), "num_classes": 10}
  arguments[argument] = change(arguments.get(argument))
  with raises(ValueError, message):
    datasets.from_arrays(**arguments)


# split_validation


def uneven():
  """A set of 5 classes with 2, 10, 20, 30 and 138 training images; the pixel is the index."""
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [2, 10, 20, 30, 138]))
  images = np.arange(200, dtype=np.uint8).reshape(-1, 1, 1)
  return datasets.from_arrays(images, labels, images[:5], labels[:5])


def test_split_validation_is_stratified_and_a_partition():
  dataset = uneven()
  rest, images, labels = datasets.split_validation(dataset, 50, seed=3)
  # In proportion 0.5, 2.5, 5, 7.5, 34.5: at least one, then the largest remainders.
  counts = np.bincount(labels)
  assert counts.sum() == 50 and counts[0] == 1
  assert (np.abs(counts - [.5, 2.5, 5, 7.5, 34.5]) < 1).all()
  np.testing.assert_array_equal(dataset.train_labels[images.ravel()], labels)
  np.testing.assert_array_equal(dataset.train_labels[rest.train_images.ravel()], rest.train_labels)
  assert (np.diff(images.ravel().astype(int)) > 0).all()
  together = np.concatenate([images.ravel(), rest.train_images.ravel()])
  np.testing.assert_array_equal(np.sort(together), np.arange(200))
  for field in ("name", "test_images", "test_labels", "num_classes", "mean", "std"):
    assert getattr(rest, field) is getattr(dataset, field)


def test_split_validation_depends_on_the_seed_alone():
  dataset = uneven()
  first, again, other = (datasets.split_validation(dataset, 50, seed=s)[1] for s in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize("num_validation, counts", [(5, [1] * 5), (195, [1, 9, 19, 29, 137])])
def test_split_validation_extremes(num_validation, counts):
  _, _, labels = datasets.split_validation(uneven(), num_validation, seed=0)
  assert np.bincount(labels).tolist() == counts


@pytest.mark.parametrize("num_validation", [-1, 0, 4, 196, 200])
def test_split_validation_refuses_a_number(num_validation):
  with raises(ValueError, "num_validation must lie in 5..195 (one image of each of 5 classes on "
                          f"either side); got {num_validation}"):
    datasets.split_validation(uneven(), num_validation, seed=0)


def test_split_validation_refuses_a_class_of_one_image():
  images = np.zeros((5, 1, 1), np.uint8)
  dataset = datasets.from_arrays(images, [0, 0, 1, 0, 0], images, [0] * 5)
  with raises(ValueError, "a split needs two images of every class; got 1 of class 1"):
    datasets.split_validation(dataset, 2, seed=0)


# reframe


@pytest.mark.parametrize("channels", [1, 3])
def test_reframe(channels):
  rng = np.random.default_rng(0)
  arrays = [rng.integers(0, 255, (6, 4, 5, 1), np.uint8), np.arange(6) % 3,
            rng.integers(0, 255, (3, 4, 5, 1), np.uint8), np.arange(3)]
  dataset = datasets.from_arrays(*arrays)
  framed = datasets.reframe(dataset, (8, 7, channels))
  for before, after in ((dataset.train_images, framed.train_images),
                        (dataset.test_images, framed.test_images)):
    assert after.shape == (len(before), 8, 7, channels) and after.dtype == np.uint8
    np.testing.assert_array_equal(after[:, 2:6, 1:6], np.repeat(before, channels, -1))
    assert after.sum() == channels * before.sum()
  assert framed.mean.tolist() == dataset.mean.tolist() * channels
  assert framed.std.tolist() == dataset.std.tolist() * channels


@pytest.mark.parametrize("image_shape", [(8, 8, 2), (9, 8, 1), (6, 8, 1), (8, 4, 3)])
def test_reframe_refuses(image_shape):
  dataset = datasets.from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2,
                                 np.zeros((2, 8, 8, 1), np.uint8), np.arange(2), name="mine")
  with pytest.raises(ValueError, match=r"image_shape must add an even border to \(8, 8, 1\) of "
                                       rf"mine.*; got {re.escape(str(image_shape))}"):
    datasets.reframe(dataset, image_shape)


# normalize


def test_normalize_values():
  images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
  normal = datasets.normalize(images, np.float32([.2]), np.float32([.5]))
  assert normal.dtype == np.float32
  np.testing.assert_allclose(normal.ravel(), [-.4, 0, 1.6], atol=1e-7)
  floats = datasets.normalize(np.full((1, 1, 1, 2), 3.0), [1, 2], [2, 4])
  assert floats.dtype == np.float32
  np.testing.assert_array_equal(floats.ravel(), [1, .25])


def test_normalize_of_own_split_has_mean_zero_and_std_one():
  dataset = datasets.from_arrays(**tiny((6, 5, 3)))
  normal = datasets.normalize(dataset.train_images, dataset.mean, dataset.std)
  np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(normal.std((0, 1, 2)), 1, rtol=1e-5)


def test_denormalize_undoes_normalize_and_clips():
  images = random_bytes((4, 6, 5, 3))
  mean, std = [.1, .2, .3], [.4, .5, .6]
  back = datasets.denormalize(datasets.normalize(images, mean, std), mean, std)
  assert back.dtype == np.float64
  np.testing.assert_allclose(back * 255, images, atol=1e-4)
  far = np.float32([[[[-9, 0, 9]]]])
  np.testing.assert_allclose(datasets.denormalize(far, mean, std).ravel(), [0, .2, 1], rtol=1e-6)
  np.testing.assert_allclose(datasets.denormalize(far, mean, std, pixel_range=(-1., 1.)).ravel(),
                             [-1, .2, 1], rtol=1e-6)


@pytest.mark.parametrize("low, high", [(0., 255.), (-1., 1.), (1.7e9, 1.7e9 + 4)])
def test_pictures_are_black_and_white_at_the_ends_of_the_range(low, high):
  arrays = tiny((5, 4, 3))
  for split in ("train_images", "test_images"):
    arrays[split] = replaced(arrays[split], (0, 0, 0), [0, 3, 255])
    arrays[split] = low + (high - low) * (arrays[split] / 255.)
  dataset = datasets.from_arrays(**arrays)
  np.testing.assert_allclose(dataset.pixel_range, (low, high), rtol=1e-12)
  normal = datasets.normalize(dataset.train_images, dataset.mean, dataset.std)
  shown = datasets.pictures(normal, dataset.mean, dataset.std, pixel_range=dataset.pixel_range)
  expected = replaced(tiny((5, 4, 3))["train_images"], (0, 0, 0), [0, 3, 255]) / 255.
  np.testing.assert_allclose(shown, expected, atol=1e-6)
  far = datasets.pictures(9e9 * normal, dataset.mean, dataset.std, pixel_range=dataset.pixel_range)
  assert far.min() == 0 and far.max() == 1
  framed = datasets.reframe(dataset, (7, 6, 3))  # its border is black
  assert (framed.train_images[:, 0] == dataset.pixel_range[0]).all()
  assert framed.pixel_range == dataset.pixel_range


def test_pictures_of_a_constant_set_are_black():
  assert (datasets.pictures(np.zeros((1, 1, 1, 1)), [7.], [1.], pixel_range=(7., 7.)) == 0).all()
