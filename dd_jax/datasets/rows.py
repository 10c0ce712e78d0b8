"""Images that stay in their files until they are asked for.

Letters: n images, H W C height, width and channels.
"""

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np


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


Images = TypeVar("Images", np.ndarray, Rows)


class Chosen:
  """Some of the rows, in an order of their own."""

  def __init__(self, rows: Rows, places: np.ndarray):
    self._rows, self._places = rows, np.asarray(places)
    self.shape = (len(self._places), *rows.shape[1:])
    self.dtype = rows.dtype

  def read(self, places: np.ndarray) -> np.ndarray:
    """As of `Rows`."""
    return self._rows.read(self._places[places])


def choose(images: np.ndarray | Rows, places: np.ndarray) -> np.ndarray | Rows:
  """The images at these places: an array of an array, and of rows what still lies in its files."""
  return images[places] if isinstance(images, np.ndarray) else Chosen(images, places)


def in_memory(images: np.ndarray | Rows) -> np.ndarray:
  """The array `[n, H, W, C]` of all rows."""
  return images if isinstance(images, np.ndarray) else images.read(np.arange(images.shape[0]))


def blocks(images: np.ndarray | Rows, size: int = 1024):
  """Yields `[size, H, W, C]` after another; the last may be shorter."""
  for start in range(0, images.shape[0], size):
    stop = min(start + size, images.shape[0])
    yield images[start:stop] if isinstance(images, np.ndarray) else images.read(
        np.arange(start, stop))
