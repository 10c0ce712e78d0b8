"""Where the named sets come from: `load` holds the order of looking, in one place."""

import functools
import hashlib
import os
import pathlib

import numpy as np

from dd_jax import extras
from dd_jax.datasets import dataset
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from dd_jax.datasets import own_files
from dd_jax.datasets import rows
from dd_jax.datasets import tfds_source
from dd_jax.datasets.splits import Reading

_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
              "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# MNIST, Fashion-MNIST and KMNIST share file names; the sha256 of the training labels, as in
# tensorflow-datasets' url_checksums, tells which of them lies in a folder.
_IDX_LABELS_SHA256 = {
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c": "mnist",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845": "fashion_mnist",
    "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17": "kmnist",
}
_CIFAR10_PICKLES = ("cifar-10-python.tar.gz", "cifar-10-batches-py")


def _by_split(read):
  """A reader of one split per call, on the files of both splits."""
  def read_both(*paths):
    half = len(paths) // 2
    return *read(*paths[:half]), *read(*paths[half:])
  return read_both


_IDX_LAYOUTS = ((tuple(f"{file}.gz" for file in _IDX_FILES), _by_split(formats.read_idx)),
                (_IDX_FILES, _by_split(formats.read_idx)))
# Name -> ((file names, reader), ...): original files that do, the first as downloaded.
_LAYOUTS = {
    "mnist": _IDX_LAYOUTS,
    "fashion_mnist": _IDX_LAYOUTS,
    "kmnist": _IDX_LAYOUTS,
    "usps": ((("usps.bz2", "usps.t.bz2"), _by_split(formats.read_usps_libsvm)),
             (("zip.train.gz", "zip.test.gz"), _by_split(formats.read_usps_text)),
             (("zip.train", "zip.test"), _by_split(formats.read_usps_text))),
    "svhn_cropped": ((("train_32x32.mat", "test_32x32.mat"), _by_split(formats.read_svhn)),),
    "cifar10": (((formats.CIFAR10_ARCHIVE,), formats.read_cifar10),
                ((formats.CIFAR10_DIRECTORY,), formats.read_cifar10)),
    "voc": tuple(((directory,), directories.read_voc) for directory in directories.VOC_DIRECTORIES),
    "cub200": (((directories.CUB200_DIRECTORY,), directories.read_cub200),),
}
_NOT_DOWNLOADED = ("svhn_small", "voc", "cub200")
_PREPARED = ("mnist", "fashion_mnist", "kmnist", "svhn_cropped", "cifar10")
_NPZ = {  # svhn_cropped stands for the official crops alone, so that no npz will do
    "mnist": ("mnist.npz",),
    "fashion_mnist": ("fashion_mnist.npz",),
    "kmnist": ("kmnist.npz",),
    "usps": ("usps.npz",),
    "svhn_small": ("svhn_small.npz", "svhn_subset.npz"),
    "cifar10": ("cifar10.npz",),
}
# Mean and std of the published recipes; the other sets use those of their training split.
_MEAN_STD = {
    "mnist": ((.1307,), (.3081,)),
    "cifar10": ((.4914, .4822, .4465), (.247, .243, .261)),
    "svhn_cropped": ((.4379, .4440, .4729), (.1980, .2010, .1970)),
    "voc": ((.485, .456, .406), (.229, .224, .225)),  # of ImageNet
    "cub200": ((.4785, .4992, .4022), (.2321, .2277, .2665)),
}
_IMAGE_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "kmnist": (28, 28, 1),
    "usps": (28, 28, 1),
    "svhn_cropped": (32, 32, 3),
    "svhn_small": (32, 32, 3),
    "cifar10": (32, 32, 3),
    "voc": (directories.SIZE, directories.SIZE, 3),
    "cub200": (directories.SIZE, directories.SIZE, 3),
}
_NUM_CLASSES = {"voc": len(directories.VOC_CLASSES), "cub200": 200}  # the other sets have 10
NAMES = ("digits", *_IMAGE_SHAPES)


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
  kB each.

  Args:
    name: one of `NAMES`; the name of any other image set that tensorflow-datasets has prepared in
      `data_dir/NAME/VERSION`, with `image`, `label` and the splits train and test; or a path: of a
      .npz file, or a folder of .npy files, that hold `train_images`, `train_labels`, `test_images`
      and `test_labels` (see `from_arrays`; nothing is unpickled), or of a folder of pictures with
      a sub-folder for each class. Text is a path where it has a slash, or ends as such a file does.
    data_dir: where to look; None means the environment variable DD_JAX_DATA, else
      `~/dd_jax_data`.
    download: whether to fetch the original files into `data_dir/NAME` when nothing is found.
    reading: how files of one's own are read.

  Returns:
    A `Dataset`; the named sets have uint8 images, and K=10 but for `voc` (20) and `cub200` (200).

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
  if own_files.is_path(name) and not tfds_source.prepared_directory(data_dir, name):
    return _of_splits(pathlib.Path(name).expanduser(), own_files.read(name, reading), reading)
  if name not in NAMES:
    return _load_prepared(name, data_dir, reading)
  found = _find(name, data_dir)
  if found is None and download and name not in _NOT_DOWNLOADED:
    filenames, _ = _LAYOUTS[name][0]
    tfds_source.download_files(name, filenames, data_dir / name)
    found = _find(name, data_dir)
  if found is None:
    raise FileNotFoundError(_nothing_found(name, data_dir))

  path, reader = found
  train_images, train_labels, test_images, test_labels = reader()
  if name == "usps":
    train_images, test_images = _frame_usps(train_images), _frame_usps(test_images)
  shape = train_images.shape[1:] + (1,) * (train_images.ndim == 3)
  if shape != _IMAGE_SHAPES[name] or train_images.dtype != np.uint8:
    raise ValueError(f"{path}: expected uint8 images {_IMAGE_SHAPES[name]} for {name}; "
                     f"found {train_images.dtype} {shape}")
  mean, std = _MEAN_STD.get(name, (None, None))
  return _checked(path, (train_images, train_labels, test_images, test_labels), reading, name=name,
                  num_classes=_NUM_CLASSES.get(name, 10), mean=mean, std=std)


def _of_splits(path, splits, reading):
  return _checked(
      path, splits[:4], reading, name=path.name if path.is_dir() else path.stem,
      class_names=splits.class_names or None)


def _load_prepared(name, data_dir, reading):
  """A set of tensorflow-datasets that has no entry here."""
  path = tfds_source.prepared_directory(data_dir, name)
  if path is None:
    raise ValueError(f"name must be one of {', '.join(NAMES)}, the path of one's own files (a "
                     "folder here is ./NAME), or the name of a prepared tensorflow-datasets "
                     f"directory {data_dir}/NAME/VERSION; got {name!r}")
  return _checked(path, tfds_source.read_prepared(path), reading, name=name)


def _find(name, data_dir):
  """`(path, function that reads the four arrays)` of the first that lies there, or None."""
  if name in _PREPARED:
    prepared = tfds_source.prepared_directory(data_dir, name)
    if prepared:
      return prepared, functools.partial(tfds_source.read_prepared, prepared)
  directories = (data_dir / name, data_dir)
  for directory in directories:
    for filenames, read in _LAYOUTS.get(name, ()):
      paths = [directory / filename for filename in filenames]
      if all(path.exists() for path in paths) and not _foreign_idx(name, directory):
        return directory, functools.partial(read, *paths)
  for directory in directories:
    for filename in _NPZ.get(name, ()):
      path = directory / filename
      if path.exists():
        return path, functools.partial(formats.read_npz, path)
  return None


def _foreign_idx(name, directory):
  """The other set that the gzipped IDX files in `directory` are known to be, or None."""
  labels = directory / f"{_IDX_FILES[1]}.gz"
  if _LAYOUTS.get(name) is not _IDX_LAYOUTS or not labels.is_file():
    return None
  owner = _IDX_LABELS_SHA256.get(hashlib.sha256(labels.read_bytes()).hexdigest())
  return None if owner == name else owner


def _nothing_found(name, data_dir):
  wanted = [f"a prepared tensorflow-datasets directory {name}/VERSION"] * (name in _PREPARED)
  wanted += [" + ".join(filenames) for filenames, _ in _LAYOUTS.get(name, ())]
  wanted += _NPZ.get(name, ())
  message = (f"{name}: nothing found in {data_dir / name} or {data_dir}; "
             f"any of these will do: {', '.join(wanted)}")
  message += ("; it cannot be downloaded" if name in _NOT_DOWNLOADED
              else "; download=True fetches it")
  for directory in (data_dir / name, data_dir):
    if owner := _foreign_idx(name, directory):
      message += f"; the IDX files in {directory} are those of {owner}"
    for pickle in _CIFAR10_PICKLES:
      if name == "cifar10" and (directory / pickle).exists():
        message += (f"; {directory / pickle} is a pickle, which is never read: take the binary "
                    f"version, {formats.CIFAR10_ARCHIVE}")
  return message


def _checked(path, arrays, reading, **options):
  """The set of four arrays, or of rows that stay in their files where they may."""
  train_images, train_labels, test_images, test_labels = arrays
  if not reading.in_files:
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
  rows, columns = _bilinear(height, 20), _bilinear(width, 20)
  resized = np.einsum("ih,nhw,jw->nij", rows, images[..., 0], columns, optimize=True)
  padded = np.pad(np.rint(resized).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
  return padded[..., None]


def _bilinear(size, new_size):
  """Weights `[new_size, size]` of bilinear enlargement, pixel centres at half integers."""
  centres = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
  return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))
