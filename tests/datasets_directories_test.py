"""PASCAL-VOC and CUB-200 from small directories: crops, labels, and what broken ones say."""


import jax
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.datasets import directories
from tests.dataset_files import object_xml
from tests.dataset_files import random_picture
from tests.dataset_files import write_cub200
from tests.dataset_files import write_picture
from tests.dataset_files import write_voc
from tests.one_line import raises_of_file as raises


def resized(pixels):
  """Bilinear on uint8 `[H, W, 3]`, by another implementation; to be compared within rounding."""
  return jax.image.resize(pixels.astype(np.float32), (224, 224, 3), "bilinear")


# PASCAL-VOC


def write_small_voc(root):
  for split, name in (("trainval", "000001"), ("test", "000002")):
    root_of_year = write_voc(root, split, {name: (random_picture(), [
        object_xml("dog", (2, 3, 8, 6))])})
  return root_of_year


def test_voc_objects_are_cut_out_and_resized(tmp_path):
  """Boxes name their first and last pixels from 1; parts of a person are no objects."""
  first, second, third = (random_picture(seed=seed) for seed in range(3))
  person = object_xml("person", (1, 1, 8, 6), "<difficult>1</difficult>").replace(
      "</object>", f"{object_xml('head', (1, 1, 2, 2)).replace('object', 'part')}</object>")
  write_voc(tmp_path, "trainval", {
      "000012": (first, [object_xml("dog", (2, 3, 5, 6)), person]),
      "000005": (second, [object_xml("aeroplane", (7, 6, 7, 6))])})
  root = write_voc(tmp_path, "test", {
      "000007": (third, [object_xml("tvmonitor", ("1.4000000059604645", "2.6", 8, 6))])})
  images, labels, test_images, test_labels = directories.read_voc(root)
  assert images.dtype == test_images.dtype == np.uint8 and labels.dtype == np.int32
  assert images.shape == (3, 224, 224, 3) and test_images.shape == (1, 224, 224, 3)
  classes = directories.VOC_CLASSES
  assert [classes[label] for label in labels] == ["dog", "person", "aeroplane"]
  assert [classes[label] for label in test_labels] == ["tvmonitor"]
  for image, pixels in ((images[0], first[2:6, 1:5]), (images[1], first),
                        (test_images[0], third[2:6])):
    np.testing.assert_allclose(image, resized(pixels), atol=1.01)
  np.testing.assert_array_equal(images[2], np.broadcast_to(second[5, 6], (224, 224, 3)))


def test_large_objects_are_averaged_not_sampled(tmp_path):
  large = random_picture(448, 300)
  write_voc(tmp_path, "trainval", {"a": (large, [object_xml("cat", (1, 1, 300, 448))])})
  root = write_voc(tmp_path, "test", {"b": (large, [object_xml("cat", (1, 1, 300, 448))])})
  np.testing.assert_allclose(directories.read_voc(root)[0][0], resized(large), atol=2.01)


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_by_name(tmp_path, year):
  objects = [object_xml(name, (1, 1, 4, 4)) for name in directories.VOC_CLASSES]
  write_voc(tmp_path / "voc", "trainval", {"a": (random_picture(), objects)}, year)
  write_voc(tmp_path / "voc", "test", {"b": (random_picture(), objects[3:5])}, year)
  dataset = datasets.load("voc", tmp_path)
  assert dataset.name == "voc" and dataset.num_classes == 20
  np.testing.assert_array_equal(dataset.train_labels, np.arange(20))
  np.testing.assert_array_equal(dataset.test_labels, [3, 4])
  np.testing.assert_array_equal(dataset.mean, [.485, .456, .406])
  np.testing.assert_array_equal(dataset.std, [.229, .224, .225])


def test_voc_without_objects_of_every_class(tmp_path):
  root = write_small_voc(tmp_path)
  with raises(ValueError, tmp_path, "train_labels must hold every class of 0..19; got none of"):
    datasets.load("voc", tmp_path)
  (root / "ImageSets" / "Main" / "test.txt").write_text("\n")
  with raises(ValueError, tmp_path, "test_images must hold at least one image"):
    datasets.load("voc", tmp_path)


@pytest.mark.parametrize("file", ["ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt",
                                  "Annotations/000002.xml", "JPEGImages/000001.jpg"])
def test_voc_missing_files(tmp_path, file):
  root = write_small_voc(tmp_path)
  (root / file).unlink()
  with raises(FileNotFoundError, root / file, "no such file"):
    directories.read_voc(root)


def annotation(*objects):
  return f"<annotation>{''.join(objects)}</annotation>".encode()


@pytest.mark.parametrize("raw, text", [
    (b"", "expected XML; found ParseError: no element found"),
    (annotation(object_xml("dog", (1, 1, 2, 2)))[:-20], "expected XML; found ParseError"),
    (b"<html></html>", "expected an <annotation>; found <html>"),
    (b"\xff\xfe<\x00", "expected text in UTF-8; found UnicodeDecodeError"),
    ('<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'.encode("utf-16-le"),
     r"expected XML in UTF-8 without a document type; found '\x00'"),
    (b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
     "expected XML in UTF-8 without a document type; found '<!DOCTYPE'"),
    (annotation(object_xml("unicorn", (1, 1, 2, 2))),
     "expected objects of aeroplane, bicycle, bird, boat, "),
    (annotation(object_xml("unicorn", (1, 1, 2, 2))), "tvmonitor; found 'unicorn'"),
    (annotation("<object><bndbox/></object>"), "tvmonitor; found ''"),
    (annotation("<object><name>dog</name></object>"),
     "expected a number for every side of a bndbox; found {'xmin': '', "),
    (annotation(object_xml("dog", (1, 1, "two", 2))), "'xmax': 'two'"),
    (annotation(object_xml("dog", (1, 1, "nan", 2))), "'xmax': 'nan'"),
    (annotation(object_xml("dog", (1, 1, "1e999", 2))), "'xmax': '1e999'"),
    (annotation(object_xml("dog", (0, 1, 2, 2))),
     "expected boxes of at least one pixel within 8x6; "
     "found {'xmin': 0, 'ymin': 1, 'xmax': 2, 'ymax': 2}"),
    (annotation(object_xml("dog", (1, 1, 9, 2))), "'xmax': 9, 'ymax': 2}"),
    (annotation(object_xml("dog", (1, 1, 2, 7))), "'xmax': 2, 'ymax': 7}"),
    (annotation(object_xml("dog", (4, 1, 3, 2))), "'xmin': 4, 'ymin': 1, 'xmax': 3, "),
    (annotation(object_xml("dog", (1, 4, 1, 3))), "'xmin': 1, 'ymin': 4, "),
])
def test_voc_annotations_that_are_wrong(tmp_path, raw, text):
  root = write_small_voc(tmp_path)
  path = root / "Annotations" / "000001.xml"
  path.write_bytes(raw)
  with raises(ValueError, path, text):
    directories.read_voc(root)


def test_pictures_that_are_wrong(tmp_path):
  root = write_small_voc(tmp_path)
  path = root / "JPEGImages" / "000002.jpg"
  write_picture(path, random_picture(64, 64), "JPEG")
  whole = path.read_bytes()
  write_picture(path, random_picture(64, 64), "BMP")
  for raw in (path.read_bytes(), whole[:len(whole) // 2], b"", b"<html>"):
    path.write_bytes(raw)
    with raises(ValueError, path, "expected a whole PNG or JPEG picture; found "):
      directories.read_voc(root)


def test_png_pictures_by_their_checksums(tmp_path):
  root = write_small_voc(tmp_path)
  path = root / "JPEGImages" / "000001.jpg"
  whole, expected = path.read_bytes(), directories.read_voc(root)[0]
  for start in range(whole.index(b"IDAT"), len(whole)):
    path.write_bytes(whole[:start] + whole[start + 20:])
    try:
      images = directories.read_voc(root)[0]
    except ValueError:
      continue
    np.testing.assert_array_equal(images, expected)


# CUB-200-2011


def small_cub200():
  return [("001.Albatross/A_1.jpg", random_picture(seed=1), 1, 1),
          ("200.Yellowthroat/Y_1.jpg", random_picture(5, 7, seed=2), 200, 0),
          ("002.Albatross/B_1.jpg", random_picture(seed=3)[..., 0], 2, 1),  # Grey.
          ("001.Albatross/A_2.jpg", random_picture(300, 200, seed=4), 1, 0)]


def test_cub200_pictures_are_resized_and_split(tmp_path):
  pictures = small_cub200()
  root = write_cub200(tmp_path, pictures)
  images, labels, test_images, test_labels = directories.read_cub200(root)
  assert images.dtype == test_images.dtype == np.uint8 and labels.dtype == np.int32
  np.testing.assert_array_equal(labels, [0, 1])
  np.testing.assert_array_equal(test_labels, [199, 0])
  grey = np.repeat(pictures[2][1][..., None], 3, axis=-1)
  for image, pixels in ((images[0], pictures[0][1]), (images[1], grey),
                        (test_images[0], pictures[1][1]), (test_images[1], pictures[3][1])):
    np.testing.assert_allclose(image, resized(pixels), atol=2.01)


def test_cub200_by_name_from_jpeg(tmp_path):
  colour = np.full((10, 12, 3), (200, 100, 50))
  pictures = [(f"{label:03}.Bird/{label}.jpg", random_picture(2, 3, label), label, 1)
              for label in range(1, 201)]
  root = write_cub200(tmp_path, [*pictures, ("001.Bird/test.jpg", colour, 1, 0)])
  write_picture(root / "images" / "001.Bird" / "test.jpg", colour, "JPEG")
  dataset = datasets.load("cub200", tmp_path)
  assert dataset.name == "cub200" and dataset.num_classes == 200
  np.testing.assert_array_equal(dataset.train_labels, np.arange(200))
  np.testing.assert_allclose(dataset.test_images, np.broadcast_to(
      (200, 100, 50), (1, 224, 224, 3)), atol=3)
  np.testing.assert_array_equal(dataset.mean, [.4785, .4992, .4022])
  np.testing.assert_array_equal(dataset.std, [.2321, .2277, .2665])


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "train_test_split.txt",
                                  "images/200.Yellowthroat/Y_1.jpg"])
def test_cub200_missing_files(tmp_path, file):
  root = write_cub200(tmp_path, small_cub200())
  (root / file).unlink()
  with raises(FileNotFoundError, root / file, "no such file"):
    directories.read_cub200(root)


@pytest.mark.parametrize("file, content, text", [
    ("images.txt", "1 a.jpg\n2\n", "expected 'id value' with a new id in line 2; found '2'"),
    ("images.txt", "1 a b.jpg\n", "expected 'id value' with a new id in line 1; found '1 a b.jpg'"),
    ("images.txt", "1 a.jpg\n1 b.jpg\n", "with a new id in line 2; found '1 b.jpg'"),
    ("image_class_labels.txt", "1 1\n2 200\n3 2\n", "expected a line for each of the 4 images of "
     "images.txt; found 3 lines; id 4 is in one file alone"),
    ("train_test_split.txt", "1 1\n2 0\n3 1\n5 0\n", "found 4 lines; id 4 is in one file alone"),
    ("image_class_labels.txt", "1 1\n2 201\n3 2\n4 1\n",
     "expected 1..200 for image 2; found '201'"),
    ("image_class_labels.txt", "1 0\n2 200\n3 2\n4 1\n", "expected 1..200 for image 1; found '0'"),
    ("train_test_split.txt", "1 1\n2 0\n3 1\n4 x\n", "expected 0..1 for image 4; found 'x'"),
])
def test_cub200_tables_that_are_wrong(tmp_path, file, content, text):
  root = write_cub200(tmp_path, small_cub200())
  (root / file).write_text(content)
  with raises(ValueError, root / file, text):
    directories.read_cub200(root)
