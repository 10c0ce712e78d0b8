"""The space in which images are distilled, the way there and back.

Letters: n images, H W C height, width and channels.
"""

import numpy as np
from numpy.typing import ArrayLike


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
  dtype = precision(images)
  pixels = images.astype(dtype)
  pixels /= pixel_scale(images.dtype)
  with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # refused below
    normalized = ((pixels - np.asarray(mean, dtype)) / np.asarray(std, dtype)).astype(
        np.float32, copy=False)
  finite = np.isfinite(normalized)
  if not finite.all():
    raise ValueError(f"{argument} must be finite float32 once normalised; got "
                     f"{normalized[~finite][0]} of {pixels[~finite][0]}")
  return normalized


def mean_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of every channel, `[C]` in float64; std is exactly 0 for a constant channel."""
  scale = pixel_scale(images.dtype)
  means, stds = [], []
  for channel in np.moveaxis(images, -1, 0):  # one at a time: float64 copies are large
    with np.errstate(over="ignore", invalid="ignore"):  # becomes inf, which is refused later
      means.append(channel.mean(dtype=np.float64) / scale)
      constant = channel.min() == channel.max()
      stds.append(0 if constant else channel.std(dtype=np.float64) / scale)
  return np.array(means), np.array(stds)


def pixel_scale(dtype: np.dtype) -> int:
  """What pixels are divided by before all else: 255 of uint8, 65535 of uint16, else 1."""
  return int(np.iinfo(dtype).max) if dtype.name in ("uint8", "uint16") else 1


def precision(images: np.ndarray) -> type[np.floating]:
  """The type in which images are held and normalised."""
  return np.float64 if images.dtype.kind == "f" and images.dtype.itemsize >= 8 else np.float32
