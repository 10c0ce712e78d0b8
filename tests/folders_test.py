"""Folders of pictures and of .npy files: values, rules, and what broken ones say."""

import pathlib
import shutil
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from dd_jax import datasets
from dd_jax.datasets import host_memory
from dd_jax.datasets import npy_files
from dd_jax.datasets import own_files
from dd_jax.datasets import picture_files
from dd_jax.datasets import rows
from dd_jax.datasets.splits import Reading
from tests.dataset_files import random_bytes
from tests.dataset_files import write_picture
from tests.one_line import raises

LABELS = np.arange(12) % 3
NAMES = ("bird", "cat", "dog")


def write_class(folder, images, first=0):
  for place, image in enumerate(images, first):
    write_picture(folder / f"{place:03}.png", image[..., 0] if image.shape[-1] == 1 else image)


def write_split(folder, images, labels, names=NAMES):
  """The pictures, numbered, in the order in which they are read."""
  for place, (image, label) in enumerate(zip(images, labels)):
    write_class(folder / names[label], [image], first=place)
  return images, labels


def load(path, **reading):
  return datasets.load(path, reading=Reading(**reading))


# Layouts


@pytest.mark.parametrize("channels", [1, 3])
def test_train_and_test_come_back_as_they_were(tmp_path, channels):
  images = random_bytes((18, 28, 28, channels))
  train = write_split(tmp_path / "mine/train", images[:12], LABELS)
  test = write_split(tmp_path / "mine/test", images[12:], LABELS[:6])
  splits = own_files.read(tmp_path / "mine", Reading())
  for found in (splits.train_images, splits.test_images):
    assert isinstance(found, rows.Rows) and not isinstance(found, np.ndarray)
  assert splits.train_images.shape == (12, 28, 28, channels)
  np.testing.assert_array_equal(splits.train_images.read(np.array([7, 0, 7])), train[0][[7, 0, 7]])
  dataset = datasets.load(tmp_path / "mine")
  assert dataset.name == "mine" and dataset.class_names == NAMES and dataset.num_classes == 3
  assert dataset.train_images.dtype == np.uint8
  for name, array in zip(("train_images", "train_labels", "test_images", "test_labels"),
                         (*train, *test)):
    np.testing.assert_array_equal(getattr(dataset, name), array)


def test_val_stands_for_test_and_else_belongs_to_training(tmp_path):
  images = random_bytes((24, 4, 4, 3))
  train = write_split(tmp_path / "train", images[:12], LABELS)
  val = write_split(tmp_path / "val", images[12:18], LABELS[:6])
  dataset = load(tmp_path)
  np.testing.assert_array_equal(dataset.train_images, train[0])
  np.testing.assert_array_equal(dataset.test_images, val[0])
  test = write_split(tmp_path / "test", images[18:], LABELS[:6])
  dataset = load(tmp_path)
  np.testing.assert_array_equal(dataset.train_images, np.concatenate([train[0], val[0]]))
  np.testing.assert_array_equal(dataset.train_labels, np.concatenate([train[1], val[1]]))
  np.testing.assert_array_equal(dataset.test_images, test[0])


@pytest.mark.parametrize("inside", ["", "train"])
def test_one_split_is_split_by_class_and_always_in_the_same_way(tmp_path, inside):
  images, labels = write_split(tmp_path / inside, random_bytes((12, 4, 4, 1)), LABELS)
  dataset = load(tmp_path, test_fraction=.5)
  assert np.bincount(dataset.test_labels).tolist() == [2, 2, 2]
  together = np.concatenate([dataset.train_images, dataset.test_images])
  np.testing.assert_array_equal(np.sort(together.reshape(12, -1), 0),
                                np.sort(images.reshape(12, -1), 0))
  for image, label in zip(dataset.test_images, dataset.test_labels):
    assert label == labels[(images == image).all((1, 2, 3)).argmax()]
  np.testing.assert_array_equal(load(tmp_path, test_fraction=.5).test_images, dataset.test_images)
  assert len(load(tmp_path, test_fraction=.01).test_labels) == 3  # One of every class at least.
  assert len(load(tmp_path, test_fraction=.99).train_labels) == 3
  (tmp_path / inside / "cat/004.png").unlink()
  (tmp_path / inside / "cat/007.png").unlink()
  (tmp_path / inside / "cat/010.png").unlink()
  with raises(ValueError, f"{tmp_path}: expected at least two examples of every class, one of them "
                          "for testing; found 1 of 'cat'"):
    load(tmp_path)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
  for name in ("bus", "test", "train"):
    write_class(tmp_path / name, random_bytes((3, 4, 4, 1)))
  assert load(tmp_path).class_names == ("bus", "test", "train")


def test_hidden_files_are_passed_over_and_suffixes_of_any_case_taken(tmp_path):
  images, _ = write_split(tmp_path / "train", random_bytes((12, 4, 4, 1)), LABELS)
  shutil.copytree(tmp_path / "train", tmp_path / "test")
  for name in (".DS_Store", "train/.hidden", "train/Thumbs.db", "train/cat/Thumbs.db",
               "test/dog/.DS_Store"):
    (tmp_path / name).write_bytes(b"not a picture")
  (tmp_path / "train/cat/001.png").rename(tmp_path / "train/cat/001.PNG")
  write_picture(tmp_path / "train/dog/100.JPEG", np.full((4, 4), 200), "JPEG")
  write_picture(tmp_path / "train/dog/101.jpg", np.full((4, 4), 100), "JPEG")
  dataset = load(tmp_path)
  np.testing.assert_array_equal(dataset.train_images[:12], images)
  np.testing.assert_allclose(dataset.train_images[12:, 0, 0, 0], [200, 100], atol=3)


@pytest.mark.parametrize("change, text", [
    (lambda root: (root / "train/cat/notes.txt").touch(),
     "train/cat/notes.txt: expected a picture (.png, .jpg, .jpeg); found something else"),
    (lambda root: (root / "test/cat/more.png").mkdir(),
     "test/cat/more.png: expected a picture (.png, .jpg, .jpeg); found a folder"),
    (lambda root: (root / "train/notes.txt").touch(),
     "train/notes.txt: expected a folder for each class; found a file beside them"),
    (lambda root: (root / "labels.csv").touch(),
     "labels.csv: expected a folder for each class; found a file beside them"),
    (lambda root: (root / "more").mkdir(), "expected the folders train, val and test, the last two "
                                           "if need be; found more, test, train"),
    (lambda root: shutil.rmtree(root / "train"), "if need be; found test"),
    (lambda root: (root / "train/ant").mkdir(),
     "train/ant: expected at least one picture; found none"),
    (lambda root: shutil.copytree(root / "test/cat", root / "test/ant"),
     "test/ant: expected one of the classes of the training split; found 'ant'"),
    (lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()],
     "train: expected a folder for each class; found none"),
    (lambda root: [shutil.rmtree(path) for path in (root / "test").iterdir()],
     "test: expected a folder for each class; found none"),
    (lambda root: [shutil.rmtree(root / split / name) for split in ("train", "test")
                   for name in ("cat", "dog")], "num_classes must be at least 2; got 1"),
    (lambda root: write_picture(root / "train/cat/004.png", np.zeros((4, 5))),
     "train/cat/004.png: expected a picture of (H, W) = (4, 4), as "),
    (lambda root: write_picture(root / "test/cat/001.png", np.zeros((5, 4))),
     "train/bird/000.png is; found (5, 4): set data.image_shape and data.resize, which bring all"),
    (lambda root: write_picture(root / "test/cat/001.png", np.zeros((4, 4, 3))),
     "test/cat/001.png: expected a grey picture, as "),
    (lambda root: write_picture(root / "test/cat/001.png", np.zeros((4, 4, 3))),
     "train/bird/000.png is; found RGB: set data.image_shape, whose channels all are brought to"),
    (lambda root: Image.fromarray(np.zeros((4, 4), np.uint16)).save(root / "train/dog/002.png"),
     "train/dog/002.png: expected uint8 pixels, as "),
    (lambda root: (root / "train/dog/002.png").write_bytes(b"GIF"),
     "train/dog/002.png: expected a whole PNG or JPEG picture; found UnidentifiedImageError"),
])
def test_folders_that_are_wrong(tmp_path, change, text):
  root = tmp_path / "mine"
  for split in ("train", "test"):
    write_split(root / split, random_bytes((12, 4, 4, 1)), LABELS)
  change(root)
  with raises(ValueError, text) as error:
    load(root)
  assert str(error.value).startswith(str(root))


# Modes of pictures, which are read one by one


def framed(tmp_path, picture, name="picture.png", image_shape=None, **reading):
  path = tmp_path / name
  (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
  found = picture_files.read(path)
  return picture_files.framed(path, found, picture_files.frame_of(
      path, found, Reading(image_shape, **reading)))


def palette(transparency=None):
  """Two pixels, of red (transparent, if at all) and of blue."""
  picture = Image.new("P", (2, 1))
  picture.putpalette([255, 0, 0, 0, 0, 255])
  picture.putpixel((1, 0), 1)
  if transparency is not None:
    picture.info["transparency"] = transparency
  return picture


GREY = np.array([[0, 100, 255]], np.uint8)
RED_BLUE = [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("picture, expected", [
    (GREY, GREY[..., None]),
    (GREY > 50, [[[0], [255], [255]]]),
    (np.stack([GREY, [[255, 255, 0]]], -1).astype(np.uint8), [[[0], [100], [255]]]),  # LA
    (np.stack([GREY, [[0, 51, 0]]], -1).astype(np.uint8), [[[255], [224], [255]]]),
    (np.array(RED_BLUE, np.uint8), RED_BLUE),
    (np.array([[[255, 0, 0, 255], [0, 0, 255, 51]]], np.uint8), [[[255, 0, 0], [204, 204, 255]]]),
    (palette(), RED_BLUE),
    (palette(bytes([0, 255])), [[[255, 255, 255], [0, 0, 255]]]),
    (palette(0), [[[255, 255, 255], [0, 0, 255]]]),
    (np.array([[0, 1000, 65535]], np.uint16), [[[0], [1000], [65535]]]),
], ids=["L", "1", "LA opaque", "LA", "RGB", "RGBA", "P", "P bytes", "P index", "I;16"])
def test_modes(tmp_path, picture, expected):
  found = framed(tmp_path, picture)
  assert found.dtype == (np.uint16 if np.max(expected) > 255 else np.uint8)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_several_channels_of_16_bits_are_refused(tmp_path, colour, channels):
  """Decoding would keep the upper half of each. Written by hand: Pillow has no such pictures."""
  def chunk(kind, content):
    return (struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content)))

  path = tmp_path / "deep.png"
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(
      b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)) + chunk(
          b"IDAT", zlib.compress(bytes(1 + 2 * channels))) + chunk(b"IEND", b""))
  with raises(ValueError, "or 16 of grey alone; found 16 of several channels"):
    picture_files.read(path)


def test_a_grey_or_colour_that_stands_for_transparent_is_white(tmp_path):
  picture = Image.fromarray(GREY)
  picture.info["transparency"] = 100
  np.testing.assert_array_equal(framed(tmp_path, picture), [[[0], [255], [255]]])
  picture = Image.fromarray(np.array(RED_BLUE, np.uint8))
  picture.info["transparency"] = (255, 0, 0)
  np.testing.assert_array_equal(framed(tmp_path, picture), [[[255] * 3, [0, 0, 255]]])


def test_cmyk_becomes_rgb(tmp_path):
  picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
  np.testing.assert_allclose(framed(tmp_path, picture, "picture.jpg")[8, 8], [255, 0, 0], atol=6)


def test_channels_are_those_of_image_shape(tmp_path):
  np.testing.assert_array_equal(framed(tmp_path, GREY, image_shape=(1, 3, 3)),
                                np.repeat(GREY[..., None], 3, -1))
  deep = np.array([[0, 1000, 65535]], np.uint16)
  np.testing.assert_array_equal(framed(tmp_path, deep, image_shape=(1, 3, 3)),
                                np.repeat(deep[..., None], 3, -1))
  np.testing.assert_array_equal(
      framed(tmp_path, np.array(RED_BLUE, np.uint8), image_shape=(1, 2, 1)), [[[76], [29]]])
  with raises(ValueError, "image_shape must have 1 or 3 channels for pictures; got (1, 3, 2)"):
    framed(tmp_path, GREY, image_shape=(1, 3, 2))


def test_grey_pictures_follow_a_first_one_in_colour(tmp_path):
  images = random_bytes((12, 4, 4, 3))
  write_split(tmp_path, images, LABELS)
  write_picture(tmp_path / "dog/005.png", GREY[:, :1].repeat(4, 0).repeat(4, 1) + 7)
  splits = own_files.read(tmp_path, Reading())
  assert splits.train_images.shape[1:] == (4, 4, 3)
  found = rows.in_memory(splits.train_images), rows.in_memory(splits.test_images)
  assert (np.concatenate(found) == 7).all((1, 2, 3)).sum() == 1


# Sizes of pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_border_is_black_and_even(tmp_path, dtype):
  picture = random_bytes((3, 4)).astype(dtype)
  found = framed(tmp_path, picture, image_shape=(5, 8, 3))
  assert found.dtype == dtype
  np.testing.assert_array_equal(found[1:4, 2:6], np.repeat(picture[..., None], 3, -1))
  assert found.sum() == 3 * picture.sum()
  for shape in ((6, 8, 1), (5, 7, 1), (1, 8, 1)):
    with raises(ValueError, f"picture.png: expected a picture of (H, W) = {shape[:2]} less an even "
                            "border; found (3, 4): data.resize=stretch or crop takes any"):
      framed(tmp_path, picture, image_shape=shape)


@pytest.mark.parametrize("kind", [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_stretch_and_crop(tmp_path, kind):
  dtype, channels = kind
  ramp = np.tile(np.arange(8) * 30, (4, 1)).astype(dtype)  # 4 x 8, brighter to the right.
  picture = np.repeat(ramp[..., None], 3, -1) if channels == 3 else ramp
  stretched = framed(tmp_path, picture, image_shape=(4, 4, channels), resize="stretch")
  cropped = framed(tmp_path, picture, image_shape=(4, 4, channels), resize="crop")
  assert stretched.dtype == cropped.dtype == dtype and stretched.shape == (4, 4, channels)
  # Bilinear at half the size: a triangle of weights 1 3 3 1, and what is left of it at the ends.
  np.testing.assert_allclose(stretched[2, :, 0], [24, 75, 135, 186], atol=3)
  np.testing.assert_array_equal(cropped[2, :, 0], ramp[2, 2:6])
  enlarged = framed(tmp_path, picture, image_shape=(8, 8, channels), resize="crop")
  assert enlarged.shape == (8, 8, channels)
  assert 45 <= enlarged[..., 0].min() and enlarged[..., 0].max() <= 165  # Of the columns 2 to 5.
  same = framed(tmp_path, picture, image_shape=(4, 8, channels), resize="stretch")
  np.testing.assert_array_equal(same[..., 0], ramp)


def test_pictures_of_any_size_become_one_set(tmp_path):
  for place in range(12):
    write_picture(tmp_path / NAMES[place % 3] / f"{place}.png",
                  random_bytes((5 + place, 9 - place % 2, 3)[:3 if place % 4 else 2]))
  for resize in ("stretch", "crop"):
    dataset = load(tmp_path, image_shape=(6, 6, 3), resize=resize)
    assert dataset.train_images.shape == (9, 6, 6, 3) and dataset.test_images.shape[0] == 3
  with raises(ValueError, "(6, 6) less an even border; found"):
    load(tmp_path, image_shape=(6, 6, 3))


@pytest.mark.parametrize("change, text", [
    ({"image_shape": (4, 4)}, "image_shape must be three positive integers (H, W, C); got (4, 4)"),
    ({"image_shape": (4, 0, 1)}, "three positive integers (H, W, C); got (4, 0, 1)"),
    ({"image_shape": (4, 4., 1)}, "three positive integers (H, W, C); got (4, 4.0, 1)"),
    ({"resize": "fit"}, "resize must be one of border, crop, stretch; got 'fit'"),
    ({"label": 3}, "label must be the name of a column; got 3"),
    ({"test_fraction": 0.}, "test_fraction must lie in (0, 1); got 0.0"),
    ({"test_fraction": 1}, "test_fraction must lie in (0, 1); got 1"),
    ({"test_fraction": float("nan")}, "test_fraction must lie in (0, 1); got nan"),
])
def test_readings_that_are_wrong(tmp_path, change, text):
  with raises(ValueError, text):
    load(tmp_path, **change)


# Paths


def test_what_is_a_path(tmp_path, monkeypatch):
  for name in ("a/b", "./a", "/a", "a.npz", "a.csv", "a.parquet", "~/a", pathlib.Path("a")):
    assert own_files.is_path(name), name
  for name in ("mnist", "a", "my_data:digits", "a.txt"):
    assert not own_files.is_path(name), name
  with raises(FileNotFoundError, f"{tmp_path}/none: no such file or folder; it may be a .npz "):
    datasets.load(tmp_path / "none")
  (tmp_path / "a.txt").touch()
  with raises(ValueError, f"{tmp_path}/a.txt: expected a .npz file, a folder of .npy files, "):
    datasets.load(tmp_path / "a.txt")
  write_split(tmp_path / "mine.v2", random_bytes((12, 4, 4, 1)), LABELS)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert datasets.load("~/mine.v2").name == "mine.v2"
  monkeypatch.chdir(tmp_path)
  assert datasets.load("./mine.v2").name == "mine.v2"


# .npy files


def write_npy(folder, *, dtype=np.uint8, shape=(5, 4, 3), num_train=12, num_test=6):
  folder.mkdir(exist_ok=True)
  arrays = {"train_images": random_bytes((num_train, *shape)).astype(dtype),
            "train_labels": np.arange(num_train) % 3,
            "test_images": random_bytes((num_test, *shape), 1).astype(dtype),
            "test_labels": np.arange(num_test) % 3}
  for name, array in arrays.items():
    np.save(folder / f"{name}.npy", array)
  return arrays


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f4", ">f8", "<f2"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)])
def test_npy_files(tmp_path, dtype, shape):
  arrays = write_npy(tmp_path, dtype=dtype, shape=shape)
  splits = own_files.read(tmp_path, Reading())
  images = splits.train_images
  assert isinstance(images, rows.Rows) and images.shape == (12, 5, 4, shape[2] if shape[2:] else 1)
  held = "f4" if dtype == "<f2" else np.dtype(dtype).newbyteorder("=")
  assert images.dtype == held and images.dtype.isnative
  expected = arrays["train_images"].reshape(images.shape)
  for places in ([3], [11, 0, 0, 5], []):
    found = images.read(np.array(places, int))
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, expected[np.array(places, int)])
  dataset = datasets.load(tmp_path)
  np.testing.assert_array_equal(dataset.train_images, expected)
  np.testing.assert_array_equal(dataset.test_images.reshape(arrays["test_images"].shape),
                                arrays["test_images"])
  np.testing.assert_array_equal(dataset.train_labels, arrays["train_labels"])
  assert dataset.name == tmp_path.name and dataset.class_names == ()


def test_npy_labels_are_of_any_kind_and_a_test_split_may_be_missing(tmp_path):
  arrays = write_npy(tmp_path)
  np.save(tmp_path / "train_labels.npy", np.array(NAMES)[LABELS])
  (tmp_path / "test_images.npy").unlink()
  with raises(FileNotFoundError, "test_images.npy: no such file"):
    datasets.load(tmp_path)
  (tmp_path / "test_labels.npy").unlink()
  dataset = load(tmp_path, test_fraction=.25)
  assert dataset.class_names == NAMES
  assert len(dataset.train_labels) == 9 and sorted(dataset.test_labels) == [0, 1, 2]
  for image, label in zip(dataset.test_images, dataset.test_labels):
    place = (arrays["train_images"] == image).all((1, 2, 3)).argmax()
    assert label == LABELS[place]
  np.save(tmp_path / "train_labels.npy", np.eye(2)[[0] * 11 + [1]])
  with raises(ValueError, f"{tmp_path}: expected at least two examples of every class, one of them "
                          "for testing; found 1 of 1"):
    datasets.load(tmp_path)
  np.save(tmp_path / "train_labels.npy", LABELS + .5)
  with raises(ValueError, f"{tmp_path}: train_labels must be [n] integers or strings"):
    datasets.load(tmp_path)


def rewritten(change, name="train_images"):
  """A change to the bytes of one file."""
  def write(root):
    path = root / f"{name}.npy"
    path.write_bytes(change(path.read_bytes()))
  return write


def saved(array, name="train_images"):
  return lambda root: np.save(root / f"{name}.npy", array)


@pytest.mark.parametrize("change, text", [
    (rewritten(lambda raw: raw[:-1]),
     "train_images.npy: expected 848 bytes for uint8 [12, 5, 4, 3]; found 847"),
    (rewritten(lambda raw: raw + b"x"), "expected 848 bytes for uint8 [12, 5, 4, 3]; found 849"),
    (rewritten(lambda raw: raw[:50]), "train_images.npy: expected a .npy file; found ValueError: "),
    (rewritten(lambda raw: b""), "train_images.npy: expected a .npy file; found ValueError: "),
    (rewritten(lambda raw: raw[:6] + b"\3" + raw[7:]), "expected a .npy file; found ValueError: "
                                                       "version (3, 0)"),
    (rewritten(lambda raw: raw.replace(b"(12,", b"(-1,")), "bytes for uint8 [-1, 5, 4, 3]; found"),
    (saved(np.asfortranarray(random_bytes((12, 5, 4, 3)))), "train_images.npy: expected rows one "
     "after another; found Fortran's order: save numpy.ascontiguousarray of it"),
    (saved(np.array([{}] * 12)), "train_images.npy: expected numbers or strings; found object"),
    (saved(np.array([None] * 12), "test_labels"),
     "test_labels.npy: expected numbers or strings; found object"),
    (saved(np.zeros((12, 5, 4, 3), int)),
     "train_images.npy: expected uint8, uint16 or floating point; found int64"),
    (saved(np.zeros((12, 5), np.uint8)),
     "train_images.npy: expected images [n, H, W, C] or [n, H, W]; found [12, 5]"),
    (saved(np.zeros((0, 5, 4), np.uint8)), "[n, H, W, C] or [n, H, W]; found [0, 5, 4]"),
    (saved(LABELS[:-1], "train_labels"), "train_labels must have one label per image of "),
    (saved(np.full(6, 3), "test_labels"),
     "test_labels must be labels that training examples have; got 3 at index 0"),
    (saved(np.zeros((6, 5, 5), np.uint8), "test_images"), "test_images must have the image shape "),
])
def test_npy_files_that_are_wrong(tmp_path, change, text):
  write_npy(tmp_path)
  change(tmp_path)
  with raises(ValueError, text) as error:
    datasets.load(tmp_path)
  assert str(error.value).startswith(str(tmp_path))


def test_npy_rows_of_a_file_that_shrank(tmp_path):
  write_npy(tmp_path)
  path = tmp_path / "train_images.npy"
  images = npy_files.NpyRows(path)
  path.write_bytes(path.read_bytes()[:-50])
  assert images.read(np.array([10])).shape == (1, 5, 4, 3)
  with raises(ValueError, f"{path}: expected 60 bytes of image 11; found 10"):
    images.read(np.array([11]))
  path.unlink()
  with raises(FileNotFoundError, path):
    images.read(np.array([0]))


def test_labels_of_another_number_than_the_images_are_refused(tmp_path):
  np.save(tmp_path / "train_images.npy", random_bytes((12, 3, 3)))
  for number in (9, 15):
    np.save(tmp_path / "train_labels.npy", np.arange(number) % 3)
    with raises(ValueError, f"{tmp_path}: expected one label for each of the 12 images; found "
                            f"{number}"):
      datasets.load(tmp_path)


def test_images_of_half_precision_in_files_are_those_in_memory(tmp_path):
  images = random_bytes((12, 3, 3)).astype(np.float16)
  np.save(tmp_path / "train_images.npy", images)
  np.save(tmp_path / "train_labels.npy", np.array([b"a", b"b", b"c"] * 4))
  stays, read = (load(tmp_path, in_files=in_files) for in_files in (True, False))
  assert stays.train_images.dtype == read.train_images.dtype == np.float32
  np.testing.assert_array_equal(rows.in_memory(stays.train_images), read.train_images)
  assert read.class_names == ("a", "b", "c")
  assert datasets.digest(stays) == datasets.digest(read)


def test_what_memory_has_no_room_for_is_refused(tmp_path, monkeypatch):
  np.save(tmp_path / "train_images.npy", random_bytes((12, 3, 3)))
  np.save(tmp_path / "train_labels.npy", LABELS)
  monkeypatch.setattr(host_memory, "free_bytes", lambda: 107)
  with raises(ValueError, f"{tmp_path}: 1.08e-07 GB of images and 1.07e-07 GB of memory are free: "
                          "data.storage='stream' (Reading(in_files=True)) leaves them there"):
    datasets.load(tmp_path)
  load(tmp_path, in_files=True)
