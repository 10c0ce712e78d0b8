"""The networks of the paper: LeNet, AlexCifarNet and AlexNet."""

from collections.abc import Callable
import functools

from flax import linen as nn

from dd_jax.models import convolution as conv
from dd_jax.models import pooling
from dd_jax.models.model import check_arguments
from dd_jax.models.model import from_flax
from dd_jax.models.model import Model


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
  if width < 1:
    raise ValueError(f"width must be at least 1; got {width}")
  return from_flax(_AlexNet(num_classes, dropout, width, convolve=conv.resolve(convolution)),
                   image_shape)


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


class _AlexCifarNet(nn.Module):
  num_classes: int
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    conv5 = functools.partial(nn.Conv, 64, (5, 5), padding=2, conv_general_dilated=self.convolve)
    pool = functools.partial(pooling.max_pool, window=(3, 3), strides=(2, 2), padding=1)
    x = pooling.local_response_norm(nn.relu(pool(conv5()(x))))
    x = pool(pooling.local_response_norm(nn.relu(conv5()(x))))
    x = x.reshape(*x.shape[:-3], -1)
    x = nn.relu(nn.Dense(384)(x))
    x = nn.relu(nn.Dense(192)(x))
    return nn.Dense(self.num_classes)(x)


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
