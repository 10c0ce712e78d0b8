"""dd_jax.Artifact: the space of its images, and the way to pixels and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import whitening

_SHAPE = (4, 4, 1)


def _artifact(**metadata):
  images = jax.random.normal(jax.random.key(0), (2, 3, *_SHAPE))
  distilled = dd_jax.DistilledData(images, jnp.asarray([[0, 1, 2]] * 2), jnp.ones((5, 2)))
  return dd_jax.Artifact(distilled, None, {"mean": [.25], "std": [.5], "pixel_scale": 255,
                                           **metadata})


def test_normalize_is_the_space_of_the_distilled_images():
  pixels = np.random.default_rng(0).integers(0, 256, (50, *_SHAPE), np.uint8)
  expected = (pixels / 255 - .25) / .5
  artifact = _artifact()
  for images in (pixels, pixels / 255, np.float32(pixels / 255)):
    normal = artifact.normalize(images)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, expected, atol=1e-6)
  fitted = whitening.fit(np.float32(expected), regularization=1e-6)
  white = artifact._replace(whitening=fitted).normalize(pixels).reshape(50, -1)
  np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(16), atol=1e-3)


@pytest.mark.parametrize("whitened", [False, True])
def test_pixels_are_the_inverse_of_normalize(whitened):
  pixels = np.random.default_rng(0).random((6, *_SHAPE), np.float32)
  artifact = _artifact()
  if whitened:
    artifact = artifact._replace(whitening=whitening.fit(artifact.normalize(pixels)))
  images = jnp.asarray(artifact.normalize(pixels).reshape(2, 3, *_SHAPE))
  artifact = artifact._replace(distilled=artifact.distilled._replace(inputs=images))
  np.testing.assert_allclose(artifact.pixels(), pixels.reshape(2, 3, *_SHAPE), atol=1e-5)


def test_pixels_are_clipped_unless_asked_not_to_be():
  artifact = _artifact()
  images = .25 + .5 * np.asarray(artifact.distilled.inputs)
  assert images.min() < 0 and images.max() > 1
  np.testing.assert_allclose(artifact.pixels(clip=False), images, atol=1e-6)
  np.testing.assert_allclose(artifact.pixels(), np.clip(images, 0, 1), atol=1e-6)


def test_pixels_keep_to_the_range_of_the_file():
  """Black and white are its ends; a file without one, as of an older version, has 0..1."""
  artifact = _artifact(mean=[100.], std=[200.], pixel_scale=1, pixel_range=[0, 255])
  images = 100 + 200 * np.asarray(artifact.distilled.inputs)
  assert images.min() < 0 and images.max() > 255
  np.testing.assert_allclose(artifact.pixels(), np.clip(images, 0, 255), rtol=1e-5)
  np.testing.assert_allclose(artifact.pictures(), np.clip(images / 255, 0, 1), atol=1e-6)
  old = _artifact()
  assert old.pixel_range == (0, 1)
  np.testing.assert_array_equal(old.pictures(), old.pixels())


@pytest.mark.parametrize("found", [None, 3, [1], [2, 1], [0, float("nan")], ["a", "b"], [0, 1, 2]])
def test_a_range_that_is_none(found):
  with pytest.raises(ValueError, match="pixel_range of the metadata must be two finite numbers, "
                                       "the lower first; got"):
    _artifact(pixel_range=found).pictures()


def test_images_of_16_bits():
  pixels = np.random.default_rng(0).integers(0, 65536, (5, *_SHAPE), np.uint16)
  artifact = _artifact(pixel_scale=65535)
  for images in (pixels, pixels / 65535):
    np.testing.assert_allclose(artifact.normalize(images), (pixels / 65535 - .25) / .5, atol=1e-6)
  with pytest.raises(ValueError, match="images must be uint16 or floating point, as the dataset "
                                       "was; got uint8"):
    artifact.normalize(pixels.astype(np.uint8))
  with pytest.raises(ValueError, match=r"images must lie in 0\.\.1"):
    artifact.normalize(pixels.astype(np.float32))
  with pytest.raises(ValueError, match="images must be uint8 or floating point.*; got uint16"):
    _artifact().normalize(pixels)


def test_names_of_classes():
  assert _artifact().class_names == _artifact(class_names=None).class_names == ()
  assert _artifact(num_classes=2, class_names=["a", "b"]).class_names == ("a", "b")


@pytest.mark.parametrize("found", ["ab", 3, {"a": 1}, [], ["a"], ["a", "b", "c"], ["a", "a"],
                                   ["a", 1], ["a", ["b"]]])
def test_names_of_classes_that_are_none(found):
  with pytest.raises(ValueError, match="class_names of the metadata must be 2 different strings, "
                                       "as num_classes; got"):
    _artifact(num_classes=2, class_names=found).class_names


def test_normalize_takes_time_stamps():
  stamps = 1.7e9 + np.arange(32.).reshape(2, *_SHAPE)
  artifact = _artifact(mean=[1.7e9 + 16], std=[2.], pixel_scale=1)
  np.testing.assert_array_equal(artifact.normalize(stamps).reshape(-1), (np.arange(32) - 16) / 2)
  with pytest.raises(ValueError, match="images must be finite float32 once normalised; got inf"):
    artifact.normalize(np.full((1, *_SHAPE), 1e300))


@pytest.mark.parametrize("images, metadata, message", [
    (np.zeros((2, 4, 4), np.uint8), {}, r"images must be .* = \(4, 4, 1\); got \[2, 4, 4\]"),
    (np.zeros((2, 4, 4, 1), np.int64), {}, "images must be uint8 or floating point.*; got int64"),
    (np.full((2, 4, 4, 1), 255.), {}, r"images must lie in 0\.\.1 .*; got 255\.0\.\.255\.0"),
    (np.zeros((2, 4, 4, 1), np.uint8), {"pixel_scale": 1}, "must be floating point.*; got uint8"),
])
def test_images_that_are_not_the_dataset_s(images, metadata, message):
  with pytest.raises(ValueError, match=message):
    _artifact(**metadata).normalize(images)


def test_a_file_without_its_normalisation():
  artifact = _artifact()._replace(metadata={})
  with pytest.raises(ValueError, match="metadata must hold 'pixel_scale'; the file has"):
    artifact.normalize(np.zeros((2, *_SHAPE), np.uint8))
  with pytest.raises(ValueError, match="metadata must hold 'std'|metadata must hold 'mean'"):
    artifact.pixels()
