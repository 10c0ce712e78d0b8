"""Readers of original files against damaged, random and hostile ones; the rules are in `damage`."""

import bz2
import gzip
import io
import pickle
import tarfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import scipy.io

from dd_jax.datasets import cifar
from dd_jax.datasets import formats
from dd_jax.datasets import tfds_source
from tests import damage
from tests import dataset_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


def bytes_array(data, *shape):
  """Random uint8, from a drawn seed: few draws, any size."""
  return dataset_files.random_bytes(shape, data.draw(st.integers(0, 99), "seed"))


@damage.examples(250)
@hypothesis.given(st.data())
def test_idx(folder, data):
  count, height, width = (data.draw(st.integers(1, 4)) for _ in range(3))
  images, labels = bytes_array(data, count, height, width), bytes_array(data, count)
  raw = [dataset_files.idx_bytes(array) for array in (images, labels)]
  suffix = data.draw(st.sampled_from(["", ".gz"]))
  index = data.draw(st.sampled_from([0, 1]))
  inside = data.draw(st.booleans())  # Before compression, so that the checksum is right.
  fields = [(4 * (i + 1), ">I") for i in range(3 - 2 * index)]
  if inside or not suffix:
    raw[index] = damage.damaged(data, raw[index], fields)
  stored = [gzip.compress(part, mtime=0) if suffix else part for part in raw]
  if suffix and not inside:
    stored[index] = damage.damaged(data, stored[index])
  paths = folder / f"images{suffix}", folder / f"labels{suffix}"
  for path, part in zip(paths, stored):
    path.write_bytes(part)
  found = damage.outcome(formats.read_idx, *paths)
  if suffix and not inside and found or raw == [dataset_files.idx_bytes(images),
                                                dataset_files.idx_bytes(labels)] == stored:
    damage.assert_equal(found, (images[..., None], labels.astype(np.int32)))
  elif found:
    assert raw[0][4:16] == np.array(found[0].shape[:3], ">u4").tobytes() and found[0].size
    assert found[0].dtype == np.uint8 and found[0].shape[3:] == (1,)
    assert raw[0][16:] == found[0].tobytes()
    assert found[1].dtype == np.int32 and raw[1][8:] == found[1].astype(np.uint8).tobytes()
    assert len(found[0]) == len(found[1])


def cifar10_records(raw):
  """Images and labels of a file's bytes, read plainly."""
  records = [raw[i:i + 3073] for i in range(0, len(raw), 3073)]
  images = [np.frombuffer(record[1:], np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
            for record in records]
  return np.stack(images), np.array([record[0] for record in records], np.int32)


def cifar10_files(data):
  return dataset_files.cifar10_batches(
      data.draw(st.lists(st.integers(0, 9), min_size=12, max_size=12)), seed=1)


@damage.examples(150)
@hypothesis.given(st.data())
def test_cifar10_directory(folder, data):
  batches, images, labels = cifar10_files(data)
  changed = data.draw(st.sampled_from(dataset_files.CIFAR10_BATCHES))
  whole = batches[changed]
  batches[changed] = data.draw(st.one_of(
      st.builds(lambda: damage.damaged(data, whole)),
      st.sampled_from([whole[:3073], 2 * whole, whole[:3073] + b"\n" + whole[3074:]])))
  for name, raw in batches.items():
    (folder / name).write_bytes(raw)
  found = damage.outcome(cifar.read_cifar10, folder)
  if batches[changed] == whole:
    damage.assert_equal(found, (images[:10], labels[:10].astype(np.int32),
                         images[10:], labels[10:].astype(np.int32)))
  elif found:
    assert len(batches[changed]) == len(whole)  # All files hold as many records.
    *train, test = (cifar10_records(raw) for raw in batches.values())
    damage.assert_equal(found, (*(np.concatenate(arrays) for arrays in zip(*train)), *test))
    assert all(0 <= found[i].min() and found[i].max() <= 9 for i in (1, 3))


@damage.examples(150)
@hypothesis.given(st.data())
@pytest.mark.slow
def test_cifar10_archive(folder, data):
  batches, images, labels = cifar10_files(data)
  path = folder / "cifar-10-binary.tar.gz"
  dataset_files.write_cifar10_archive(path, batches)
  changed = damage.damage_file(data, path)
  found = damage.outcome(cifar.read_cifar10, path)
  assert changed or found is not None
  if found:
    damage.assert_equal(found, (images[:10], labels[:10].astype(np.int32),
                         images[10:], labels[10:].astype(np.int32)))


@damage.examples(200)
@hypothesis.given(st.data())
def test_svhn(folder, data):
  count = data.draw(st.integers(1, 3))
  images = bytes_array(data, count, 32, 32, 3)
  labels = np.array(data.draw(st.lists(st.integers(1, 10), min_size=count, max_size=count)))
  compressed = data.draw(st.booleans())
  buffer = io.BytesIO()
  stored = {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)}
  scipy.io.savemat(buffer, stored, do_compression=compressed)
  whole = buffer.getvalue()
  # The tags and dimensions of the variables begin and end the file.
  parts = {"all": (0, len(whole)), "first": (124, 220), "last": (len(whole) - 80, len(whole))}
  start, end = parts["all" if compressed else data.draw(st.sampled_from(sorted(parts)))]
  fields = [(i, "<I") for i in range(0, min(end - start, 96) - 4, 4)]
  raw = whole[:start] + damage.damaged(data, whole[start:end], fields) + whole[end:]
  path = folder / "train_32x32.mat"
  path.write_bytes(raw)
  found = damage.outcome(formats.read_svhn, path)
  if raw == whole or compressed and found:
    damage.assert_equal(found, (images, labels.astype(np.int32) % 10))
  elif found:
    read_images, read_labels = found
    assert read_images.dtype == np.uint8 and read_images.shape[1:] == (32, 32, 3)
    assert read_labels.dtype == np.int32 and read_labels.shape == (len(read_images),)
    assert 0 <= read_labels.min() and read_labels.max() <= 9
    if not compressed:
      assert np.moveaxis(read_images, 0, 3).tobytes("F") in raw


def usps_numbers(data):
  count = data.draw(st.integers(1, 3))
  images = bytes_array(data, count, 16, 16, 1)
  digits = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
  return images, np.array(digits, np.int32), images.reshape(count, -1) / 255 * 2 - 1


def as_pixels(values):
  return np.rint((np.asarray(values, float) + 1) / 2 * 255).astype(np.uint8).reshape(-1, 16, 16, 1)


def check_usps(data, path, text, images, digits, read, parse):
  """Damage of the text, or of the compressed file around it."""
  pack = {".bz2": bz2.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
  inside = data.draw(st.booleans()) or pack is bytes
  raw = damage.damaged(data, text) if inside else text
  path.write_bytes(pack(raw) if inside else damage.damaged(data, pack(raw)))
  found = damage.outcome(read, path)
  if raw == text and (inside or found):
    damage.assert_equal(found, (images, digits))
  elif found:
    damage.assert_equal(found, parse(raw))
    assert 0 <= found[1].min() and found[1].max() <= 9


@damage.examples(200)
@hypothesis.given(st.data())
@pytest.mark.slow
def test_usps_libsvm(folder, data):
  images, digits, values = usps_numbers(data)
  text = "\n".join(f"{digit + 1} " + " ".join(f"{i}:{v:.4g}" for i, v in enumerate(row, 1))
                   for digit, row in zip(digits, values)).encode()

  def parse(raw):
    rows = [line.split() for line in raw.splitlines()]
    values = np.zeros((len(rows), 256))
    for row, (_, *pairs) in zip(values, rows):
      indices = [int(pair.split(b":")[0]) for pair in pairs]
      assert len(set(indices)) == len(indices)
      for pair in pairs:
        row[int(pair.split(b":")[0]) - 1] = float(pair.split(b":")[1])
    assert np.abs(values).max() <= 1
    return as_pixels(values), np.array([float(row[0]) - 1 for row in rows], np.int32)

  path = folder / data.draw(st.sampled_from(["usps.bz2", "usps"]))
  check_usps(data, path, text, images, digits, formats.read_usps_libsvm, parse)


@damage.examples(200)
@hypothesis.given(st.data())
def test_usps_text(folder, data):
  images, digits, values = usps_numbers(data)
  text = "".join(f"{digit}.0000 " + " ".join(f"{v:.4f}" for v in row) + " \n"
                 for digit, row in zip(digits, values)).encode()

  def parse(raw):
    rows = np.array([[float(word) for word in line.split()]
                     for line in raw.splitlines() if line.strip()])
    assert np.abs(rows[:, 1:]).max() <= 1
    return as_pixels(rows[:, 1:]), rows[:, 0].astype(np.int32)

  path = folder / data.draw(st.sampled_from(["zip.train.gz", "zip.train"]))
  check_usps(data, path, text, images, digits, formats.read_usps_text, parse)


# Hostile files


_PICKLE_READERS = {
    "set.npz": formats.read_npz,
    "train_32x32.mat": formats.read_svhn,
    "usps": formats.read_usps_libsvm,
    "zip.train": formats.read_usps_text,
    "a.tfrecord": lambda path: list(tfds_source.read_tfrecord(path)),
}


@pytest.mark.parametrize("name", _PICKLE_READERS)
def test_no_file_runs_code(tmp_path, name):
  path, marker = tmp_path / name, tmp_path / "marker"
  for kind, raw in damage.pickles(damage.Trap(marker)).items():
    path.write_bytes(raw)
    assert damage.outcome(_PICKLE_READERS[name], path) is None, kind
    assert not marker.exists(), kind
  pickle.loads(damage.pickles(damage.Trap(marker))["protocol 4"])
  assert marker.exists()  # The trap is one.


def test_compressed_files_do_not_grow_without_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, "_MOST_BYTES", 10**5)
  for name, pack in (("usps.bz2", bz2.compress), ("zip.train.gz", gzip.compress)):
    path = tmp_path / name
    path.write_bytes(pack(bytes(10**7)))
    with pytest.raises(ValueError, match="expected at most 100000 bytes once decompressed"):
      formats.read_bytes(path)


@damage.examples(20)
@hypothesis.given(size=st.sampled_from(damage.HUGE[1:]), sparse=st.booleans())
def test_cifar10_archive_of_huge_members(folder, size, sparse):
  """A member that says it is huge is refused before memory is asked for it."""
  path = folder / "huge.tar.gz"
  member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
  member.size = size
  member.type = tarfile.GNUTYPE_SPARSE if sparse else tarfile.REGTYPE
  with gzip.open(path, "wb") as file:
    file.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
  assert damage.outcome(cifar.read_cifar10, path) is None
