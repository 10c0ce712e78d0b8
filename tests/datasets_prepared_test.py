"""Directories that tensorflow-datasets has prepared, and what is taken before them."""

import shutil

import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.datasets import tfds_source
from tests import prepared_sets
from tests.dataset_files import IDX_FILES
from tests.dataset_files import tiny
from tests.dataset_files import write_idx
from tests.dataset_files import write_tfrecord
from tests.one_line import raises

pytestmark = pytest.mark.usefixtures("offline")


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
