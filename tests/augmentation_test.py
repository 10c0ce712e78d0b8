"""dd_jax.augmentation: what each change does to known images, its gradient, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import augmentation
from dd_jax import losses
from tests import problems


def _many(name, image, count=200):
  """The same image changed with many keys `[count, H, W, C]`."""
  keys = jax.random.split(jax.random.key(0), count)
  change = augmentation.AUGMENTATIONS[name]
  return np.asarray(jax.jit(jax.vmap(change, (0, None)))(keys, jnp.asarray(image)))


def _image(height=9, width=10, channels=3, seed=0):
  return np.random.default_rng(seed).standard_normal((height, width, channels)).astype(np.float32)


def test_flip_mirrors_half_of_the_images():
  image = _image()
  mirrored = [np.array_equal(changed, image[:, ::-1]) for changed in _many("flip", image)]
  same = [np.array_equal(changed, image) for changed in _many("flip", image)]
  assert sum(mirrored) + sum(same) == 200 and 70 < sum(mirrored) < 130


@pytest.mark.parametrize("name, most, mode", [("crop", (4, 4), "reflect"),
                                              ("shift", (1, 2), "constant")])
def test_crop_and_shift_move_by_every_amount(name, most, mode):
  image = _image(9, 16)
  padded = np.pad(image, (*((m, m) for m in most), (0, 0)), mode=mode)
  found = set()
  for changed in _many(name, image, 500):
    (place,) = [(row, column) for row in range(2 * most[0] + 1)
                for column in range(2 * most[1] + 1)
                if np.array_equal(padded[row:row + 9, column:column + 16], changed)]
    found.add(place)
  assert len(found) == (2 * most[0] + 1) * (2 * most[1] + 1)


def test_scale_and_rotate_follow_the_coordinates():
  """A plane keeps its values at the moved places; the centre stays."""
  rows, columns = np.meshgrid(np.arange(9.) - 4, np.arange(9.) - 4, indexing="ij")
  planes = np.stack([rows, columns], -1).astype(np.float32)
  near = (slice(2, 7), slice(2, 7))  # Whatever the change, these come from inside.
  scaled, rotated = _many("scale", planes), _many("rotate", planes)
  factors = scaled[:, 6, 6] / 2
  _check_range(factors, 1 / 1.2, 1.2)
  for changed, factor in zip(scaled, factors):
    np.testing.assert_allclose(changed[near], planes[near] * factor, atol=1e-4)
  _check_range(np.degrees(np.arctan2(rotated[:, 6, 4, 1], rotated[:, 6, 4, 0])), -15, 15)
  for changed in rotated:
    cosine, sine = changed[6, 4]
    assert abs(np.hypot(cosine, sine) - 2) < 1e-4
    matrix = np.array([[cosine, sine], [-sine, cosine]]) / 2
    np.testing.assert_allclose(changed[near], planes[near] @ matrix, atol=1e-4)


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_images_of_few_bits_move_as_those_of_float32(name):
  images = jax.random.normal(jax.random.key(3), (4, 64, 64, 1), jnp.bfloat16)
  augment = augmentation.compose(name)
  found, expected = (augment(jax.random.key(4), x) for x in (images, images.astype(jnp.float32)))
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=.02)
  with pytest.raises(ValueError, match="images must be floating point .*; got uint8"):
    augment(jax.random.key(4), jnp.zeros((1, 4, 4, 1), jnp.uint8))


def test_color_changes_brightness_saturation_and_contrast():
  image = _image()
  changed = _many("color", image)
  _check_range(changed.mean((1, 2, 3)) - image.mean(), -.5, .5)
  grey = np.repeat(_image(channels=1), 3, -1)  # It has no saturation to change.
  _check_range(_many("color", grey).std((1, 2, 3)) / grey.std(), .5, 1.5)
  difference = image - image.mean(-1, keepdims=True)
  around = changed - changed.mean((1, 2, 3), keepdims=True)
  of_grey = image.mean(-1, keepdims=True) - image.mean()
  contrast = (around.mean(-1, keepdims=True) * of_grey).sum((1, 2, 3)) / (of_grey ** 2).sum()
  saturation = (around * difference).sum((1, 2, 3)) / (difference ** 2).sum() / contrast
  _check_range(saturation, 0, 2)


def _check_range(found, low, high):
  """All within, and both ends nearly reached."""
  rounding, near = 1e-3 * (high - low), .05 * (high - low)
  assert (low - rounding <= found.min(0)).all() and (found.min(0) < low + near).all()
  assert (high - near < found.max(0)).all() and (found.max(0) <= high + rounding).all()


def test_cutout_zeroes_a_square_of_half_the_size():
  sizes = set()
  for changed in _many("cutout", np.ones((8, 8, 1), np.float32)):
    rows, columns = np.nonzero(changed[..., 0] == 0)
    sizes.add((np.ptp(rows) + 1, np.ptp(columns) + 1))
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
  assert max(sizes) == (4, 4) and (2, 2) in sizes  # Cut by the border at most to a half.


@pytest.mark.parametrize("siamese", [False, True])
def test_siamese_images_are_changed_alike(siamese):
  augment = augmentation.compose("crop, flip,rotate", siamese=siamese)
  images = np.repeat(_image(seed=3)[None], 6, 0)
  changed = np.asarray(jax.jit(augment)(jax.random.key(2), images))
  same = [np.array_equal(changed[0], other) for other in changed[1:]]
  assert all(same) if siamese else not any(same)
  np.testing.assert_array_equal(changed, jax.jit(augment)(jax.random.key(2), images))


@pytest.mark.parametrize("name", [
    name if name in ("crop", "rotate") else pytest.param(name, marks=pytest.mark.slow)
    for name in augmentation.AUGMENTATIONS])
def test_the_hypergradient_passes_every_change(x64, name):
  """The second derivative of the inner loss by weights and pixels, against differences."""
  images = jnp.asarray(_image(6, 6, 3).astype(float))[None]
  weights = {"first": jax.random.normal(jax.random.key(0), (108, 5)) / 10,
             "second": jax.random.normal(jax.random.key(1), (5, 3)), "bias": jnp.zeros(3)}
  direction = jax.tree.map(jnp.cos, weights)
  loss = augmentation.augmented(losses.classification(problems.apply), augmentation.compose(name))

  @jax.jit
  def along(images):
    gradient = jax.grad(loss)(weights, images, jnp.array([1]), jax.random.key(4))
    return sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

  move = jax.random.normal(jax.random.key(5), images.shape)
  exact = jnp.vdot(jax.grad(along)(images), move)
  numeric = (along(images + 1e-5 * move) - along(images - 1e-5 * move)) / 2e-5
  np.testing.assert_allclose(exact, numeric, rtol=1e-6)
  assert abs(numeric) > 1e-4


@pytest.mark.parametrize("names, shape, message", [
    ("flip,blur", (1, 8, 8, 3), r"augmentation must be some of \['color', .*\]; got 'blur'"),
    ("", (1, 8, 8, 3), "augmentation must be some of .*; got ''"),
    ("crop", (1, 8, 4, 3), "crop must have images above 4 pixels; got 8x4"),
    ("flip,color", (1, 8, 8, 1), "color must have images of 3 channels; got 1"),
])
def test_what_does_not_fit_is_named(names, shape, message):
  with pytest.raises(ValueError, match=message):
    augmentation.compose(names)(jax.random.key(0), jnp.zeros(shape))
