"""Where the real examples of a run lie: what that takes, and whether it fits."""

import math

import jax
import numpy as np

from dd_jax import datasets
from dd_jax.datasets import host_memory
from dd_jax.runs import machine
from dd_jax.runs.data import Data, Examples

_SPLITS = ("train", "validation", "test")


def num_bytes(examples: Examples) -> int:
  """Of all examples, as they are stored."""
  return sum(map(_leaf_bytes, jax.tree.leaves(examples)))


def _leaf_bytes(leaf):
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def check_fits(data: Data, storage: str) -> None:
  """Refuses examples for which there is no room, before any of them is moved.

  Raises:
    ValueError: it names what they take, what is free, and which storage has room.
  """
  examples = [getattr(data, split) for split in _SPLITS]
  in_files = [leaf for leaf in jax.tree.leaves(examples) if isinstance(leaf, datasets.Rows)]
  needed = {"device": sum(map(num_bytes, examples)), "host": sum(map(_leaf_bytes, in_files)),
            "stream": 0}
  known = {"device": machine.free_bytes(), "host": host_memory.free_bytes()}
  free = {place: math.inf if size is None else float(size) for place, size in known.items()}
  free["stream"] = math.inf
  if needed[storage] > free[storage]:
    others = [repr(other) for other in ("host", "stream") if needed[other] <= free[other]]
    raise ValueError(f"storage={storage!r} needs {needed[storage] / 1e9:.3g} GB for the real "
                     f"examples and {free[storage] / 1e9:.3g} GB are free; there is room with "
                     f"{' or '.join(others)}")


def describe(data: Data, storage: str) -> str:
  """One line about the data of a run: number, classes, shape, range, bytes and where they lie."""
  shapes = ", ".join("x".join(map(str, leaf.shape[1:])) + f" {np.dtype(leaf.dtype).name}"
                     for leaf in jax.tree.leaves(data.train[0]))
  numbers = " + ".join(f"{len(getattr(data, split)[1])} {split}" for split in _SPLITS)
  sizes = {split: num_bytes(getattr(data, split)) for split in _SPLITS}
  place = {"device": "on every device", "host": "in main memory",
           "stream": "in files" if _lies_in_files(data) else "in main memory, though streamed"}
  free = machine.free_bytes()
  pixels = "" if data.pixels is None else " in {:.6g}..{:.6g}".format(
      *(data.pixels.scale * end for end in data.pixels.range))
  return (f"{data.name}: {numbers} examples of {data.num_classes} classes, {shapes}{pixels}, "
          f"{sum(sizes.values()) / 1e6:.4g} MB {place[storage]}"
          + ("" if free is None else f"; {free / 1e9:.3g} GB are free there"
             if storage == "device" else f"; {free / 1e9:.3g} GB are free on a device"))


def _lies_in_files(data):
  return any(isinstance(leaf, datasets.Rows) for leaf in jax.tree.leaves(data.train[0]))
