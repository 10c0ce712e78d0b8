"""dd_jax.datasets: checked arrays, splits, normalisation, and where `load` looks."""

import bz2
import gzip
import hashlib
import re
import shutil
import socket
import sys

import jax
import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from dd_jax import datasets
from dd_jax.datasets import sources
from dd_jax.datasets import tfds_source
from tests import prepared_sets
from tests.dataset_files import write_tfrecord

IDX_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
             "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
ON_DISK = tuple(name for name in datasets.NAMES if name != "digits")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  """No test reaches for the network, nor for the data of whoever runs it."""
  def refuse(*args, **kwargs):
    pytest.fail(f"network: {args}")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket.socket, "connect_ex", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("DD_JAX_DATA", raising=False)


def raises(error, text):
  """Expects `error` in one line that holds `text`."""
  return pytest.raises(error, match=rf"\A[^\n]*{re.escape(text)}[^\n]*\Z")


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tiny(image_shape=(28, 28, 1), *, fill=None, num_train=20, num_test=10):
  """`train_images train_labels test_images test_labels` with ten classes, by name."""
  images = random_images(num_train + num_test, *image_shape)
  if fill is not None:
    images[:] = fill
  labels = np.arange(num_train + num_test) % 10
  return {"train_images": images[:num_train], "train_labels": labels[:num_train],
          "test_images": images[num_train:], "test_labels": labels[num_train:]}


def write_idx(directory, arrays):
  directory.mkdir(parents=True, exist_ok=True)
  for name, array in zip(IDX_FILES, arrays.values()):
    array = array.reshape(array.shape[:3]).astype(np.uint8)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    (directory / name).write_bytes(gzip.compress(header + array.tobytes()))


def assert_holds(dataset, arrays):
  for name, array in arrays.items():
    np.testing.assert_array_equal(getattr(dataset, name), array)


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


@pytest.mark.parametrize("image_shape", [(8, 8, 2), (9, 8, 1), (6, 8, 1), (8, 8), (8, 4, 3)])
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
  images = random_images(4, 6, 5, 3)
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


# load: digits, names, npz


def test_digits():
  dataset = datasets.load("digits", download=True)
  assert dataset.name == "digits" and dataset.num_classes == 10
  assert dataset.train_images.shape == (1297, 28, 28, 1)
  assert dataset.test_images.shape == (500, 28, 28, 1)
  assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
  assert dataset.train_images.max() == 255
  labels = np.concatenate([dataset.train_labels, dataset.test_labels])
  assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  share = np.bincount(labels) * 500 / 1797
  assert (np.abs(np.bincount(dataset.test_labels) - share) < 1).all()
  inside = np.zeros((28, 28), bool)
  inside[4:24, 4:24] = True
  assert not dataset.train_images[:, ~inside].any()
  assert dataset.train_images[:, inside].any(axis=(0, 2)).sum() > 300
  pixels = dataset.train_images / 255
  np.testing.assert_allclose(dataset.mean, [pixels.mean()], rtol=1e-6)
  np.testing.assert_allclose(dataset.std, [pixels.std()], rtol=1e-6)
  again = datasets.load("digits")
  assert_holds(again, {name: getattr(dataset, name) for name in tiny()})


def test_digits_images_are_those_of_scikit_learn():
  dataset = datasets.load("digits")
  ours = np.concatenate([dataset.train_images, dataset.test_images])
  theirs = load_digits().images[..., None] * (255 / 16)
  resized = jax.image.resize(theirs.astype(np.float32), (1797, 20, 20, 1), "bilinear")
  rounded = np.rint(resized).astype(int)
  for image in (ours[0], ours[1296], ours[1297], ours[1796]):  # the ends of both splits
    difference = np.abs(rounded - image[4:24, 4:24]).max(axis=(1, 2, 3))
    assert difference.min() <= 1  # rounding at the half


def test_digits_without_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
  with raises(ImportError, 'digits comes with scikit-learn: pip install "dd_jax[runs]"'):
    datasets.load("digits")


def test_unknown_name():
  with raises(ValueError, "name must be one of digits, mnist, fashion_mnist, kmnist, usps, "
                          "svhn_cropped, svhn_small, cifar10, cifar100, cifar100_coarse, stl10, "
                          "tiny_imagenet, emnist_balanced, emnist_byclass, emnist_bymerge, "
                          "emnist_digits, emnist_letters, emnist_mnist, voc, cub200, the path of "
                          "one's own files (a folder here is ./NAME), or the name of a prepared "
                          "tensorflow-datasets directory nowhere/NAME/VERSION; got 'imagenet'"):
    datasets.load("imagenet", "nowhere")


def test_own_npz(tmp_path, monkeypatch):
  arrays = tiny((6, 5, 2))
  np.savez(tmp_path / "mine.npz", **arrays)
  dataset = datasets.load(tmp_path / "mine.npz")
  assert_holds(dataset, arrays)
  assert dataset.name == "mine" and dataset.num_classes == 10
  monkeypatch.setenv("HOME", str(tmp_path))
  assert_holds(datasets.load("~/mine.npz"), arrays)
  with raises(FileNotFoundError, f"{tmp_path / 'other.npz'}: no such file"):
    datasets.load(str(tmp_path / "other.npz"))
  np.savez(tmp_path / "mine.npz", **arrays | {"train_labels": np.zeros(20, int)})
  with raises(ValueError, f"{tmp_path / 'mine.npz'}: test_labels must be labels that training "
                          "examples have; got 1 at index 1"):
    datasets.load(tmp_path / "mine.npz")


# load: where it looks


@pytest.mark.parametrize("name", ON_DISK)
def test_nothing_found(tmp_path, name):
  folder = {"cifar100_coarse": "cifar100"}.get(name, re.sub("emnist_.*", "emnist", name))
  with raises(FileNotFoundError, f"{name}: nothing found in {tmp_path / folder} or {tmp_path}; "
                                 "any of these will do: "):
    datasets.load(name, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, text", [
    ("mnist", "a prepared tensorflow-datasets directory mnist/VERSION, train-images-idx3-ubyte.gz "
              "+ train-labels-idx1-ubyte.gz + t10k-images-idx3-ubyte.gz + "
              "t10k-labels-idx1-ubyte.gz, "),
    ("mnist", "mnist.npz; download=True fetches it"),
    ("usps", "do: usps.bz2 + usps.t.bz2, zip.train.gz + zip.test.gz, zip.train + zip.test, "
             "usps.npz; download=True fetches it"),
    ("svhn_cropped", "train_32x32.mat + test_32x32.mat; download=True fetches it"),
    ("svhn_small", "do: svhn_small.npz, svhn_subset.npz; it cannot be downloaded"),
    ("cifar10", "cifar-10-binary.tar.gz, cifar-10-batches-bin, cifar10.npz; download=True"),
    ("cifar100", "do: a prepared tensorflow-datasets directory cifar100/VERSION, "
                 "cifar-100-binary.tar.gz, cifar-100-binary; download=True fetches it"),
    ("cifar100_coarse", "do: cifar-100-binary.tar.gz, cifar-100-binary; download=True fetches it"),
    ("stl10", "do: stl10_binary; it cannot be downloaded"),
    ("tiny_imagenet", "do: tiny-imagenet-200; it cannot be downloaded"),
    ("emnist_letters", "do: emnist-letters-train-images-idx3-ubyte.gz + "
                       "emnist-letters-train-labels-idx1-ubyte.gz + "
                       "emnist-letters-test-images-idx3-ubyte.gz + "
                       "emnist-letters-test-labels-idx1-ubyte.gz, gzip/emnist-letters-train-"),
    ("voc", "do: VOCdevkit/VOC2007, VOCdevkit/VOC2012; it cannot be downloaded"),
    ("cub200", "do: CUB_200_2011; it cannot be downloaded"),
])
def test_nothing_found_names_the_files(tmp_path, name, text):
  with raises(FileNotFoundError, text):
    datasets.load(name, tmp_path)


@pytest.mark.parametrize("name", ["svhn_small", "voc", "cub200"])
def test_what_is_not_downloaded(tmp_path, name):
  with raises(FileNotFoundError, "it cannot be downloaded"):
    datasets.load(name, tmp_path, download=True)


def test_data_dir_is_the_argument_then_the_variable_then_home(tmp_path, monkeypatch):
  def save(directory, fill):
    directory.mkdir(parents=True)
    np.savez(directory / "mnist.npz", **tiny(fill=fill))

  save(tmp_path / "home" / "dd_jax_data", 1)
  assert datasets.load("mnist").train_images[0, 0, 0, 0] == 1
  save(tmp_path / "variable", 2)
  monkeypatch.setenv("DD_JAX_DATA", str(tmp_path / "variable"))
  assert datasets.load("mnist").train_images[0, 0, 0, 0] == 2
  save(tmp_path / "home" / "argument", 3)
  assert datasets.load("mnist", "~/argument").train_images[0, 0, 0, 0] == 3


@pytest.fixture(scope="module")
def array_record_dir(tmp_path_factory):
  pytest.importorskip("array_record", reason="array_record is built for Linux alone")
  return prepared_sets.write_array_record(tmp_path_factory.mktemp("prepared"), tiny())


@pytest.fixture
def prepared(request, tmp_path, array_record_dir):
  """A fresh `tmp_path/mnist/3.0.1` in the format of the parameter."""
  directory = tmp_path / "mnist" / "3.0.1"
  shutil.copytree(array_record_dir, directory)
  if request.param == "tfrecord":
    prepared_sets.to_tfrecord(directory)
  return directory


both_formats = pytest.mark.parametrize("prepared", ["array_record", "tfrecord"], indirect=True)
tfrecord = pytest.mark.parametrize("prepared", ["tfrecord"], indirect=True)
array_record = pytest.mark.parametrize("prepared", ["array_record"], indirect=True)


def in_order(images, labels):
  rows = np.column_stack([labels, images.reshape(len(images), -1)])
  return rows[np.lexsort(rows.T[::-1])]


@both_formats
def test_prepared_directory(prepared):
  dataset = datasets.load("mnist", prepared.parents[1])
  arrays = tiny()
  for split in ("train", "test"):  # tensorflow-datasets shuffles as it writes
    np.testing.assert_array_equal(
        in_order(getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")),
        in_order(arrays[f"{split}_images"], arrays[f"{split}_labels"]))
  assert dataset.train_images.dtype == np.uint8
  np.testing.assert_array_equal([dataset.mean, dataset.std], [[.1307], [.3081]])


@array_record
def test_prepared_directory_of_another_name(prepared):
  """Any image set of tensorflow-datasets, with the mean and std of its own training images."""
  data_dir = prepared.parents[1]
  shutil.copytree(prepared, data_dir / "letters/script/3.0.1")
  letters, mnist = datasets.load("letters/script", data_dir), datasets.load("mnist", data_dir)
  assert letters.name == "letters/script"
  np.testing.assert_array_equal(letters.train_images, mnist.train_images)
  np.testing.assert_allclose(letters.mean, [mnist.train_images.mean() / 255], rtol=1e-6)


def change_file(directory, pattern, change):
  (path,) = directory.glob(pattern)
  path.write_bytes(change(path.read_bytes()))


@both_formats
@pytest.mark.parametrize("pattern, change", [
    ("mnist-test*", lambda raw: raw[:len(raw) // 2]),
    ("mnist-test*", lambda raw: b""),
    ("mnist-train*", lambda raw: raw.replace(b"IHDR", b"XXXX")),
    ("dataset_info.json", lambda raw: b"{"),
    ("dataset_info.json", lambda raw: raw.replace(b'"20"', b'"21"')),
    ("dataset_info.json", lambda raw: raw.replace(b'_record"', b'"').replace(b"tfrecord", b"csv")),
    ("features.json", lambda raw: b"{"),
    ("features.json", lambda raw: raw.replace(b'"uint8"', b'"uint"')),
])
def test_prepared_directory_corrupt(prepared, pattern, change):
  change_file(prepared, pattern, change)
  with raises(ValueError, f"{prepared}: expected a prepared tensorflow-datasets directory; found"):
    datasets.load("mnist", prepared.parents[1])


@array_record
def test_prepared_directory_incomplete_or_of_another_format(prepared):
  info = (prepared / "dataset_info.json").read_text()
  (prepared / "dataset_info.json").write_text(info.replace('"array_record"', '"riegeli"'))
  with raises(ValueError, "expected array_record or tfrecord; found riegeli"):
    datasets.load("mnist", prepared.parents[1])
  (prepared / "dataset_info.json").write_text(info)
  for path in prepared.glob("mnist-test*"):
    path.unlink()
  with raises(ValueError, f"{prepared}: expected a prepared tensorflow-datasets directory; found"):
    datasets.load("mnist", prepared.parents[1])


@tfrecord
def test_tfrecord_counts_are_checked(prepared):
  (path,) = prepared.glob("mnist-train*")
  write_tfrecord(path, list(tfds_source.read_tfrecord(path))[:-1])
  with raises(ValueError, "expected 20 examples of train; found 19"):
    datasets.load("mnist", prepared.parents[1])


def test_tfrecord_reader(tmp_path):
  path = tmp_path / "a.tfrecord"
  payloads = [b"", b"abc", bytes(range(256))]
  write_tfrecord(path, payloads)
  assert list(tfds_source.read_tfrecord(path)) == payloads
  whole = path.read_bytes()
  for size, text in ((5, "a record header of 12 bytes at byte 0; found 5"),
                     (20, "a record header of 12 bytes at byte 16; found 4"),
                     (30, "a record of 3 bytes at byte 16; found the end of the file"),
                     (33, "a record of 3 bytes at byte 16; found the end of the file"),
                     (len(whole) - 4, "a record of 256 bytes at byte 35; found the end")):
    path.write_bytes(whole[:size])
    with raises(ValueError, f"{path}: expected {text}"):
      list(tfds_source.read_tfrecord(path))
  for start, text in ((0, "record length with its checksum at byte 0"),
                      (28, "payload with its checksum at byte 28"),
                      (31, "payload with its checksum at byte 28")):
    path.write_bytes(whole[:start] + b"x" + whole[start + 1:])
    with raises(ValueError, f"{path}: expected a {text}"):
      list(tfds_source.read_tfrecord(path))


def test_masked_crc32c_is_the_published_one():
  # CRC-32C of "123456789" is e3069283; rotated right by 15 and shifted by the constant.
  rotated = (0xe3069283 >> 15 | 0xe3069283 << 17) & 0xffffffff
  assert tfds_source.masked_crc32c(b"123456789") == (rotated + 0xa282ead8) % 2**32


def test_prepared_directory_is_the_newest_version(tmp_path):
  assert tfds_source.prepared_directory(tmp_path, "mnist") is None
  for version in ("3.0.1", "3.0.10", "3.0.9", "4.0.0.incompleteABC"):
    (tmp_path / "mnist" / version).mkdir(parents=True)
    (tmp_path / "mnist" / version / "dataset_info.json").touch()
  (tmp_path / "mnist" / "5.0.0").mkdir()
  assert tfds_source.prepared_directory(tmp_path, "mnist") == tmp_path / "mnist" / "3.0.10"


@array_record
def test_order_of_looking(prepared, tmp_path):
  first = {2: tmp_path / "mnist", 3: tmp_path}
  for fill, directory in first.items():
    write_idx(directory, tiny(fill=fill))
  np.savez(tmp_path / "mnist" / "mnist.npz", **tiny(fill=4))
  np.savez(tmp_path / "mnist.npz", **tiny(fill=5))

  def pixel():
    return datasets.load("mnist", tmp_path, download=True).train_images[:, 0, 0, 0].max()

  assert pixel() > 5
  shutil.rmtree(prepared)
  assert pixel() == 2
  (tmp_path / "mnist" / IDX_FILES[3]).unlink()  # one of the four missing: go on
  assert pixel() == 3
  (tmp_path / IDX_FILES[0]).unlink()
  assert pixel() == 4
  (tmp_path / "mnist" / "mnist.npz").unlink()
  assert pixel() == 5


def test_corrupt_original_is_reported_not_skipped(tmp_path):
  write_idx(tmp_path, tiny())
  np.savez(tmp_path / "mnist.npz", **tiny())
  path = tmp_path / IDX_FILES[2]
  path.write_bytes(path.read_bytes()[:-30])
  with raises(ValueError, f"{path}: expected a whole .gz file"):
    datasets.load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_sets(tmp_path, name):
  arrays = tiny()
  write_idx(tmp_path / name, arrays)
  dataset = datasets.load(name, tmp_path)
  assert_holds(dataset, arrays)
  assert dataset.name == name
  pixels = arrays["train_images"] / 255
  expected = (.1307, .3081) if name == "mnist" else (pixels.mean(), pixels.std())
  np.testing.assert_allclose([*dataset.mean, *dataset.std], expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.* channels are constant")
def test_idx_files_of_another_set_are_not_taken(tmp_path, monkeypatch):
  write_idx(tmp_path, tiny())
  digest = hashlib.sha256((tmp_path / IDX_FILES[1]).read_bytes()).hexdigest()
  monkeypatch.setattr(sources, "_IDX_LABELS_SHA256", {digest: "mnist"})
  assert datasets.load("mnist", tmp_path).name == "mnist"
  with raises(FileNotFoundError, f"the IDX files in {tmp_path} are those of mnist"):
    datasets.load("kmnist", tmp_path)
  np.savez(tmp_path / "kmnist.npz", **tiny(fill=7))
  assert datasets.load("kmnist", tmp_path).train_images.max() == 7
  np.savez(tmp_path / "usps.npz", **tiny((16, 16, 1)))
  assert datasets.load("usps", tmp_path).name == "usps"


def test_cifar10_directory_and_pickle(tmp_path):
  (tmp_path / "cifar-10-batches-py").mkdir()
  (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04")
  with raises(FileNotFoundError, f"{tmp_path / 'cifar-10-batches-py'} is a pickle, which is never "
                                 "read: take the binary version, cifar-10-binary.tar.gz"):
    datasets.load("cifar10", tmp_path)
  directory = tmp_path / "cifar10" / "cifar-10-batches-bin"
  directory.mkdir(parents=True)
  images, labels = random_images(60, 32, 32, 3), np.arange(60, dtype=np.uint8) % 10
  records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(60, -1)], 1)
  for i in range(6):
    name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
    (directory / f"{name}.bin").write_bytes(records[10 * i:10 * i + 10].tobytes())
  dataset = datasets.load("cifar10", tmp_path)
  assert_holds(dataset, {"train_images": images[:50], "train_labels": labels[:50],
                         "test_images": images[50:], "test_labels": labels[50:]})
  np.testing.assert_array_equal(dataset.mean, [.4914, .4822, .4465])
  np.testing.assert_array_equal(dataset.std, [.247, .243, .261])


def test_svhn_cropped_takes_official_files_alone(tmp_path):
  arrays = tiny((32, 32, 3))
  for name in ("svhn_cropped.npz", "svhn_small.npz"):
    np.savez(tmp_path / name, **arrays)
  with raises(FileNotFoundError, "svhn_cropped: nothing found"):
    datasets.load("svhn_cropped", tmp_path)
  for split in ("train", "test"):
    labels = arrays[f"{split}_labels"]
    scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {
        "X": arrays[f"{split}_images"].transpose(1, 2, 3, 0),
        "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})
  dataset = datasets.load("svhn_cropped", tmp_path)
  assert_holds(dataset, arrays)
  np.testing.assert_array_equal(dataset.mean, [.4379, .4440, .4729])
  np.testing.assert_array_equal(dataset.std, [.1980, .2010, .1970])


@pytest.mark.parametrize("file", ["svhn_small.npz", "svhn_subset.npz"])
def test_svhn_small(tmp_path, file):
  arrays = tiny((32, 32, 3))
  np.savez(tmp_path / file, **arrays)
  dataset = datasets.load("svhn_small", tmp_path)
  assert_holds(dataset, arrays)
  np.testing.assert_allclose(dataset.mean, arrays["train_images"].mean((0, 1, 2)) / 255, rtol=1e-6)
  assert "NOT the official SVHN" in " ".join(datasets.load.__doc__.split())


# load: framing


def framed(images):
  resized = jax.image.resize(images.astype(np.float32), (len(images), 20, 20, 1), "bilinear")
  return np.pad(resized, ((0, 0), (4, 4), (4, 4), (0, 0)))


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_usps_text_is_framed(tmp_path, suffix):
  arrays = tiny((16, 16, 1))
  for split in ("train", "test"):
    text = "".join(
        f"{label}.0000 " + " ".join(f"{v:.6f}" for v in image.ravel() / 255 * 2 - 1) + "\n"
        for image, label in zip(arrays[f"{split}_images"], arrays[f"{split}_labels"])).encode()
    (tmp_path / f"zip.{split}{suffix}").write_bytes(gzip.compress(text) if suffix else text)
  dataset = datasets.load("usps", tmp_path)
  assert dataset.train_images.dtype == np.uint8
  np.testing.assert_array_equal(dataset.train_labels, arrays["train_labels"])
  for split in ("train_images", "test_images"):
    np.testing.assert_allclose(getattr(dataset, split), framed(arrays[split]), atol=0.51)
  pixels = dataset.train_images / 255
  np.testing.assert_allclose([dataset.mean, dataset.std], [[pixels.mean()], [pixels.std()]],
                             rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 16), (28, 28, 1)])
def test_usps_npz_is_framed_once(tmp_path, shape):
  arrays = tiny(shape)
  np.savez(tmp_path / "usps.npz", **arrays)
  dataset = datasets.load("usps", tmp_path)
  expected = arrays["test_images"].reshape(10, *shape[:2], 1)
  expected = expected if shape[0] == 28 else framed(expected)
  np.testing.assert_allclose(dataset.test_images, expected, atol=0.51)


@pytest.mark.parametrize("name, change, text", [
    ("mnist", lambda x: x[:, 1:], "expected uint8 images (28, 28, 1) for mnist; "
                                  "found uint8 (27, 28, 1)"),
    ("mnist", lambda x: x / 255, "for mnist; found float64 (28, 28, 1)"),
    ("cifar10", lambda x: x, "expected uint8 images (32, 32, 3) for cifar10; "
                             "found uint8 (28, 28, 1)"),
    ("usps", lambda x: x[:, :16, :16] / 255, "for usps; found float64 (16, 16, 1)"),
])
def test_npz_that_holds_something_else(tmp_path, name, change, text):
  arrays = tiny()
  for split in ("train_images", "test_images"):
    arrays[split] = change(arrays[split])
  np.savez(tmp_path / f"{name}.npz", **arrays)
  with raises(ValueError, f"{tmp_path / name}.npz: expected uint8 images"):
    datasets.load(name, tmp_path)
  with raises(ValueError, text):
    datasets.load(name, tmp_path)


def test_named_npz_has_ten_classes(tmp_path):
  np.savez(tmp_path / "mnist.npz", **tiny() | {"test_labels": np.full(10, 11)})
  with raises(ValueError, f"{tmp_path / 'mnist.npz'}: test_labels must lie in 0..9 "
                          "(num_classes=10); got 11 at index 0"):
    datasets.load("mnist", tmp_path)


# load: download


class FakeManager:
  """Serves the files of `remote`, `{base name of the url: bytes}`, as tfds' manager would."""

  remote = {}
  error = None
  urls = []

  def __init__(self, *, download_dir, manual_dir, url_infos):
    self.download_dir, self.manual_dir, self.url_infos = download_dir, manual_dir, url_infos

  def download(self, url):
    if self.error:
      raise self.error
    self.urls.append(url)
    path = f"{self.download_dir}/mangled"
    with open(path, "wb") as file:
      file.write(self.remote[url.rpartition("/")[2]])
    return path


@pytest.fixture
def manager(monkeypatch):
  class Manager(FakeManager):
    remote, urls = {}, []

  monkeypatch.setattr(tfds.download, "DownloadManager", Manager)
  return Manager


@pytest.mark.parametrize("name, host", [
    ("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    ("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    ("kmnist", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
])
def test_download_once(tmp_path, manager, name, host):
  arrays = tiny()
  write_idx(tmp_path / "remote", arrays)
  manager.remote = {path.name: path.read_bytes() for path in (tmp_path / "remote").iterdir()}
  assert_holds(datasets.load(name, tmp_path / "data", download=True), arrays)
  assert manager.urls == [host + file for file in IDX_FILES]
  assert {path.name for path in (tmp_path / "data" / name).iterdir()} == set(IDX_FILES)
  assert_holds(datasets.load(name, tmp_path / "data"), arrays)
  assert len(manager.urls) == 4


@pytest.mark.parametrize("name, files", [
    ("cifar10", ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]),
    ("cifar100", ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]),
    ("svhn_cropped", ["http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                      "http://ufldl.stanford.edu/housenumbers/test_32x32.mat"]),
])
def test_download_asks_for_these(tmp_path, manager, name, files):
  manager.remote = {file.rpartition("/")[2]: b"<html>" for file in files}
  with raises(ValueError, f"{tmp_path / name}/"):  # what came is no such file
    datasets.load(name, tmp_path, download=True)
  assert manager.urls == files


@pytest.mark.filterwarnings("ignore:.* channels are constant")
def test_download_usps_checks_md5(tmp_path, manager, monkeypatch):
  arrays = tiny((16, 16, 1), fill=0)
  for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
    lines = [f"{label + 1} " + " ".join(f"{i}:-1" for i in range(1, 257))
             for label in arrays[f"{split}_labels"]]
    manager.remote[file] = bz2.compress("\n".join(lines).encode())
  with raises(ValueError, "multiclass/usps.bz2: expected a file with md5 "
                          "ec16c51db3855ca6c91edd34d0e9b197; found "):
    datasets.load("usps", tmp_path, download=True)
  assert not list((tmp_path / "usps").iterdir())
  monkeypatch.setattr(tfds_source, "_USPS_MD5", {
      file: hashlib.md5(raw).hexdigest() for file, raw in manager.remote.items()})
  dataset = datasets.load("usps", tmp_path, download=True)
  np.testing.assert_array_equal(dataset.train_labels, arrays["train_labels"])
  assert dataset.train_images.shape == (20, 28, 28, 1) and not dataset.train_images.any()


@pytest.mark.parametrize("error", [OSError("no route\nto host"),
                                   tfds.download.DownloadError("HTTP code: 404.")])
def test_download_fails(tmp_path, manager, error):
  manager.error = error
  with raises(ConnectionError, f"{IDX_FILES[0]}: could not be fetched (put {IDX_FILES[0]} into "
                               f"{tmp_path / 'mnist'} by hand); {type(error).__name__}: "):
    datasets.load("mnist", tmp_path, download=True)
  assert not list((tmp_path / "mnist").iterdir())


def test_download_differs_from_the_record(tmp_path, manager):
  manager.error = NonMatchingChecksumError("Artifact\n* Expected")
  with raises(ValueError, f"{tmp_path / 'mnist' / IDX_FILES[0]}: NonMatchingChecksumError: "):
    datasets.load("mnist", tmp_path, download=True)


def test_download_compares_what_lies_there(tmp_path):
  """With tensorflow-datasets' own manager: a wrong file is found before any download."""
  (tmp_path / "mnist").mkdir()
  (tmp_path / "mnist" / IDX_FILES[0]).write_bytes(b"something else")
  with raises(ValueError, f"{IDX_FILES[0]}: NonMatchingChecksumError"):
    datasets.load("mnist", tmp_path, download=True)
