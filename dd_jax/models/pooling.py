"""Pooling, fast in the gradient of a gradient on a CPU."""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from dd_jax.types import Array


def max_pool(x: Array, window: Sequence[int], strides: Sequence[int], padding: int = 0) -> Array:
  """Maximum over windows of `x` `[n, H, W, C]` -> `[n, H', W', C]`.

  A maximum of slices: its gradients of any order are selects, where the one of
  `lax.reduce_window` is slow. At a tie one pixel gets the whole gradient.

  Args:
    x: `[n, H, W, C]`; floating point, where there is padding.
    window: its height and width in pixels.
    strides: down and right, in pixels.
    padding: pixels of -inf on each of the four sides.
  """
  window, strides = tuple(window), tuple(strides)
  if padding:
    sides = (padding, padding, 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), sides, sides, (0, 0, 0)))
  for axis in (1, 2):
    size, stride = window[axis - 1], strides[axis - 1]
    count = (x.shape[axis] - size) // stride + 1
    x = functools.reduce(_first_max, strided_slices(x, size, stride, count, axis))
  return x


def strided_slices(x: Array, size: int, stride: int, count: int, axis: int) -> list[Array]:
  """`x[i::stride]` along an axis for every i below the size.

  Splits a reshaped axis: its transpose is a concatenation, where that of a
  strided slice spreads every slice among zeros.

  Args:
    x: any array.
    size: how many slices.
    stride: between the entries of one.
    count: entries of each.
    axis: along which.
  """
  blocks = count + (size - 1) // stride
  length = blocks * stride
  x = lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
  padding = [(0, 0, 0)] * x.ndim
  padding[axis] = (0, length - x.shape[axis], 0)
  x = lax.pad(x, jnp.zeros((), x.dtype), padding)
  lanes = lax.split(x.reshape(*x.shape[:axis], blocks, stride, *x.shape[axis + 1:]),
                    (1,) * stride, axis + 1)
  return [lax.slice_in_dim(lax.squeeze(lanes[i % stride], (axis + 1,)), i // stride,
                           i // stride + count, axis=axis) for i in range(size)]


def avg_pool(x: Array, window: int) -> Array:
  """Mean over non-overlapping windows of `x` `[n, H, W, C]`; a remainder is dropped."""
  n, height, width, channels = x.shape
  rows, columns = height // window, width // window
  x = x[:, :rows * window, :columns * window]
  return x.reshape(n, rows, window, columns, window, channels).mean(axis=(2, 4))


@jax.custom_jvp
def max_of_groups(x: Array) -> Array:
  """Maximum over the middle axis of `[n, group, features]` -> `[n, features]`."""
  return functools.reduce(jnp.maximum, [x[:, i] for i in range(x.shape[1])])


@max_of_groups.defjvp
def _max_of_groups_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  largest = max_of_groups(x)
  # The first of equal members gets the whole gradient; the last one what is left over.
  taken, winners = jnp.zeros(largest.shape, bool), []
  for i in range(x.shape[1] - 1):
    winners.append((x[:, i] >= largest) & ~taken)
    taken |= winners[-1]
  mask = jnp.stack([*winners, ~taken], axis=1)
  return largest, jnp.where(mask, tangent, 0).sum(1)


@jax.custom_jvp
def _first_max(a, b):
  return jnp.maximum(a, b)


@_first_max.defjvp
def _first_max_jvp(primals, tangents):
  a, b = primals
  return jnp.maximum(a, b), jnp.where(a >= b, *tangents)
