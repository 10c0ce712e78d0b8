"""Readers of tables and named sets against damaged files; the rules are in `damage`."""

import csv
import io

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from dd_jax.datasets import cifar
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from dd_jax.datasets import parquet
from dd_jax.datasets import tables
from dd_jax.datasets.splits import Reading
from tests import damage
from tests import dataset_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


def rows(data, count, width):
  """Random float64 `[count, width]`, from a drawn seed."""
  return np.random.default_rng(data.draw(st.integers(0, 99), "seed")).normal(size=(count, width))


@damage.examples(300)
@hypothesis.given(st.data())
def test_csv(folder, data):
  numbers = rows(data, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
  labels = [data.draw(st.sampled_from(['a "b"', "c,d", "e", "7"])) for _ in numbers]
  text = dataset_files.csv_text([f"x{i}" for i in range(numbers.shape[1])], numbers, labels)
  raw = damage.damaged(data, text.encode())
  path = folder / "table.csv"
  path.write_bytes(raw)
  found = damage.outcome(lambda path: tables.read_csv(path, Reading())[:2], path)
  if raw == text.encode():
    assert found
  if found:
    header, *lines = filter(None, csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    place = [name.strip() for name in header].index("label")
    expected = [[float(field) for i, field in enumerate(line) if i != place] for line in lines]
    np.testing.assert_array_equal(found[0], np.array(expected)[:, None, None])
    assert np.isfinite(found[0]).all() and found[0].dtype == np.float64
    stored = [line[place].strip() for line in lines]
    assert found[1].tolist() == stored or found[1].tolist() == list(map(float, stored))


def check_parquet(folder, data, columns, **options):
  """Bytes of a file damaged anywhere; without checksums a value may be another."""
  path = folder / "a.parquet"
  dataset_files.write_parquet(path, columns, ("x", "y"), **options)
  whole = path.read_bytes()
  expected = parquet.read(path, Reading())
  part = data.draw(st.sampled_from(["all", "footer"]))
  start = 0 if part == "all" else data.draw(st.integers(len(whole) // 3, len(whole) - 1))
  raw = whole[:start] + damage.damaged(data, whole[start:], [(0, "<I"), (0, "<Q")])
  path.write_bytes(raw)
  found = damage.outcome(lambda path: parquet.read(path, Reading()), path)
  if raw == whole:
    assert found
  if found:
    assert len(found.train_images) == len(found.train_labels) > 0 and found.train_images.ndim == 4
    assert found.test_images is None
  return expected, found


@damage.examples(150)
@hypothesis.given(st.data())
def test_parquet_tables(folder, data):
  numbers = rows(data, data.draw(st.integers(1, 4)), 2)
  check_parquet(folder, data, {"a": numbers[:, 0], "b": numbers[:, 1],
                               "label": np.arange(len(numbers)) % 2})


@damage.examples(150)
@hypothesis.given(st.data())
def test_parquet_pictures_with_checksums(folder, data):
  """Every picture that is read is a whole one, and PNG has checksums of its own."""
  images = dataset_files.random_bytes((3, 4, 5, 3), data.draw(st.integers(0, 99), "seed"))
  column = [{"bytes": dataset_files.encoded(image), "path": None} for image in images]
  expected, found = check_parquet(folder, data, {"image": column, "label": [0, 1, 0]},
                                  write_page_checksum=True)
  if found:
    assert found.train_images.dtype == np.uint8
    whole = {image.tobytes() for image in expected.train_images}
    assert {image.tobytes() for image in found.train_images} <= whole


@damage.examples(150)
@hypothesis.given(st.data())
def test_parquet_lists(folder, data):
  images = dataset_files.random_bytes((3, 2, 3), data.draw(st.integers(0, 99), "seed"))
  check_parquet(folder, data, {"image": images.tolist(), "label": ["x", "y", "x"]})


@damage.examples(100)
@hypothesis.given(st.data())
def test_cifar100(folder, data):
  files, *_ = dataset_files.cifar100_files(2, 1)
  changed = data.draw(st.sampled_from(sorted(files)))
  raw = files | {changed: damage.damaged(data, files[changed])}
  for name, content in raw.items():
    (folder / name).write_bytes(content)
  found = damage.outcome(cifar.read_cifar100, folder)
  if raw == files:
    assert found
  if found:
    for split, place in (("train", 0), ("test", 2)):
      records = np.frombuffer(raw[f"{split}.bin"], np.uint8).reshape(-1, 3074)
      np.testing.assert_array_equal(found[place].transpose(0, 3, 1, 2).reshape(-1, 3072),
                                    records[:, 2:])
      np.testing.assert_array_equal(found[place + 1], records[:, 1])
      assert records[:, 0].max() < 20 and records[:, 1].max() < 100
    assert len(found.class_names) == 100


@damage.examples(100)
@hypothesis.given(st.data())
def test_cifar100_archive(folder, data):
  files, *_ = dataset_files.cifar100_files(2, 1)
  path = folder / "cifar-100-binary.tar.gz"
  dataset_files.write_tar(path, "cifar-100-binary", files)
  expected = cifar.read_cifar100(path)
  changed = damage.damage_file(data, path)
  found = damage.outcome(cifar.read_cifar100, path)
  assert changed or found is not None
  if found:
    damage.assert_equal(found[:4], expected[:4])
    assert found.class_names == expected.class_names


@damage.examples(60)
@hypothesis.given(st.data())
def test_stl10(tmp_path_factory, data):
  root, images, labels = dataset_files.write_stl10(tmp_path_factory.mktemp("stl10"), 2, 12)
  path = root / data.draw(st.sampled_from(["train_y.bin", "test_y.bin", "class_names.txt"]))
  whole = path.read_bytes()
  path.write_bytes(damage.damaged(data, whole))
  found = damage.outcome(lambda *paths: cifar.read_stl10(root), path)
  if path.read_bytes() == whole:
    damage.assert_equal(found[:4], (images[:2], labels[:2].astype(np.int32), images[2:],
                                    labels[2:].astype(np.int32)))
  elif found:
    stored = [(root / f"{split}_y.bin").read_bytes() for split in ("train", "test")]
    assert [bytes((found[i] + 1).astype(np.uint8)) for i in (1, 3)] == stored
    assert len(found.class_names) == 10


@damage.examples(60)
@hypothesis.given(st.data())
def test_tiny_imagenet(tmp_path_factory, data):
  images = dataset_files.random_bytes((3, 64, 64, 3))
  root = dataset_files.write_tiny_imagenet(tmp_path_factory.mktemp("tiny"), ("n01", "n02"), list(
      zip(("n01", "n02"), images)), [("n02", images[2])])
  (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tcrane\n")
  path = root / data.draw(st.sampled_from(["wnids.txt", "words.txt", "val/val_annotations.txt",
                                           "val/images/val_0.JPEG"]))
  changed = damage.damage_file(data, path)
  found = damage.outcome(lambda *paths: directories.read_tiny_imagenet(root), root)
  assert changed or found is not None
  if found:
    assert {image.tobytes() for image in (*found[0], *found[2])} <= {
        image.tobytes() for image in images}
    assert len(found[2]) == len(found[3]) and set(found[1]) == set(range(len(found.class_names)))


def test_no_file_runs_code(tmp_path):
  marker = tmp_path / "marker"
  for kind, raw in damage.pickles(damage.Trap(marker)).items():
    for name, read in (("a.csv", lambda path: tables.read_csv(path, Reading())),
                       ("a.parquet", lambda path: parquet.read(path, Reading())),
                       ("cifar-100-binary.tar.gz", cifar.read_cifar100)):
      (tmp_path / name).write_bytes(raw)
      assert damage.outcome(read, tmp_path / name) is None, kind
      assert not marker.exists(), kind


def test_a_label_beyond_its_names_of_emnist(folder):
  paths = folder / "images", folder / "labels"
  paths[0].write_bytes(dataset_files.idx_bytes(np.zeros((1, 2, 2), np.uint8)))
  for label in range(256):
    paths[1].write_bytes(dataset_files.idx_bytes(np.array([label], np.uint8)))
    found = damage.outcome(
        lambda *paths: formats.read_emnist(*paths, first=1, num_classes=26), *paths)
    assert (found is not None) == (1 <= label <= 26)
