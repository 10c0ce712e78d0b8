"""Where `dd_jax.datasets.load` looks, and what it makes of the original files."""

import gzip
import hashlib
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits

from dd_jax import datasets
from dd_jax.datasets import sources
from tests.dataset_files import IDX_FILES
from tests.dataset_files import assert_holds
from tests.dataset_files import idx_bytes
from tests.dataset_files import random_bytes
from tests.dataset_files import tiny
from tests.dataset_files import write_idx
from tests.one_line import raises

pytestmark = pytest.mark.usefixtures("offline")
ON_DISK = tuple(name for name in datasets.NAMES if name != "digits")


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
  assert dataset.class_names[::9] == {
      "mnist": (), "fashion_mnist": ("T-shirt/top", "Ankle boot"), "kmnist": ("o", "wo")}[name]
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


@pytest.mark.parametrize("counts, owner, foreign", [
    ((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), "mnist", "fashion_mnist"),
    (10 * (6000,), "fashion_mnist or kmnist", "mnist")])
def test_idx_files_that_are_not_zipped_are_told_by_their_labels(tmp_path, counts, owner, foreign):
  labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
  for name, array in zip(IDX_FILES, (np.zeros((1, 2, 2), np.uint8), labels) * 2):
    (tmp_path / name.removesuffix(".gz")).write_bytes(idx_bytes(array))
  with raises(FileNotFoundError, f"the IDX files in {tmp_path} are those of {owner}"):
    datasets.load(foreign, tmp_path)
  name = owner.split()[0]
  own = tmp_path / name
  if " or " in owner:  # The folder that all sets share does not tell which it is.
    with raises(FileNotFoundError, f"those of {owner}, which its own folder tells: {own}"):
      datasets.load(name, tmp_path)
    own.mkdir()
    for path in tmp_path.glob("*-ubyte"):
      path.rename(own / path.name)
  with raises(ValueError, "expected one label for each of the 1 images"):
    datasets.load(name, tmp_path)


def test_idx_files_zipped_by_another_hand_are_told_by_their_labels(tmp_path):
  counts = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
  labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
  for name, array in zip(IDX_FILES, (np.zeros((1, 2, 2), np.uint8), labels) * 2):
    (tmp_path / name).write_bytes(gzip.compress(idx_bytes(array), 1))
  with raises(FileNotFoundError, f"the IDX files in {tmp_path} are those of mnist"):
    datasets.load("kmnist", tmp_path)


def test_labels_in_a_column_as_keras_has_those_of_cifar10(tmp_path):
  images, labels = random_bytes((20, 32, 32, 3)), np.arange(20, dtype=np.uint8) % 10
  np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels[:, None], x_test=images,
           y_test=labels[:, None])
  dataset = datasets.load("cifar10", tmp_path)
  np.testing.assert_array_equal(dataset.train_labels, labels)
  assert dataset.class_names[:2] == ("airplane", "automobile") and len(dataset.class_names) == 10


def test_a_path_is_no_prepared_set_of_that_name(tmp_path, monkeypatch):
  prepared = tmp_path / "data/mine/1.0.0"
  prepared.mkdir(parents=True)
  (prepared / "dataset_info.json").write_text("{}")
  monkeypatch.chdir(tmp_path)
  arrays = {"train_images": random_bytes((6, 4, 4, 1)), "train_labels": np.arange(6) % 2,
            "test_images": random_bytes((2, 4, 4, 1)), "test_labels": np.arange(2)}
  (tmp_path / "mine").mkdir()
  for name, array in arrays.items():
    np.save(tmp_path / "mine" / f"{name}.npy", array)
  for name in ("./mine", pathlib.Path("mine"), tmp_path / "mine", str(tmp_path / "mine")):
    assert len(datasets.load(name, tmp_path / "data").train_labels) == 6
  with raises(ValueError, "expected a prepared tensorflow-datasets directory"):
    datasets.load("mine", tmp_path / "data")


def test_cifar10_directory_and_pickle(tmp_path):
  (tmp_path / "cifar-10-batches-py").mkdir()
  (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04")
  with raises(FileNotFoundError, f"{tmp_path / 'cifar-10-batches-py'} is a pickle, which is never "
                                 "read: take the binary version, cifar-10-binary.tar.gz"):
    datasets.load("cifar10", tmp_path)
  directory = tmp_path / "cifar10" / "cifar-10-batches-bin"
  directory.mkdir(parents=True)
  images, labels = random_bytes((60, 32, 32, 3)), np.arange(60, dtype=np.uint8) % 10
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
