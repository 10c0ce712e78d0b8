"""Readers of sets as npz, pictures and prepared directories against damaged ones; see `damage`."""

import pathlib
import struct
import tempfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from dd_jax.datasets import rows
from dd_jax.datasets import tfds_source
from tests import damage
from tests import dataset_files
from tests import prepared_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


# npz


def set_arrays(data):
  height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
  images, labels = dataset_files.random_bytes(
      (6, height, width, 1), data.draw(st.integers(0, 99), "seed")), np.arange(6) % 2
  return {"train_images": images[:4], "train_labels": labels[:4],
          "test_images": images[4:], "test_labels": labels[4:]}


@damage.examples(250)
@hypothesis.given(st.data())
@pytest.mark.slow
def test_npz_of_a_set(folder, data):
  arrays, path = set_arrays(data), folder / "set.npz"
  save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
  save(path, more=np.zeros(3), **arrays)
  changed = damage.damage_file(data, path)
  found = damage.outcome(formats.read_npz, path)
  assert changed or found is not None
  if found is not None:
    damage.assert_equal(found, arrays.values())


@damage.examples(150)
@hypothesis.given(st.data())
def test_npz_of_other_arrays(folder, data):
  """Whatever arrays a file holds come back as stored; `load` then checks them as a set."""
  path = folder / "set.npz"
  arrays = damage.other_npz(data, path, set_arrays(data))
  found = damage.outcome(formats.read_npz, path)
  if arrays is None:
    assert found is None
  else:
    for read, written in zip(found, arrays.values(), strict=True):
      assert read.dtype == written.dtype.newbyteorder("=") and read.shape == written.shape
      assert read.astype(written.dtype).tobytes() == written.tobytes()
  dataset = damage.outcome(datasets.load, path)
  if dataset:
    check_dataset(dataset)


def check_dataset(dataset):
  for images, labels in ((dataset.train_images, dataset.train_labels),
                         (dataset.test_images, dataset.test_labels)):
    assert images.dtype in (np.uint8, np.float32, np.float64) and images.ndim == 4 and images.size
    assert np.isfinite(images).all()
    assert labels.dtype == np.int32 and labels.shape == (len(images),)
    assert 0 <= labels.min() and labels.max() < dataset.num_classes
  assert set(dataset.train_labels) == set(range(dataset.num_classes))
  assert dataset.mean.dtype == dataset.std.dtype == np.float64
  assert np.isfinite(dataset.mean).all() and np.isfinite(dataset.std).all()
  assert (dataset.std > 0).all()


_ODD = st.one_of(
    st.none(), st.text(max_size=3), st.just([[1, 2], [3]]), st.floats(), st.integers(),
    st.lists(st.floats(), max_size=3), st.dictionaries(st.integers(), st.integers(), max_size=1))


@damage.examples(200)
@hypothesis.given(st.data())
def test_from_arrays(data):
  """Errors name the argument; what is taken keeps every rule of `Dataset`."""
  arrays = set_arrays(data)
  if data.draw(st.booleans()):
    arrays |= {f"{split}_images": arrays[f"{split}_images"].astype(np.float32)
               for split in ("train", "test")}
  options = data.draw(st.sampled_from([{}, {"num_classes": 2}, {"mean": [0.5], "std": [0.5]}]))
  given = arrays | options
  name = data.draw(st.sampled_from(sorted(given)))
  if name in arrays and data.draw(st.booleans()):
    given[name] = damage.changed_array(data, arrays[name])
  else:
    given[name] = data.draw(_ODD)
  try:
    dataset = datasets.from_arrays(**given)
  except ValueError as error:
    assert type(error) is ValueError and str(error).splitlines() == [str(error)]
    assert str(error).startswith((*arrays, "num_classes", "mean", "std"))
  else:
    check_dataset(dataset)
    for split in ("train", "test"):
      np.testing.assert_array_equal(getattr(dataset, f"{split}_labels"), given[f"{split}_labels"])


# Directories of pictures


def damage_one_file(data, root):
  """Damages one file below `root`; says whether it is a picture with checksums."""
  paths = sorted(path for path in root.rglob("*") if path.is_file())
  path = data.draw(st.sampled_from(paths), "file")
  if path.suffix == ".jpg" and data.draw(st.booleans(), "jpeg"):
    dataset_files.write_picture(path, dataset_files.random_picture(), "JPEG")
  path.write_bytes(damage.damaged(data, path.read_bytes()))
  return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def check_pictures(found, num_classes):
  for images, labels in (found[:2], found[2:]):
    assert images.dtype == np.uint8 and images.shape[1:] == (224, 224, 3)
    assert labels.dtype == np.int32 and labels.shape == (len(images),)
    assert not labels.size or 0 <= labels.min() and labels.max() < num_classes


@damage.examples(150)
@hypothesis.given(st.data())
def test_voc(data):
  with tempfile.TemporaryDirectory() as folder:
    names = data.draw(st.lists(st.sampled_from(directories.VOC_CLASSES), min_size=2, max_size=2))
    for split, name, picture in (("trainval", names[0], "a"), ("test", names[1], "b")):
      root = dataset_files.write_voc(pathlib.Path(folder), split, {picture: (
          dataset_files.random_picture(), [dataset_files.object_xml(name, (2, 3, 8, 6))])})
    truth = directories.read_voc(root)
    assert [directories.VOC_CLASSES[labels[0]] for labels in truth[1::2]] == names
    is_png = damage_one_file(data, root)
    found = damage.outcome(directories.read_voc, root)
    if found:
      check_pictures(found, 20)
      if is_png:
        damage.assert_equal(found, truth)


@damage.examples(150)
@hypothesis.given(st.data())
@pytest.mark.slow
def test_cub200(data):
  with tempfile.TemporaryDirectory() as folder:
    classes = data.draw(st.lists(st.integers(1, 200), min_size=3, max_size=3))
    root = dataset_files.write_cub200(pathlib.Path(folder), [
        (f"{label:03}.Bird/{i}.jpg", dataset_files.random_picture(seed=i), label, i % 2)
        for i, label in enumerate(classes)])
    truth = directories.read_cub200(root)
    np.testing.assert_array_equal(np.concatenate(truth[1::2]) + 1,
                                  [classes[1], classes[0], classes[2]])
    is_png = damage_one_file(data, root)
    found = damage.outcome(directories.read_cub200, root)
    if found:
      check_pictures(found, 200)
      if is_png:
        damage.assert_equal(found, truth)


# tfrecord


@damage.examples(250)
@hypothesis.given(st.data())
def test_tfrecord(folder, data):
  payloads = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
  path = folder / "a.tfrecord"
  dataset_files.write_tfrecord(path, payloads)
  whole = path.read_bytes()
  raw = damage.damaged(data, whole)
  path.write_bytes(raw)
  read = []

  def read_all(path):
    for payload in tfds_source.read_tfrecord(path):
      read.append(payload)
    return True

  if damage.outcome(read_all, path):  # Damage at the borders of records can leave a whole file.
    dataset_files.write_tfrecord(path, read)
    assert path.read_bytes() == raw
  assert all(payload in payloads for payload in read)


@damage.examples(30)
@hypothesis.given(length=st.sampled_from(damage.HUGE[4:]), payload=st.binary(max_size=20))
def test_tfrecord_of_huge_length(folder, length, payload):
  """A length with the right checksum is still no reason to ask for that much memory."""
  path = folder / "huge.tfrecord"
  header = struct.pack("<Q", length)
  path.write_bytes(header + struct.pack("<I", tfds_source.masked_crc32c(header)) + payload)
  assert damage.outcome(lambda path: list(tfds_source.read_tfrecord(path)), path) is None


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
  """Gives the files of a prepared directory of four images by path, and its arrays."""
  pytest.importorskip("array_record", reason="array_record is built for Linux alone")
  arrays = {"train_images": dataset_files.random_bytes((3, 28, 28, 1)),
            "train_labels": np.arange(3), "test_images": dataset_files.random_bytes((1, 28, 28, 1)),
            "test_labels": np.arange(1)}
  directory = prepared_sets.write_array_record(tmp_path_factory.mktemp("prepared"), arrays)
  if request.param == "tfrecord":
    prepared_sets.to_tfrecord(directory)
  files = {path: path.read_bytes() for path in sorted(directory.iterdir())}
  arrays = _read_prepared(directory)
  return lambda: (files, arrays)  # Hypothesis prints a function in one line.


def _read_prepared(directory):
  return tuple(map(rows.in_memory, tfds_source.read_prepared(directory)))


@damage.examples(60)
@hypothesis.given(st.data())
def test_prepared(prepared, data):
  """A change is noticed, or leaves the arrays as they are."""
  files, arrays = prepared()
  for path, raw in files.items():
    path.write_bytes(raw)
  path = data.draw(st.sampled_from(sorted(files)), "file")
  path.write_bytes(damage.damaged(data, files[path]))
  found = damage.outcome(_read_prepared, path.parent)
  if found:
    damage.assert_equal(found, arrays)
