"""Where the named sets come from: `load` holds the order of looking, in one place."""

import functools
import hashlib
import math
import os
import pathlib

import numpy as np

from dd_jax import extras
from dd_jax.datasets import benchmarks
from dd_jax.datasets import dataset
from dd_jax.datasets import formats
from dd_jax.datasets import host_memory
from dd_jax.datasets import own_files
from dd_jax.datasets import rows
from dd_jax.datasets import tfds_source
from dd_jax.datasets.splits import Reading, Splits

# MNIST, Fashion-MNIST and KMNIST share file names; the sha256 of the training labels, as in
# tensorflow-datasets' url_checksums, tells which of them lies in a folder.
_IDX_LABELS_SHA256 = {
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c": "mnist",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845": "fashion_mnist",
    "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17": "kmnist",
}
# Of the same files, not zipped: how often each label is there.
_IDX_COUNTS = {
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949): "mnist",
    10 * (6000,): "fashion_mnist or kmnist",
}
_PICKLES = {  # Name -> what lies there of the version that is never read.
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "cifar100_coarse": ("cifar-100-python.tar.gz", "cifar-100-python"),
}
NAMES = ("digits", *benchmarks.BENCHMARKS)


def load(name: str | os.PathLike, data_dir: str | os.PathLike | None = None, *,
         download: bool = False, reading: Reading = Reading()) -> dataset.Dataset:
  """Loads a set by its name, or the user's own from files.

  `digits` comes with scikit-learn. The other `NAMES` are looked for in this order: a prepared
  tensorflow-datasets directory `data_dir/NAME/VERSION`; the original files in `data_dir/NAME` or
  `data_dir`; `NAME.npz` in either; with `download=True`, the network.

  `digits` (8x8) and `usps` (16x16) are brought to MNIST's framing, 28x28. `digits` is split
  once and for all into 1,297 / 500 images. `svhn_small` is a subset of SVHN cut from the full
  photos (`svhn_small.npz` or `svhn_subset.npz`): it is NOT the official SVHN, neither its crops
  nor its split nor its size. `svhn_cropped` is the official one.

  `voc` and `cub200` are read from directories as their archives unpack, `VOCdevkit/VOC2007` or
  `VOCdevkit/VOC2012` and `CUB_200_2011`. In `voc` every object box, difficult ones too, is one
  image, and trainval is the training split. All are resized to 224x224 and held in memory, 150
  kB each. `tiny_imagenet` tests on the pictures of its val, whose test split has no labels; `stl10`
  has the labelled images alone. The folder of `cifar100_coarse` is `cifar100`, that of all variants
  of EMNIST `emnist`.

  Args:
    name: one of `NAMES`; the name of any other image set that tensorflow-datasets has prepared in
      `data_dir/NAME/VERSION`, with `image`, `label` and the splits train and test; or a path: of a
      .npz file, or a folder of .npy files, that hold `train_images`, `train_labels`, `test_images`
      and `test_labels` (see `from_arrays`; nothing is unpickled), of a .csv or .parquet file, or a
      folder of them, or of a folder of pictures with a sub-folder for each class. Text is a path
      where it has a slash, or ends as such a file does.
    data_dir: where to look; None means the environment variable DD_JAX_DATA, else
      `~/dd_jax_data`.
    download: whether to fetch the original files into `data_dir/NAME` when nothing is found.
    reading: how files of one's own are read.

  Returns:
    A `Dataset`; the named sets have uint8 images.

  Raises:
    ValueError: the name is unknown, or a file is corrupt or holds something else; an address,
      such as gs://bucket/data.
    FileNotFoundError: nothing was found, and `download` is False or cannot help.
    ConnectionError: a download failed.
  """
  for argument, text in (("name", os.fspath(name)), ("data_dir", os.fspath(data_dir or ""))):
    if "://" in text:
      raise ValueError(f"{argument} must not be an address, but local; got {text!r}")
  if name == "digits":
    return _digits()
  data_dir = pathlib.Path(data_dir or os.environ.get("DD_JAX_DATA") or "~/dd_jax_data")
  data_dir = data_dir.expanduser()
  # A set of tensorflow-datasets has a slash in its name where it has a config.
  prepared = (isinstance(name, str) and not name.startswith((".", "/", "~"))
              and tfds_source.prepared_directory(data_dir, name))
  if own_files.is_path(name) and not prepared:
    return _of_splits(pathlib.Path(name).expanduser(), own_files.read(name, reading), reading)
  if name not in NAMES:
    return _load_prepared(name, data_dir, reading)
  benchmark = benchmarks.BENCHMARKS[name]
  found = _find(name, data_dir)
  if found is None and download and benchmark.downloaded:
    filenames, _ = benchmark.layouts[0]
    folder = benchmark.folder or name
    tfds_source.download_files(folder, filenames, data_dir / folder)
    found = _find(name, data_dir)
  if found is None:
    raise FileNotFoundError(_nothing_found(name, data_dir))

  path, reader = found
  return _checked_benchmark(name, path, Splits(*reader()), reading)


def _checked_benchmark(name, path, splits, reading):
  """The set of that name, if the images are such."""
  benchmark = benchmarks.BENCHMARKS[name]
  train_images, train_labels, test_images, test_labels, class_names = splits
  train_labels, test_labels = (labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
                               for labels in map(np.asarray, (train_labels, test_labels)))
  if name == "usps":
    train_images, test_images = _frame_usps(train_images), _frame_usps(test_images)
  shape = train_images.shape[1:] + (1,) * (len(train_images.shape) == 3)
  if shape != benchmark.image_shape or train_images.dtype != np.uint8:
    raise ValueError(f"{path}: expected uint8 images {benchmark.image_shape} for {name}; "
                     f"found {train_images.dtype} {shape}")
  return _checked(path, (train_images, train_labels, test_images, test_labels), reading, name=name,
                  num_classes=benchmark.num_classes, mean=benchmark.mean, std=benchmark.std,
                  class_names=class_names or benchmark.class_names or None)


def _of_splits(path, splits, reading):
  name = path.resolve().name
  if not path.is_dir():
    name = pathlib.Path(name.removesuffix(".gz")).stem
  return _checked(
      path, splits[:4], reading, name=name, class_names=splits.class_names or None)


def _load_prepared(name, data_dir, reading):
  """A set of tensorflow-datasets that has no entry here."""
  path = tfds_source.prepared_directory(data_dir, name)
  if path is None:
    raise ValueError(f"name must be one of {', '.join(NAMES)}, the path of one's own files (a "
                     "folder here is ./NAME), or the name of a prepared tensorflow-datasets "
                     f"directory {data_dir}/NAME/VERSION; got {name!r}")
  return _checked(path, tfds_source.read_prepared(path), reading, name=name)


def _find(name, data_dir):
  """`(path, function that reads the splits)` of the first that lies there, or None."""
  benchmark = benchmarks.BENCHMARKS[name]
  if benchmark.prepared:
    prepared = tfds_source.prepared_directory(data_dir, name)
    if prepared:
      return prepared, functools.partial(tfds_source.read_prepared, prepared)
  for directory in _folders(name, data_dir):
    for filenames, read in benchmark.layouts:
      paths = [directory / filename for filename in filenames]
      if all(path.exists() for path in paths) and not _foreign_idx(
          name, directory, own=directory != data_dir):
        return directory, functools.partial(read, *paths)
  for directory in _folders(name, data_dir):
    for filename in benchmark.npz:
      path = directory / filename
      if path.exists():
        return path, functools.partial(formats.read_npz, path)
  return None


def _folders(name, data_dir):
  return data_dir / (benchmarks.BENCHMARKS[name].folder or name), data_dir


def _foreign_idx(name, directory, *, own):
  """The other set that the IDX files in `directory` are known to be, or None.

  Where they may be one of two sets they are the one whose own folder it is.
  """
  plain = directory / benchmarks.IDX_FILES[1]
  zipped = plain.with_name(f"{plain.name}.gz")
  owner = None
  if benchmarks.BENCHMARKS[name].layouts is not benchmarks.IDX_LAYOUTS:
    return None
  if zipped.is_file():
    owner = _IDX_LABELS_SHA256.get(hashlib.sha256(zipped.read_bytes()).hexdigest())
  if owner is None and (zipped.is_file() or plain.is_file()):
    owner = _IDX_COUNTS.get(_label_counts(zipped if zipped.is_file() else plain))
  return None if owner is None or owner == name or own and name in owner.split(" or ") else owner


def _label_counts(path):
  """How often each label is there in an IDX file, zipped or not; none of one that is damaged."""
  try:
    raw = formats.read_bytes(path)
  except ValueError:  # Its reader will tell.
    return ()
  return tuple(np.bincount(np.frombuffer(raw, np.uint8, offset=min(8, len(raw)))).tolist())


def _nothing_found(name, data_dir):
  benchmark, folders = benchmarks.BENCHMARKS[name], _folders(name, data_dir)
  wanted = [f"a prepared tensorflow-datasets directory {name}/VERSION"] * benchmark.prepared
  wanted += [" + ".join(filenames) for filenames, _ in benchmark.layouts]
  wanted += benchmark.npz
  message = (f"{name}: nothing found in {folders[0]} or {folders[1]}; "
             f"any of these will do: {', '.join(wanted)}")
  message += ("; download=True fetches it" if benchmark.downloaded
              else "; it cannot be downloaded")
  for directory in folders:
    if owner := _foreign_idx(name, directory, own=directory == folders[0]):
      message += (f"; the IDX files in {directory} are those of {owner}"
                  + (f", which its own folder tells: {folders[0]}" if " or " in owner else ""))
    for pickle in _PICKLES.get(name, ()):
      if (directory / pickle).exists():
        message += (f"; {directory / pickle} is a pickle, which is never read: take the binary "
                    f"version, {benchmark.layouts[0][0][0]}")
  return message


def _check_fits(path, *images):
  """Refuses to bring rows into memory that has no room for them."""
  needed = sum(of_split.dtype.itemsize * math.prod(of_split.shape) for of_split in images
               if isinstance(of_split, rows.Rows))
  host_memory.check(path, needed, ": data.storage='stream' (Reading(in_files=True)) leaves them "
                    "there")


def _checked(path, arrays, reading, **options):
  """The set of four arrays, or of rows that stay in their files where they may."""
  train_images, train_labels, test_images, test_labels = arrays
  if not reading.in_files:
    _check_fits(path, train_images, test_images)
    train_images, test_images = rows.in_memory(train_images), rows.in_memory(test_images)
  try:
    return dataset.from_arrays(train_images, train_labels, test_images, test_labels, **options)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _digits():
  sklearn = extras.load("sklearn.datasets", "digits comes with scikit-learn", "runs")
  pixels, labels = sklearn.load_digits(return_X_y=True)
  images = _frame(pixels.reshape(-1, 8, 8, 1) * (255 / 16))
  test = dataset.stratified_indices(labels, 500, num_classes=10, seed=0)
  train = np.setdiff1d(np.arange(len(labels)), test)
  return dataset.from_arrays(images[train], labels[train], images[test], labels[test],
                             num_classes=10, name="digits")


def _frame_usps(images):
  """uint8 `[n, 16, 16]` or `[n, 16, 16, 1]` framed; anything else left for the checks."""
  if images.dtype == np.uint8 and images.shape[1:] in ((16, 16), (16, 16, 1)):
    return _frame(images.reshape(-1, 16, 16, 1))
  return images


def _frame(images):
  """MNIST's framing: `[n, H, W, 1]` in 0..255 resized to 20x20, padded by 4, as uint8."""
  _, height, width, _ = images.shape
  vertical, horizontal = _bilinear(height, 20), _bilinear(width, 20)
  resized = np.einsum("ih,nhw,jw->nij", vertical, images[..., 0], horizontal, optimize=True)
  padded = np.pad(np.rint(resized).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
  return padded[..., None]


def _bilinear(size, new_size):
  """Weights `[new_size, size]` of bilinear enlargement, pixel centres at half integers."""
  centres = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))
