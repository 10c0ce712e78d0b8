"""Sets that are directories of pictures, PASCAL-VOC, CUB-200-2011 and Tiny ImageNet.

Paths in, numpy arrays out: images as uint8 `[n, H, W, 3]`, labels as int32 `[n]`. The first two are
resized to 224x224, bilinearly and whatever their proportions. Every reader raises FileNotFoundError
for a missing file, and ValueError for one that is damaged or contradicts another, in one line that
names the file.
"""

import pathlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dd_jax.datasets import formats
from dd_jax.datasets import picture_files
from dd_jax.datasets.splits import Splits

VOC_DIRECTORIES = ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012")
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
               "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
               "sheep", "sofa", "train", "tvmonitor")
CUB200_DIRECTORY = "CUB_200_2011"
TINY_IMAGENET_DIRECTORY = "tiny-imagenet-200"
SIZE = 224

_TINY_SIZE = 64

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path):
  """PASCAL-VOC, every object cut out: one image and one of 20 labels for each box.

  The split trainval is for training. Objects marked difficult or truncated are kept. A box names
  its first and last pixels, counted from 1; fractions, which VOC2012 has, are rounded.
  Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html

  Args:
    path: the directory `VOC2007` or `VOC2012`, with `Annotations`, `ImageSets/Main` and
      `JPEGImages` for trainval and test.

  Returns:
    `(train_images [n, 224, 224, 3], train_labels [n], test_images, test_labels)`.
  """
  path = pathlib.Path(path)
  return *_voc_split(path, "trainval"), *_voc_split(path, "test")


def read_cub200(path):
  """CUB-200-2011, whole pictures of 200 kinds of birds.

  Source: https://www.vision.caltech.edu/datasets/cub_200_2011/

  Args:
    path: the directory `CUB_200_2011`, with `images.txt`, `image_class_labels.txt`,
      `train_test_split.txt` and `images`.

  Returns:
    `(train_images [n, 224, 224, 3], train_labels [n], test_images, test_labels)`.
  """
  path = pathlib.Path(path)
  names = _cub_column(path / "images.txt")
  classes = _cub_integers(path / "image_class_labels.txt", names, 1, 200)
  is_training = _cub_integers(path / "train_test_split.txt", names, 0, 1)
  arrays = []
  for split in (1, 0):
    chosen = [key for key in names if is_training[key] == split]
    images = np.empty((len(chosen), SIZE, SIZE, 3), np.uint8)
    for row, key in zip(images, chosen):
      row[:] = _resize(_read_rgb(path / "images" / names[key]))
    arrays += [images, np.array([classes[key] - 1 for key in chosen], np.int32)]
  return tuple(arrays)


def read_tiny_imagenet(path):
  """Tiny ImageNet, of which the validation pictures are the test split; grey ones become RGB.

  Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip

  Args:
    path: the directory `tiny-imagenet-200`, with `wnids.txt`, `train/WNID/images` and, for val,
      `val_annotations.txt` and `images`. The pictures of its test split have no labels.

  Returns:
    `Splits` of `[n, 64, 64, 3]`, classes in the order of their WordNet ids. They are named by the
    first word of `words.txt`, or by the id where it has none or another class has the same.
  """
  path = pathlib.Path(path)
  wnids = sorted(_read_text(path / "wnids.txt").split())
  classes = {wnid: label for label, wnid in enumerate(wnids)}
  if not classes or len(classes) < len(wnids):
    raise ValueError(f"{path / 'wnids.txt'}: expected a WordNet id in every line, once; "
                     f"found {len(classes)} in {len(wnids)} lines")
  pictures, labels = [], []
  for wnid, label in classes.items():
    folder = path / "train" / wnid / "images"
    found = sorted(folder.glob("*.JPEG"))
    if not found:
      raise FileNotFoundError(f"{folder}: no picture *.JPEG")
    pictures += found
    labels += len(found) * [label]
  validation = {path / "val" / "images" / name: classes[wnid]
                for name, wnid in _tiny_annotations(path / "val" / "val_annotations.txt", classes)}
  return Splits(_tiny_pictures(pictures), np.array(labels, np.int32),
                _tiny_pictures(list(validation)), np.array(list(validation.values()), np.int32),
                _tiny_names(path / "words.txt", wnids))


def _tiny_annotations(path, classes):
  """Yields `(file name, WordNet id)` of the lines `name, id, box`, parted by tabs."""
  seen = set()
  for number, line in enumerate(_read_text(path).splitlines(), 1):
    name, wnid = (line.split("\t") + [""])[:2]
    if wnid not in classes or name in seen or not name.endswith(".JPEG") or "/" in name:
      raise ValueError(f"{path}: expected a new picture *.JPEG and an id of wnids.txt in line "
                       f"{number}; found {line[:80]!r}")
    seen.add(name)
    yield name, wnid
  if not seen:
    raise ValueError(f"{path}: expected a line for every picture; found none")


def _tiny_pictures(paths):
  images = np.empty((len(paths), _TINY_SIZE, _TINY_SIZE, 3), np.uint8)
  for row, path in zip(images, paths):
    picture = _read_rgb(path)
    if picture.size != (_TINY_SIZE, _TINY_SIZE):
      raise ValueError(f"{path}: expected a picture of {_TINY_SIZE}x{_TINY_SIZE}; "
                       f"found {picture.width}x{picture.height}")
    row[:] = picture
  return images


def _tiny_names(path, wnids):
  words = {}
  if path.is_file():
    words = dict(line.split("\t", 1) for line in _read_text(path).splitlines() if "\t" in line)
  names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
  return tuple(name if name and names.count(name) == 1 else wnid
               for name, wnid in zip(names, wnids))


def _voc_split(path, split):
  names = _read_text(path / "ImageSets" / "Main" / f"{split}.txt").split()
  annotations = [path / "Annotations" / f"{name}.xml" for name in names]
  objects = [_voc_objects(annotation) for annotation in annotations]
  labels = np.array([label for of_one in objects for label, _ in of_one], np.int32)
  images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
  rows = iter(images)
  for name, annotation, of_one in zip(names, annotations, objects):
    picture = _read_rgb(path / "JPEGImages" / f"{name}.jpg")
    for _, (xmin, ymin, xmax, ymax) in of_one:
      if not (1 <= xmin <= xmax <= picture.width and 1 <= ymin <= ymax <= picture.height):
        raise ValueError(f"{annotation}: expected boxes of at least one pixel within "
                         f"{picture.width}x{picture.height}; found "
                         f"{dict(zip(_SIDES, (xmin, ymin, xmax, ymax)))}")
      next(rows)[:] = _resize(picture.crop((xmin - 1, ymin - 1, xmax, ymax)))
  return images, labels


def _voc_objects(path):
  """`[(label, (xmin, ymin, xmax, ymax)), ...]` of one annotation, pixels counted from 1."""
  text = _read_text(path)
  # A document type could declare entities, which grow without bound; these files have none. A
  # parser takes null characters for UTF-16, in which one would hide.
  for refused in ("<!DOCTYPE", "\0"):
    if refused in text:
      raise ValueError(f"{path}: expected XML in UTF-8 without a document type; found {refused!r}")
  try:
    root = ElementTree.fromstring(text)
  except ElementTree.ParseError as error:
    raise ValueError(f"{path}: expected XML; found {formats.one_line(error)}") from error
  if root.tag != "annotation":
    raise ValueError(f"{path}: expected an <annotation>; found <{root.tag}>")
  objects = []
  for element in root.iterfind("object"):
    name, *sides = (element.findtext(tag, "").strip()
                    for tag in ("name", *(f"bndbox/{side}" for side in _SIDES)))
    if name not in VOC_CLASSES:
      raise ValueError(f"{path}: expected objects of {', '.join(VOC_CLASSES)}; found {name!r}")
    try:
      box = tuple(round(float(side)) for side in sides)
    except (OverflowError, ValueError) as error:
      raise ValueError(f"{path}: expected a number for every side of a bndbox; "
                       f"found {dict(zip(_SIDES, sides))}") from error
    objects.append((VOC_CLASSES.index(name), box))
  return objects


def _cub_column(path):
  """`{image id: value}` of the lines `id value`, in their order."""
  column = {}
  for number, line in enumerate(_read_text(path).splitlines(), 1):
    fields = line.split()
    if len(fields) != 2 or fields[0] in column:
      raise ValueError(f"{path}: expected 'id value' with a new id in line {number}; "
                       f"found {line[:80]!r}")
    column[fields[0]] = fields[1]
  return column


def _cub_integers(path, names, least, most):
  """The column of integers `least..most` for exactly the images in `names`."""
  column = _cub_column(path)
  if column.keys() != names.keys():
    raise ValueError(f"{path}: expected a line for each of the {len(names)} images of images.txt; "
                     f"found {len(column)} lines; id {min(column.keys() ^ names.keys())} "
                     "is in one file alone")
  allowed = {str(value): value for value in range(least, most + 1)}
  for key, value in column.items():
    if value not in allowed:
      raise ValueError(f"{path}: expected {least}..{most} for image {key}; found {value!r}")
  return {key: allowed[value] for key, value in column.items()}


def _read_text(path):
  try:
    return formats.read_bytes(path).decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: expected text in UTF-8; found {formats.one_line(error)}") from error


def _read_rgb(path):
  return picture_files.read(path).convert("RGB")


def _resize(picture):
  return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
