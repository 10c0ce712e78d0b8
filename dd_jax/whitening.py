"""ZCA whitening: images whose pixels are uncorrelated and have equal variance, and the way back."""

from typing import NamedTuple

import numpy as np

from dd_jax.types import Array


class Whitening(NamedTuple):
  """D = H W C numbers an image. Of the type of the images it is fitted on."""
  mean: np.ndarray  # [D]
  directions: np.ndarray  # [D, D], orthonormal columns.
  scales: np.ndarray  # [D] standard deviation along each, regularised.


def fit(images: np.ndarray, *, regularization: float = 0.1) -> Whitening:
  """The whitening of a training set.

  Args:
    images: `[n, H, W, C]` in normalised space.
    regularization: added to every variance, in units of their mean: directions in which images
      hardly vary are not blown up to noise. As Nguyen et al., 2021 (arXiv 2107.13034).

  Raises:
    ValueError: a regularization that is not positive, or images that are all alike.
  """
  if not regularization > 0:
    raise ValueError(f"regularization must be positive; got {regularization}")
  flat = images.reshape(len(images), -1)
  if (flat == flat[0]).all():  # Their computed variances may be others than 0.
    raise ValueError(f"images must differ to be whitened; got {len(images)} that are alike")
  mean = flat.mean(0)
  centred = flat - mean
  variances, directions = np.linalg.eigh(centred.T @ centred / len(flat))
  variances = np.maximum(variances, 0)
  return Whitening(mean, directions,
                   np.sqrt(variances + regularization * variances.mean()))


def whiten(whitening: Whitening, images: np.ndarray) -> np.ndarray:
  """Images `[..., H, W, C]` of normalised space, whitened.

  Raises:
    ValueError: images of another size than the whitening's.
  """
  _check(whitening, images)
  centred = images.reshape(-1, len(whitening.mean)) - whitening.mean
  return _along(whitening, centred, 1 / whitening.scales).reshape(images.shape)


def as_product(whitening: Whitening) -> tuple[np.ndarray, np.ndarray]:
  """`whiten` as a mean `[1, D]` and a matrix `[D, D]`, for `apply_product` on a device."""
  matrix = (whitening.directions / whitening.scales) @ whitening.directions.T
  return whitening.mean[None], matrix


def apply_product(product: tuple[Array, Array], images: Array) -> Array:
  """`[n, H, W, C]` of normalised space, whitened by one product."""
  mean, matrix = product
  return ((images.reshape(len(images), -1) - mean) @ matrix).reshape(images.shape)


def restore(whitening: Whitening, images: np.ndarray) -> np.ndarray:
  """The inverse of `whiten`; errors as there."""
  _check(whitening, images)
  flat = _along(whitening, images.reshape(-1, len(whitening.mean)), whitening.scales)
  return (flat + whitening.mean).reshape(images.shape)


def _along(whitening, flat, factors):
  """Multiplies by `directions diag(factors) directions^T`."""
  return flat @ (whitening.directions * factors) @ whitening.directions.T


def _check(whitening, images):
  size = int(np.prod(images.shape[-3:]))
  if size != len(whitening.mean):
    raise ValueError(f"images must have H W C = {len(whitening.mean)} numbers of the whitening; "
                     f"got {size}")
