"""LeNet, for MNIST and USPS in the paper."""

from collections.abc import Callable
import functools

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models.model import Model, check_arguments, from_flax


def lenet(*, num_classes: int, image_shape: tuple[int, int, int],
          convolution: str | None = None) -> Model:
  """LeNet for 28 or 32 pixels; 61,706 parameters at 28x28x1 and 10 classes.

  conv 6 k5 (padded by 2 at 28 pixels), ReLU, max-pool 2; conv 16 k5, ReLU,
  max-pool 2; 120, 84 and K units.

  Args:
    num_classes: K.
    image_shape: (28, 28, C) or (32, 32, C).
    convolution: one of `convolution.CONVOLUTIONS`; None: the fastest on this backend.
  """
  check_arguments(num_classes, image_shape, "lenet", sizes=(28, 32))
  return from_flax(_LeNet(num_classes, padding=(32 - image_shape[0]) // 2,
                          convolve=conv.resolve(convolution)), image_shape)


class _LeNet(nn.Module):
  num_classes: int
  padding: int
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    # Pooling before bias and ReLU: the same value and gradient, on a quarter of the pixels.
    conv5 = functools.partial(nn.Conv, kernel_size=(5, 5),
                              conv_general_dilated=conv.max_pooled(self.convolve, 2))
    for features, padding in ((6, self.padding), (16, 0)):
      x = nn.relu(conv5(features, padding=padding)(x))
    x = x.reshape(*x.shape[:-3], -1)
    x = nn.relu(nn.Dense(120)(x))
    x = nn.relu(nn.Dense(84)(x))
    return nn.Dense(self.num_classes)(x)
