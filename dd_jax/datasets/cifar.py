"""CIFAR-10, CIFAR-100 and STL-10, which is laid out like them, in their binary versions.

Images come out as uint8 `[n, H, W, 3]`, labels as int32 `[n]`. Every reader raises
FileNotFoundError for a missing file, and ValueError for one that is truncated or corrupt, in one
line that names the file.
"""

import gzip
import pathlib
import tarfile

import numpy as np

from dd_jax.datasets import formats
from dd_jax.datasets.splits import Splits

CIFAR10_DIRECTORY = "cifar-10-batches-bin"
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                   "truck")
CIFAR100_DIRECTORY = "cifar-100-binary"
CIFAR100_ARCHIVE = "cifar-100-binary.tar.gz"
STL10_DIRECTORY = "stl10_binary"

_CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR10_TEST = "test_batch.bin"
_CIFAR10_RECORD = 1 + 32 * 32 * 3  # the label, then the red, green and blue planes
_CIFAR10_MOST = 10_000  # records of a file
_CIFAR100_RECORD = 2 + 32 * 32 * 3  # the coarse and the fine label, then the planes
_CIFAR100_MOST = 50_000
_CIFAR100_LABELS = {"coarse": (0, 20), "fine": (1, 100)}  # byte of a record, number of classes
_STL10_RECORD = 96 * 96 * 3


def read_cifar10(path):
  """CIFAR-10, binary version.

  Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".

  Args:
    path: the directory `cifar-10-batches-bin`, or `cifar-10-binary.tar.gz` as downloaded.

  Returns:
    `(train_images [n, 32, 32, 3], train_labels [n], test_images, test_labels)`.
  """
  path = pathlib.Path(path)
  names = (*_CIFAR10_TRAIN, _CIFAR10_TEST)
  contents = _contents(path, CIFAR10_DIRECTORY, names, most=_CIFAR10_MOST * _CIFAR10_RECORD)
  parts = []
  for name in names:
    records = _records(path / name, contents[name], _CIFAR10_RECORD)
    parts.append((_pictures(records[:, 1:], 32),
                  formats.integer_labels(path / name, records[:, 0], 0, 9)))
  for name, (_, labels) in zip(names, parts):
    if len(labels) != len(parts[0][1]):
      raise ValueError(f"{path / name}: expected as many records as {names[0]} has, "
                       f"{len(parts[0][1])}; found {len(labels)}")
  train_images, train_labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1]))
  return train_images, train_labels, *parts[-1]


def read_cifar100(path, *, labels="fine"):
  """CIFAR-100, binary version.

  Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".

  Args:
    path: the directory `cifar-100-binary`, or `cifar-100-binary.tar.gz` as downloaded.
    labels: "fine", 100 classes, or "coarse", 20 of them.

  Returns:
    `Splits`, with the names of `fine_label_names.txt` or `coarse_label_names.txt` where it is.
  """
  path = pathlib.Path(path)
  place, num_classes = _CIFAR100_LABELS[labels]
  names = f"{labels}_label_names.txt"
  contents = _contents(path, CIFAR100_DIRECTORY, ("train.bin", "test.bin"), optional=(names,),
                       most=_CIFAR100_MOST * _CIFAR100_RECORD)
  arrays = []
  for name in ("train.bin", "test.bin"):
    records = _records(path / name, contents[name], _CIFAR100_RECORD)
    for stored, most in _CIFAR100_LABELS.values():  # The other one, too, tells what is no record.
      formats.integer_labels(path / name, records[:, stored], 0, most - 1)
    arrays += [_pictures(records[:, 2:], 32), records[:, place].astype(np.int32)]
  return Splits(*arrays, _names(path / names, contents.get(names), num_classes))


def read_stl10(path):
  """STL-10, its labelled images; the columns of a plane are stored one after another.

  Source: https://cs.stanford.edu/~acoates/stl10/, "Binary files". The labels 1..10 become 0..9.

  Args:
    path: the directory `stl10_binary`, with `train_X.bin`, `train_y.bin`, `test_X.bin` and
      `test_y.bin`.

  Returns:
    `Splits` of `[n, 96, 96, 3]`, with the names of `class_names.txt` where it is.
  """
  path = pathlib.Path(path)
  arrays = []
  for split in ("train", "test"):
    file = path / f"{split}_X.bin"
    images = _pictures(_records(file, formats.read_bytes(file), _STL10_RECORD), 96)
    file = path / f"{split}_y.bin"
    labels = np.frombuffer(formats.read_bytes(file), np.uint8)
    if len(labels) != len(images):
      raise ValueError(f"{file}: expected one label for each of the {len(images)} images of "
                       f"{split}_X.bin; found {len(labels)}")
    arrays += [np.ascontiguousarray(images.swapaxes(1, 2)),
               formats.integer_labels(file, labels, 1, 10) - 1]
  names = path / "class_names.txt"
  return Splits(
      *arrays, _names(names, formats.read_bytes(names) if names.is_file() else None, 10))


def _records(path, raw, size):
  """uint8 `[n, size]`."""
  if not raw or len(raw) % size:
    raise ValueError(f"{path}: expected whole records of {size} bytes; found {len(raw)} bytes")
  return np.frombuffer(raw, np.uint8).reshape(-1, size)


def _pictures(planes, size):
  """`[n, size, size, 3]` of the red, green and blue planes `[n, 3 * size * size]`."""
  return np.ascontiguousarray(planes.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))


def _names(path, raw, count):
  """The lines of a file of names; none where it is not there and `raw` is None."""
  if raw is None:
    return ()
  try:
    names = tuple(line.strip() for line in raw.decode().splitlines() if line.strip())
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: expected text in UTF-8; found {formats.one_line(error)}") from error
  if len(names) != count:
    raise ValueError(f"{path}: expected the names of {count} classes; found {len(names)}")
  return names


def _contents(path, directory, names, *, most, optional=()):
  """`{name: bytes}` of a directory's files, or of a tar.gz archive of that directory.

  Args:
    path: of either.
    directory: its name in the archive.
    names: of its files.
    most: bytes of a file in the archive.
    optional: names of files that may lack.
  """
  if not path.is_dir():
    return _tar_members(path, directory, names, optional, most)
  return {name: formats.read_bytes(path / name) for name in (*names, *optional)
          if name in names or (path / name).is_file()}


def _tar_members(path, directory, names, optional, most):
  """As `_contents`; members are read in memory and never extracted to disk."""
  formats.require_file(path)
  wanted = {f"{directory}/{name}": name for name in (*names, *optional)}
  contents = {}
  try:
    with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
      for member in archive:
        if member.name in wanted and member.isfile():
          name = wanted[member.name]
          if name in contents or member.size > most:
            raise ValueError(f"{name} twice or of {member.size} bytes")
          contents[name] = archive.extractfile(member).read()
      while unpacked.read(2**20):  # the checksum lies behind what tarfile reads
        pass
  except Exception as error:  # tarfile meets a bad byte with nearly any exception
    raise ValueError(f"{path}: expected a tar.gz archive; "
                     f"found {formats.one_line(error)}") from error
  missing = [name for name in names if name not in contents]
  if missing:
    raise ValueError(f"{path}: expected {directory}/{missing[0]} in the archive; "
                     f"found {', '.join(contents) or 'no member of that set'}")
  return contents
