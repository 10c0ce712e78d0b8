"""Readers of pictures and .npy files against damaged and hostile files; see `damage`."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from dd_jax.datasets import normalization
from dd_jax.datasets import npy_files
from dd_jax.datasets import picture_files
from dd_jax.datasets.splits import Reading
from tests import damage
from tests import dataset_files

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


def pixels_of(path):
  picture = picture_files.read(path)
  return picture_files.framed(path, picture, picture_files.frame_of(path, picture, Reading()))


@damage.examples(150)
@hypothesis.given(st.data())
def test_png(folder, data):
  height, width = (data.draw(st.integers(1, 9)) for _ in range(2))
  pixels = dataset_files.random_bytes((height, width, 3), data.draw(st.integers(0, 99), "seed"))
  kind = data.draw(st.sampled_from(["grey", "colour", "deep"]))
  if kind != "colour":
    pixels = pixels[..., :1]
  if kind == "deep":
    pixels = pixels.astype(np.uint16) * 257
  path = folder / "picture.png"
  Image.fromarray(pixels if kind == "colour" else pixels[..., 0]).save(path)
  changed = damage.damage_file(data, path)
  found = damage.outcome(pixels_of, path)
  assert changed or found is not None
  if found is not None:
    damage.assert_equal([found], [pixels])


@damage.examples(100)
@hypothesis.given(st.data())
def test_jpeg(folder, data):
  path = folder / "picture.jpg"
  dataset_files.write_picture(path, dataset_files.random_picture(), "JPEG")
  whole = path.read_bytes()
  path.write_bytes(damage.damaged(data, whole))
  found = damage.outcome(pixels_of, path)
  if found is not None:  # It carries no checksum.
    assert found.dtype == np.uint8 and found.shape[2] in (1, 3) and found.size
  else:
    assert path.read_bytes() != whole


def read_npy(folder):
  splits = npy_files.read(folder)
  return [array.read(np.arange(array.shape[0])) if isinstance(array, npy_files.NpyRows) else array
          for array in splits[:4]]


@damage.examples(150)
@hypothesis.given(st.data())
def test_npy(folder, data):
  arrays = {"train_images": dataset_files.random_bytes((3, 4, 5, 2)), "train_labels": np.arange(3),
            "test_images": dataset_files.random_bytes((2, 4, 5, 2), 1), "test_labels": np.arange(2)}
  for name, array in arrays.items():
    np.save(folder / f"{name}.npy", array)
  changed = data.draw(st.sampled_from(NAMES))
  path = folder / f"{changed}.npy"
  if data.draw(st.booleans(), "other"):
    other = damage.changed_array(data, arrays[changed])
    np.save(path, other)
    found = damage.outcome(read_npy, folder)
    if found is not None:
      native = other.astype(other.dtype.newbyteorder("="))
      found = found[NAMES.index(changed)]
      np.testing.assert_array_equal(found, native.reshape(found.shape).astype(found.dtype))
      assert found.dtype in (native.dtype, normalization.precision(native))
    return
  whole = path.read_bytes()
  path.write_bytes(damage.damaged(data, whole, [(8, "<H")]))
  found = damage.outcome(read_npy, folder)
  if path.read_bytes() == whole:
    damage.assert_equal(found, arrays.values())
  elif found:  # It carries no checksum.
    assert path.read_bytes().endswith(found[NAMES.index(changed)].tobytes())


def test_no_npy_file_runs_code(tmp_path):
  marker = tmp_path / "marker"
  for name in NAMES:
    for others in NAMES:
      np.save(tmp_path / f"{others}.npy",
              np.zeros((2, 2, 2)) if "images" in others else np.arange(2))
    for kind, raw in damage.pickles(damage.Trap(marker)).items():
      (tmp_path / f"{name}.npy").write_bytes(raw)
      assert damage.outcome(read_npy, tmp_path) is None, kind
      assert not marker.exists(), kind
