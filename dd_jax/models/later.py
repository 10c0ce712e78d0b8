"""The networks of later work: ConvNet, ResNet-18, a small vision transformer and an MLP."""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from dd_jax.models import convolution as conv
from dd_jax.models import pooling
from dd_jax.models.model import check_arguments
from dd_jax.models.model import check_classes
from dd_jax.models.model import from_flax
from dd_jax.models.model import Model

NORMS = ("instance", "group", "layer", "batch", "none")
_EPSILON = 1e-5


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
  _check_sizes(norm, width=width, depth=depth)
  if min(image_shape[:2]) < 2 ** depth:
    raise ValueError(f"depth must be at most log2 of the image size {image_shape[:2]}; got {depth}")
  return from_flax(_ConvNet(num_classes, width, depth, norm, convolve=conv.resolve(convolution)),
                   image_shape)


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
  """
  check_arguments(num_classes, image_shape, "resnet18")
  _check_sizes(norm, width=width)
  return from_flax(_ResNet(num_classes, width, norm, convolve=conv.resolve(convolution)),
                   image_shape)


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
  _check_sizes("none", patch=patch, width=width, depth=depth, heads=heads)
  if any(size % patch for size in image_shape[:2]):
    raise ValueError(f"patch={patch} must divide H and W; got {tuple(image_shape)}")
  if width % heads:
    raise ValueError(f"heads={heads} must divide width; got {width}")
  return from_flax(_ViT(num_classes, patch, width, depth, heads), image_shape)


def mlp(*, num_classes: int, image_shape: tuple[int, ...],
        hidden: tuple[int, ...] = (128, 128)) -> Model:
  """A multi-layer perceptron with ReLU on the flattened input: images, table rows, embeddings.

  Args:
    num_classes: K.
    image_shape: (H, W, C), of any size; (1, 1, D) for D columns of a table.
    hidden: units of every hidden layer.
  """
  check_classes(num_classes)
  return from_flax(_MLP(num_classes, tuple(hidden)), image_shape)


class _Norm(nn.Module):
  """`[n, H, W, C]` with mean 0 and variance 1 over some axes, then scaled and shifted."""
  kind: str

  @nn.compact
  def __call__(self, x):
    if self.kind == "none":
      return x
    channels = x.shape[-1]
    groups = {"instance": channels, "batch": channels, "layer": 1,
              "group": max(1, math.gcd(64, channels) // 2)}[self.kind]
    grouped = x.reshape(*x.shape[:-1], groups, channels // groups)
    axes = (0, 1, 2, 4) if self.kind == "batch" else (1, 2, 4)
    return _affine(self, _standardize(grouped, axes).reshape(x.shape))


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
      x = pooling.avg_pool(nn.relu(_Norm(self.norm)(x)), 2)
    return nn.Dense(self.num_classes)(x.reshape(*x.shape[:-3], -1))


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
      y = conv2d(features, (3, 3), padding=1)(nn.relu(_Norm(self.norm)(y)))
      if x.shape[-1] != features:
        x = _Norm(self.norm)(conv2d(features, (1, 1), stride, padding=0)(x))
      return nn.relu(_Norm(self.norm)(y) + x)

    x = nn.relu(_Norm(self.norm)(conv2d(self.width, (3, 3), padding=1)(x)))
    for stage in range(4):
      for stride in (1 if stage == 0 else 2, 1):
        x = block(x, self.width << stage, stride)
    return nn.Dense(self.num_classes)(x.mean((1, 2)))


class _LayerNorm(nn.Module):
  """Of the last axis."""

  @nn.compact
  def __call__(self, x):
    return _affine(self, _standardize(x, (-1,)))


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
      x = x + self._attend(_LayerNorm()(x))
      hidden = nn.gelu(nn.Dense(4 * self.width)(_LayerNorm()(x)))
      x = x + nn.Dense(self.width)(hidden)
    return nn.Dense(self.num_classes)(_LayerNorm()(x).mean(1))

  def _attend(self, x):
    n, tokens, width = x.shape
    queries, keys, values = jnp.moveaxis(
        nn.Dense(3 * width)(x).reshape(n, tokens, 3, self.heads, width // self.heads), 2, 0)
    scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / math.sqrt(width // self.heads)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), values)
    return nn.Dense(width)(mixed.reshape(n, tokens, width))


class _MLP(nn.Module):
  num_classes: int
  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(self.num_classes)(x)


def _standardize(x, axes):
  mean = x.mean(axes, keepdims=True)
  centred = x - mean
  return centred * jax.lax.rsqrt((centred ** 2).mean(axes, keepdims=True) + _EPSILON)


def _affine(module, x):
  """A learned scale and shift of every feature."""
  shape = (1,) * (x.ndim - 1) + x.shape[-1:]
  starts = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
  scale, bias = (module.param(name, start, x.shape[-1:], x.dtype).reshape(shape)
                 for name, start in starts.items())
  return x * scale + bias


def _check_sizes(norm, **sizes):
  if norm not in NORMS:
    raise ValueError(f"norm must be one of {list(NORMS)}; got {norm!r}")
  for name, value in sizes.items():
    if value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
