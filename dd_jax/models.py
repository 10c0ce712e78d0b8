"""Networks as pairs of pure functions; the one file that knows Flax.

A `Model` is `init(key) -> params` and `apply(params, images, *, key=None) ->
logits [n, K]`. A key means training (dropout on: the inner loop), None means
evaluation (the outer loss). Any pair of plain functions of that form is as good
as the networks here; `from_flax` and `from_nnx` make one of a Flax module.
"""

from collections.abc import Callable
import functools
import inspect
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from dd_jax import convolution as conv
from dd_jax import pooling
from dd_jax.types import Array, Params


class Model(NamedTuple):
  """A network: `init(key) -> params`, `apply(params, images, *, key=None) -> logits`."""
  init: Callable[[Array], Params]
  apply: Callable[..., Array]


def from_flax(module: nn.Module, image_shape: tuple[int, ...]) -> Model:
  """The `Model` of a linen module called on images `[n, *image_shape]`.

  A module whose `__call__` takes `train` is told `train=True` when `apply` gets
  a key, which also feeds its dropout.

  Raises:
    ValueError: the module keeps state beside its parameters (batch statistics).
  """
  image_shape = tuple(image_shape)
  takes_train = "train" in inspect.signature(type(module).__call__).parameters

  def call(method, variables_or_key, images, key):
    kwargs = {"train": key is not None} if takes_train else {}
    if key is not None:
      kwargs["rngs"] = {"dropout": key}
    return method(variables_or_key, images, **kwargs)

  def init_variables(key):
    # lazy_init: the shapes of a forward pass without its arithmetic.
    return call(module.lazy_init, key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), None)

  collections = jax.eval_shape(init_variables, jax.random.key(0))
  _refuse_state(sorted(set(collections) - {"params"}), type(module).__name__)

  def init(key):
    return init_variables(key)["params"]

  def apply(params, images, *, key=None):
    return call(module.apply, {"params": params}, images, key)

  return Model(init, apply)


def from_nnx(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Model:
  """The `Model` of an NNX module, made anew in every trace: `lambda rngs: Net(..., rngs=rngs)`.

  `apply` with a key puts the module into training mode and feeds its dropout.

  Raises:
    ValueError: the module keeps state beside its parameters (batch statistics).
  """
  stateless = (nnx.Param, nnx.RngState)
  state = nnx.state(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))), nnx.Not(nnx.Any(*stateless)))
  _refuse_state(["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)], "module")

  def init(key):
    return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key)), nnx.Param))

  def apply(params, images, *, key=None):
    module = make_module(nnx.Rngs(jax.random.key(0) if key is None else key))
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    module.eval() if key is None else module.train()
    return module(images)

  return Model(init, apply)


def lenet(*, num_classes: int, image_shape: tuple[int, int, int],
          convolution: str | None = None) -> Model:
  """LeNet for 28 or 32 pixels; 61,706 parameters at 28x28x1 and 10 classes.

  conv 6 k5 (padded by 2 at 28 pixels), ReLU, max-pool 2; conv 16 k5, ReLU,
  max-pool 2; 120, 84 and K units.
  """
  _check(num_classes, image_shape, "lenet", sizes=(28, 32))
  return from_flax(_LeNet(num_classes, padding=(32 - image_shape[0]) // 2,
                          convolve=conv.resolve(convolution)), image_shape)


def alexcifarnet(*, num_classes: int, image_shape: tuple[int, int, int],
                 convolution: str | None = None) -> Model:
  """AlexCifarNet for 32 pixels; 1,756,426 parameters at 3 channels and 10 classes."""
  _check(num_classes, image_shape, "alexcifarnet", sizes=(32,))
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
  _check(num_classes, image_shape, "alexnet", sizes=(224,))
  if not 0 <= dropout < 1:
    raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
  if width < 1:
    raise ValueError(f"width must be at least 1; got {width}")
  return from_flax(_AlexNet(num_classes, dropout, width, convolve=conv.resolve(convolution)),
                   image_shape)


def convnet(*, num_classes: int, image_shape: tuple[int, int, int], width: int = 128,
            depth: int = 3, convolution: str | None = None) -> Model:
  """The network of later work: blocks of conv 3x3, instance norm, ReLU and average pool.

  Images of 28 pixels are padded by 3 in the first block, which makes them 32.
  """
  _check(num_classes, image_shape, "convnet")
  for name, value in (("width", width), ("depth", depth)):
    if value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  if min(image_shape[:2]) < 2 ** depth:
    raise ValueError(f"depth must be at most log2 of the image size {image_shape[:2]}; got {depth}")
  return from_flax(_ConvNet(num_classes, width, depth, convolve=conv.resolve(convolution)),
                   image_shape)


def mlp(*, num_classes: int, image_shape: tuple[int, ...],
        hidden: tuple[int, ...] = (128, 128)) -> Model:
  """A multi-layer perceptron with ReLU on the flattened input."""
  _check_classes(num_classes)
  return from_flax(_MLP(num_classes, tuple(hidden)), image_shape)


MODELS: dict[str, Callable[..., Model]] = {
    "lenet": lenet,
    "alexcifarnet": alexcifarnet,
    "alexnet": alexnet,
    "convnet": convnet,
    "mlp": mlp,
}


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


class _ConvNet(nn.Module):
  num_classes: int
  width: int
  depth: int
  convolve: Callable

  @nn.compact
  def __call__(self, x):
    for block in range(self.depth):
      padding = 3 if block == 0 and x.shape[-3:-1] == (28, 28) else 1
      x = nn.Conv(self.width, (3, 3), padding=padding, conv_general_dilated=self.convolve)(x)
      x = nn.relu(nn.InstanceNorm(epsilon=1e-5)(x))
      x = pooling.avg_pool(x, 2)
    return nn.Dense(self.num_classes)(x.reshape(*x.shape[:-3], -1))


class _MLP(nn.Module):
  num_classes: int
  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(self.num_classes)(x)


def _refuse_state(names, module_name):
  if names:
    raise ValueError(
        f"module must keep nothing but its parameters; got {names} of {module_name}: use group or "
        "layer norm, or batch norm on the current batch alone, instead of running statistics")


def _check_classes(num_classes):
  if num_classes < 2:
    raise ValueError(f"num_classes must be at least 2; got {num_classes}")


def _check(num_classes, image_shape, name, sizes=None):
  _check_classes(num_classes)
  if len(image_shape) != 3:
    raise ValueError(f"image_shape must be (H, W, C); got {tuple(image_shape)}")
  height, width, _ = image_shape
  if height != width or (sizes and height not in sizes):
    rule = " or ".join(f"{s}x{s}" for s in sizes) if sizes else "square"
    raise ValueError(f"image_shape of {name} must be {rule} pixels; got {tuple(image_shape)}")
