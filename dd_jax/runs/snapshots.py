"""What a run keeps to be looked at: its images on their way, every network it was tested on."""

import io
import pathlib

import numpy as np

import dd_jax
from dd_jax.files import artifacts
from dd_jax import datasets
from dd_jax.files import npz
from dd_jax import whitening as zca
from experiments.problem import Data

_NUM_SNAPSHOTS = 8  # After the first, which is of step 0.


def is_due(before: int, step: int, num_steps: int) -> bool:
  """Whether one of the evenly spaced snapshots lies in (before, step]; a function of the steps."""
  return step * _NUM_SNAPSHOTS // num_steps > before * _NUM_SNAPSHOTS // num_steps


def save_images(workdir: pathlib.Path, step: int, data: Data, distilled: dd_jax.DistilledData
                ) -> np.ndarray:
  """Writes snapshots/STEP.npz: pixels in 0..255 `[S, B, H, W, C]`, step sizes `[E, S]`.

  0 and 255 are the ends of the dataset's `pixel_range`.

  Returns:
    The pixels.
  """
  images = np.asarray(distilled.images)
  if data.whitening is not None:
    images = zca.restore(data.whitening, images.reshape(-1, *images.shape[2:])
                         ).reshape(images.shape)
  pixels = np.round(255 * datasets.pictures(
      images, data.dataset.mean, data.dataset.std, pixel_range=data.dataset.pixel_range)
                    ).astype(np.uint8)
  directory = workdir / "snapshots"
  directory.mkdir(exist_ok=True)
  _save(directory / f"{step}.npz", pixels=pixels, step_sizes=np.asarray(distilled.step_sizes))
  return pixels


def load_images(workdir: pathlib.Path) -> dict[int, dict[str, np.ndarray]]:
  """`{outer step: {pixels, step_sizes}}` in their order; ValueError for a damaged file."""
  paths = {}
  for path in (workdir / "snapshots").glob("*.npz"):
    if not path.stem.isdecimal():
      raise ValueError(f"{path} must be named by its outer step, like 100.npz")
    paths[int(path.stem)] = path
  return {step: _load(paths[step], ("pixels", "step_sizes")) for step in sorted(paths)}


def save_evaluation(workdir: pathlib.Path, evaluated: dd_jax.EvalResult) -> None:
  """Writes evaluation.npz: loss and accuracy `[N]`, confusion `[N, K, K]`, before and after."""
  _save(workdir / "evaluation.npz", **{
      f"{when}_{name}": np.asarray(values) for when in evaluated._fields
      for name, values in getattr(evaluated, when)._asdict().items()})


def load_evaluation(workdir: pathlib.Path) -> dict[str, np.ndarray] | None:
  """What `save_evaluation` wrote, None where a run has none; ValueError for a damaged file."""
  path = workdir / "evaluation.npz"
  names = [f"{when}_{name}" for when in dd_jax.EvalResult._fields
           for name in dd_jax.Metrics._fields]
  return _load(path, names) if path.exists() else None


def _save(path, **arrays):
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  artifacts.write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _load(path, names):
  try:
    arrays = npz.read(path)
  except Exception as error:  # numpy and zipfile meet a bad byte with nearly any exception.
    raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
  missing = [name for name in names if name not in arrays]
  if missing:
    raise ValueError(f"{path} must hold {list(names)}; missing {missing}")
  return arrays
