"""How a run is watched, kept and computed, and which of its images are the result."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

PRECISIONS = ("highest", "high", "default")
SELECTIONS = {"final": "final images", "best": "best images by validation"}
STORAGES = ("device", "host", "stream")
ON_NONFINITE = ("stop", "halve")


class Settings(NamedTuple):
  """How a run is watched, kept and computed."""
  log_every: int = 100  # Outer steps per dispatch, and per line of metrics.jsonl.
  validate_every: int = 500  # Outer steps; a multiple of log_every.
  checkpoint_every: int = 500  # Outer steps; a multiple of log_every.
  checkpoints_kept: int = 2  # The last ones; the best by validation is kept besides.
  selection: str = "final"  # Which images are the result: final, or best by `Figures.choosing`.
  num_starts: int = 1  # Of the distilled data; the result is of the best by `Figures.choosing`.
  on_nonfinite: str = "stop"  # Or halve: back to a checkpoint, with half the learning rates.
  batch_size: int = 250  # Validation and test examples per forward pass.
  num_parallel: int | None = None  # Networks tested side by side; None: one on a CPU, else 10.
  parallel: str = "jit"  # Several devices share the run as sharded arrays; or pmap.
  precision: str = "highest"  # Of float32 products on an accelerator: highest, high, default.
  # Where the real examples lie: on the devices, in main memory, or in their files, from which
  # they are read as the run goes: device, host, stream.
  storage: str = "device"
  tensorboard: bool = False  # Whether curves and images are written for TensorBoard too.

  @property
  def selected(self) -> str:
    """Which images are the result, in words."""
    number = self.num_starts
    chosen = f" of the best of {number} starts by validation" if number > 1 else ""
    return f"{SELECTIONS[self.selection]}{chosen}; test data chose nothing"

  def check(self, num_steps: int, seed: int, names: Mapping[str, str] = {}) -> None:
    """A ValueError that names the first setting which does not fit, by `names` where those have it.
    """
    check_seed("seed", seed)
    for name, value in (("num_steps", num_steps), ("log_every", self.log_every),
                        ("checkpoints_kept", self.checkpoints_kept),
                        ("num_starts", self.num_starts)):
      check_positive(names.get(name, name), value)
    for name in ("checkpoint_every", "validate_every"):
      value = getattr(self, name)
      if value < 1 or value % self.log_every:
        raise ValueError(f"{names.get(name, name)} must be a multiple of "
                         f"log_every={self.log_every}; got {value}")
    for name, choices in (("on_nonfinite", ON_NONFINITE), ("selection", tuple(SELECTIONS)),
                          ("precision", PRECISIONS), ("parallel", ("jit", "pmap")),
                          ("storage", STORAGES)):
      check_choice(names.get(name, name), getattr(self, name), choices)
    if self.parallel == "pmap" and self.storage != "device":
      raise ValueError(f"storage must be 'device' for parallel='pmap'; got {self.storage!r}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """A ValueError that lists the choices."""
  if value not in choices:
    raise ValueError(f"{name} must be one of {sorted(choices)}; got {value!r}")


def check_seed(name: str, value: int) -> None:
  """A ValueError unless the value is a seed: JAX takes 32 bits."""
  if not (isinstance(value, (int, np.integer)) and 0 <= value < 2 ** 32):
    raise ValueError(f"{name} must lie in 0..{2 ** 32 - 1}; got {value!r}")


def check_positive(name: str, value: float) -> None:
  """A ValueError unless the value is positive."""
  if not value > 0:
    raise ValueError(f"{name} must be positive; got {value}")
