"""Convolution and pooling that stay fast where the library uses them.

Inside `lax.scan`, under `vmap` over weights and in the gradient of a gradient,
XLA's own convolution is many times slower on a CPU than a matrix product over
patches of the image. Everything here has the signature of its `jax.lax` or
`flax.linen` counterpart, so any Flax network can take it:

    nn.Conv(6, (5, 5), conv_general_dilated=convolution.patches)
"""

from collections.abc import Callable, Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def patches(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
            dimension_numbers=None, feature_group_count=1, batch_group_count=1,
            precision=None, preferred_element_type=None):
  """`lax.conv_general_dilated` as one matrix product over image patches.

  Serves two-dimensional NHWC/HWIO convolutions without dilation or groups, and
  hands every other one to `lax`.

  Args:
    lhs: images `[n, H, W, C]`.
    rhs: kernel `[h, w, C, O]`.
    window_strides: two ints.
    padding: "SAME", "VALID" or `((top, bottom), (left, right))`.
    lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
      batch_group_count, precision, preferred_element_type: as in `lax`.

  Returns:
    `[n, H', W', O]`.
  """
  if not _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
                   batch_group_count):
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, batch_group_count, precision, preferred_element_type)
  kernel_size, strides = rhs.shape[:2], tuple(window_strides)
  lhs = _pad(lhs, kernel_size, strides, padding)
  columns = _windows(lhs, kernel_size, strides)
  return jnp.dot(jnp.concatenate(columns, axis=-1), rhs.reshape(-1, rhs.shape[-1]),
                 precision=precision, preferred_element_type=preferred_element_type)


def tiled(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
          dimension_numbers=None, feature_group_count=1, batch_group_count=1,
          precision=None, preferred_element_type=None):
  """Like `patches`, but each row of the matrix product makes a tile of pixels.

  Neighbouring pixels share most of their patch. A tile of p x q output pixels
  reads its (p + h - 1) x (q + w - 1) inputs once and multiplies them by a
  matrix that holds the kernel once per pixel, at its offset. The matrices are
  fuller, the copies of the image fewer; it pays for large batches of images
  with few channels. Strided and wide convolutions go to `patches`.
  """
  arguments = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
               feature_group_count, batch_group_count, precision, preferred_element_type)
  tile = _tile(lhs.shape[-1])
  if (tile == 1 or tuple(window_strides) != (1, 1)
      or not _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
                       batch_group_count)):
    return patches(lhs, rhs, *arguments)
  lhs = _pad(lhs, rhs.shape[:2], (1, 1), padding)
  n, height, width, channels = lhs.shape
  features = rhs.shape[-1]
  out_height, out_width = height - rhs.shape[0] + 1, width - rhs.shape[1] + 1
  # A tile's inputs span `span` whole blocks of `tile` pixels in each direction.
  rows, columns = math.ceil(out_height / tile), math.ceil(out_width / tile)
  row_span, column_span = (math.ceil((tile + size - 1) / tile) for size in rhs.shape[:2])
  block_rows, block_columns = rows + row_span - 1, columns + column_span - 1
  lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), (
      (0, 0, 0), (0, block_rows * tile - height, 0), (0, block_columns * tile - width, 0),
      (0, 0, 0)))
  blocks = (lhs.reshape(n, block_rows, tile, block_columns, tile, channels)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(n, block_rows, block_columns, tile * tile * channels))
  inputs = jnp.concatenate(
      [blocks[:, i:i + rows, j:j + columns] for i in range(row_span) for j in range(column_span)],
      axis=-1)
  matrix = jnp.einsum("hwco,hpy,wqx->pqcyxo", rhs, _offsets(rhs.shape[0], tile, row_span, rhs.dtype),
                      _offsets(rhs.shape[1], tile, column_span, rhs.dtype), precision=precision)
  matrix = (matrix.reshape(row_span, tile, column_span, tile, channels, tile * tile * features)
            .transpose(0, 2, 1, 3, 4, 5).reshape(-1, tile * tile * features))
  out = jnp.dot(inputs, matrix, precision=precision, preferred_element_type=preferred_element_type)
  out = (out.reshape(n, rows, columns, tile, tile, features).transpose(0, 1, 3, 2, 4, 5)
         .reshape(n, rows * tile, columns * tile, features))
  return out[:, :out_height, :out_width]


CONVOLUTIONS: dict[str, Callable] = {
    "lax": lax.conv_general_dilated,
    "patches": patches,
    "tiled": tiled,
}


def resolve(name: str | None) -> Callable:
  """The convolution called `name`; None: the best one measured on the default backend."""
  if name is None:
    # cuDNN and the TPU compiler handle the grouped convolutions of vmap well, XLA's CPU does not.
    name = "tiled" if jax.default_backend() == "cpu" else "lax"
  if name not in CONVOLUTIONS:
    raise ValueError(f"convolution must be one of {sorted(CONVOLUTIONS)} or None; got {name!r}")
  return CONVOLUTIONS[name]


def max_pool(x, window: Sequence[int], strides: Sequence[int], padding: int = 0):
  """Maximum over windows of `x` `[n, H, W, C]`, padded with -inf -> `[n, H', W', C]`.

  A maximum of slices: its gradients of any order are selects, where the one of
  `lax.reduce_window` is slow. At a tie one pixel gets the whole gradient.
  """
  window, strides = tuple(window), tuple(strides)
  if padding:
    sides = (padding, padding, 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), sides, sides, (0, 0, 0)))
  for axis in (1, 2):
    size, stride = window[axis - 1], strides[axis - 1]
    length = (x.shape[axis] - size) // stride + 1
    if size == stride:
      x = lax.slice_in_dim(x, 0, length * stride, axis=axis)
      x = x.reshape(*x.shape[:axis], length, stride, *x.shape[axis + 1:])
      pieces = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(size)]
    else:
      pieces = [lax.slice_in_dim(x, i, i + (length - 1) * stride + 1, stride, axis)
                for i in range(size)]
    x = functools.reduce(_first_max, pieces)
  return x


def avg_pool(x, window: int):
  """Mean over non-overlapping windows of `x` `[n, H, W, C]`; a remainder is dropped."""
  n, height, width, channels = x.shape
  rows, columns = height // window, width // window
  x = x[:, :rows * window, :columns * window]
  return x.reshape(n, rows, window, columns, window, channels).mean(axis=(2, 4))


def local_response_norm(x, *, size: int = 4, alpha: float = 0.001 / 9):
  """x / (1 + alpha / size * sum of x^2 over channels c - 2 .. c + 1)^0.75.

  The window of AlexCifarNet (method of arXiv 1811.10959, appendix): zero
  padded, one channel longer to the left. Two square roots stand for the power.
  """
  before = size // 2
  squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(before, size - before - 1)])
  channels = x.shape[-1]
  total = sum(squares[..., i:i + channels] for i in range(size))
  root = jnp.sqrt(1 + (alpha / size) * total)
  return x / (root * jnp.sqrt(root))


@jax.custom_jvp
def _first_max(a, b):
  return jnp.maximum(a, b)


@_first_max.defjvp
def _first_max_jvp(primals, tangents):
  a, b = primals
  return jnp.maximum(a, b), jnp.where(a >= b, *tangents)


def _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
              batch_group_count) -> bool:
  numbers = lax.conv_dimension_numbers(lhs.shape, lhs.shape, dimension_numbers)
  channels_last = lax.conv_dimension_numbers(lhs.shape, lhs.shape, ("NHWC", "HWIO", "NHWC")
                                             ) if lhs.ndim == 4 else None
  undilated = all(set(d or (1,)) == {1} for d in (lhs_dilation, rhs_dilation))
  return (numbers == channels_last and undilated
          and feature_group_count == 1 and batch_group_count == 1)


def _pad(lhs, kernel_size, strides, padding):
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], kernel_size, strides, padding)
  (top, bottom), (left, right) = padding
  if not any((top, bottom, left, right)):
    return lhs
  return lax.pad(lhs, jnp.zeros((), lhs.dtype),
                 ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def _windows(lhs, kernel_size, strides):
  """The h * w shifted views `[n, H', W', C]` of the padded images that a kernel meets."""
  n, height, width, channels = lhs.shape
  out = [(length - size) // stride + 1
         for length, size, stride in zip((height, width), kernel_size, strides)]
  stop = [(count - 1) * stride + 1 for count, stride in zip(out, strides)]
  return [lax.slice(lhs, (0, i, j, 0), (n, i + stop[0], j + stop[1], channels), (1, *strides, 1))
          for i in range(kernel_size[0]) for j in range(kernel_size[1])]


def _tile(channels: int) -> int:
  """Edge of the square of pixels made per row: wide inputs fill the matrix by themselves."""
  return 4 if channels <= 3 else 2 if channels <= 16 else 1


def _offsets(size: int, tile: int, span: int, dtype) -> np.ndarray:
  """`[size, span * tile, tile]`: 1 where input pixel p meets kernel tap k of output pixel y."""
  tap, pixel, out = np.ogrid[:size, :span * tile, :tile]
  return (pixel == out + tap).astype(dtype)
