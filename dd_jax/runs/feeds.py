"""Data that do not lie on the devices: minibatches read ahead, while the one before is used."""

from collections.abc import Callable, Generator, Iterator
import concurrent.futures
import functools
import itertools
from typing import Any

import jax
import numpy as np

from dd_jax import distillation
from dd_jax import extras
from dd_jax.datasets import rows
from dd_jax.runs import storage
from dd_jax.runs.data import Examples
from dd_jax.types import Array

_AHEAD = 2  # Pieces of data in memory that wait for the devices.
_READERS = 4  # The most threads that read pieces from files, and the most pieces that wait.
_AHEAD_BYTES = 2 ** 27  # What the waiting ones may take, and those being read once more.
_PIECE_BYTES = 2 ** 23


def check(storage: str) -> None:
  """ImportError where the storage needs a package that is not installed."""
  if storage == "stream":
    _grain()


def _grain():
  return extras.load("grain", "data.storage='stream' reads through Grain", "stream")


def ahead(read: Callable[[int], Any], count: int, *, size: int, stream: bool) -> Generator:
  """`read(0)` to `read(count - 1)`, in order; some are read before they are asked for.

  Args:
    read: gives NumPy arrays; called from other threads.
    count: how many.
    size: bytes of one of them.
    stream: by the threads of Grain, for what comes from files; else by one thread.

  Raises:
    ImportError: Grain is not installed.
  """
  if stream:
    grain = _grain()
    readers = max(1, min(_READERS, _AHEAD_BYTES // max(1, size)))
    options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=readers)
    return _closed(iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options)))
  return _by_one_thread(read, count)


def _closed(iterator):
  """The same; its threads end with it."""
  try:
    yield from iterator
  finally:
    iterator.close()


def _nothing():
  yield from ()


def _by_one_thread(read, count):
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    waiting = [reader.submit(read, i) for i in range(min(_AHEAD, count))]
    for i in itertools.count(_AHEAD):
      if not waiting:
        return
      if i < count:
        waiting.append(reader.submit(read, i))
      yield waiting.pop(0).result()


class Pieces:
  """Minibatches of `size` outer steps after another: those that `run_outer_steps` takes."""

  def __init__(self, examples: Examples, root_key: jax.Array, *, batch_size: int, size: int,
               num_steps: int, chosen: np.ndarray, stream: bool):
    """`chosen`: which of the R places of every minibatch are read here; the rest as their names."""
    self._examples, self._chosen = examples, chosen
    self._batch_size, self._size, self._num_steps = batch_size, size, num_steps
    self._per_epoch = distillation.check_batch_size(batch_size, len(examples[1]))
    self._order = functools.lru_cache(maxsize=2 * _READERS)(
        functools.partial(_order, root_key, len(examples[1])))
    self._stream = stream
    self._next: int | None = None
    self._feed: Generator = _nothing()

  def following(self, step: int, count: int) -> Iterator[Any]:
    """Yields the `count` pieces from a step on; those behind them are being read by then."""
    if step != self._next:  # The first call, or a run that went back to a checkpoint.
      self._feed.close()
      self._feed = ahead(lambda i: self.read(step + i * self._size),
                         max(1, self._num_steps - step) + count, stream=self._stream,
                         size=self._size * batch_bytes(self._examples, len(self._chosen)))
    self._next = step + count * self._size
    yield from itertools.islice(self._feed, count)

  def read(self, step: int) -> tuple[np.ndarray, Any, Array]:
    """Numbers of steps `[size]`, inputs `[size, R, ...]` and labels `[size, R]` from one on."""
    numbers = np.arange(step, step + self._size, dtype=np.int32)
    return numbers, *read(self._examples, np.stack([self._places(n) for n in numbers]))

  def _places(self, number):
    epoch, batch = divmod(int(number), self._per_epoch)
    start = batch * self._batch_size
    return self._order(epoch)[start:start + self._batch_size][self._chosen]


def _order(root_key, num_examples, epoch):
  return np.asarray(_epoch_order(root_key, epoch, num_examples))


_epoch_order = jax.jit(distillation.epoch_order, static_argnums=2)


def read(examples: Examples, places: np.ndarray) -> Examples:
  """The examples at `places`, leaves `[*places.shape, ...]` in memory."""
  def of_leaf(leaf):
    found = rows.read(leaf, places.reshape(-1))
    return found.reshape(*places.shape, *found.shape[1:])

  return jax.tree.map(of_leaf, examples)


def steps_per_piece(examples: Examples, batch_size: int, log_every: int) -> int:
  """Outer steps whose minibatches come to the devices at once: a divisor of `log_every`."""
  size = batch_bytes(examples, batch_size)
  return max(divisor for divisor in range(1, log_every + 1)
             if log_every % divisor == 0 and divisor * size <= max(size, _PIECE_BYTES))


def batch_bytes(examples: Examples, batch_size: int) -> int:
  """Of so many of the examples, as they are stored."""
  return batch_size * storage.num_bytes(examples) // len(examples[1])
