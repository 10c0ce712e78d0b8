"""What a run keeps to be looked at: its images on their way, every network it was tested on."""

import io
import pathlib
import shutil
from typing import Any

import numpy as np

from dd_jax.evaluation import EvalResult, Metrics, TargetMetrics
from dd_jax.datasets import npz
from dd_jax.files import archive
from dd_jax.files import atomic
from dd_jax.runs import processes
from dd_jax.runs.accuracies import Figures
from dd_jax.runs.data import Pixels
from dd_jax.types import DistilledData

_NUM_SNAPSHOTS = 8  # After the first, which is of step 0.


def is_shown(before: int, step: int, num_steps: int) -> bool:
  """Whether one of the evenly spaced snapshots lies in (before, step]; a function of the steps."""
  return step * _NUM_SNAPSHOTS // num_steps > before * _NUM_SNAPSHOTS // num_steps


def save_images(workdir: pathlib.Path, step: int, pixels: Pixels | None, distilled: DistilledData
                ) -> np.ndarray | None:
  """Writes snapshots/STEP.npz: pixels in 0..255 `[S, B, H, W, C]`, step sizes `[E, S]`.

  0 and 255 are the ends of the dataset's pixel range. Inputs that are no images are not kept.

  Returns:
    The pixels, or None.
  """
  if pixels is None:
    return None
  shown = np.round(255 * pixels.pictures(np.asarray(distilled.inputs))).astype(np.uint8)
  directory = workdir / "snapshots"
  directory.mkdir(exist_ok=True)
  _save(directory / f"{step}.npz", pixels=shown, step_sizes=np.asarray(distilled.step_sizes))
  return shown


def load_images(workdir: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
  """`{outer step: {pixels, step_sizes}}` in their order; ValueError for a damaged file."""
  paths = {}
  for path in (workdir / "snapshots").glob("*.npz"):
    if not path.stem.isdecimal():
      raise ValueError(f"{path} must be named by its outer step, like 100.npz")
    paths[int(path.stem)] = path
  return {step: _load(paths[step], ("pixels", "step_sizes")) for step in sorted(paths)}


def save_evaluation(workdir: pathlib.Path, evaluated: EvalResult, figures: Figures,
                    **more: np.ndarray) -> None:
  """Writes evaluation.npz: metrics and figures of every network before and after, and `more`."""
  measured = {f"{when}_{name}": values for when in evaluated._fields
              for name, values in figures.of(getattr(evaluated, when)).items()}
  _save(workdir / "evaluation.npz", **more, **(measured | _arrays_of(evaluated)))


def load_evaluation(workdir: pathlib.Path) -> dict[str, np.ndarray] | None:
  """What `save_evaluation` wrote, None where a run has none; ValueError for a damaged file."""
  path = workdir / "evaluation.npz"
  return _load(path, ("before_loss", "after_loss")) if path.exists() else None


def save_group(path: pathlib.Path, evaluated: EvalResult) -> None:
  """Writes what a group of networks gave, in a directory that is made."""
  path.parent.mkdir(exist_ok=True)
  _save(path, **_arrays_of(evaluated))


def load_group(path: pathlib.Path) -> EvalResult | None:
  """What `save_group` wrote, in every process; None where the file is damaged or not there."""
  def load():
    try:
      arrays = _load(path, ("before_loss", "after_loss"))
    except ValueError:
      return None
    return {name: [array.dtype.name, array.tolist()] for name, array in arrays.items()}

  found = processes.on_first(load)
  if found is None:
    return None
  kind: Any = TargetMetrics if "after_r2" in found else Metrics
  return EvalResult(*(
      kind(*(np.array(values, dtype) for dtype, values in (
          found[f"{when}_{name}"] for name in kind._fields))) for when in EvalResult._fields))


def remove_groups(workdir: pathlib.Path) -> None:
  """Once evaluation.npz holds them all."""
  shutil.rmtree(workdir / "tested", ignore_errors=True)


def _arrays_of(evaluated):
  return {f"{when}_{name}": np.asarray(values) for when in evaluated._fields
          for name, values in getattr(evaluated, when)._asdict().items()}


def _save(path, **arrays):
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  atomic.write_bytes(path, buffer.getvalue())


def _load(path, names):
  try:
    arrays = npz.read(path)
  except Exception as error:  # numpy and zipfile meet a bad byte with nearly any exception.
    raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
  archive.check_present(path, arrays, names)
  return arrays
