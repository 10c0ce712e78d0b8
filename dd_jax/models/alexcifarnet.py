"""AlexCifarNet, for CIFAR-10 in the paper."""

from collections.abc import Callable
import functools

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models import norm
from dd_jax.models import pooling
from dd_jax.models.model import Model, check_arguments, from_flax


def alexcifarnet(*, num_classes: int, image_shape: tuple[int, int, int],
                 convolution: str | None = None) -> Model:
  """AlexCifarNet for 32 pixels; 1,756,426 parameters at 3 channels and 10 classes.

  Args:
    num_classes: K.
    image_shape: (32, 32, C).
    convolution: one of `convolution.CONVOLUTIONS`; None: the fastest on this backend.
  """
  check_arguments(num_classes, image_shape, "alexcifarnet", sizes=(32,))
  return from_flax(_AlexCifarNet(num_classes, convolve=conv.resolve(convolution)), image_shape)


class _AlexCifarNet(nn.Module):
  num_classes: int
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    conv5 = functools.partial(nn.Conv, 64, (5, 5), padding=2, conv_general_dilated=self.convolve)
    pool = functools.partial(pooling.max_pool, window=(3, 3), strides=(2, 2), padding=1)
    x = norm.local_response_norm(nn.relu(pool(conv5()(x))))
    x = pool(norm.local_response_norm(nn.relu(conv5()(x))))
    x = x.reshape(*x.shape[:-3], -1)
    x = nn.relu(nn.Dense(384)(x))
    x = nn.relu(nn.Dense(192)(x))
    return nn.Dense(self.num_classes)(x)
