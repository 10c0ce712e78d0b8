"""The data of a run: splits as networks take them, and the way back to pictures."""

from typing import Any, NamedTuple

import jax
import numpy as np

from dd_jax import datasets
from dd_jax import whitening as zca
from dd_jax.datasets import normalization
from dd_jax.types import Array

Examples = tuple[Any, Array]  # Inputs, any pytree of [n, ...], and labels [n].


class Pixels(NamedTuple):
  """How normalised images become pixels again."""
  mean: np.ndarray
  std: np.ndarray
  range: tuple[float, float]
  scale: int  # 255 of uint8, 65535 of uint16, whose pixels are divided by it; else 1.
  whitening: zca.Whitening | None = None
  regularization: float | None = None  # Of the whitening.

  def pictures(self, images: np.ndarray) -> np.ndarray:
    """Images `[..., H, W, C]` to look at, in 0..1."""
    if self.whitening is not None:
      images = zca.restore(self.whitening, images.reshape(-1, *images.shape[-3:])
                           ).reshape(images.shape)
    return datasets.pictures(images, self.mean, self.std, pixel_range=self.range)


class Data(NamedTuple):
  """What networks are trained, chosen and tested on."""
  train: Examples  # What is distilled.
  validation: Examples  # A part of the training set.
  test: Examples  # Used once, at the end.
  num_classes: int  # K.
  name: str = "arrays"
  digest: dict[str, str] = {}  # Of `datasets.digest`: a run goes on with the same data alone.
  pixels: Pixels | None = None  # None: the inputs are no images, and no pictures are made.
  class_names: tuple[str, ...] = ()  # Of the labels 0..K-1, where they have names.


def from_dataset(dataset: datasets.Dataset, *, num_validation: int, seed: int = 0,
                 whitening: float | None = None,
                 image_shape: tuple[int, int, int] | None = None) -> Data:
  """The data of an image set: validation images set aside, all normalised.

  Args:
    dataset: of `datasets.load` or `datasets.from_arrays`.
    num_validation: training images set aside; a function of the seed.
    seed: of the split.
    whitening: regularization of ZCA fitted to the training images. None: none.
    image_shape: (H, W, C) to bring the images to. None: their own.

  Raises:
    ValueError: as of `datasets.split_validation`, `datasets.reframe` and `whitening.fit`.
  """
  digest = datasets.digest(dataset)
  if image_shape is not None:
    dataset = datasets.reframe(dataset, image_shape)
  dataset, validation_images, validation_labels = datasets.split_validation(
      dataset, num_validation, seed=seed)

  def normalized(images):
    return datasets.normalize(images, dataset.mean, dataset.std)

  fitted = whitening and zca.fit(normalized(dataset.train_images), regularization=whitening)

  def examples(images, labels):
    images = normalized(images)
    return np.asarray(zca.whiten(fitted, images) if fitted else images), np.asarray(labels)

  return Data(
      examples(dataset.train_images, dataset.train_labels),
      examples(validation_images, validation_labels),
      examples(dataset.test_images, dataset.test_labels),
      dataset.num_classes, dataset.name, digest,
      Pixels(dataset.mean, dataset.std, dataset.pixel_range,
             normalization.pixel_scale(dataset.train_images.dtype), fitted or None, whitening),
      dataset.class_names)


def input_shapes(data: Data) -> Any:
  """The shapes of one example's inputs; `(H, W, C)` of images."""
  return jax.tree.map(lambda x: tuple(x.shape[1:]), data.train[0])
