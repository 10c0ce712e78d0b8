"""The curves and the images of a run for TensorBoard."""

import pathlib

import numpy as np

from dd_jax.files import pictures
from dd_jax import extras

_MAX_IMAGES = 10  # Of each distill step.


def check(enabled: bool) -> None:
  """An ImportError that says what to install, where the config asks for what is not there."""
  if enabled:
    _import()


class Board:
  """Event files in WORKDIR/tensorboard; one that is not enabled does nothing."""

  def __init__(self, workdir: pathlib.Path, enabled: bool):
    self._directory = workdir / "tensorboard" if enabled else None
    self._writer = None

  def begin(self, step: int) -> None:
    """Continues after outer step `step`: later points, of an interrupted run, are hidden.

    The images of step 0 are added on every return to it, so that the earlier ones are hidden too.
    """
    self.close()
    if self._directory is not None:
      # Files that were opened within the same second would have the same name.
      number = len(list(self._directory.glob("events.*")))
      self._writer = _import().SummaryWriter(
          str(self._directory), purge_step=step + 1 if step else 0,
          filename_suffix=f".{number:06d}")

  def add_line(self, line: dict[str, float]) -> None:
    """The figures of one line of metrics.jsonl."""
    if self._writer is not None:
      for name, value in line.items():
        if name != "step":
          self._writer.add_scalar(name, value, line["step"])
      self._writer.flush()

  def add_images(self, step: int, pixels: np.ndarray) -> None:
    """The first images of every distill step; pixels `[S, B, H, W, C]` in 0..255."""
    if self._writer is not None and pixels.shape[-1] in (1, 3):
      grid = pictures.image_grid(pixels[:, :_MAX_IMAGES] / 255.)
      self._writer.add_image("distilled_images", grid, step, dataformats="HWC")

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


def _import():
  return extras.load("tensorboardX", "tensorboard needs tensorboardX", "tensorboard")
