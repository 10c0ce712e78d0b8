"""Named sets in their official layouts: values, names of classes, and what broken ones say."""


import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.datasets import benchmarks
from dd_jax.datasets import cifar
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from tests import dataset_files
from tests.one_line import raises_of_file as raises

WNIDS = ("n03", "n01", "n02")


def assert_splits(splits, images, labels, num_train):
  """uint8 images and int32 labels, train before test."""
  for found, expected in zip(splits, (images[:num_train], labels[:num_train], images[num_train:],
                                      labels[num_train:])):
    np.testing.assert_array_equal(found, expected)
  assert [array.dtype for array in splits[:4]] == 2 * [np.uint8, np.int32]


# CIFAR-100


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_cifar100(tmp_path, archived, named):
  files, images, coarse, fine = dataset_files.cifar100_files()
  files = {name: raw for name, raw in files.items() if named or not name.endswith(".txt")}
  path = tmp_path / ("cifar-100-binary.tar.gz" if archived else "cifar-100-binary")
  if archived:
    dataset_files.write_tar(path, "cifar-100-binary", files | {"notes.html": b"text"})
  else:
    path.mkdir()
    for name, raw in files.items():
      (path / name).write_bytes(raw)
  for kind, labels, number in (("fine", fine, 100), ("coarse", coarse, 20)):
    splits = cifar.read_cifar100(path, labels=kind)
    assert_splits(splits, images, labels, 100)
    assert splits.class_names == tuple(f"{kind}_{i}" for i in range(number if named else 0))


def test_cifar100_by_its_names(tmp_path):
  files, images, coarse, fine = dataset_files.cifar100_files()
  (tmp_path / "cifar100").mkdir()
  dataset_files.write_tar(tmp_path / "cifar100/cifar-100-binary.tar.gz", "cifar-100-binary", files)
  for name, labels, number in (("cifar100", fine, 100), ("cifar100_coarse", coarse, 20)):
    dataset = datasets.load(name, tmp_path)
    assert dataset.name == name and dataset.num_classes == number
    np.testing.assert_array_equal(dataset.train_labels, labels[:100])
    np.testing.assert_allclose(dataset.mean, images[:100].mean((0, 1, 2)) / 255, rtol=1e-6)


def test_cifar100_corrupt(tmp_path):
  files, *_ = dataset_files.cifar100_files()
  for name, raw in files.items():
    (tmp_path / name).write_bytes(raw)
  for file, raw, text in (
      ("test.bin", files["test.bin"][:-1], "whole records of 3074 bytes; found 61479 bytes"),
      ("test.bin", b"", "whole records of 3074 bytes; found 0 bytes"),
      ("train.bin", b"\x00\x64" + bytes(3072), "expected labels 0..99; found 100 at index 0"),
      ("train.bin", b"\x14\x00" + bytes(3072), "expected labels 0..19; found 20 at index 0"),
      ("fine_label_names.txt", b"a\nb\n", "expected the names of 100 classes; found 2"),
      ("fine_label_names.txt", b"\xff", "expected text in UTF-8; found UnicodeDecodeError")):
    (tmp_path / file).write_bytes(raw)
    with raises(ValueError, tmp_path / file, text):
      cifar.read_cifar100(tmp_path)
    (tmp_path / file).write_bytes(files[file])
  (tmp_path / "test.bin").unlink()
  with raises(FileNotFoundError, tmp_path / "test.bin", "no such file"):
    cifar.read_cifar100(tmp_path)
  path = tmp_path / "cifar-100-binary.tar.gz"
  dataset_files.write_tar(path, "cifar-100-binary", {"train.bin": files["train.bin"]})
  with raises(ValueError, path, "expected cifar-100-binary/test.bin in the archive; found train"):
    cifar.read_cifar100(path)


def test_the_pickled_cifar100_is_not_read(tmp_path):
  (tmp_path / "cifar-100-python").mkdir()
  with pytest.raises(FileNotFoundError, match="cifar-100-python is a pickle, which is never read: "
                                              "take the binary version, cifar-100-binary.tar.gz$"):
    datasets.load("cifar100_coarse", tmp_path)


# STL-10


def test_stl10(tmp_path):
  root, images, labels = dataset_files.write_stl10(tmp_path / "stl10")
  splits = cifar.read_stl10(root)
  assert_splits(splits, images, labels, 10)
  assert splits.class_names == tuple(f"class_{i}" for i in range(10))
  dataset = datasets.load("stl10", tmp_path)
  np.testing.assert_array_equal(dataset.train_images, images[:10])
  (root / "class_names.txt").unlink()
  assert cifar.read_stl10(root).class_names == ()


@pytest.mark.parametrize("file, change, text", [
    ("train_X.bin", lambda raw: raw[:-1], "whole records of 27648 bytes; found 276479 bytes"),
    ("train_y.bin", lambda raw: raw[:-1],
     "one label for each of the 10 images of train_X.bin; found 9"),
    ("test_y.bin", lambda raw: b"\0" + raw[1:], "expected labels 1..10; found 0 at index 0"),
    ("test_y.bin", lambda raw: raw[:3] + b"\x0b", "expected labels 1..10; found 11 at index 3"),
    ("class_names.txt", lambda raw: raw[:-9], "expected the names of 10 classes; found 9"),
])
def test_stl10_corrupt(tmp_path, file, change, text):
  root, *_ = dataset_files.write_stl10(tmp_path)
  (root / file).write_bytes(change((root / file).read_bytes()))
  with raises(ValueError, root / file, text):
    cifar.read_stl10(root)
  if file.endswith(".bin"):
    (root / file).unlink()
    with raises(FileNotFoundError, root / file, "no such file"):
      cifar.read_stl10(root)


# Tiny ImageNet


def small_tiny_imagenet(root):
  """Three classes; the second training picture is grey."""
  images = dataset_files.random_bytes((6, 64, 64, 3))
  images[1] = images[1, ..., :1]
  pixels = [images[0], images[1, ..., 0], *images[2:]]
  train = list(zip(("n01", "n01", "n02", "n03"), pixels))
  return dataset_files.write_tiny_imagenet(root, WNIDS, train, list(zip(("n03", "n01"),
                                                                        pixels[4:]))), images


def test_tiny_imagenet(tmp_path):
  root, images = small_tiny_imagenet(tmp_path)
  splits = directories.read_tiny_imagenet(root)
  assert_splits(splits, images, [0, 0, 1, 2, 2, 0], 4)
  assert splits.class_names == ("n01", "n02", "n03")
  (root / "words.txt").write_text("n00\tentity\nn01\tcrane, bird\nn02\tgoldfish, Carassius "
                                  "auratus\nn03\tcrane\n")
  assert directories.read_tiny_imagenet(root).class_names == ("n01", "goldfish", "n03")


def test_tiny_imagenet_by_its_name(tmp_path):
  wnids = [f"n{i:08}" for i in range(200)]
  pixels = dataset_files.random_bytes((64, 64, 3))
  dataset_files.write_tiny_imagenet(tmp_path, wnids, [(wnid, pixels) for wnid in wnids],
                                    [(wnids[7], pixels)])
  dataset = datasets.load("tiny_imagenet", tmp_path)
  assert dataset.num_classes == 200 and dataset.test_labels.tolist() == [7]
  assert dataset.train_images.shape == (200, 64, 64, 3)


@pytest.mark.parametrize("file, text, message", [
    ("wnids.txt", "", "expected a WordNet id in every line, once; found 0 in 0 lines"),
    ("wnids.txt", "n01\nn01\n", "expected a WordNet id in every line, once; found 1 in 2 lines"),
    ("val/val_annotations.txt", "val_0.JPEG\tn04\t0", "a new picture *.JPEG and an id of wnids.txt "
                                                      "in line 1; found 'val_0.JPEG\\tn04\\t0'"),
    ("val/val_annotations.txt", 2 * "val_0.JPEG\tn01\n", "in line 2; found 'val_0.JPEG\\tn01'"),
    ("val/val_annotations.txt", "../val_0.JPEG\tn01\n", "in line 1; found '../val_0.JPEG"),
    ("val/val_annotations.txt", "val_0.JPEG", "in line 1; found 'val_0.JPEG'"),
    ("val/val_annotations.txt", "", "expected a line for every picture; found none"),
    ("val/images/val_1.JPEG", "<html>", "picture; found UnidentifiedImageError"),
])
def test_tiny_imagenet_corrupt(tmp_path, file, text, message):
  root, _ = small_tiny_imagenet(tmp_path)
  (root / file).write_text(text)
  with raises(ValueError, root / file, message):
    directories.read_tiny_imagenet(root)


def test_tiny_imagenet_incomplete_or_of_another_size(tmp_path):
  root, _ = small_tiny_imagenet(tmp_path)
  picture = root / "train/n02/images/n02_2.JPEG"
  dataset_files.write_picture(picture, dataset_files.random_picture(64, 63))
  with raises(ValueError, picture, "expected a picture of 64x64; found 63x64"):
    directories.read_tiny_imagenet(root)
  picture.unlink()
  with raises(FileNotFoundError, picture.parent, "no picture *.JPEG"):
    directories.read_tiny_imagenet(root)


# EMNIST


@pytest.mark.parametrize("folder", ["emnist", "emnist/gzip", "."])
@pytest.mark.parametrize("variant, num_classes, first, names", [
    ("balanced", 47, 0, "0Aat"), ("byclass", 62, 0, "0Aaz"), ("bymerge", 47, 0, "0Aat"),
    ("digits", 10, 0, "09"), ("letters", 26, 1, "AZ"), ("mnist", 10, 0, "09")])
def test_emnist(tmp_path, variant, num_classes, first, names, folder):
  images = dataset_files.random_bytes((num_classes + 5, 28, 28))
  labels = np.arange(num_classes + 5, dtype=np.uint8) % num_classes
  dataset_files.write_emnist(tmp_path / folder, variant, images, labels + np.uint8(first),
                             num_classes)
  dataset = datasets.load(f"emnist_{variant}", tmp_path)
  assert_splits(dataset[1:5], images[..., None], labels, num_classes)
  assert dataset.num_classes == num_classes
  _, read = benchmarks.BENCHMARKS[f"emnist_{variant}"].layouts[0]
  class_names = read(*sorted((tmp_path / folder).glob("*train-[il]*")),
                     *sorted((tmp_path / folder).glob("*test-[il]*"))).class_names
  assert len(class_names) == num_classes == len(set(class_names))
  assert set(names) <= set(class_names) and class_names[0] + class_names[-1] == (
      names[0] + names[-1])


@pytest.mark.parametrize("first, label, text", [(1, 0, "expected labels 1..26; found 0 at index 1"),
                                                (0, 26, "expected labels 0..25; found 26")])
def test_emnist_of_other_labels(tmp_path, first, label, text):
  paths = tmp_path / "images", tmp_path / "labels"
  paths[0].write_bytes(dataset_files.idx_bytes(np.zeros((2, 3, 3), np.uint8)))
  paths[1].write_bytes(dataset_files.idx_bytes(np.array([1, label], np.uint8)))
  with raises(ValueError, paths[1], text):
    formats.read_emnist(*paths, first=first, num_classes=26)
