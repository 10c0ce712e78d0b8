"""Convolution and pooling that stay fast where the library uses them.

Inside `lax.scan`, under `vmap` over weights and in the gradient of a gradient,
XLA's own convolution is many times slower on a CPU than a matrix product over
patches of the image. Everything here has the signature of its `jax.lax` or
`flax.linen` counterpart, so any Flax network can take it:

    nn.Conv(6, (5, 5), conv_general_dilated=convolution.tiled)
"""

from collections.abc import Callable, Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Kernels of more channels than this fill the matrices of a product by themselves.
_WIDE = 32


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
  columns = jnp.concatenate(_windows(lhs, kernel_size, strides), axis=-1)
  return _product(columns, rhs.reshape(-1, rhs.shape[-1]), precision, preferred_element_type)


def shifted(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
            dimension_numbers=None, feature_group_count=1, batch_group_count=1,
            precision=None, preferred_element_type=None):
  """Like `patches` along the width alone; along the height, products are shifted and added.

  A pixel is copied w times instead of h * w, for (H' + h - 1) / H' times the
  arithmetic: it pays for wide images. Strided convolutions go to `patches`.
  """
  if (tuple(window_strides) != (1, 1)
      or not _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
                       batch_group_count)):
    return patches(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation,
                   dimension_numbers, feature_group_count, batch_group_count, precision,
                   preferred_element_type)
  height, width, channels, features = rhs.shape
  lhs = _pad(lhs, (height, width), (1, 1), padding)
  out_height = lhs.shape[1] - height + 1
  columns = jnp.concatenate(_windows(lhs, (1, width), (1, 1)), axis=-1)
  matrix = rhs.transpose(1, 2, 0, 3).reshape(width * channels, height * features)
  out = _product(columns, matrix, precision, preferred_element_type)
  return sum(out[:, i:i + out_height, :, i * features:(i + 1) * features] for i in range(height))


def tiled(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
          dimension_numbers=None, feature_group_count=1, batch_group_count=1,
          precision=None, preferred_element_type=None, *, pool: int = 1):
  """Like `patches`, but each row of the matrix product makes a tile of pixels.

  Neighbouring pixels share most of their patch. A tile of p x q output pixels
  reads its (p + h - 1) x (q + w - 1) inputs once and multiplies them by a
  matrix that holds the kernel once per pixel, at its offset. The matrices are
  fuller, the copies of the image fewer; it pays for images and kernels of few
  channels. The others go to `shifted` and `patches`.

  Args:
    pool: edge of the windows of a max-pool that follows; it is taken within
      the tile, before its pixels are put in their places.

  Returns:
    `[n, H' // pool, W' // pool, O]`.
  """
  arguments = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
               feature_group_count, batch_group_count, precision, preferred_element_type)
  channels, features = rhs.shape[-2:]
  if (max(channels, features) > _WIDE or tuple(window_strides) != (1, 1)
      or not _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
                       batch_group_count)):
    convolve = shifted if channels > _WIDE else patches
    return max_pool(convolve(lhs, rhs, *arguments), (pool, pool), (pool, pool))
  # The tile is `side` windows of the pool wide and high.
  side = max(1, (4 if channels <= 3 else 2) // pool)
  tile = side * pool
  lhs = _pad(lhs, rhs.shape[:2], (1, 1), padding)
  n, height, width, _ = lhs.shape
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
  # Rows: block, pixel in it, channel. Columns: pixel in the pool's window, window, feature.
  matrix = jnp.einsum("hwco,hrpyu,wsqxv->rspqcuvyxo", rhs,
                      _offsets(rhs.shape[0], row_span, tile, pool, rhs.dtype),
                      _offsets(rhs.shape[1], column_span, tile, pool, rhs.dtype),
                      precision=precision)
  out = _product(inputs, matrix.reshape(inputs.shape[-1], -1), precision, preferred_element_type)
  if pool > 1:
    out = _max_of_groups(out.reshape(-1, pool * pool, side * side * features))
  out = (out.reshape(n, rows, columns, side, side, features).transpose(0, 1, 3, 2, 4, 5)
         .reshape(n, rows * side, columns * side, features))
  return out[:, :out_height // pool, :out_width // pool]


CONVOLUTIONS: dict[str, Callable] = {
    "lax": lax.conv_general_dilated,
    "patches": patches,
    "shifted": shifted,
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


def max_pooled(convolve: Callable, window: int) -> Callable:
  """`convolve` and a max-pool over non-overlapping windows as one `conv_general_dilated`.

  Bias and ReLU, which follow, commute with the maximum; `tiled` takes it before
  its output is put in order.
  """
  if convolve is tiled:
    return functools.partial(tiled, pool=window)

  def convolve_and_pool(*args, **kwargs):
    return max_pool(convolve(*args, **kwargs), (window, window), (window, window))

  return convolve_and_pool


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
  # The sum over a window of channels as a product with a banded matrix: slices of the innermost
  # axis would be copied element by element.
  source, target = np.ogrid[:x.shape[-1], :x.shape[-1]]
  first = target - size // 2
  band = ((first <= source) & (source < first + size)).astype(x.dtype)
  total = _product(jnp.square(x), band, lax.Precision.HIGHEST)
  root = jnp.sqrt(1 + (alpha / size) * total)
  return x / (root * jnp.sqrt(root))


@jax.custom_jvp
def _first_max(a, b):
  return jnp.maximum(a, b)


@_first_max.defjvp
def _first_max_jvp(primals, tangents):
  a, b = primals
  return jnp.maximum(a, b), jnp.where(a >= b, *tangents)


@jax.custom_jvp
def _max_of_groups(x):
  """Maximum over the middle axis of `[n, group, features]` -> `[n, features]`."""
  return functools.reduce(jnp.maximum, [x[:, i] for i in range(x.shape[1])])


@_max_of_groups.defjvp
def _max_of_groups_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  largest = _max_of_groups(x)
  # The first of equal members gets the whole gradient; the last one what is left over.
  taken, winners = jnp.zeros(largest.shape, bool), []
  for i in range(x.shape[1] - 1):
    winners.append((x[:, i] >= largest) & ~taken)
    taken |= winners[-1]
  mask = jnp.stack([*winners, ~taken], axis=1)
  return largest, jnp.where(mask, tangent, 0).sum(1)


def _product(x, matrix, precision=None, preferred_element_type=None):
  """`[..., m] @ [m, p]` with two axes: XLA transposes the operands of a product with more."""
  out = jnp.dot(x.reshape(-1, x.shape[-1]), matrix, precision=precision,
                preferred_element_type=preferred_element_type)
  return out.reshape(*x.shape[:-1], matrix.shape[-1])


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


def _offsets(size: int, span: int, tile: int, pool: int, dtype) -> np.ndarray:
  """`[size, span, tile, tile / pool, pool]`: 1 where an input meets kernel tap k of an output."""
  tap, pixel, out = np.ogrid[:size, :span * tile, :tile]
  return (pixel == out + tap).astype(dtype).reshape(size, span, tile, tile // pool, pool)
