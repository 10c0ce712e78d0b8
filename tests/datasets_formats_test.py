"""dd_jax.datasets.formats: round trips of generated files, and what broken ones say."""

import bz2
import gzip
import io
import pickle

import numpy as np
import pytest
import scipy.io

from dd_jax import datasets
from dd_jax.datasets import cifar
from dd_jax.datasets import formats
from dd_jax.datasets import matlab
from tests.dataset_files import cifar10_batches
from tests.dataset_files import idx_bytes
from tests.dataset_files import random_bytes
from tests.dataset_files import write_cifar10_archive
from tests.one_line import raises_of_file as raises


def write_idx(tmp_path, images, labels, suffix):
  pack = gzip.compress if suffix else bytes
  paths = tmp_path / f"images{suffix}", tmp_path / f"labels{suffix}"
  for path, array in zip(paths, (images, labels)):
    path.write_bytes(pack(idx_bytes(array)))
  return paths


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, suffix):
  images, labels = random_bytes((7, 4, 5)), np.arange(7, dtype=np.uint8)
  read_images, read_labels = formats.read_idx(*write_idx(tmp_path, images, labels, suffix))
  np.testing.assert_array_equal(read_images, images[..., None])
  np.testing.assert_array_equal(read_labels, labels)
  assert read_images.dtype == np.uint8 and read_labels.dtype == np.int32


@pytest.mark.parametrize("raw, text", [
    (b"", "starts with 00000803; found nothing"),
    (b"<html>", "starts with 00000803; found 3c68746d"),
    (idx_bytes(np.zeros(3, np.uint8)), "starts with 00000803; found 00000801"),
    (idx_bytes(np.zeros((2, 2, 2), np.uint8))[:10], "an IDX header of 16 bytes; found 10"),
    (idx_bytes(np.zeros((2, 3, 4), np.uint8))[:-1],
     "expected 24 bytes for the shape [2, 3, 4]; found 23"),
    (idx_bytes(np.zeros((2, 3, 4), np.uint8)) + b"x",
     "expected 24 bytes for the shape [2, 3, 4]; found 25"),
    (bytes([0, 0, 8, 3]) + bytes(4) + 8 * b"\xff",
     "at least one image of at least one pixel; found the shape [0, 4294967295, 4294967295]"),
])
def test_idx_corrupt(tmp_path, raw, text):
  path, labels = write_idx(tmp_path, np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.uint8), "")
  path.write_bytes(raw)
  with raises(ValueError, path, text):
    formats.read_idx(path, labels)


def test_idx_truncated_gzip_missing_and_mismatch(tmp_path):
  images, labels = write_idx(tmp_path, random_bytes((5, 9, 9)), np.zeros(4, np.uint8), ".gz")
  with raises(ValueError, labels, "one label for each of the 5 images"):
    formats.read_idx(images, labels)
  images.write_bytes(images.read_bytes()[:-20])
  with raises(ValueError, images, "expected a whole .gz file; found EOFError"):
    formats.read_idx(images, labels)
  images.write_bytes(b"not gzip")
  with raises(ValueError, images, "expected a whole .gz file; found BadGzipFile"):
    formats.read_idx(images, labels)
  images.unlink()
  with raises(FileNotFoundError, images, "no such file"):
    formats.read_idx(images, labels)


@pytest.mark.parametrize("archived", [False, True])
def test_cifar10_round_trip(tmp_path, archived):
  batches, images, labels = cifar10_batches()
  path = tmp_path / "cifar-10-binary.tar.gz"
  if archived:
    write_cifar10_archive(path, batches | {"readme.html": b"text"})
  else:
    path = tmp_path / "cifar-10-batches-bin"
    path.mkdir()
    for name, raw in batches.items():
      (path / name).write_bytes(raw)
  train_images, train_labels, test_images, test_labels = cifar.read_cifar10(path)
  np.testing.assert_array_equal(train_images, images[:10])
  np.testing.assert_array_equal(train_labels, labels[:10])
  np.testing.assert_array_equal(test_images, images[10:])
  np.testing.assert_array_equal(test_labels, labels[10:])
  assert train_images.dtype == np.uint8 and train_labels.dtype == np.int32


def test_cifar10_corrupt_directory(tmp_path):
  batches, _, _ = cifar10_batches()
  for name, raw in batches.items():
    (tmp_path / name).write_bytes(raw)
  path = tmp_path / "data_batch_3.bin"
  for raw, text in ((path.read_bytes()[:-1], "whole records of 3073 bytes; found 6145 bytes"),
                    (b"", "whole records of 3073 bytes; found 0 bytes"),
                    (b"\x0a" + bytes(3072), "expected labels 0..9; found 10 at index 0"),
                    (bytes(3073), "as many records as data_batch_1.bin has, 2; found 1")):
    path.write_bytes(raw)
    with raises(ValueError, path, text):
      cifar.read_cifar10(tmp_path)
  path.unlink()
  with raises(FileNotFoundError, path, "no such file"):
    cifar.read_cifar10(tmp_path)


def test_cifar10_corrupt_archive(tmp_path):
  path = tmp_path / "cifar-10-binary.tar.gz"
  with raises(FileNotFoundError, path, "no such file"):
    cifar.read_cifar10(path)
  batches, _, _ = cifar10_batches()
  write_cifar10_archive(path, batches)
  whole = path.read_bytes()
  path.write_bytes(whole[:len(whole) // 2])
  with raises(ValueError, path, "expected a tar.gz archive; found"):
    cifar.read_cifar10(path)
  path.write_bytes(b"<html>")
  with raises(ValueError, path, "expected a tar.gz archive; found BadGzipFile"):
    cifar.read_cifar10(path)
  for i in range(1, 9):  # The checksum and the size, which lie behind all members.
    path.write_bytes(whole[:-i] + bytes([whole[-i] ^ 1]) + whole[len(whole) - i + 1:])
    with raises(ValueError, path, "expected a tar.gz archive; found BadGzipFile"):
      cifar.read_cifar10(path)
  del batches["data_batch_2.bin"]
  write_cifar10_archive(path, batches)
  with raises(ValueError, path, "expected cifar-10-batches-bin/data_batch_2.bin in the archive"):
    cifar.read_cifar10(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn_round_trip(tmp_path, compressed):
  images, labels = random_bytes((11, 32, 32, 3)), np.array([10, *range(1, 11)], np.uint8)
  path = tmp_path / "train_32x32.mat"
  scipy.io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]},
                   do_compression=compressed)
  read_images, read_labels = formats.read_svhn(path)
  np.testing.assert_array_equal(read_images, images)
  np.testing.assert_array_equal(read_labels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
  assert read_images.dtype == np.uint8 and read_labels.dtype == np.int32


def test_svhn_that_grows_without_end(tmp_path, monkeypatch):
  path = tmp_path / "train_32x32.mat"
  scipy.io.savemat(path, {"X": np.zeros((32, 32, 3, 9), np.uint8), "y": np.ones((9, 1), np.uint8)},
                   do_compression=True)
  monkeypatch.setattr(matlab, "_MOST_BYTES", 9 * 3072)
  with raises(ValueError, path, "a variable cut short, or of more than 27648 bytes"):
    formats.read_svhn(path)


def test_svhn_corrupt(tmp_path):
  path = tmp_path / "test_32x32.mat"
  with raises(FileNotFoundError, path, "no such file"):
    formats.read_svhn(path)
  good = {"X": random_bytes((32, 32, 3, 2)), "y": np.array([[1], [10]], np.uint8)}
  for change, text in (
      ({"X": good["X"].astype(float)}, "X as uint8 [32, 32, 3, n]; found float64 [32, 32, 3, 2]"),
      ({"X": good["X"][:30]}, "X as uint8 [32, 32, 3, n]; found uint8 [30, 32, 3, 2]"),
      ({"y": np.ones((3, 1))}, "expected y as [2, 1]; found [3, 1]"),
      ({"y": np.array([[1], [11]])}, "expected labels 1..10; found 11 at index 1")):
    scipy.io.savemat(path, good | change)
    with raises(ValueError, path, text):
      formats.read_svhn(path)
  scipy.io.savemat(path, {"X": good["X"]})
  with raises(ValueError, path, "expected the variables X and y; found ['X']"):
    formats.read_svhn(path)
  scipy.io.savemat(path, good)
  plain = path.read_bytes()
  scipy.io.savemat(path, good, do_compression=True)
  whole = path.read_bytes()
  wrong_type = bytearray(plain)
  wrong_type[plain.index(b"X") + 4] = 133  # of the numbers: ends the process of some readers
  for raw in (whole[:len(whole) // 2], whole[:60], b"", b"<html>" * 100, wrong_type, 2 * whole,
              plain + plain[128:], plain[:-16]):
    path.write_bytes(raw)
    with raises(ValueError, path, "expected a MATLAB 5 file; found"):
      formats.read_svhn(path)


def usps_values(images):
  return images.reshape(len(images), -1) / 255 * 2 - 1


def test_usps_libsvm_round_trip(tmp_path):
  images, digits = random_bytes((10, 16, 16, 1)), np.arange(10)
  lines = [f"{digit + 1} " + " ".join(f"{i + 1}:{v:.6g}" for i, v in enumerate(values)) + " "
           for digit, values in zip(digits, usps_values(images))]
  lines.append("3 2:-1 256:1")  # the values left out are 0, mid-grey
  path = tmp_path / "usps.bz2"
  path.write_bytes(bz2.compress("\n".join(lines).encode()))
  read_images, read_labels = formats.read_usps_libsvm(path)
  np.testing.assert_array_equal(read_images[:10], images)
  np.testing.assert_array_equal(read_labels, [*digits, 2])
  np.testing.assert_array_equal(read_images[10].ravel(), [128, 0] + 253 * [128] + [255])
  assert read_images.dtype == np.uint8 and read_labels.dtype == np.int32


@pytest.mark.parametrize("text, message", [
    ("", "expected labels 1..10; found no line"),
    ("1 1:0\n0 1:0", "expected labels 1..10; found 0.0 at index 1"),
    ("1.5 1:0", "expected labels 1..10; found 1.5 at index 0"),
    ("1 0:0.5", "expected indices 1..256 in line 1; found 0..0"),
    ("1 1:0\n1 257:0.5", "expected indices 1..256 in line 2; found 257..257"),
    ("1 1:0\n1 7:0.5 8:", "expected 'label index:value ...' in line 2; found '1 7:0.5 8:'"),
    ("1 0.5", "expected 'label index:value ...' in line 1"),
    ("1 1:0\n\n1 1:0", "expected 'label index:value ...' in line 2"),
    (f"1 {10**30}:0.5", "expected 'label index:value ...' in line 1"),
    ("1 2:0.5 2:0", "expected ascending indices in line 1; found '1 2:0.5 2:0'"),
    ("1 1:1.5", "expected pixels in -1..1; found 0..1.5"),
    ("1 1:nan", "expected pixels in -1..1"),
])
def test_usps_libsvm_corrupt(tmp_path, text, message):
  path = tmp_path / "usps.t.bz2"
  path.write_bytes(bz2.compress(text.encode()))
  with raises(ValueError, path, message):
    formats.read_usps_libsvm(path)


def test_usps_libsvm_truncated_and_missing(tmp_path):
  path = tmp_path / "usps.bz2"
  with raises(FileNotFoundError, path, "no such file"):
    formats.read_usps_libsvm(path)
  path.write_bytes(bz2.compress(b"1 1:0.5\n" * 100)[:-10])
  with raises(ValueError, path, "expected a whole .bz2 file; found EOFError"):
    formats.read_usps_libsvm(path)
  path.write_bytes(b"<html>")
  with raises(ValueError, path, "expected a whole .bz2 file; found OSError"):
    formats.read_usps_libsvm(path)


@pytest.mark.parametrize("name", ["zip.train.gz", "zip.test"])
def test_usps_text_round_trip(tmp_path, name):
  images, digits = random_bytes((10, 16, 16, 1)), np.arange(10)[::-1]
  text = "".join(f"{digit}.0000 " + " ".join(f"{v:.4f}" for v in values) + " \n"
                 for digit, values in zip(digits, usps_values(images)))
  path = tmp_path / name
  path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
  read_images, read_labels = formats.read_usps_text(path)
  np.testing.assert_array_equal(read_images, images)
  np.testing.assert_array_equal(read_labels, digits)
  assert read_images.dtype == np.uint8 and read_labels.dtype == np.int32


@pytest.mark.parametrize("text, message", [
    ("", "expected 257 numbers in every line; found no line"),
    ("1 2 3\n", "expected 257 numbers in every line; found 3"),
    ("1" + 256 * " 0" + "\n1" + 100 * " 0", "expected 257 numbers in every line; found ValueError"),
    ("1" + 256 * " x", "expected 257 numbers in every line; found ValueError"),
    ("1" + 256 * "\xa00", "expected 257 numbers in every line; found UnicodeDecodeError"),
    ("10" + 256 * " 0", "expected labels 0..9; found 10.0 at index 0"),
    ("1" + 255 * " 0" + " 255", "expected pixels in -1..1; found 0..255"),
])
def test_usps_text_corrupt(tmp_path, text, message):
  path = tmp_path / "zip.train"
  path.write_text(text)
  with raises(ValueError, path, message):
    formats.read_usps_text(path)


def test_usps_text_truncated_and_missing(tmp_path):
  path = tmp_path / "zip.test.gz"
  with raises(FileNotFoundError, path, "no such file"):
    formats.read_usps_text(path)
  path.write_bytes(gzip.compress(("1" + 256 * " 0" + "\n").encode())[:-9])
  with raises(ValueError, path, "expected a whole .gz file; found EOFError"):
    formats.read_usps_text(path)


def npz_arrays():
  return {"train_images": random_bytes((4, 3, 3, 1)), "train_labels": np.array([0, 1, 0, 1]),
          "test_images": random_bytes((2, 3, 3, 1)), "test_labels": np.array([1, 0])}


def test_npz_round_trip(tmp_path):
  np.savez(tmp_path / "a.npz", more=np.zeros(2), **npz_arrays())
  for read, written in zip(formats.read_npz(tmp_path / "a.npz"), npz_arrays().values()):
    np.testing.assert_array_equal(read, written)
    assert read.dtype == written.dtype


def test_npz_corrupt(tmp_path):
  path = tmp_path / "a.npz"
  with raises(FileNotFoundError, path, "no such file"):
    formats.read_npz(path)
  arrays = npz_arrays()
  del arrays["test_images"]
  np.savez(path, **arrays)
  with raises(ValueError, path, "found test_labels, train_images, train_labels"):
    formats.read_npz(path)
  np.savez(path, **npz_arrays())
  whole = path.read_bytes()
  flipped = whole.replace(npz_arrays()["train_images"].tobytes(), bytes(36))
  assert flipped != whole
  buffer = io.BytesIO()
  np.save(buffer, np.zeros(3))
  for raw in (whole[:len(whole) // 2], flipped, b"", b"<html>", buffer.getvalue()):
    path.write_bytes(raw)
    with raises(ValueError, path, "expected a npz file of plain arrays; found"):
      formats.read_npz(path)


@pytest.mark.parametrize("labels", [np.zeros((4, 1), np.uint8), np.eye(4, 14, dtype=np.uint8)])
def test_npz_of_medmnist(tmp_path, labels):
  """The validation split belongs to training; labels come as they are stored."""
  arrays = {}
  for i, split in enumerate(("train", "val", "test")):
    arrays |= {f"{split}_images": random_bytes((4, 3, 3), i), f"{split}_labels": labels + i}
  np.savez(tmp_path / "a.npz", **arrays)
  train_images, train_labels, test_images, test_labels = formats.read_npz(tmp_path / "a.npz")
  np.testing.assert_array_equal(train_images, np.concatenate([arrays["train_images"],
                                                              arrays["val_images"]]))
  np.testing.assert_array_equal(train_labels, np.concatenate([labels, labels + 1]))
  np.testing.assert_array_equal(test_images, arrays["test_images"])
  np.testing.assert_array_equal(test_labels, labels + 2)


def test_npz_of_keras(tmp_path):
  arrays = npz_arrays()
  np.savez(tmp_path / "a.npz", **{
      {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test",
       "test_labels": "y_test"}[name]: array for name, array in arrays.items()})
  for name, found in zip(arrays, formats.read_npz(tmp_path / "a.npz"), strict=True):
    np.testing.assert_array_equal(found, arrays[name])


def test_npz_of_text_labels_with_validation(tmp_path):
  validation = {"val_images": random_bytes((1, 3, 3, 1)), "val_labels": np.array(["other"])}
  np.savez(tmp_path / "a.npz", **npz_arrays() | validation | {"train_labels": np.array(4 * ["a"])})
  assert formats.read_npz(tmp_path / "a.npz")[1].tolist() == [*4 * ["a"], "other"]


@pytest.mark.parametrize("validation, text", [
    ({"val_images": random_bytes((1, 3, 3, 1))},
     "expected the arrays train_images, train_labels, test_images, test_labels, and val_images and "
     "val_labels or neither; found test_images, test_labels, train_images, train_labels, val_imag"),
    ({"val_images": random_bytes((1, 3, 4, 1)), "val_labels": np.array([1])},
     "expected val_images like train_images, uint8 [3, 3, 1] for an example; found uint8 "
     "[3, 4, 1]"),
    ({"val_images": np.zeros((1, 3, 3, 1)), "val_labels": np.array([1])},
     "expected val_images like train_images, uint8 [3, 3, 1] for an example; found float64 "
     "[3, 3, 1]"),
    ({"val_images": random_bytes((1, 3, 3, 1)), "val_labels": np.array("a")},
     "expected val_labels like train_labels, int64 [] for an example; found <U1 []"),
])
def test_npz_of_another_validation_split(tmp_path, validation, text):
  np.savez(tmp_path / "a.npz", **npz_arrays() | validation)
  with raises(ValueError, tmp_path / "a.npz", text):
    formats.read_npz(tmp_path / "a.npz")


class Trap:

  def __reduce__(self):
    return pytest.fail, ("unpickled",)


def test_npz_unpickles_nothing(tmp_path):
  path = tmp_path / "a.npz"
  arrays = npz_arrays() | {"train_labels": np.array([Trap()] * 4, dtype=object)}
  np.savez(path, **arrays)
  with raises(ValueError, path, "allow_pickle="):
    formats.read_npz(path)
  path.write_bytes(pickle.dumps(Trap()))
  with raises(ValueError, path, "allow_pickle="):
    formats.read_npz(path)


@pytest.mark.parametrize("name, data_dir, argument", [
    ("gs://bucket/set.npz", None, "name"), ("mnist", "gs://bucket/data", "data_dir")])
def test_an_address_is_refused(name, data_dir, argument):
  with pytest.raises(ValueError, match=f"{argument} must not be an address, but local; got 'gs:"):
    datasets.load(name, data_dir)
