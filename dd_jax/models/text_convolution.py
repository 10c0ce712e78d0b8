"""A convolution over the words of a sentence."""

from flax import linen as nn
import jax.numpy as jnp

from dd_jax.models.model import Model, from_flax
from dd_jax.types import check_at_least


def text_convolution(*, num_classes: int, image_shape: dict[str, tuple[int, ...]],
                     width: int = 64, depth: int = 1) -> Model:
  """Convolutions over three words with ReLU, the mean over the words of a sentence, one layer.

  A window is three words times a matrix, which XLA takes faster than a convolution here.

  Args:
    num_classes: K.
    image_shape: {"embedded": (L, D), "mask": (L,)}: word vectors, and 1 where there is a word.
    width: channels of every convolution.
    depth: convolutions.
  """
  check_at_least(1, num_classes=num_classes, width=width, depth=depth)
  if not isinstance(image_shape, dict) or image_shape.keys() != {"embedded", "mask"}:
    raise ValueError("image_shape of text_convolution must be {'embedded': (L, D), 'mask': (L,)}; "
                     f"got {image_shape}")
  return from_flax(_TextConvolution(num_classes, width, depth), image_shape)


class _TextConvolution(nn.Module):
  num_classes: int
  width: int
  depth: int

  @nn.compact
  def __call__(self, inputs):
    words, mask = inputs["embedded"], inputs["mask"][..., None].astype(inputs["embedded"].dtype)
    for _ in range(self.depth):
      padded = jnp.pad(words * mask, ((0, 0), (1, 1), (0, 0)))
      windows = jnp.concatenate([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], -1)
      words = nn.relu(nn.Dense(self.width)(windows))
    # A sentence without a word is one of zeros.
    pooled = (words * mask).sum(1) / jnp.maximum(mask.sum(1), 1.)
    return nn.Dense(self.num_classes)(pooled)
