"""Folders of pictures, a sub-folder for each class: paths in, pictures that stay in their files.

Letters: n pictures, H W C height, width and channels.
"""

import concurrent.futures
import os
import pathlib

import numpy as np

from dd_jax.datasets import picture_files
from dd_jax.datasets.splits import Reading, Splits

_SPLITS = ("train", "val", "test")
_HIDDEN = ("Thumbs.db",)  # And all that begins with a dot.


class Pictures:
  """The pictures of a split, decoded whenever they are read."""

  def __init__(self, paths: list[str], frame: picture_files.Frame):
    self._paths, self._frame = [*map(os.path.abspath, paths)], frame
    self.shape = (len(paths), *frame.shape)
    self.dtype = frame.dtype

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    def decoded(place):
      path = self._paths[place]
      return picture_files.framed(path, picture_files.read(path), self._frame)

    images = np.empty((len(places), *self._frame.shape), self.dtype)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as decoders:
      for image, found in zip(images, decoders.map(decoded, places)):
        image[:] = found
    return images


def read(path: str | os.PathLike, reading: Reading) -> Splits:
  """The splits of `train/CLASS/*` and `test/CLASS/*`, or the one split of `CLASS/*`.

  A folder `val` stands for a missing `test`, and belongs to the training split beside one. Pictures
  are PNG or JPEG files, in the order of their names, whatever their classes: numbered ones keep
  the order of the set that they were written from. Hidden files are passed over.

  Args:
    path: the folder.
    reading: its `image_shape` and `resize`; without a shape all have that of the first picture.

  Raises:
    ValueError, OSError: an empty folder, a file that is no picture, a first picture that is
      damaged, or a class that the training split lacks.
  """
  path = pathlib.Path(path)
  if not _has_splits(path):
    classes = _classes(path)
    paths, labels = _split(path, classes)
    return Splits(Pictures(paths, _frame(paths, reading)), labels, None, None, _names(classes))
  folders = {os.path.basename(folder): folder for folder in _folders(path)}
  if "train" not in folders or not folders.keys() <= set(_SPLITS):
    raise ValueError(f"{path}: expected the folders train, val and test, the last two if need be; "
                     f"found {', '.join(folders)}")
  classes = _classes(folders["train"])
  paths, labels = _split(folders["train"], classes)
  frame = _frame(paths, reading)
  others = [_split(folders[name], classes) for name in _SPLITS[1:] if name in folders]
  if len(others) == 2:
    paths, labels = paths + others[0][0], np.concatenate([labels, others[0][1]])
  train = Pictures(paths, frame), labels
  if not others:
    return Splits(*train, None, None, _names(classes))
  test_paths, test_labels = others[-1]
  return Splits(*train, Pictures(test_paths, frame), test_labels, _names(classes))


def _names(classes):
  """The names of the folders, whose bytes need not be text."""
  return tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes)


def _has_splits(path):
  """Whether a folder with the name of a split holds folders: one of pictures is a class."""
  return any(entry.is_dir() for name in _SPLITS if (path / name).is_dir()
             for entry in _visible(path / name))


def _frame(paths, reading):
  return picture_files.frame_of(paths[0], picture_files.read(paths[0]), reading)


def _split(folder, classes):
  """`(paths, labels [n] int32)` of the pictures of one split."""
  found = []
  for of_class in _folders(folder):
    name = os.path.basename(of_class)
    if name not in classes:
      raise ValueError(f"{of_class}: expected one of the classes of the training split; "
                       f"found {name!r}")
    pictures = _visible(of_class)
    for entry in pictures:
      if not (entry.name.lower().endswith(picture_files.SUFFIXES) and entry.is_file()):
        raise ValueError(f"{entry.path}: expected a picture ({', '.join(picture_files.SUFFIXES)}); "
                         f"found {'a folder' if entry.is_dir() else 'something else'}")
    if not pictures:
      raise ValueError(f"{of_class}: expected at least one picture; found none")
    found += [(entry.name, classes[name], entry.path) for entry in pictures]
  _, labels, paths = zip(*sorted(found))
  return list(paths), np.array(labels, np.int32)


def _classes(folder):
  """`{name: label}` of its sub-folders."""
  return {os.path.basename(path): label for label, path in enumerate(_folders(folder))}


def _folders(folder):
  """The paths of its sub-folders, which are all that it may hold."""
  entries = _visible(folder)
  for entry in entries:
    if not entry.is_dir():
      raise ValueError(f"{entry.path}: expected a folder for each class; found a file beside them")
  if not entries:
    raise ValueError(f"{folder}: expected a folder for each class; found none")
  return [entry.path for entry in entries]


def _visible(folder):
  """What it holds but for hidden files, sorted by name."""
  with os.scandir(folder) as entries:
    return sorted((entry for entry in entries
                   if not entry.name.startswith(".") and entry.name not in _HIDDEN),
                  key=lambda entry: entry.name)
