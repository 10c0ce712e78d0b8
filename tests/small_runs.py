"""A run of a small network on small images, whose programs compile at once."""

from collections.abc import Callable
import functools

import numpy as np

from dd_jax import datasets
from dd_jax import models
from dd_jax import runs

SETTINGS = runs.Settings(log_every=2, validate_every=2, checkpoint_every=4)


def data(scale: Callable = lambda pixels: pixels) -> runs.Data:
  """Three classes of 4x4 images; `scale` takes their pixels, uint8 in 0..255."""
  pixels = np.random.default_rng(0).integers(0, 256, (66, 4, 4, 1), np.uint8)
  pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
  images, labels = scale(pixels), np.arange(66, dtype=np.int32) % 3
  return runs.from_dataset(
      datasets.from_arrays(images[:36], labels[:36], images[36:], labels[36:], name="small"),
      num_validation=6)


def problem(data: runs.Data = data(), **options) -> runs.Problem:
  """Of such data; `options` as of `runs.make_problem`."""
  model = functools.partial(models.mlp, hidden=(5,))
  return runs.make_problem(data, model, **options)._replace(batch_size=8)
