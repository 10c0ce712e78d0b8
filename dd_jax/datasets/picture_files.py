"""PNG and JPEG pictures: whole ones alone, grey or in colour, brought to one shape.

Letters: H W C height, width and channels.
"""

import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageOps

from dd_jax.datasets import formats
from dd_jax.datasets.splits import Reading

SUFFIXES = (".png", ".jpg", ".jpeg")

_GREY = ("1", "L", "LA")
_MODES = {1: "L", 3: "RGB"}  # By channels.
_TRANSPARENT = ("LA", "PA", "RGBA")


class Frame(NamedTuple):
  """What every picture of a set is brought to."""
  shape: tuple[int, int, int]  # (H, W, C)
  dtype: np.dtype  # uint8, or uint16 of grey pictures of 16 bits.
  resize: str | None  # As of `Reading`. None: the shape is that of the first picture.
  first: str  # The picture that the others are compared with.


def read(path: str | os.PathLike, raw: bytes | None = None) -> Image.Image:
  """A decoded picture; the checksums of PNG are compared, which decoding alone leaves unread.

  Args:
    path: a PNG or JPEG file, whatever its name; it begins the messages.
    raw: the content, where it does not lie in a file of its own.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, no such picture, or one of 16 bits in more than one channel, of which
      decoding would keep 8.
  """
  if raw is None:
    formats.require_file(path)

  def opened():
    return Image.open(path if raw is None else io.BytesIO(raw), formats=("JPEG", "PNG"))

  try:
    with opened() as picture:
      picture.verify()  # It ends the reading.
    with opened() as picture:
      stored = str(picture.tile)  # Emptied by the decoding.
      picture.load()
  except Exception as error:  # Pillow meets a bad byte with nearly any exception
    raise ValueError(f"{path}: expected a whole PNG or JPEG picture; "
                     f"found {formats.one_line(error)}") from error
  if ";16" in stored and _dtype(picture) != np.uint16:
    raise ValueError(f"{path}: expected 8 bits a channel in colour or with transparency, or 16 of "
                     "grey alone; found 16 of several channels: as uint16 arrays (.npz) they stay")
  return picture


def frame_of(path: str | os.PathLike, picture: Image.Image, reading: Reading) -> Frame:
  """The frame of a set: that of `reading`, else of its first picture.

  Args:
    path: of the first picture.
    picture: the first picture, of `read`.
    reading: its `image_shape` and `resize`.

  Raises:
    ValueError: `image_shape` has other than 1 or 3 channels.
  """
  if reading.image_shape is None:
    channels = 1 if _is_grey(picture) else 3
    return Frame((picture.height, picture.width, channels), _dtype(picture), None, str(path))
  if reading.image_shape[-1] not in _MODES:
    raise ValueError(f"image_shape must have 1 or 3 channels for pictures; "
                     f"got {reading.image_shape}")
  return Frame(reading.image_shape, _dtype(picture), reading.resize, str(path))


def framed(path: str | os.PathLike, picture: Image.Image, frame: Frame) -> np.ndarray:
  """The pixels of a picture in its frame.

  Grey becomes three equal channels, colour becomes grey as of ITU-R 601-2, palettes and CMYK
  become RGB, and white shows through what is transparent. A rotation that EXIF data ask for is
  left out.

  Args:
    path: begins the messages.
    picture: of `read`.
    frame: of `frame_of`.

  Returns:
    `[H, W, C]` of the frame's type.

  Raises:
    ValueError: a picture that does not fit the frame.
  """
  channels = frame.shape[-1]
  if _dtype(picture) != frame.dtype:
    raise ValueError(f"{path}: expected {frame.dtype} pixels, as {frame.first} has; "
                     f"found {_dtype(picture)}")
  if frame.resize is None and channels == 1 and not _is_grey(picture):
    raise ValueError(f"{path}: expected a grey picture, as {frame.first} is; found {picture.mode}: "
                     f"set data.image_shape, whose channels all are brought to")
  if frame.dtype == np.uint8:
    picture = _opaque(picture).convert(_MODES[channels])
  else:  # Resizing knows floats, which hold 16 bits exactly.
    grey = np.asarray(picture, np.float32)
    if "transparency" in picture.info:
      grey = np.where(grey == picture.info["transparency"], np.float32(65535), grey)
    picture = Image.fromarray(grey)
  pixels = _resized(path, picture, frame)
  if frame.dtype == np.uint16:
    pixels = np.rint(pixels).astype(np.uint16)
  return np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], frame.shape)


def _resized(path, picture, frame):
  """The pixels `[H, W]` or `[H, W, 3]`."""
  size, (height, width) = (picture.height, picture.width), frame.shape[:2]
  if size == (height, width):
    return np.asarray(picture)
  if frame.resize == "stretch":
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
  if frame.resize == "crop":
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR))
  if frame.resize is None:
    raise ValueError(f"{path}: expected a picture of (H, W) = {(height, width)}, as {frame.first} "
                     f"is; found {size}: set data.image_shape and data.resize, which bring all to "
                     "one size")
  borders = height - size[0], width - size[1]
  if any(border < 0 or border % 2 for border in borders):
    raise ValueError(f"{path}: expected a picture of (H, W) = {(height, width)} less an even "
                     f"border; found {size}: data.resize=stretch or crop takes any")
  sides = [(border // 2, border // 2) for border in borders]
  pixels = np.asarray(picture)
  return np.pad(pixels, sides + [(0, 0)] * (pixels.ndim - 2))


def _opaque(picture):
  """8 bits of grey or RGB, over white where the picture is transparent."""
  mode = "L" if _is_grey(picture) else "RGB"
  if picture.mode in _TRANSPARENT or "transparency" in picture.info:
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    picture = white
  return picture.convert(mode)


def _is_grey(picture):
  return picture.mode in _GREY or _dtype(picture) == np.uint16


def _dtype(picture):
  """Grey of 16 bits is I;16, and I of older Pillow."""
  return np.dtype(np.uint16 if picture.mode.startswith("I") else np.uint8)
