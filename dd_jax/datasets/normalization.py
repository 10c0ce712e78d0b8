"""The space in which images are distilled, the way there and back.

Letters: n images, H W C height, width and channels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dd_jax.datasets import rows
from dd_jax.datasets.rows import Rows


def normalize(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
  """`(pixels - mean) / std`, the space in which images are distilled.

  Args:
    images: `[n, H, W, C]`; uint8 is divided by 255 and uint16 by 65535 first. float64 is
      rounded at the end alone.
    mean: `[C]`, of a `Dataset`.
    std: `[C]`, of a `Dataset`.

  Returns:
    float32 `[n, H, W, C]`.

  Raises:
    ValueError: images that are not finite in float32 once normalised.
  """
  return normalize_named("images", images, mean, std)


def denormalize(images: ArrayLike, mean: ArrayLike, std: ArrayLike, *, clip: bool = True,
                pixel_range: tuple[float, float] = (0., 1.)) -> np.ndarray:
  """Undoes `normalize` -> float64 `[..., H, W, C]`, in units of pixels / `pixel_scale`.

  Args:
    images: `[..., H, W, C]` in normalised space.
    mean: `[C]`.
    std: `[C]`.
    clip: to `pixel_range`.
    pixel_range: that of the `Dataset`.
  """
  pixels = np.asarray(images, np.float64) * np.asarray(std, np.float64)
  pixels += np.asarray(mean, np.float64)
  return np.clip(pixels, *pixel_range) if clip else pixels


def pictures(images: ArrayLike, mean: ArrayLike, std: ArrayLike, *,
             pixel_range: tuple[float, float] = (0., 1.)) -> np.ndarray:
  """Images to look at, float64 `[..., H, W, C]` in 0..1: black and white are the ends of the range.

  Args:
    images: normalized, `[..., H, W, C]`.
    mean: subtracted from the pixels, `[C]`.
    std: divided by, `[C]`.
    pixel_range: what black and white are in the data.
  """
  low, high = pixel_range
  pixels = denormalize(images, mean, std, pixel_range=pixel_range)
  return (pixels - low) / ((high - low) or 1)


def normalize_named(argument: str, images: ArrayLike, mean: ArrayLike, std: ArrayLike
                    ) -> np.ndarray:
  """`normalize`, whose message names the argument."""
  images = np.asarray(images)
  if not np.shape(mean) == np.shape(std) == images.shape[-1:]:
    raise ValueError(f"mean and std must be [{images.shape[-1]}], as the channels of {argument}; "
                     f"got {list(np.shape(mean))} and {list(np.shape(std))}")
  dtype = precision(images)
  pixels = images.astype(dtype)
  pixels /= dtype(pixel_scale(images.dtype))
  with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # refused below
    normalized = ((pixels - np.asarray(mean, dtype)) / np.asarray(std, dtype)).astype(
        np.float32, copy=False)
  finite = np.isfinite(normalized)
  if not finite.all():
    raise ValueError(f"{argument} must be finite float32 once normalised; got "
                     f"{normalized[~finite][0]} of {pixels[~finite][0]}")
  return normalized


class Statistics(NamedTuple):
  """Of every channel `[C]`, float64, in units of pixels / 255 for uint8 images."""
  mean: np.ndarray
  std: np.ndarray  # Exactly 0 for a constant channel.
  low: np.ndarray  # The least pixel.
  high: np.ndarray  # The largest.


def statistics(images: np.ndarray | Rows) -> Statistics:
  """Of all images, in one pass; the same numbers whether they lie in memory or in files.

  Blocks are joined as by Chan, Golub and LeVeque, 1983: squares are about their own means.
  """
  number, mean, squares = 0, np.zeros(images.shape[-1]), 0.
  low, high = np.inf, -np.inf
  with np.errstate(over="ignore", invalid="ignore"):  # becomes inf or NaN, which is refused later
    for block in rows.blocks(images):
      channels = block.reshape(-1, block.shape[-1])
      low, high = np.minimum(low, channels.min(0)), np.maximum(high, channels.max(0))
      count, block_mean, block_squares = _moments(channels)
      total = number + count
      difference = block_mean - mean
      squares = squares + block_squares
      if number:
        squares += difference ** 2 * (number * count / total)
      mean, number = mean + difference * (count / total), total
  unit = pixel_scale(images.dtype)
  std = np.where(low == high, 0, np.sqrt(squares / number))
  return Statistics(*(np.asarray(values, np.float64) / unit for values in (mean, std, low, high)))


def _moments(channels):
  """Number, mean and squared deviations from it of `[n, C]`."""
  if channels.shape[1] > 64:
    values = channels.astype(np.float64)
    mean = values.mean(0)
    return len(values), mean, np.sum((values - mean) ** 2, 0)
  means, squares = [], []  # NumPy is slow along a short last axis.
  for channel in channels.T:
    values, counts = channel.astype(np.float64), 1
    if channel.dtype.kind == "u":
      counts = np.bincount(channel)
      values = np.arange(len(counts), dtype=np.float64)
    means.append(np.sum(values * counts) / len(channel))
    squares.append(np.sum((values - means[-1]) ** 2 * counts))
  return len(channels), np.array(means), np.array(squares)


def pixel_scale(dtype: np.dtype) -> int:
  """What pixels are divided by before all else: 255 of uint8, 65535 of uint16, else 1."""
  return int(np.iinfo(dtype).max) if dtype.name in ("uint8", "uint16") else 1


def precision(images: np.ndarray) -> type[np.floating]:
  """The type in which images are held and normalised."""
  return np.float64 if images.dtype.kind == "f" and images.dtype.itemsize >= 8 else np.float32
