"""Distilled images to look at: in one grid, and as a folder of PNG pictures that is read back.

The folder holds a picture for every image, named by its step, its place there and its class;
`metadata.json` with labels, step sizes and metadata; and `metadata.csv`, which lets Hugging Face's
`load_dataset("imagefolder", data_dir=...)` read it. Distilled images leave the range of the
dataset's pixels: black and white stand for `pixel_range`, which is wider then.
"""

from collections.abc import Iterator
import contextlib
import csv
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

from dd_jax.datasets import normalize
from dd_jax.files import archive
from dd_jax.files import artifacts
from dd_jax.files.artifacts import Artifact

_REQUIRED = ("metadata", "labels", "step_sizes", "pixel_range", "whitened")


def image_grid(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
  """Images in rows on white: `[rows, columns, H, W, C]` in 0..1 -> `[h, w, 3]` in 0..1.

  Raises:
    ValueError: images of another number of channels than 1 or 3.
  """
  images = np.asarray(images, np.float32)
  rows, columns, height, width, channels = images.shape
  if channels not in (1, 3):
    raise ValueError(f"images must have 1 or 3 channels to be shown; got {channels}")
  if channels == 1:
    images = np.repeat(images, 3, axis=-1)
  grid = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.float32)
  for row in range(rows):
    for column in range(columns):
      y, x = gap + row * (height + gap), gap + column * (width + gap)
      grid[y:y + height, x:x + width] = images[row, column]
  return grid


def write_folder(path: pathlib.Path, artifact: Artifact) -> None:
  """Writes a new folder, or into an empty one, whole or not at all; the weights are left out.

  Raises:
    ValueError: inputs that are no images of 1 or 3 channels, metadata without the normalisation, or
      a path that is something else.
    OSError: it cannot be written.
  """
  from PIL import Image  # Not on import: only pictures need it.
  arrays = artifacts.to_arrays(artifact)
  pixels, labels = artifact.pixels(clip=False), arrays["labels"]
  if pixels.shape[-1] not in (1, 3):
    raise ValueError(f"images must have 1 or 3 channels for the format png; got {pixels.shape[-1]}")
  low, high = artifact.pixel_range
  low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
  bytes_ = np.round((pixels - low) / ((high - low) or 1) * 255).astype(np.uint8)
  names = _picture_names(labels)
  content = {
      "metadata": json.loads(archive.encode_metadata(artifact.metadata)),
      "pixel_range": [low, high], "whitened": artifact.whitening is not None,
      **{name: array.tolist() for name, array in arrays.items()
         if name.split("/")[0] in ("labels", "step_sizes", "hyper")}}

  with new_folder(path, "png") as folder:
    with (folder / "metadata.csv").open("w", newline="") as file:
      table = csv.writer(file)
      table.writerow(["file_name", "label", "step", "index"])
      for (s, b), name in names.items():
        Image.fromarray(np.squeeze(bytes_[s, b], -1) if bytes_.shape[-1] == 1 else bytes_[s, b]
                        ).save(folder / name)
        table.writerow([name, _classes(labels)[s, b], s, b])
    (folder / "metadata.json").write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def new_folder(path: pathlib.Path, format: str) -> Iterator[pathlib.Path]:
  """A folder to write into, which comes to lie at `path` when all of it is written.

  Raises:
    ValueError: there is something else than an empty folder.
    OSError: it cannot be written.
  """
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"path must be a new or an empty folder for the format {format}; got {path}")
  path = pathlib.Path(os.path.realpath(path))
  temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  try:
    yield temporary
    temporary.chmod(0o755)
    temporary.replace(path)
  except BaseException:
    shutil.rmtree(temporary)
    raise


def read_folder(path: pathlib.Path) -> Artifact:
  """What `write_folder` wrote, the images at 8 bits of their range.

  Raises:
    ValueError: it is no such folder, or its images are whitened, which pictures do not undo.
    Exception: nearly any, for a damaged picture.
  """
  content = _read_content(path)
  metadata = archive.decode_metadata(path, json.dumps(content.pop("metadata")))
  archive.check_present(f"{path}/metadata.json", metadata, ("mean", "std"))
  low, high = content.pop("pixel_range")
  if content.pop("whitened"):
    raise ValueError(f"{path} must be of images that are not whitened to be read back: pictures do "
                     "not hold the whitening, the format safetensors does")
  arrays = {name: np.asarray(values) for name, values in content.items()}
  arrays = {name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in arrays.items()}
  pixels = _read_pixels(path, arrays["labels"])
  arrays["images"] = normalize(low + pixels / 255 * (high - low), metadata["mean"], metadata["std"])
  return artifacts.from_arrays(path, arrays, metadata)


def _read_content(path):
  try:
    content = json.loads((path / "metadata.json").read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} must be a folder with a metadata.json; it cannot be read: "
                     f"{error}") from error
  archive.check_present(f"{path}/metadata.json", content, _REQUIRED)
  return content


def _read_pixels(path, labels):
  """The pictures `[S, B, H, W, C]`, 0..255."""
  from PIL import Image
  if labels.ndim not in (2, 3):
    raise ValueError(f"{path}/metadata.json must hold labels [S, B] or [S, B, K]; "
                     f"got {list(labels.shape)}")
  pictures = []
  for name in _picture_names(labels).values():
    if not (path / name).is_file():
      raise ValueError(f"{path} must hold a picture for every label; missing {name}")
    with Image.open(path / name) as picture:
      pictures.append(np.asarray(picture, np.float64))
  shapes = {picture.shape for picture in pictures}
  if len(shapes) != 1:
    raise ValueError(f"{path} must hold pictures of one size and kind; got {sorted(shapes)}")
  return np.stack(pictures).reshape(*labels.shape[:2], *pictures[0].shape[:2], -1)


def _picture_names(labels):
  """`{(s, b): name}` in the order of the steps."""
  classes = _classes(labels)
  return {(s, b): f"step{s:03d}-image{b:04d}-class{classes[s, b]:03d}.png"
          for s, b in np.ndindex(classes.shape)}


def _classes(labels):
  return labels if labels.ndim == 2 else labels.argmax(-1)
