"""Layers that normalise: by statistics of images or of the batch, and by neighbouring channels."""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dd_jax.types import Array

NORMS = ("instance", "group", "layer", "batch", "none")
_EPSILON = 1e-5


class Norm(nn.Module):
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


class LayerNorm(nn.Module):
  """Of the last axis."""

  @nn.compact
  def __call__(self, x):
    return _affine(self, _standardize(x, (-1,)))


def local_response_norm(x: Array, *, size: int = 4, alpha: float = 0.001 / 9) -> Array:
  """x / (1 + alpha / size * sum of x^2 over channels c - 2 .. c + 1)^0.75.

  The window of AlexCifarNet (method of arXiv 1811.10959, appendix): zero
  padded, one channel longer to the left. Two square roots stand for the power.
  """
  # The sum over a window of channels as a product with a banded matrix: slices of the innermost
  # axis would be copied element by element.
  source, target = np.ogrid[:x.shape[-1], :x.shape[-1]]
  first = target - size // 2
  band = ((first <= source) & (source < first + size)).astype(x.dtype)
  total = jnp.dot(jnp.square(x).reshape(-1, x.shape[-1]), band, precision=lax.Precision.HIGHEST)
  return x * _power(1 + (alpha / size) * total.reshape(x.shape))


def check_norm(norm: str) -> None:
  """A ValueError unless it is one of `NORMS`."""
  if norm not in NORMS:
    raise ValueError(f"norm must be one of {list(NORMS)}; got {norm!r}")


def _standardize(x, axes):
  mean = x.mean(axes, keepdims=True)
  centred = x - mean
  return centred * lax.rsqrt((centred ** 2).mean(axes, keepdims=True) + _EPSILON)


def _affine(module, x):
  """A learned scale and shift of every feature."""
  shape = (1,) * (x.ndim - 1) + x.shape[-1:]
  starts = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
  scale, bias = (module.param(name, start, x.shape[-1:], x.dtype).reshape(shape)
                 for name, start in starts.items())
  return x * scale + bias


@jax.custom_jvp
def _power(x):
  """x^(-3/4) by a root of a root, with one division in its derivative."""
  root = lax.rsqrt(x)
  return root * jnp.sqrt(root)


@_power.defjvp
def _power_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  power = _power(x)
  return power, -0.75 * power / x * tangent
