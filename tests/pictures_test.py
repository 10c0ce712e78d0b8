"""dd_jax.files.pictures: grids, and folders of pictures as `exports` writes and reads them."""

import csv
import json
import re

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dd_jax.files import exports
from dd_jax.files import pictures
from tests.arrays import assert_identical
from tests.exports_test import arrays_of_version_1
from tests.exports_test import assert_renewed
from tests.exports_test import export
from tests.exports_test import make_artifact


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_image_grid(channels, gap):
  images = np.random.default_rng(0).random((2, 3, 4, 5, channels), np.float32)
  grid = pictures.image_grid(images, gap=gap)
  assert grid.shape == (2 * 4 + 3 * gap, 3 * 5 + 4 * gap, 3)
  white = np.ones(grid.shape[:2], bool)
  for row in range(2):
    for column in range(3):
      y, x = gap + row * (4 + gap), gap + column * (5 + gap)
      white[y:y + 4, x:x + 5] = False
      for channel in range(3):
        np.testing.assert_array_equal(grid[y:y + 4, x:x + 5, channel],
                                      images[row, column, :, :, min(channel, channels - 1)])
  assert np.all(grid[white] == 1)
  assert white.sum() == white.size - 6 * 20


def test_image_grid_has_a_gap_of_one_pixel():
  np.testing.assert_array_equal(
      pictures.image_grid(np.zeros((1, 2, 1, 1, 1)))[..., 0], [[1] * 5, [1, 0, 1, 0, 1], [1] * 5])


@pytest.mark.parametrize("channels", [2, 4])
def test_image_grid_channels(channels):
  with pytest.raises(ValueError, match=f"must have 1 or 3 channels to be shown; got {channels}"):
    pictures.image_grid(np.zeros((1, 1, 2, 2, channels)))


# Folders


@pytest.mark.parametrize("low, high", [(0., 255.), (-1., 1.), (1.7e9, 1.7e9 + 4)])
def test_pictures_are_of_the_dataset_s_own_range(tmp_path, low, high):
  """Every image lies within the range here, so that its ends are black and white."""
  artifact = make_artifact(full=False)
  pixels = low + (high - low) * np.random.default_rng(0).random((2, 3, 4, 5, 1))
  mean, std = [(low + high) / 2], [(high - low) / 4]
  artifact = artifact._replace(
      distilled=artifact.distilled._replace(inputs=jnp.asarray(
          (pixels - mean) / std, jnp.float32)),
      metadata={"mean": mean, "std": std, "pixel_scale": 1, "pixel_range": [low, high]})
  path = export(tmp_path, "png", artifact)
  assert json.loads((path / "metadata.json").read_text())["pixel_range"] == [low, high]
  shown = np.asarray(Image.open(path / "step001-image0002-class000.png")) / 255
  np.testing.assert_allclose(shown, (pixels[1, 2, ..., 0] - low) / (high - low), atol=.6 / 255)
  np.testing.assert_allclose(artifact.pictures(), (pixels - low) / (high - low), atol=1e-5)
  np.testing.assert_allclose(exports.load(path, "png").distilled.inputs,
                             artifact.distilled.inputs, atol=4 * .6 / 255)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_at_8_bits(tmp_path, channels, soft):
  artifact = make_artifact(channels, soft)._replace(whitening=None)
  path = export(tmp_path, "png", artifact)
  back = exports.load(path, "png")
  low, high = json.loads((path / "metadata.json").read_text())["pixel_range"]
  assert low < 0 and high > 1
  np.testing.assert_allclose(back.distilled.inputs, artifact.distilled.inputs,
                             atol=1.01 * (high - low) / 510 / .5)
  for name in ("labels", "step_sizes", "hyper"):
    assert_identical(getattr(back.distilled, name), getattr(artifact.distilled, name))
  assert back.metadata == artifact.metadata and back.init_params is None


def test_pictures_within_0_and_1_are_their_pixels(tmp_path):
  artifact = make_artifact(3, full=False)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3)).astype(np.uint8)
  images = jnp.asarray((np.float32(pixels) / 255 - .25) / .5)
  artifact = artifact._replace(distilled=artifact.distilled._replace(inputs=images))
  path = export(tmp_path, "png", artifact)
  names = sorted(entry.name for entry in path.glob("*.png"))
  assert names[:4] == ["step000-image0000-class000.png", "step000-image0001-class001.png",
                       "step000-image0002-class002.png", "step001-image0000-class002.png"]
  for name, expected in zip(names, pixels.reshape(6, 4, 5, 3)):
    np.testing.assert_array_equal(np.asarray(Image.open(path / name)), expected)
  content = json.loads((path / "metadata.json").read_text())
  np.testing.assert_array_equal(np.float32(content["step_sizes"]), artifact.distilled.step_sizes)
  with (path / "metadata.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["file_name"] for row in rows] == names
  assert [int(row["label"]) for row in rows] == [0, 1, 2, 2, 1, 0]
  np.testing.assert_allclose(exports.load(path, "png").distilled.inputs, images, atol=1e-5)


def test_hugging_face_s_datasets_load_the_folder(tmp_path):
  datasets = pytest.importorskip("datasets", reason="needs the package datasets")
  path = export(tmp_path, "png", make_artifact(3, full=False))
  loaded = datasets.load_dataset("imagefolder", data_dir=str(path), split="train",
                                 cache_dir=str(tmp_path / "cache"))
  assert len(loaded) == 6 and loaded["label"] == [0, 1, 2, 2, 1, 0]
  assert loaded[0]["image"].size == (5, 4)


def test_whitened_pictures_are_to_look_at_alone(tmp_path):
  artifact = make_artifact(3)
  path = export(tmp_path, "png", artifact)
  low, high = json.loads((path / "metadata.json").read_text())["pixel_range"]
  first = np.asarray(Image.open(path / "step000-image0000-class000.png")) / 255 * (high - low) + low
  np.testing.assert_allclose(first, artifact.pixels(clip=False)[0, 0], atol=(high - low) / 500)
  with pytest.raises(ValueError, match="must be of images that are not whitened"):
    exports.load(path, "png")


def test_pictures_of_version_1(tmp_path):
  artifact = make_artifact()._replace(whitening=None)
  path = export(tmp_path, "png", artifact)
  expected = exports.load(path, "png")
  arrays, fields = arrays_of_version_1(artifact)
  content = json.loads((path / "metadata.json").read_text())
  content |= {"metadata": fields, "raw_step_sizes": arrays["raw_step_sizes"].tolist()}
  (path / "metadata.json").write_text(json.dumps(content))
  assert_renewed(exports.load(path, "png"), expected)
  content["raw_step_sizes"][0][0] += 1
  (path / "metadata.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match="step_sizes must be the softplus of raw_step_sizes"):
    exports.load(path, "png")


@pytest.mark.parametrize("damage, message", [
    (lambda path: (path / "step000-image0001-class001.png").unlink(),
     "a picture for every label; missing step000-image0001-class001.png"),
    (lambda path: Image.new("L", (2, 2)).save(path / "step000-image0001-class001.png"),
     "pictures of one size"),
    (lambda path: (path / "metadata.json").unlink(), "folder with a metadata.json"),
    (lambda path: (path / "metadata.json").write_text('{"labels": []}'),
     r"missing \['metadata', 'step_sizes', 'pixel_range', 'whitened'\]"),
])
def test_a_folder_that_lacks_something(tmp_path, damage, message):
  path = export(tmp_path, "png", make_artifact(full=False))
  damage(path)
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}.*{message}"):
    exports.load(path, "png")
