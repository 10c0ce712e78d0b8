"""The ConvNet of later work on dataset distillation."""

from collections.abc import Callable

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models import pooling
from dd_jax.models.model import Model, check_arguments, from_flax
from dd_jax.models.norm import Norm, check_norm
from dd_jax.types import check_at_least


def convnet(*, num_classes: int, image_shape: tuple[int, int, int], width: int = 128,
            depth: int = 3, norm: str = "instance", convolution: str | None = None) -> Model:
  """Blocks of conv 3x3, norm, ReLU and average pool, then one dense layer.

  Images of 28x28 pixels are padded by 3 in the first block, which makes them 32x32.

  Args:
    num_classes: K.
    image_shape: (H, W, C), of any size.
    width: features of every block.
    depth: blocks, at most log2 of H and of W.
    norm: over each image and channel ("instance"), one of up to 32 groups of two channels or more
      ("group"), image ("layer"), or over the current batch and each channel ("batch", which keeps
      no running statistics); "none".
    convolution: one of `convolution.CONVOLUTIONS`; None: the fastest on this backend.
  """
  check_arguments(num_classes, image_shape, "convnet")
  check_norm(norm)
  check_at_least(1, width=width, depth=depth)
  if min(image_shape[:2]) < 2 ** depth:
    raise ValueError(f"depth must be at most log2 of the image size {image_shape[:2]}; got {depth}")
  return from_flax(_ConvNet(num_classes, width, depth, norm, convolve=conv.resolve(convolution)),
                   image_shape)


class _ConvNet(nn.Module):
  num_classes: int
  width: int
  depth: int
  norm: str
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    for block in range(self.depth):
      padding = 3 if block == 0 and x.shape[-3:-1] == (28, 28) else 1
      x = nn.Conv(self.width, (3, 3), padding=padding, conv_general_dilated=self.convolve)(x)
      x = pooling.avg_pool(nn.relu(Norm(self.norm)(x)), 2)
    return nn.Dense(self.num_classes)(x.reshape(*x.shape[:-3], -1))
