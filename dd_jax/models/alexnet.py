"""AlexNet, for images of 224 pixels in the paper."""

from collections.abc import Callable
import functools

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models import pooling
from dd_jax.models.model import Model, check_arguments, from_flax
from dd_jax.types import check_at_least


def alexnet(*, num_classes: int, image_shape: tuple[int, int, int], dropout: float = 0.0,
            width: int = 64, convolution: str | None = None) -> Model:
  """The one-tower ImageNet network for 224 pixels; 57,003,840 + 4,097 K parameters in colour.

  conv 64 k11 stride 4, max-pool 3/2; conv 192 k5, max-pool 3/2; conv 384, 256
  and 256 k3, max-pool 3/2; 4096, 4096 and K units; a ReLU after every layer but
  the last. `imagenet_weights.load` reads its weights.

  Args:
    num_classes: K.
    image_shape: (224, 224, C).
    dropout: share of the inputs of both hidden dense layers that is dropped
      when `apply` gets a key.
    width: features of the first convolution; all other layers are in proportion.
    convolution: one of `convolution.CONVOLUTIONS`; None: the fastest on this backend.
  """
  check_arguments(num_classes, image_shape, "alexnet", sizes=(224,))
  if not 0 <= dropout < 1:
    raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
  check_at_least(1, width=width)
  return from_flax(_AlexNet(num_classes, dropout, width, convolve=conv.resolve(convolution)),
                   image_shape)


class _AlexNet(nn.Module):
  num_classes: int
  dropout: float
  width: int
  convolve: Callable

  @nn.compact
  def __call__(self, x, train):
    def convolve(x, multiple, size, strides=1, padding=1):
      return nn.Conv(multiple * self.width, (size, size), strides, padding,
                     conv_general_dilated=self.convolve)(x)

    pool = functools.partial(pooling.max_pool, window=(3, 3), strides=(2, 2))
    x = nn.relu(pool(convolve(x, 1, 11, strides=4, padding=2)))
    x = nn.relu(pool(convolve(x, 3, 5, padding=2)))
    x = nn.relu(convolve(x, 6, 3))
    x = nn.relu(convolve(x, 4, 3))
    x = nn.relu(pool(convolve(x, 4, 3)))
    x = x.reshape(*x.shape[:-3], -1)
    for _ in range(2):
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      x = nn.relu(nn.Dense(64 * self.width)(x))
    return nn.Dense(self.num_classes)(x)
