"""dd_jax.augmentation: every image is a crop, perhaps mirrored, of its own padded original."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import augmentation


def _offsets(original, augmented, padding):
  """The crops `(row, column, flipped)` of the padded original that equal the augmented image."""
  padded = np.pad(original, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
  height, width, _ = original.shape
  return [(row, column, flipped)
          for row in range(2 * padding + 1) for column in range(2 * padding + 1)
          for flipped in (False, True)
          if np.array_equal(padded[row:row + height, column:column + width][:, ::1 - 2 * flipped],
                            augmented)]


def test_crop_and_flip():
  images = jnp.asarray(np.random.default_rng(0).random((300, 5, 6, 2), np.float32))
  augmented = jax.jit(functools.partial(augmentation.crop_and_flip, padding=2))(
      jax.random.key(0), images)
  assert augmented.shape == images.shape and augmented.dtype == images.dtype
  found = [_offsets(*pair, 2) for pair in zip(np.asarray(images), np.asarray(augmented))]
  assert all(len(offsets) == 1 for offsets in found)
  rows, columns, flips = np.array([offsets[0] for offsets in found]).T
  # All of the 25 crops and both directions occur about equally often.
  assert np.bincount(rows * 5 + columns, minlength=25).min() >= 3
  assert 110 < flips.sum() < 190


def test_without_padding_it_only_flips():
  images = jnp.asarray(np.random.default_rng(0).random((8, 3, 3, 1), np.float32))
  augmented = augmentation.crop_and_flip(jax.random.key(1), images, padding=0)
  for before, after in zip(np.asarray(images), np.asarray(augmented)):
    assert np.array_equal(before, after) or np.array_equal(before[:, ::-1], after)


def test_the_gradient_goes_back_to_the_pixels_it_came_from():
  images = jnp.arange(16.).reshape(1, 4, 4, 1)
  gradient = jax.grad(lambda x: jnp.sum(
      augmentation.crop_and_flip(jax.random.key(0), x, padding=1)))(images)
  assert float(gradient.sum()) == 16 and float(gradient.min()) >= 0


@pytest.mark.parametrize("padding", [-1, 4])
def test_padding_that_does_not_fit(padding):
  with pytest.raises(ValueError, match=rf"padding must lie in 0\.\.3 .*4x5.*; got {padding}"):
    augmentation.crop_and_flip(jax.random.key(0), jnp.zeros((1, 4, 5, 1)), padding=padding)
