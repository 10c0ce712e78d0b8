"""tensorflow-datasets without TensorFlow: prepared directories, and the download manager.

tensorflow-datasets is slow to import, so that the functions import it when they need it. Only
`download_files` reaches for the network.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import struct
import tempfile
from typing import Any

import numpy as np

from dd_jax.datasets import formats
from dd_jax.datasets import host_memory

_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_CRC_BLOCK = 1024  # bytes taken at once
_USPS_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_USPS_MD5 = {"usps.bz2": "ec16c51db3855ca6c91edd34d0e9b197",
             "usps.t.bz2": "8ea070ee2aca1ac39742fdd1ef5ed118"}


def prepared_directory(data_dir, name):
  """`data_dir/NAME/VERSION` of the newest prepared version, or None."""
  found = [path.parent for path in (pathlib.Path(data_dir) / name).glob("*/dataset_info.json")
           if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
  return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read_prepared(directory):
  """The splits train and test of a prepared directory, in array_record or tfrecord format.

  Decoding the stored PNG images needs Pillow (or OpenCV).

  Returns:
    `(train_images [n, H, W, C], train_labels [n], test_images, test_labels)`; of array_record the
    images are `PreparedRows`, of tfrecord they are in memory.

  Raises:
    ValueError: the directory is incomplete or corrupt, or has another file format.
    ImportError: a package that reads it is not installed.
  """
  import tensorflow_datasets as tfds

  with _named_errors(directory):
    file_format = json.loads((directory / "dataset_info.json").read_text()).get("fileFormat")
    builder = tfds.builder_from_directory(directory)
    found = []
    for split in ("train", "test"):
      if file_format == "array_record":
        only_labels = {"image": tfds.decode.SkipDecoding()}
        labels = np.fromiter((example["label"] for example in builder.as_data_source(
            split, decoders=only_labels)), np.int32)
        images = PreparedRows(directory, builder.as_data_source(split))
      elif file_format == "tfrecord":
        images, labels = _of_tfrecords(builder.info, split)
      else:
        raise ValueError(f"expected array_record or tfrecord; found {file_format}")
      expected = builder.info.splits[split].num_examples
      if len(labels) != expected:
        raise ValueError(f"expected {expected} examples of {split}; found {len(labels)}")
      found += [images, np.array(labels, np.int32)]
  return tuple(found)


def _of_tfrecords(info, split):
  """Images `[n, H, W, C]` and labels of a split."""
  images, labels, number = None, [], info.splits[split].num_examples
  for path in info.splits[split].filepaths:
    for example in map(info.features.deserialize_example_np, read_tfrecord(path)):
      image = example["image"]
      if images is None:
        host_memory.check(split, number * image.nbytes)
        images = np.empty((number, *image.shape), image.dtype)
      if len(labels) < number:
        if image.shape != images.shape[1:]:
          raise ValueError(f"expected images of one shape, {images.shape[1:]}; found {image.shape}")
        images[len(labels)] = image
      labels.append(example["label"])
  return images, labels


class PreparedRows:
  """Images of a prepared split in array_record, decoded as they are read."""

  def __init__(self, directory: pathlib.Path, source: Any):
    """`source` is a data source of tensorflow-datasets, of at least one example."""
    self._directory, self._source = directory, source
    first = source[0]["image"]
    self.shape, self.dtype = (len(source), *first.shape), first.dtype

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    with _named_errors(self._directory):
      return np.stack([example["image"] for example in self._source.__getitems__(places.tolist())])


@contextlib.contextmanager
def _named_errors(directory):
  """Whatever its readers meet a bad byte with becomes a ValueError of one line."""
  try:
    yield
  except Exception as error:
    # TensorFlow is asked for types that numpy does not know, which only a corrupt file names.
    if isinstance(error, ImportError) and error.name != "tensorflow":
      raise
    raise ValueError(f"{directory}: expected a prepared tensorflow-datasets directory; "
                     f"found {formats.one_line(error)}") from error


def read_tfrecord(path):
  """Yields the payloads of a tfrecord file, as bytes.

  A record is its length (uint64), the masked CRC-32C of those 8 bytes, the payload, and the
  masked CRC-32C of the payload.
  Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details".

  Raises:
    ValueError: the file is truncated or corrupt.
  """
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    while header := file.read(12):
      start = file.tell() - len(header)
      if len(header) < 12:
        raise ValueError(f"{path}: expected a record header of 12 bytes at byte {start}; "
                         f"found {len(header)}")
      length, checksum = struct.unpack("<QI", header)
      if checksum != masked_crc32c(header[:8]):
        raise ValueError(f"{path}: expected a record length with its checksum at byte {start}; "
                         f"found {header.hex()}")
      if length + 4 > size - start - 12:
        raise ValueError(f"{path}: expected a record of {length} bytes at byte {start}; "
                         f"found the end of the file")
      payload, stored = file.read(length), file.read(4)
      if stored != struct.pack("<I", masked_crc32c(payload)):
        raise ValueError(f"{path}: expected a payload with its checksum at byte {start + 12}; "
                         f"found {stored.hex()}")
      yield payload


def masked_crc32c(data):
  """The checksum of the tfrecord format, of `data` as bytes."""
  table = _crc_table()
  crc = 0xFFFFFFFF
  for start in range(0, len(data), _CRC_BLOCK):
    # Zeros in place of the 4 bytes that follow leave the register as it is after the block.
    block = np.frombuffer(data[start:start + _CRC_BLOCK] + bytes(4), np.uint8).copy()
    block[:4] ^= np.frombuffer(struct.pack("<I", crc), np.uint8)
    places = np.arange(len(table) - len(block), len(table))
    crc = int(np.bitwise_xor.reduce(table[places, block]))
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_table():
  """What a byte adds to the register, `[_CRC_BLOCK + 4, 256]` uint32, by its place in a block.

  The register is linear in the bytes, so that those of a block can be looked up together. The
  last four rows are of the register itself: bytes that wait behind the block.
  """
  rows = [np.arange(256, dtype=np.uint32) << 24]
  while len(rows) < _CRC_BLOCK + 4:
    row = rows[-1]
    for _ in range(8):
      row = row >> 1 ^ (row & 1) * np.uint32(_CRC_POLYNOMIAL)
    rows.append(row)
  return np.stack(rows[::-1])


def download_files(name, filenames, directory):
  """Fetches the original files of the set `name` into `directory`.

  Every file is compared with the size and sha256 that tensorflow-datasets has on record, or,
  for `usps`, which it does not hold, with a md5. A recorded file that lies there is only
  compared.

  Raises:
    ConnectionError: a file could not be fetched.
    ValueError: a file differs from the one on record.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

  if name == "usps":
    url_infos = {}
    urls = {filename: _USPS_URL + filename for filename in _USPS_MD5}
  else:
    url_infos = tfds.builder(name, data_dir=directory).url_infos
    urls = {info.filename: url for url, info in url_infos.items()}
  directory.mkdir(parents=True, exist_ok=True)
  # The manager writes under names of its own: into a scratch folder, from which whole and
  # checked files move to their original names.
  with tempfile.TemporaryDirectory(prefix="download-", dir=directory) as scratch:
    manager = tfds.download.DownloadManager(
        download_dir=scratch, manual_dir=directory, url_infos=url_infos)
    for filename in filenames:
      url = urls[filename]
      try:
        path = pathlib.Path(manager.download(url))
      except NonMatchingChecksumError as error:
        raise ValueError(f"{directory / filename}: {formats.one_line(error)}") from error
      except (tfds.download.DownloadError, OSError) as error:
        raise ConnectionError(f"{url}: could not be fetched (put {filename} into {directory} by "
                              f"hand); {formats.one_line(error)}") from error
      if name == "usps":
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != _USPS_MD5[filename]:
          raise ValueError(f"{url}: expected a file with md5 {_USPS_MD5[filename]}; found {found}")
      path.replace(directory / filename)

