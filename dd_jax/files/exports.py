"""Distilled data in the layouts of other projects, and back.

| format        | path         | what comes back                                          |
|---------------|--------------|----------------------------------------------------------|
| `safetensors` | .safetensors | everything, exactly                                      |
| `tensors`     | .pt          | everything, exactly                                      |
| `steps`       | .pth         | images and labels exactly, step sizes to float32's rounding |
| `png`         | a folder     | images at 8 bits of their range; no weights              |

* `safetensors`: the arrays of distilled.npz by their names, each field of its metadata as JSON.
* `tensors`: `{"data": [[images [n, C, H, W], labels [n] or [n, K]]], ...}`, what condensation
  projects save and load; n runs over the S minibatches, then over the B images of each. The other
  arrays of distilled.npz and its metadata, as JSON, are further entries.
* `steps`: a list of `(images [B, C, H, W], labels [B] or [B, K], step size [1])`, one for each of
  the E S inner steps in their order: what the authors' release of the paper saves. It describes
  gradient descent, and holds no metadata.
* `png`: a picture for every image, named by its step, its place there and its class;
  `metadata.json` with labels, step sizes and metadata; and `metadata.csv`, which lets Hugging
  Face's `load_dataset("imagefolder", data_dir=...)` read the folder. Distilled images leave the
  range of the dataset's pixels: black and white stand for `pixel_range`, which is wider then.

The tensors lie in the space of the distilled images: normalised, and whitened where they are.
"""

from collections.abc import Callable
import csv
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, NamedTuple

import numpy as np

from dd_jax.files import artifacts
from dd_jax import extras
from dd_jax.files import torch_files
from dd_jax.files.artifacts import Artifact
from dd_jax.datasets import normalize

_FOLDER_FIELDS = ("metadata", "labels", "raw_step_sizes", "step_sizes", "pixel_range", "whitened")


class Format(NamedTuple):
  """How files of one kind are written and read."""
  suffix: str  # Empty for a folder.
  write: Callable[[pathlib.Path, Artifact], None]  # As `save`.
  read: Callable[[pathlib.Path], Artifact]  # As `load`.


def save(path: str | os.PathLike, artifact: Artifact, format: str) -> None:
  """Writes the artifact in a layout of `FORMATS`, whole or not at all.

  Args:
    path: ends as the format says; of a folder, a new or an empty one.
    artifact: what `artifacts.load` returns.
    format: safetensors, tensors, steps or png.

  Raises:
    ValueError: an unknown format, a path that does not fit it, or data that it cannot hold.
    ImportError: the package that writes it is not installed.
    OSError: it cannot be written.
  """
  path = pathlib.Path(path)
  _choose(path, format).write(path, artifact)


def load(path: str | os.PathLike, format: str, metadata: dict[str, Any] | None = None) -> Artifact:
  """Reads what `save`, or another project, wrote in a layout of `FORMATS`.

  Args:
    path, format: as of `save`.
    metadata: added to those of the file; `steps` has none.

  Raises:
    FileNotFoundError: there is nothing at the path.
    ValueError: an unknown format, a damaged file, one of a newer version, or one that lacks what an
      artifact needs.
    ImportError: the package that reads it is not installed.
  """
  path = pathlib.Path(path)
  read = _choose(path, format).read
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder")
  try:
    artifact = read(path)
  except ImportError:
    raise
  except Exception as error:  # The readers meet a bad byte with nearly any exception.
    if str(error).startswith(str(path)):
      raise  # Says what is wrong already.
    raise ValueError(f"{path} must be a file of the format {format}; it cannot be read: "
                     f"{' '.join(str(error).split())[:300]}") from error
  return artifact._replace(metadata={**artifact.metadata, **(metadata or {})})


def _choose(path, format):
  if format not in FORMATS:
    raise ValueError(f"format must be one of {sorted(FORMATS)}; got {format!r}")
  if (suffix := FORMATS[format].suffix) and path.suffix != suffix:
    raise ValueError(f"path must end in {suffix} for the format {format}; got {path}")
  return FORMATS[format]


# safetensors


def _safetensors():
  rule = "a .safetensors file needs safetensors"
  extras.load("safetensors.numpy", rule, "export")  # A part that has to be asked for.
  return extras.load("safetensors", rule, "export")


def _write_safetensors(path, artifact):
  arrays = {name: np.asarray(array, order="C")
            for name, array in artifacts.to_arrays(artifact).items()}
  fields = json.loads(artifacts.encode_metadata(artifact.metadata))
  content = _safetensors().numpy.save(
      arrays, {name: json.dumps(value) for name, value in fields.items()})
  artifacts.write_atomically(path, lambda file: file.write(content))


def _read_safetensors(path):
  with _safetensors().safe_open(path, framework="numpy") as file:
    texts = file.metadata() or {}
    arrays = {name: file.get_tensor(name) for name in file.keys()}
  metadata = artifacts.decode_metadata(
      path, "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}")
  return artifacts.from_arrays(path, arrays, metadata)


# PyTorch


def _write_torch(path, make_content):
  torch = torch_files.import_torch(path.suffix)
  content = make_content(lambda array: torch.from_numpy(np.array(array)))
  artifacts.write_atomically(path, lambda file: torch.save(content, file))


def _write_tensors(path, artifact):
  arrays = artifacts.to_arrays(artifact)
  images, labels = _channels_first(arrays.pop("images")), _long(arrays.pop("labels"))
  text = artifacts.encode_metadata(artifact.metadata)
  _write_torch(path, lambda tensor: {
      "data": [[tensor(images.reshape(-1, *images.shape[2:])),
                tensor(labels.reshape(-1, *labels.shape[2:]))]],
      "metadata": text, **{name: tensor(array) for name, array in arrays.items()}})


def _read_tensors(path):
  content = torch_files.read(path)
  rule = (f'{path} must hold {{"data": [[images [n, C, H, W], labels]], "raw_step_sizes" [E, S], '
          '"metadata", ...} of one set; ')
  missing = [name for name in ("data", "raw_step_sizes", "metadata") if name not in content]
  if missing:
    raise ValueError(f"{rule}missing {missing}: files of other projects hold no step sizes")
  if len(content["data"]) != 1:
    raise ValueError(f"{rule}got {len(content['data'])} sets")
  metadata = artifacts.decode_metadata(path, content.pop("metadata"))
  images, labels = (tensor.numpy() for tensor in content.pop("data")[0])
  arrays = {name: tensor.numpy() for name, tensor in content.items()}
  num_steps = arrays["raw_step_sizes"].shape[1]
  arrays["images"] = _channels_last(images.reshape(num_steps, -1, *images.shape[1:]))
  arrays["labels"] = labels.reshape(num_steps, -1, *labels.shape[1:])
  return artifacts.from_arrays(path, arrays, metadata)


def _write_steps(path, artifact):
  optimizer = artifact.metadata.get("inner_optimizer", "gradient_descent")
  if optimizer != "gradient_descent" or artifact.distilled.hyper:
    raise ValueError("the format steps must be of data for plain gradient descent; these are for "
                     f"{optimizer} with {dict(artifact.distilled.hyper)}")
  arrays = artifacts.to_arrays(artifact)
  images, labels = _channels_first(arrays["images"]), _long(arrays["labels"])

  def content(tensor):
    minibatches = [(tensor(images[s]), tensor(labels[s])) for s in range(len(images))]
    return [(*minibatch, tensor(step_size[None])) for step_sizes in arrays["step_sizes"]
            for minibatch, step_size in zip(minibatches, step_sizes)]

  _write_torch(path, content)


def _read_steps(path):
  content = torch_files.read(path)
  if not (isinstance(content, list) and content
          and all(isinstance(step, (tuple, list)) and len(step) == 3 for step in content)):
    raise ValueError(f"{path} must hold a list of (images [B, C, H, W], labels, step size), one "
                     f"for each inner step; got {type(content).__name__}")
  steps = [tuple(tensor.detach().numpy() for tensor in step) for step in content]
  images, labels, step_sizes = map(np.stack, zip(*steps))
  if step_sizes[0].size != 1 or not (step_sizes > 0).all():
    raise ValueError(f"{path} must hold one positive step size for each inner step; got "
                     f"{list(step_sizes.shape)} of {step_sizes.min()}..{step_sizes.max()}")
  total = len(steps)
  num_steps = next(s for s in range(1, total + 1) if total % s == 0 and _repeats(images, s)
                   and _repeats(labels, s))
  step_sizes = step_sizes.reshape(-1, num_steps)
  exact = step_sizes.astype(np.float64)
  arrays = {"images": _channels_last(images[:num_steps]), "labels": labels[:num_steps],
            "raw_step_sizes": (exact + np.log(-np.expm1(-exact))).astype(step_sizes.dtype),
            "step_sizes": step_sizes}
  return artifacts.from_arrays(path, arrays, {})


def _repeats(array, period):
  return np.array_equal(array[period:], array[:-period]) if period < len(array) else True


def _channels_first(images):
  return np.moveaxis(images, -1, -3)


def _channels_last(images):
  return np.moveaxis(images, -3, -1)


def _long(labels):
  """PyTorch's losses take int64 classes alone."""
  return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels


# A folder of pictures


def _write_png(path, artifact):
  from PIL import Image  # Not on import: only pictures need it.
  arrays = artifacts.to_arrays(artifact)
  pixels, labels = artifact.pixels(clip=False), arrays["labels"]
  if pixels.shape[-1] not in (1, 3):
    raise ValueError(f"images must have 1 or 3 channels for the format png; got {pixels.shape[-1]}")
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"path must be a new or an empty folder for the format png; got {path}")
  low, high = artifact.pixel_range
  low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
  bytes_ = np.round((pixels - low) / ((high - low) or 1) * 255).astype(np.uint8)
  names = _png_names(labels)
  content = {
      "metadata": json.loads(artifacts.encode_metadata(artifact.metadata)),
      "pixel_range": [low, high], "whitened": artifact.whitening is not None,
      **{name: array.tolist() for name, array in arrays.items()
         if name != "images" and not name.startswith(("init/", "whitening/"))}}

  temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
  try:
    with (temporary / "metadata.csv").open("w", newline="") as file:
      table = csv.writer(file)
      table.writerow(["file_name", "label", "step", "index"])
      for (s, b), name in names.items():
        Image.fromarray(np.squeeze(bytes_[s, b], -1) if bytes_.shape[-1] == 1 else bytes_[s, b]
                        ).save(temporary / name)
        table.writerow([name, _classes(labels)[s, b], s, b])
    (temporary / "metadata.json").write_text(json.dumps(content, indent=2) + "\n")
    temporary.chmod(0o755)
    temporary.replace(path)
  except BaseException:
    shutil.rmtree(temporary)
    raise


def _read_png(path):
  from PIL import Image
  try:
    content = json.loads((path / "metadata.json").read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} must be a folder with a metadata.json; it cannot be read: "
                     f"{error}") from error
  missing = [name for name in _FOLDER_FIELDS if name not in content]
  if missing:
    raise ValueError(f"{path}/metadata.json must hold {list(_FOLDER_FIELDS)}; missing {missing}")
  metadata = artifacts.decode_metadata(path, json.dumps(content.pop("metadata")))
  low, high = content.pop("pixel_range")
  if content.pop("whitened"):
    raise ValueError(f"{path} must be of images that are not whitened to be read back: pictures do "
                     "not hold the whitening, the format safetensors does")
  arrays = {name: np.asarray(values) for name, values in content.items()}
  arrays = {name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in arrays.items()}
  if arrays["labels"].ndim not in (2, 3):
    raise ValueError(f"{path}/metadata.json must hold labels [S, B] or [S, B, K]; "
                     f"got {list(arrays['labels'].shape)}")
  pictures = []
  for name in _png_names(arrays["labels"]).values():
    if not (path / name).is_file():
      raise ValueError(f"{path} must hold a picture for every label; missing {name}")
    with Image.open(path / name) as picture:
      pictures.append(np.asarray(picture, np.float64))
  shapes = {picture.shape for picture in pictures}
  if len(shapes) != 1:
    raise ValueError(f"{path} must hold pictures of one size and kind; got {sorted(shapes)}")
  pixels = np.stack(pictures).reshape(*arrays["labels"].shape[:2], *pictures[0].shape[:2], -1)
  missing = [name for name in ("mean", "std") if name not in metadata]
  if missing:
    raise ValueError(f"{path}/metadata.json must hold the normalisation; missing {missing}")
  arrays["images"] = normalize(low + pixels / 255 * (high - low), metadata["mean"], metadata["std"])
  return artifacts.from_arrays(path, arrays, metadata)


def _png_names(labels):
  """`{(s, b): name}` in the order of the steps."""
  classes = _classes(labels)
  return {(s, b): f"step{s:03d}-image{b:04d}-class{classes[s, b]:03d}.png"
          for s, b in np.ndindex(classes.shape)}


def _classes(labels):
  return labels if labels.ndim == 2 else labels.argmax(-1)


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
    "tensors": Format(".pt", _write_tensors, _read_tensors),
    "steps": Format(".pth", _write_steps, _read_steps),
    "png": Format("", _write_png, _read_png),
}
