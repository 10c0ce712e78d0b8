"""ResNet-18 for small images."""

from collections.abc import Callable
import functools

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models.model import Model, check_arguments, from_flax
from dd_jax.models.norm import Norm, check_norm
from dd_jax.types import check_at_least


def resnet18(*, num_classes: int, image_shape: tuple[int, int, int], width: int = 64,
             norm: str = "group", convolution: str | None = None) -> Model:
  """ResNet-18 for small images: 11,173,962 parameters in colour at 10 classes.

  He et al., 2016 (arXiv 1512.03385), with a first convolution of 3x3 and no max-pool; four stages
  of two blocks with `width` times 1, 2, 4 and 8 features.

  Args:
    num_classes: K.
    image_shape: (H, W, C), of any size.
    width: features of the first stage.
    norm: as in `convnet`.
    convolution: as in `convnet`.

  Raises:
    ValueError: norm="instance" for images of up to 8x8, whose last maps are one pixel and zero
      once normalised by themselves.
  """
  check_arguments(num_classes, image_shape, "resnet18")
  check_norm(norm)
  check_at_least(1, width=width)
  if norm == "instance" and max(image_shape[:2]) <= 8:
    raise ValueError(f"norm must not be 'instance' for images of up to 8x8 in resnet18, whose last "
                     f"maps have one pixel; got {image_shape}")
  return from_flax(_ResNet(num_classes, width, norm, convolve=conv.resolve(convolution)),
                   image_shape)


class _ResNet(nn.Module):
  num_classes: int
  width: int
  norm: str
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    conv2d = functools.partial(nn.Conv, use_bias=False, conv_general_dilated=self.convolve)

    def block(x, features, stride):
      y = conv2d(features, (3, 3), stride, padding=1)(x)
      y = conv2d(features, (3, 3), padding=1)(nn.relu(Norm(self.norm)(y)))
      if x.shape[-1] != features:
        x = Norm(self.norm)(conv2d(features, (1, 1), stride, padding=0)(x))
      return nn.relu(Norm(self.norm)(y) + x)

    x = nn.relu(Norm(self.norm)(conv2d(self.width, (3, 3), padding=1)(x)))
    for stage in range(4):
      for stride in (1 if stage == 0 else 2, 1):
        x = block(x, self.width << stage, stride)
    return nn.Dense(self.num_classes)(x.mean((1, 2)))
