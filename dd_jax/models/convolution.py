"""Convolutions that stay fast where the library uses them.

Inside `lax.scan`, under `vmap` over weights and in the gradient of a gradient,
XLA's own convolution is many times slower on a CPU than matrix products. All
of these have the signature of `lax.conv_general_dilated`, so any Flax network
can take them:

    nn.Conv(6, (5, 5), conv_general_dilated=convolution.fastest)

They serve NHWC images `[n, H, W, C]` and HWIO kernels `[h, w, C, O]` without
dilation or groups, and hand every other convolution to `lax`. Their additional
argument `pool` is the edge of the windows of a max-pool that follows.
"""

from collections.abc import Callable
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from dd_jax.models import pooling

# Images of more channels than this fill the matrices of a product by themselves.
_WIDE = 32
# Edge of the output tiles of `winograd`, and the points at which it evaluates polynomials.
_TILE = 4
_POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2)


def _like_lax(convolve: Callable) -> Callable:
  """Gives `convolve(padded images, kernel, strides, pool, **precision)` the signature of `lax`."""
  @functools.wraps(convolve)
  def conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation=None,
                           rhs_dilation=None, dimension_numbers=None, feature_group_count=1,
                           batch_group_count=1, precision=None, preferred_element_type=None, *,
                           pool=1):
    if not _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
                     batch_group_count):
      return _pooled(lax.conv_general_dilated(
          lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
          feature_group_count, batch_group_count, precision, preferred_element_type), pool)
    strides = tuple(window_strides)
    return convolve(_pad(lhs, rhs.shape[:2], strides, padding), rhs, strides, pool,
                    precision=precision, preferred_element_type=preferred_element_type)

  return conv_general_dilated


def _patches(images, kernel, strides, pool, **precision):
  """One matrix product over image patches."""
  columns = jnp.concatenate(_windows(images, kernel.shape[:2], strides), axis=-1)
  return _pooled(_product(columns, kernel.reshape(-1, kernel.shape[-1]), **precision), pool)


def _tiled(images, kernel, strides, pool, **precision):
  """Like `patches`, but each row of the matrix product makes a tile of pixels.

  Neighbouring pixels share most of their patch. A tile of p x q output pixels
  reads its (p + h - 1) x (q + w - 1) inputs once and multiplies them by a
  matrix that holds the kernel once per pixel, at its offset. The matrices are
  fuller, the copies of the image fewer; it pays for images and kernels of few
  channels. A max-pool is taken within the tile, before its pixels are put in
  their places. Strided convolutions go to `patches`.
  """
  if strides != (1, 1):
    return _patches(images, kernel, strides, pool, **precision)
  channels, features = kernel.shape[-2:]
  # The tile is `side` windows of the pool wide and high.
  side = max(1, (4 if channels <= 3 else 2) // pool)
  tile = side * pool
  n, height, width, _ = images.shape
  out_height, out_width = height - kernel.shape[0] + 1, width - kernel.shape[1] + 1
  # A tile's inputs span `span` whole blocks of `tile` pixels in each direction.
  rows, columns = math.ceil(out_height / tile), math.ceil(out_width / tile)
  row_span, column_span = (math.ceil((tile + size - 1) / tile) for size in kernel.shape[:2])
  block_rows, block_columns = rows + row_span - 1, columns + column_span - 1
  blocks = (_extend(images, block_rows * tile, block_columns * tile)
            .reshape(n, block_rows, tile, block_columns, tile, channels)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(n, block_rows, block_columns, tile * tile * channels))
  inputs = jnp.concatenate(
      [blocks[:, i:i + rows, j:j + columns] for i in range(row_span) for j in range(column_span)],
      axis=-1)
  # Rows: block, pixel in it, channel. Columns: pixel in the pool's window, window, feature.
  matrix = jnp.einsum("hwco,hrpyu,wsqxv->rspqcuvyxo", kernel,
                      _offsets(kernel.shape[0], row_span, tile, pool, kernel.dtype),
                      _offsets(kernel.shape[1], column_span, tile, pool, kernel.dtype),
                      precision=precision["precision"])
  out = _product(inputs, matrix.reshape(inputs.shape[-1], -1), **precision)
  if pool > 1:
    out = pooling.max_of_groups(out.reshape(-1, pool * pool, side * side * features))
  out = (out.reshape(n, rows, columns, side, side, features).transpose(0, 1, 3, 2, 4, 5)
         .reshape(n, rows * side, columns * side, features))
  return out[:, :out_height // pool, :out_width // pool]


def _winograd(images, kernel, strides, pool, **precision):
  """A tile of 4x4 output pixels from 8x8 products instead of 16 * 25, or 6x6 instead of 16 * 9.

  Inputs of a tile and kernel are transformed along both axes such that their
  convolution becomes a product pixel by pixel (Toom and Cook; Lavin and Gray,
  arXiv 1509.09308): a matrix product over the channels for each of the 64 or 36
  pixels. It pays for many channels. Its relative error in float32 is 3e-6 where
  that of the others is 4e-7. Strided convolutions, kernels of other edges than 2
  to 5 and half precision, which it would leave with errors of 5 % and more, go
  to `patches`.
  """
  half = min(images.dtype.itemsize, kernel.dtype.itemsize) < 4
  if half or strides != (1, 1) or not all(2 <= size <= 5 for size in kernel.shape[:2]):
    return _patches(images, kernel, strides, pool, **precision)
  (n, height, width, channels), features = images.shape, kernel.shape[-1]
  out_height, out_width = height - kernel.shape[0] + 1, width - kernel.shape[1] + 1
  rows, columns = math.ceil(out_height / _TILE), math.ceil(out_width / _TILE)
  (row_in, row_kernel, row_out), (column_in, column_kernel, column_out) = map(
      _toom_cook, kernel.shape[:2])

  images = _extend(images, (rows + 1) * _TILE, (columns + 1) * _TILE)
  inputs = jnp.stack(_combine(row_in, pooling.strided_slices(images, len(row_in), _TILE, rows, 1)))
  # Without it XLA computes the sums of rows anew for every sum of columns.
  inputs = lax.optimization_barrier(inputs)
  inputs = jnp.stack(_combine(column_in, pooling.strided_slices(
      inputs, len(column_in), _TILE, columns, 3)), axis=1)
  kernels = jnp.dot(np.kron(row_kernel, column_kernel).astype(kernel.dtype),
                    kernel.reshape(-1, channels * features), precision="highest")
  out = jnp.matmul(inputs.reshape(-1, n * rows * columns, channels),
                   kernels.reshape(-1, channels, features), **precision)
  out = out.reshape(len(row_in), len(column_in), n, rows, columns, features)
  out = jnp.stack(_combine(row_out, list(out)))
  out = jnp.stack(_combine(column_out, [out[:, i] for i in range(out.shape[1])]))
  out = out.transpose(2, 3, 1, 4, 0, 5).reshape(n, rows * _TILE, columns * _TILE, features)
  return _pooled(out[:, :out_height, :out_width], pool)


def _fastest(images, kernel, strides, pool, **precision):
  """The one of `tiled`, `winograd` and `patches` that was measured fastest for these shapes."""
  channels, features = kernel.shape[-2:]
  convolve = (_winograd if channels > _WIDE else _tiled if features <= _WIDE else _patches)
  return convolve(images, kernel, strides, pool, **precision)


patches = _like_lax(_patches)
tiled = _like_lax(_tiled)
winograd = _like_lax(_winograd)
fastest = _like_lax(_fastest)

CONVOLUTIONS: dict[str, Callable] = {
    "lax": lax.conv_general_dilated,
    "patches": patches,
    "tiled": tiled,
    "winograd": winograd,
    "fastest": fastest,
}


def resolve(name: str | None) -> Callable:
  """The convolution called `name`; None: the best one measured on the default backend."""
  if name is None:
    # cuDNN and the TPU compiler handle the grouped convolutions of vmap well, XLA's CPU does not.
    name = "fastest" if jax.default_backend() == "cpu" else "lax"
  if name not in CONVOLUTIONS:
    raise ValueError(f"convolution must be one of {sorted(CONVOLUTIONS)} or None; got {name!r}")
  return CONVOLUTIONS[name]


def max_pooled(convolve: Callable, window: int) -> Callable:
  """`convolve` and a max-pool over non-overlapping windows as one `conv_general_dilated`.

  Bias and ReLU, which follow, commute with the maximum; `tiled` takes it before
  its output is put in order.
  """
  if convolve in (patches, tiled, winograd, fastest):
    return functools.partial(convolve, pool=window)

  def convolve_and_pool(*args, **kwargs):
    return _pooled(convolve(*args, **kwargs), window)

  return convolve_and_pool


def _pooled(x, pool):
  return pooling.max_pool(x, (pool, pool), (pool, pool)) if pool > 1 else x


def _product(x, matrix, **precision):
  """`[..., m] @ [m, p]` with two axes: XLA transposes the operands of a product with more."""
  out = jnp.dot(x.reshape(-1, x.shape[-1]), matrix, **precision)
  return out.reshape(*x.shape[:-1], matrix.shape[-1])


def _is_plain(lhs, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
              batch_group_count):
  numbers = lax.conv_dimension_numbers(lhs.shape, lhs.shape, dimension_numbers)
  channels_last = lax.conv_dimension_numbers(lhs.shape, lhs.shape, ("NHWC", "HWIO", "NHWC")
                                             ) if lhs.ndim == 4 else None
  undilated = all(set(d or (1,)) == {1} for d in (lhs_dilation, rhs_dilation))
  return (numbers == channels_last and undilated
          and feature_group_count == 1 and batch_group_count == 1)


def _pad(images, kernel_size, strides, padding):
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(images.shape[1:3], kernel_size, strides, padding)
  (top, bottom), (left, right) = padding
  if not any((top, bottom, left, right)):
    return images
  return lax.pad(images, jnp.zeros((), images.dtype),
                 ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def _extend(images, height, width):
  """Zeros below and to the right, up to `height` and `width`."""
  below, right = height - images.shape[1], width - images.shape[2]
  return _pad(images, None, None, ((0, below), (0, right)))


def _windows(images, kernel_size, strides):
  """The h * w shifted views `[n, H', W', C]` of the padded images that a kernel meets."""
  n, height, width, channels = images.shape
  out = [(length - size) // stride + 1
         for length, size, stride in zip((height, width), kernel_size, strides)]
  stop = [(count - 1) * stride + 1 for count, stride in zip(out, strides)]
  return [lax.slice(images, (0, i, j, 0), (n, i + stop[0], j + stop[1], channels),
                    (1, *strides, 1))
          for i in range(kernel_size[0]) for j in range(kernel_size[1])]


def _offsets(size: int, span: int, tile: int, pool: int, dtype: DTypeLike) -> np.ndarray:
  """`[size, span, tile, tile / pool, pool]`: 1 where an input meets kernel tap k of an output."""
  tap, pixel, out = np.ogrid[:size, :span * tile, :tile]
  return (pixel == out + tap).astype(dtype).reshape(size, span, tile, tile // pool, pool)


@functools.cache
def _toom_cook(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """D `[p, p]`, G `[p, size]` and A `[4, p]`: A ((D d) * (G g)) correlates d with g.

  p = 4 + size - 1. The transpose of multiplying two polynomials by their values
  at p - 1 points and at infinity.
  """
  points = _POINTS[:_TILE + size - 2]
  others = [[b for b in points if b != a] for a in points]
  inputs = np.zeros((len(points) + 1,) * 2)
  for row, rest in zip(inputs, others):
    row[:-1] = np.poly(rest)[::-1]
  inputs[-1] = np.poly(points)[::-1]
  scales = [np.prod([a - b for b in rest]) for a, rest in zip(points, others)]
  kernel = np.vstack([np.vander(points, size, increasing=True) / np.c_[scales],
                      np.eye(size)[-1]])
  out = np.vstack([np.vander(points, _TILE, increasing=True), np.eye(_TILE)[-1]]).T
  return inputs, kernel, out


def _combine(matrix: np.ndarray, pieces: list) -> list:
  """The sums of pieces that the rows of `matrix` weigh; zeros cost nothing."""
  return [sum(piece if weight == 1 else weight * piece
              for weight, piece in zip(row.tolist(), pieces) if weight) for row in matrix]
