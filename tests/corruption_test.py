"""Every reader of the package against damaged, random and hostile files (property-based).

A reader gives back what was written, or raises its documented error: one line that names the
file. Where a format carries checksums (gzip, bz2, npz, tfrecord, compressed MATLAB, PNG, PyTorch's
zip) nothing else is allowed. The others cannot notice every change of their bytes: what they
give then has the documented shape, type and range, and its values are those that the file holds.
No file runs code.

Examples: IDX 250, CIFAR-10 150 + 150 + 20, SVHN 200, USPS 200 + 200, npz of a set 250 + 150,
`from_arrays` 200, VOC 150, CUB-200 150, tfrecord 250 + 30, prepared directories 60 of either
format, distilled.npz 250 + 200, pools 150 + 100, AlexNet's weights 150 + 60 of each of .npz,
.safetensors and .pth, metrics 200: some 4,000 files. Each is a drawn file with a drawn damage.
"""

import bz2
import gzip
import io
import pathlib
import pickle
import struct
import tarfile
import tempfile
import zipfile

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

import dd_jax
from dd_jax.files import artifacts
from dd_jax import datasets
from dd_jax.files import imagenet_weights
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from dd_jax.datasets import tfds_source
from experiments import figures
from experiments import workdirs
from tests import alexnet_files
from tests import dataset_files
from tests import prepared_sets

_HUGE = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def examples(number):
  return hypothesis.settings(max_examples=number, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))


def damaged(data, raw, fields=()):
  """`raw` after a drawn damage, or whole.

  Args:
    data: hypothesis's.
    raw: bytes.
    fields: `(offset, struct format)` of integers in a header, to be made huge.
  """
  kind = data.draw(st.sampled_from(
      ["whole", "cut", "flip", "digit", "delete", "insert", "repeat", "zeros", "random"]
      + 3 * ["field"] * bool(fields)), "damage")
  last = max(len(raw) - 1, 0)
  start = data.draw(st.integers(0, min(last, 300)) | st.integers(0, last), "at")  # Headers often.
  end = start + data.draw(st.integers(1, 40), "bytes")
  if kind == "cut":
    return raw[:start]
  if kind == "flip":
    return raw[:start] + bytes([raw[start] ^ 1 << data.draw(st.integers(0, 7))]) + raw[start + 1:]
  if kind == "digit":
    return raw[:start] + bytes([data.draw(st.sampled_from(b"0123456789"))]) + raw[start + 1:]
  if kind == "delete":
    return raw[:start] + raw[end:]
  if kind == "insert":
    return raw[:start] + data.draw(st.binary(min_size=1, max_size=40)) + raw[start:]
  if kind == "repeat":
    return raw[:end] + raw[start:]
  if kind == "zeros":
    return raw[:start] + bytes(len(raw[start:end])) + raw[end:]
  if kind == "random":
    return data.draw(st.binary(max_size=200))
  if kind == "field":
    offset, size = data.draw(st.sampled_from(fields))
    value = data.draw(st.sampled_from(_HUGE)) % 256 ** struct.calcsize(size)
    return raw[:offset] + struct.pack(size, value) + raw[offset + struct.calcsize(size):]
  return raw


def outcome(read, *paths):
  """What `read(*paths)` gives, or None for a documented error."""
  try:
    return read(*paths)
  except (FileNotFoundError, ValueError) as error:
    assert type(error) in (FileNotFoundError, ValueError), repr(error)
    assert str(error).splitlines() == [str(error)], repr(error)
    assert any(str(path) in str(error) for path in paths), repr(error)
    return None


def assert_equal(actual, expected):
  """The same arrays, types included."""
  for a, b in zip(actual, expected, strict=True):
    assert type(a) is np.ndarray and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


def bytes_array(data, *shape):
  """Random uint8, from a drawn seed: few draws, any size."""
  return dataset_files.random_bytes(shape, data.draw(st.integers(0, 99), "seed"))


# Original files


@examples(250)
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
    raw[index] = damaged(data, raw[index], fields)
  stored = [gzip.compress(part, mtime=0) if suffix else part for part in raw]
  if suffix and not inside:
    stored[index] = damaged(data, stored[index])
  paths = folder / f"images{suffix}", folder / f"labels{suffix}"
  for path, part in zip(paths, stored):
    path.write_bytes(part)
  found = outcome(formats.read_idx, *paths)
  if suffix and not inside and found or raw == [dataset_files.idx_bytes(images),
                                                dataset_files.idx_bytes(labels)] == stored:
    assert_equal(found, (images[..., None], labels.astype(np.int32)))
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


@examples(150)
@hypothesis.given(st.data())
def test_cifar10_directory(folder, data):
  batches, images, labels = cifar10_files(data)
  changed = data.draw(st.sampled_from(dataset_files.CIFAR10_BATCHES))
  whole = batches[changed]
  batches[changed] = data.draw(st.one_of(
      st.builds(lambda: damaged(data, whole)),
      st.sampled_from([whole[:3073], 2 * whole, whole[:3073] + b"\n" + whole[3074:]])))
  for name, raw in batches.items():
    (folder / name).write_bytes(raw)
  found = outcome(formats.read_cifar10, folder)
  if batches[changed] == whole:
    assert_equal(found, (images[:10], labels[:10].astype(np.int32),
                         images[10:], labels[10:].astype(np.int32)))
  elif found:
    assert len(batches[changed]) == len(whole)  # All files hold as many records.
    *train, test = (cifar10_records(raw) for raw in batches.values())
    assert_equal(found, (*(np.concatenate(arrays) for arrays in zip(*train)), *test))
    assert all(0 <= found[i].min() and found[i].max() <= 9 for i in (1, 3))


@examples(150)
@hypothesis.given(st.data())
def test_cifar10_archive(folder, data):
  batches, images, labels = cifar10_files(data)
  path = folder / "cifar-10-binary.tar.gz"
  dataset_files.write_cifar10_archive(path, batches)
  path.write_bytes(damaged(data, path.read_bytes()))
  found = outcome(formats.read_cifar10, path)
  if found:
    assert_equal(found, (images[:10], labels[:10].astype(np.int32),
                         images[10:], labels[10:].astype(np.int32)))


@examples(200)
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
  raw = whole[:start] + damaged(data, whole[start:end], fields) + whole[end:]
  path = folder / "train_32x32.mat"
  path.write_bytes(raw)
  found = outcome(formats.read_svhn, path)
  if raw == whole or compressed and found:
    assert_equal(found, (images, labels.astype(np.int32) % 10))
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
  raw = damaged(data, text) if inside else text
  path.write_bytes(pack(raw) if inside else damaged(data, pack(raw)))
  found = outcome(read, path)
  if raw == text and (inside or found):
    assert_equal(found, (images, digits))
  elif found:
    assert_equal(found, parse(raw))
    assert 0 <= found[1].min() and found[1].max() <= 9


@examples(200)
@hypothesis.given(st.data())
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


@examples(200)
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


# npz


def write_npz(path, arrays, also=()):
  """As `np.savez`, with members `also`: `[(name, bytes)]`, names taken twice included."""
  with zipfile.ZipFile(path, "w") as archive:
    for name, array in arrays.items():
      buffer = io.BytesIO()
      np.lib.format.write_array(buffer, np.asarray(array))
      archive.writestr(f"{name}.npy", buffer.getvalue())
    for name, raw in also:
      archive.writestr(name, raw)


def set_arrays(data):
  height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
  images, labels = bytes_array(data, 6, height, width, 1), np.arange(6) % 2
  return {"train_images": images[:4], "train_labels": labels[:4],
          "test_images": images[4:], "test_labels": labels[4:]}


@examples(250)
@hypothesis.given(st.data())
def test_npz_of_a_set(folder, data):
  arrays, path = set_arrays(data), folder / "set.npz"
  save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
  save(path, more=np.zeros(3), **arrays)
  path.write_bytes(damaged(data, path.read_bytes()))
  found = outcome(formats.read_npz, path)
  if found is not None:
    assert_equal(found, arrays.values())


_TYPES = (np.uint8, np.int8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64,
          np.longdouble, np.complex64, np.bool_, ">f4", ">i4", "S3", "U3", "M8[s]", object,
          [("a", "f4"), ("b", "i4")])


def changed_array(data, array):
  """`array` with another type, shape, order or values."""
  kinds = ["type", "shape", "order", "value", "empty", "scalar"]
  kind = data.draw(st.sampled_from(kinds), "change")
  if kind == "type":
    kind = data.draw(st.sampled_from(_TYPES))
    return np.zeros(array.shape, kind) if isinstance(kind, list) else array.astype(kind)
  if kind == "shape":
    return data.draw(st.sampled_from([array[:-1], array[:, None], array[0], array.ravel(),
                                      array[None], np.concatenate([array, array])]))
  if kind == "order":
    return np.asfortranarray(array)
  if kind == "value":
    array = np.array(array)
    values = [-1, 2, 7, 2**31, 2**40, np.nan, np.inf, -np.inf, 1e300]
    value = data.draw(st.sampled_from(values))
    if array.dtype.kind in "iu":
      array = array.astype(np.int64)
      value = value if isinstance(value, int) else 3
    elif isinstance(value, float) and array.dtype == np.float32:
      array = array.astype(np.float64)
    array.flat[data.draw(st.integers(0, array.size - 1))] = value
    return array
  return array[:0] if kind == "empty" else np.array(array.flat[0])


def other_npz(data, path, arrays, others=None):
  """Writes the arrays after a drawn change: one that is other, absent, no array, or there twice.

  Args:
    data: hypothesis's.
    path: what to write.
    arrays: by name; one of them changes.
    others: more arrays, that stay.

  Returns:
    The arrays as written; None where the file is one that no reader may take.
  """
  arrays, others = dict(arrays), others or {}
  name = data.draw(st.sampled_from(sorted(arrays)), "array")
  kind = data.draw(st.sampled_from(4 * ["other"] + ["absent", "text", "twice"]), "member")
  changed = None
  if kind == "twice":
    buffer = io.BytesIO()
    np.save(buffer, np.zeros_like(arrays[name]))
    with pytest.warns(UserWarning, match="Duplicate name"):
      write_npz(path, arrays | others, [(f"{name}.npy", buffer.getvalue())])
  elif kind == "other":
    arrays[name] = changed_array(data, arrays[name])
    write_npz(path, arrays | others)
    changed = None if arrays[name].dtype.hasobject else arrays
  else:
    del arrays[name]
    write_npz(path, arrays | others,
              [(data.draw(st.sampled_from([name, f"{name}.npy"])), b"no array")] * (kind == "text"))
  return changed


@examples(150)
@hypothesis.given(st.data())
def test_npz_of_other_arrays(folder, data):
  """Whatever arrays a file holds come back as stored; `load` then checks them as a set."""
  path = folder / "set.npz"
  arrays = other_npz(data, path, set_arrays(data))
  found = outcome(formats.read_npz, path)
  if arrays is None:
    assert found is None
  else:
    for read, written in zip(found, arrays.values(), strict=True):
      assert read.dtype == written.dtype.newbyteorder("=") and read.shape == written.shape
      assert read.astype(written.dtype).tobytes() == written.tobytes()
  dataset = outcome(datasets.load, path)
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


@examples(200)
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
    given[name] = changed_array(data, arrays[name])
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
  path.write_bytes(damaged(data, path.read_bytes()))
  return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def check_pictures(found, num_classes):
  for images, labels in (found[:2], found[2:]):
    assert images.dtype == np.uint8 and images.shape[1:] == (224, 224, 3)
    assert labels.dtype == np.int32 and labels.shape == (len(images),)
    assert not labels.size or 0 <= labels.min() and labels.max() < num_classes


@examples(150)
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
    found = outcome(directories.read_voc, root)
    if found:
      check_pictures(found, 20)
      if is_png:
        assert_equal(found, truth)


@examples(150)
@hypothesis.given(st.data())
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
    found = outcome(directories.read_cub200, root)
    if found:
      check_pictures(found, 200)
      if is_png:
        assert_equal(found, truth)


# tfrecord


@examples(250)
@hypothesis.given(st.data())
def test_tfrecord(folder, data):
  payloads = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
  path = folder / "a.tfrecord"
  dataset_files.write_tfrecord(path, payloads)
  whole = path.read_bytes()
  raw = damaged(data, whole)
  path.write_bytes(raw)
  read = []

  def read_all(path):
    for payload in tfds_source.read_tfrecord(path):
      read.append(payload)
    return True

  if outcome(read_all, path):  # Damage at the borders of records can leave a whole file.
    dataset_files.write_tfrecord(path, read)
    assert path.read_bytes() == raw
  assert all(payload in payloads for payload in read)


@examples(30)
@hypothesis.given(length=st.sampled_from(_HUGE[4:]), payload=st.binary(max_size=20))
def test_tfrecord_of_huge_length(folder, length, payload):
  """A length with the right checksum is still no reason to ask for that much memory."""
  path = folder / "huge.tfrecord"
  header = struct.pack("<Q", length)
  path.write_bytes(header + struct.pack("<I", tfds_source.masked_crc32c(header)) + payload)
  assert outcome(lambda path: list(tfds_source.read_tfrecord(path)), path) is None


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
  arrays = tfds_source.read_prepared(directory)
  return lambda: (files, arrays)  # Hypothesis prints a function in one line.


@examples(60)
@hypothesis.given(st.data())
def test_prepared(prepared, data):
  """A change is noticed, or leaves the arrays as they are."""
  files, arrays = prepared()
  for path, raw in files.items():
    path.write_bytes(raw)
  path = data.draw(st.sampled_from(sorted(files)), "file")
  path.write_bytes(damaged(data, files[path]))
  found = outcome(tfds_source.read_prepared, path.parent)
  if found:
    assert_equal(found, arrays)


# distilled.npz and pools


def distilled(data):
  num_steps, batch, epochs = (data.draw(st.integers(1, 2)) for _ in range(3))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  size = data.draw(st.sampled_from([2, 40]))  # zipfile reads on by 4096 bytes.
  images = rng.standard_normal((num_steps, batch, size, size, 1), np.float32)
  labels = (rng.integers(0, 10, (num_steps, batch), np.int32) if data.draw(st.booleans())
            else rng.random((num_steps, batch, 3), np.float32))
  return dd_jax.DistilledData(*map(jnp.asarray, (
      images, labels, rng.standard_normal((epochs, num_steps), np.float32))))


_METADATA = st.dictionaries(st.text(max_size=3).filter(lambda name: name != "format_version"),
                            st.none() | st.integers() | st.text(max_size=3), max_size=2)


def weights(data, *leading):
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  return {"Conv_0": {"kernel": rng.standard_normal((*leading, 2, 2), np.float32),
                     "bias": rng.standard_normal((*leading, 2), np.float32)}}


def assert_trees_equal(actual, expected):
  """The same to the bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@examples(250)
@hypothesis.given(st.data(), _METADATA)
def test_distilled(folder, data, metadata):
  saved, path = distilled(data), folder / "distilled.npz"
  params = weights(data) if data.draw(st.booleans()) else None
  artifacts.save(path, saved, init_params=params, metadata=metadata)
  path.write_bytes(damaged(data, path.read_bytes()))
  found = outcome(artifacts.load, path)
  if found:
    assert_trees_equal((found.distilled, found.init_params), (saved, params))
    assert found.metadata == metadata


_TEXTS = ["", "{", "[]", "{}", "null", '{"format_version": 1e999}', '{"format_version": null}',
          '{"format_version": Infinity}', '{"format_version": 0}', '{"format_version": 1.5}',
          '{"format_version": true}', '{"format_version": "1"}', '{"format_version": 99}',
          '{"format_version": ' + "9" * 5000 + "}", 10000 * "[", '{"format_version": 1, "a": ']


def changed_file(data, path):
  """Other arrays or metadata in the file at `path`."""
  with np.load(path) as file:
    arrays = dict(file)
  if data.draw(st.sampled_from([False, False, True]), "metadata"):
    text = data.draw(st.sampled_from(_TEXTS) | st.text(max_size=5) | st.just(
        np.array([0x110000, 65], np.uint32).view("U2").reshape(())), "text")
    return write_npz(path, arrays | {"metadata": np.asarray(text)})
  more = data.draw(st.sampled_from([(), ("init/Conv_0",), ("init/Conv_0/kernel/more",), ("params",),
                                    ("params/Conv_0",), ("params/Conv_0/kernel/more",)]))
  if more:
    return write_npz(path, arrays | dict.fromkeys(more, np.zeros(2, np.float32)))
  metadata = {"metadata": arrays.pop("metadata")}
  other_npz(data, path, arrays, metadata if data.draw(st.integers(0, 9)) else {})


@examples(200)
@hypothesis.given(st.data())
def test_distilled_of_other_arrays(folder, data):
  saved, path = distilled(data), folder / "distilled.npz"
  artifacts.save(path, saved, init_params=weights(data) if data.draw(st.booleans()) else None)
  changed_file(data, path)
  found = outcome(artifacts.load, path)
  if found is None:
    return
  (images, labels, raw_step_sizes, hyper), params, metadata, whitening = found
  assert hyper == () and whitening is None
  with np.load(path) as file:
    for name in ("images", "labels", "raw_step_sizes"):
      np.testing.assert_allclose(getattr(found.distilled, name), file[name], rtol=1e-6)
  assert images.ndim == 5 and images.size and jnp.isfinite(images).all()
  assert raw_step_sizes.ndim == 2 and raw_step_sizes.size and jnp.isfinite(raw_step_sizes).all()
  assert raw_step_sizes.shape[1] == len(images)
  assert labels.shape[:2] == images.shape[:2] and labels.size
  if jnp.issubdtype(labels.dtype, jnp.integer):
    assert labels.ndim == 2 and (labels >= 0).all()
  else:
    assert labels.ndim == 3 and jnp.isfinite(labels).all()
  assert isinstance(metadata, dict)
  assert params is None or all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@examples(150)
@hypothesis.given(st.data(), _METADATA)
def test_pool(folder, data, metadata):
  params, path = weights(data, data.draw(st.integers(1, 3))), folder / "pool.npz"
  artifacts.save_pool(path, params, metadata)
  path.write_bytes(damaged(data, path.read_bytes()))
  found = outcome(artifacts.load_pool, path)
  if found:
    assert_trees_equal(found.params, params)
    assert found.metadata == metadata


@examples(100)
@hypothesis.given(st.data())
def test_pool_of_other_arrays(folder, data):
  path = folder / "pool.npz"
  artifacts.save_pool(path, weights(data, 2), {})
  changed_file(data, path)
  found = outcome(artifacts.load_pool, path)
  if found:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(found.params)}
    assert len(sizes) == 1 and min(sizes) > 0
    assert all(leaf.dtype.kind in "fiub" for leaf in jax.tree.leaves(found.params))


# AlexNet's weights


@pytest.fixture(scope="module", params=[".npz", ".safetensors", ".pth"])
def alexnet(request, tmp_path_factory):
  """Gives the path of a checkpoint, its bytes, its arrays, a model, and its parameters."""
  path = tmp_path_factory.mktemp("alexnet") / f"alexnet{request.param}"
  arrays = alexnet_files.checkpoint(1)
  model = dd_jax.models.alexnet(num_classes=2, image_shape=(224, 224, 3), width=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  alexnet_files.write(path, arrays)
  params = imagenet_weights.load(path, model)
  raw, model = path.read_bytes(), model._replace(init=lambda key: shapes)
  return lambda: (path, raw, arrays, model, params)


@examples(150)
@hypothesis.given(st.data())
def test_alexnet(alexnet, data):
  path, whole, _, model, params = alexnet()
  start, end = data.draw(st.sampled_from([(0, 2000), (-2000, len(whole)), (0, len(whole))]), "part")
  start %= len(whole)
  raw = whole[:start] + damaged(data, whole[start:end], [(0, "<Q")] * (not start)) + whole[end:]
  path.write_bytes(raw)
  found = outcome(lambda path: imagenet_weights.load(path, model), path)
  if found and (path.suffix != ".safetensors" or raw == whole):
    assert_trees_equal(found, params)
  elif found:  # No checksums: finite weights of the same shapes, as the file has them.
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.asarray(found["Conv_0"]["bias"]).tobytes() in raw
    assert np.asarray(found["Dense_1"]["kernel"]).T.tobytes() in raw


@examples(60)
@hypothesis.given(st.data())
def test_alexnet_of_other_arrays(alexnet, data):
  path, _, arrays, model, params = alexnet()
  arrays, name = dict(arrays), data.draw(st.sampled_from(sorted(arrays)))
  arrays[name] = changed_array(data, arrays[name])
  try:
    alexnet_files.write(path, {key: np.ascontiguousarray(array) for key, array in arrays.items()})
  except Exception:  # Not every format can hold every type.
    hypothesis.reject()
  found = outcome(lambda path: imagenet_weights.load(path, model), path)
  if found:
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert all(a.shape == b.shape and a.dtype == b.dtype
               for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True))


# Metrics of an interrupted run


@examples(200)
@hypothesis.given(st.data())
def test_metrics(folder, data):
  """The lines before the damage come back; what a power failure leaves is no error."""
  lines = [{"step": step, "loss": data.draw(st.floats(0, 10)), "seconds": 0.5}
           for step in range(1, data.draw(st.integers(1, 5)) + 1)]
  path = folder / "metrics.jsonl"
  workdirs.write_lines(path, lines)
  whole = path.read_bytes()
  cut = data.draw(st.integers(0, len(whole)))
  tail = data.draw(st.sampled_from([b"", bytes(50), b"\xff\xfe\n", b"[1]\n", b"7\n"]))
  path.write_bytes(whole[:cut] + tail)
  found = figures.read_metrics(path)
  assert found == lines[:len(found)]
  assert len(found) >= whole[:cut].count(b"\n")
  assert figures.read_metrics(path, 2) == found[:2]


# Hostile files


class Trap:
  """Creates a file when it is unpickled."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return pathlib.Path.touch, (self.marker,)


_PICKLE_READERS = {
    "set.npz": formats.read_npz,
    "distilled.npz": artifacts.load,
    "pool.npz": artifacts.load_pool,
    "train_32x32.mat": formats.read_svhn,
    "usps": formats.read_usps_libsvm,
    "zip.train": formats.read_usps_text,
    "a.tfrecord": lambda path: list(tfds_source.read_tfrecord(path)),
    **{f"alexnet{suffix}": lambda path: imagenet_weights.load(path, dd_jax.models.alexnet(
        num_classes=2, image_shape=(224, 224, 3), width=1))
       for suffix in (".npz", ".safetensors", ".pth")},
}


def pickles(trap):
  """`{kind: bytes}`: pickles bare and in the files that can hold them."""
  objects = io.BytesIO()
  np.save(objects, np.array([trap], object))
  in_zip, in_npz = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(in_zip, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({"features.0.weight": trap}, protocol=2))
    archive.writestr("archive/version", b"3\n")
  names = ("train_images", "train_labels", "test_images", "test_labels", "images", "labels",
           "raw_step_sizes", "step_sizes", "metadata", "params/w", "features.0.weight")
  np.savez(in_npz, **dict.fromkeys(names, np.array([trap], object)))
  return {f"protocol {i}": pickle.dumps(trap, protocol=i) for i in (0, 2, 4)} | {
      "npy": objects.getvalue(), "npz": in_npz.getvalue(), "PyTorch's zip": in_zip.getvalue()}


@pytest.mark.parametrize("name", _PICKLE_READERS)
def test_no_file_runs_code(tmp_path, name):
  if name.endswith(".pth"):
    pytest.importorskip("torch")
  path, marker = tmp_path / name, tmp_path / "marker"
  for kind, raw in pickles(Trap(marker)).items():
    path.write_bytes(raw)
    assert outcome(_PICKLE_READERS[name], path) is None, kind
    assert not marker.exists(), kind
  pickle.loads(pickles(Trap(marker))["protocol 4"])
  assert marker.exists()  # The trap is one.


def test_compressed_files_do_not_grow_without_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, "_MOST_BYTES", 10**5)
  for name, pack in (("usps.bz2", bz2.compress), ("zip.train.gz", gzip.compress)):
    path = tmp_path / name
    path.write_bytes(pack(bytes(10**7)))
    with pytest.raises(ValueError, match="expected at most 100000 bytes once decompressed"):
      formats.read_bytes(path)


@examples(20)
@hypothesis.given(size=st.sampled_from(_HUGE[1:]), sparse=st.booleans())
def test_cifar10_archive_of_huge_members(folder, size, sparse):
  """A member that says it is huge is refused before memory is asked for it."""
  path = folder / "huge.tar.gz"
  member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
  member.size = size
  member.type = tarfile.GNUTYPE_SPARSE if sparse else tarfile.REGTYPE
  with gzip.open(path, "wb") as file:
    file.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
  assert outcome(formats.read_cifar10, path) is None
