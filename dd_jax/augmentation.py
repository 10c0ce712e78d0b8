"""Random changes of images that keep their class, differentiable in the pixels.

Each is `change(key, image [H, W, C]) -> image`, in normalised space, where 0 is the mean;
`compose` makes `augment(key, images [n, H, W, C]) -> images` of several by name.

The strengths are those of Zhao and Bilen, "Dataset Condensation with Differentiable Siamese
Augmentation", 2021 (arXiv 2102.08259), but for `crop`: that of the paper's release for CIFAR-10.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from dd_jax import adapters
from dd_jax.types import Array, wide

_CROP_PADDING = 4
_SHIFT = 1 / 8  # Of the size.
_SCALE = 1.2
_DEGREES = 15
_CUTOUT = 1 / 2  # Of the size.


def flip(key: Array, image: Array) -> Array:
  """Mirrored left to right, or not."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def crop(key: Array, image: Array) -> Array:
  """Moved by up to 4 pixels; what is missing is mirrored at the border."""
  if min(image.shape[:2]) <= _CROP_PADDING:
    raise ValueError(f"crop must have images above {_CROP_PADDING} pixels; "
                     f"got {image.shape[0]}x{image.shape[1]}")
  return _move(key, image, (_CROP_PADDING, _CROP_PADDING), mode="reflect")


def shift(key: Array, image: Array) -> Array:
  """Moved by up to an eighth of the size, rounded; what is missing is 0."""
  return _move(key, image, tuple(round(_SHIFT * size) for size in image.shape[:2]))


def scale(key: Array, image: Array) -> Array:
  """Height and width each enlarged or reduced by a factor of up to 1.2."""
  factors = jax.random.uniform(key, (2,), minval=1 / _SCALE, maxval=_SCALE)
  return _resample(image, jnp.diag(factors))


def rotate(key: Array, image: Array) -> Array:
  """Turned by up to 15 degrees."""
  angle = jnp.deg2rad(jax.random.uniform(key, minval=-_DEGREES, maxval=_DEGREES))
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  return _resample(image, jnp.array([[cosine, -sine], [sine, cosine]]))


def color(key: Array, image: Array) -> Array:
  """Brightness, saturation and contrast."""
  if image.shape[-1] != 3:
    raise ValueError(f"color must have images of 3 channels; got {image.shape[-1]}")
  brightness, saturation, contrast = jax.random.uniform(key, (3,), image.dtype)
  image = image + (brightness - .5)
  grey = image.mean(-1, keepdims=True)
  image = grey + (image - grey) * (2 * saturation)
  mean = image.mean()
  return mean + (image - mean) * (contrast + .5)


def cutout(key: Array, image: Array) -> Array:
  """A square of half the size, centred anywhere, becomes 0."""
  centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))

  def inside(axis):
    length = round(_CUTOUT * image.shape[axis])
    distance = jnp.arange(image.shape[axis]) - (centre[axis] - length // 2)
    return (0 <= distance) & (distance < length)

  cut = inside(0)[:, None, None] & inside(1)[None, :, None]
  return jnp.where(cut, jnp.zeros_like(image), image)


AUGMENTATIONS: dict[str, Callable] = {
    "flip": flip, "crop": crop, "shift": shift, "scale": scale, "rotate": rotate, "color": color,
    "cutout": cutout}


def compose(names: str, *, siamese: bool = False) -> Callable[[Array, Array], Array]:
  """`augment(key, images)`: one change after the other.

  Args:
    names: of `AUGMENTATIONS`, with commas between them.
    siamese: whether all images of a call are changed alike, instead of each in its own way.

  Raises:
    ValueError: an unknown name; when called, images that a change does not fit.
  """
  chosen = [name.strip() for name in names.split(",")]
  for name in chosen:
    if name not in AUGMENTATIONS:
      raise ValueError(f"augmentation must be some of {sorted(AUGMENTATIONS)}; got {name!r}")

  def augment(key, images):
    for name, change_key in zip(chosen, jax.random.split(key, len(chosen))):
      if siamese:
        images = jax.vmap(AUGMENTATIONS[name], (None, 0))(change_key, images)
      else:
        keys = jax.random.split(change_key, images.shape[0])
        images = jax.vmap(AUGMENTATIONS[name])(keys, images)
    return images

  return augment


def augmented(loss: Callable, augment: Callable[[Array, Array], Array]) -> Callable:
  """The loss `(params, images, labels, key)` on images that change anew in every step."""
  keyed = adapters.with_key(loss)

  def augmented_loss(params, images, labels, key):
    augment_key, loss_key = jax.random.split(key)
    return keyed(params, augment(augment_key, images), labels, key=loss_key)

  return augmented_loss


def _move(key, image, most, **pad):
  padded = jnp.pad(image, (*((side, side) for side in most), (0, 0)), **pad)
  corner = jax.random.randint(key, (2,), 0, 2 * jnp.array(most) + 1)
  return lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def _resample(image, matrix):
  """Bilinear values at the pixels' places, multiplied by the matrix about the centre; 0 outside."""
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(f"images must be floating point to be turned or scaled; got {image.dtype}")
  height, width, _ = image.shape
  dtype = wide(image.dtype)  # bfloat16 cannot count the pixels of a row.
  centre = (jnp.array([height, width], dtype) - 1) / 2
  grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
  places = jnp.tensordot(matrix.astype(dtype), grid.astype(dtype) - centre[:, None, None], 1)
  places = tuple(places + centre[:, None, None])

  def of_channel(channel):
    return jax.scipy.ndimage.map_coordinates(channel.astype(dtype), places, order=1)

  return jax.vmap(of_channel, -1, -1)(image).astype(image.dtype)
