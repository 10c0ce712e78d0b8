"""Images that stay in their files until they are asked for.

Letters: n images, H W C height, width and channels.
"""

from collections.abc import Callable, Iterator
import math
from typing import Protocol, runtime_checkable

import numpy as np

_BLOCK_NUMBERS = 2 ** 22


@runtime_checkable
class Rows(Protocol):
  """Images of one shape and type, in files; any number of threads may read them at once."""

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """`(n, H, W, C)`."""

  @property
  def dtype(self) -> np.dtype:
    """Of the pixels."""

  def read(self, places: np.ndarray) -> np.ndarray:
    """The images `[len(places), H, W, C]` at these places, in their order.

    Raises:
      ValueError, OSError: a file that is damaged or gone, in one line that names it.
    """


class Chosen:
  """Some of the rows, in an order of their own."""

  def __init__(self, rows: Rows, places: np.ndarray):
    self._rows, self._places = rows, np.asarray(places)
    self.shape = (len(self._places), *rows.shape[1:])
    self.dtype = rows.dtype

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    return self._rows.read(self._places[places])


class Changed:
  """Rows of which something is made as they are read."""

  def __init__(self, rows: Rows, change: Callable[[np.ndarray], np.ndarray]):
    self._rows, self._change = rows, change
    like = change(np.zeros((1, *rows.shape[1:]), rows.dtype))
    self.shape = (rows.shape[0], *like.shape[1:])
    self.dtype = like.dtype

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    return self._change(self._rows.read(places))


def choose(images: np.ndarray | Rows, places: np.ndarray) -> np.ndarray | Rows:
  """The images at these places: an array of an array, and of rows what still lies in its files."""
  return Chosen(images, places) if isinstance(images, Rows) else images[places]


def change(images: np.ndarray | Rows, function: Callable[[np.ndarray], np.ndarray]
           ) -> np.ndarray | Rows:
  """`function(images)`, `[n, H, W, C]` to `[n, H', W', C']`; of rows as they are read."""
  return Changed(images, function) if isinstance(images, Rows) else function(images)


def read(images: np.ndarray | Rows, places: np.ndarray) -> np.ndarray:
  """The images at these places, in memory."""
  return images.read(places) if isinstance(images, Rows) else images[places]


def in_memory(images: np.ndarray | Rows) -> np.ndarray:
  """The array `[n, H, W, C]` of all rows."""
  if not isinstance(images, Rows):
    return images
  found = np.empty(images.shape, images.dtype)
  start = 0
  for block in blocks(images):
    found[start:start + len(block)] = block
    start += len(block)
  return found


def blocks(images: np.ndarray | Rows) -> Iterator[np.ndarray]:
  """Yields images `[size, H, W, C]` of 32 MiB in float64 after another; the last may be fewer."""
  size = max(1, _BLOCK_NUMBERS // max(1, math.prod(images.shape[1:])))
  for start in range(0, images.shape[0], size):
    stop = min(start + size, images.shape[0])
    yield (images.read(np.arange(start, stop)) if isinstance(images, Rows) else
           images[start:stop])
