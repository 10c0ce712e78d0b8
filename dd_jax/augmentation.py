"""Random changes of images that keep their class: `augment(key, images) -> images`."""

import jax
from jax import lax
import jax.numpy as jnp

from dd_jax.types import Array


def crop_and_flip(key: Array, images: Array, *, padding: int = 4) -> Array:
  """A random crop of every image, mirrored at its border, and a random left-right flip.

  What the authors do to real minibatches of CIFAR-10.

  Args:
    key: consumed by the crops and flips, each image its own.
    images: `[n, H, W, C]`.
    padding: pixels by which a crop may be off centre, below H and W.

  Returns:
    `[n, H, W, C]`.
  """
  n, height, width, channels = images.shape
  if not 0 <= padding < min(height, width):
    raise ValueError(f"padding must lie in 0..{min(height, width) - 1} (the images are "
                     f"{height}x{width}); got {padding}")
  crop_key, flip_key = jax.random.split(key)
  sides = (padding, padding)
  padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)), mode="reflect")
  corners = jax.random.randint(crop_key, (n, 2), 0, 2 * padding + 1)

  def crop(image, corner):
    return lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

  cropped = jax.vmap(crop)(padded, corners)
  flipped = jax.random.bernoulli(flip_key, 0.5, (n, 1, 1, 1))
  return jnp.where(flipped, cropped[:, :, ::-1], cropped)


AUGMENTATIONS = {"crop_and_flip": crop_and_flip}
