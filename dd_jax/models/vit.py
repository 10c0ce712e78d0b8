"""A small vision transformer."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from dd_jax.models.model import Model, check_arguments, from_flax
from dd_jax.models.norm import LayerNorm
from dd_jax.types import check_at_least


def vit(*, num_classes: int, image_shape: tuple[int, int, int], patch: int = 4, width: int = 128,
        depth: int = 6, heads: int = 4) -> Model:
  """A small vision transformer: pre-norm blocks, learned positions, the mean over the patches.

  Dosovitskiy et al., 2021 (arXiv 2010.11929).

  Args:
    num_classes: K.
    image_shape: (H, W, C).
    patch: pixels along the side of a patch, which divide H and W.
    width: features of a patch, divisible by the heads.
    depth: blocks of attention and an MLP of four times the width.
    heads: of the attention.
  """
  check_arguments(num_classes, image_shape, "vit")
  check_at_least(1, patch=patch, width=width, depth=depth, heads=heads)
  if any(size % patch for size in image_shape[:2]):
    raise ValueError(f"patch={patch} must divide H and W; got {tuple(image_shape)}")
  if width % heads:
    raise ValueError(f"heads={heads} must divide width; got {width}")
  return from_flax(_ViT(num_classes, patch, width, depth, heads), image_shape)


class _ViT(nn.Module):
  num_classes: int
  patch: int
  width: int
  depth: int
  heads: int

  @nn.compact
  def __call__(self, x):
    n, height, width, channels = x.shape
    rows, columns, size = height // self.patch, width // self.patch, self.patch
    x = x.reshape(n, rows, size, columns, size, channels).swapaxes(2, 3)
    x = nn.Dense(self.width)(x.reshape(n, rows * columns, -1))
    x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]),
                       x.dtype)
    for _ in range(self.depth):
      x = x + self._attend(LayerNorm()(x))
      hidden = nn.gelu(nn.Dense(4 * self.width)(LayerNorm()(x)))
      x = x + nn.Dense(self.width)(hidden)
    return nn.Dense(self.num_classes)(LayerNorm()(x).mean(1))

  def _attend(self, x):
    n, tokens, width = x.shape
    queries, keys, values = jnp.moveaxis(
        nn.Dense(3 * width)(x).reshape(n, tokens, 3, self.heads, width // self.heads), 2, 0)
    scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / math.sqrt(width // self.heads)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), values)
    return nn.Dense(width)(mixed.reshape(n, tokens, width))
