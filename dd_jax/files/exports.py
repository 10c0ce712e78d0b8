"""Distilled data in the layouts of other projects, and back.

| format        | path         | what comes back                                      |
|---------------|--------------|------------------------------------------------------|
| `safetensors` | .safetensors | everything, exactly                                  |
| `tensors`     | .pt          | everything, exactly                                  |
| `steps`       | .pth         | inputs, labels and step sizes, exactly               |
| `png`         | a folder     | images at 8 bits of their range; no weights          |
| `dd_ranking`  | a folder     | inputs, labels, step sizes and metadata, exactly     |

* `safetensors`: the arrays of distilled.npz by their names, each field of its metadata as JSON.
* `tensors`: `{"data": [[images [n, C, H, W], labels [n] or [n, K]]], ...}`, what condensation
  projects save and load; n runs over the S minibatches, then over the B images of each. The other
  arrays of distilled.npz and its metadata, as JSON, are further entries.
* `steps`: a list of `(images [B, C, H, W], labels [B] or [B, K], step size [1])`, one for each of
  the E S inner steps in their order: what the authors' release of the paper saves. It describes
  gradient descent, and holds no metadata.
* `png`: a folder of `pictures`.
* `dd_ranking`: images.pt `[n, C, H, W]`, class after class as DD-Ranking's evaluators take them,
  labels.pt `[n]` or `[n, K]` and lr.pt, the mean step size `[]`; and for who trains as the paper
  does step_sizes.pt `[E, S]`, places.pt `[S, B]` (where each image of each step lies) and
  metadata.json.

The tensors lie in the space of the distilled images: normalised, and whitened where they are. Other
inputs than images are `[n, ...]` and `[B, ...]` where they are one array; `safetensors` holds any.
"""

from collections.abc import Callable
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from dd_jax import extras
from dd_jax.files import archive
from dd_jax.files import artifacts
from dd_jax.files import atomic
from dd_jax.files import pictures
from dd_jax.files import torch_files
from dd_jax.files.artifacts import Artifact


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
    format: safetensors, tensors, steps, png or dd_ranking.

  Raises:
    ValueError: an unknown format, a path that does not fit it, or data that it cannot hold.
    ImportError: the package that writes it is not installed.
    OSError: it cannot be written.
  """
  path = pathlib.Path(path)
  _choose(path, format).write(path, artifact)


def load(path: str | os.PathLike, format: str, metadata: dict[str, Any] | None = None) -> Artifact:
  """Reads what `save`, of this version or an older one, or another project wrote.

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
  found = artifact._replace(metadata={**artifact.metadata, **(metadata or {})})
  artifacts.check_labels(path, np.asarray(found.distilled.labels), found.metadata)
  return found


def load_any(path: str | os.PathLike) -> Artifact:
  """Reads distilled.npz or a file or folder of any format, told by the suffix; raises as `load`."""
  path = pathlib.Path(path)
  if path.is_dir():
    return load(path, "dd_ranking" if (path / "places.pt").exists() else "png")
  formats = [name for name, known in FORMATS.items() if known.suffix == path.suffix != ""]
  return load(path, formats[0]) if formats else artifacts.load(path)


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
  fields = json.loads(archive.encode_metadata(artifact.metadata))
  content = _safetensors().numpy.save(
      arrays, {name: json.dumps(value) for name, value in fields.items()})
  atomic.write_bytes(path, content)


def _read_safetensors(path):
  with _safetensors().safe_open(path, framework="numpy") as file:
    texts = file.metadata() or {}
    arrays = {name: file.get_tensor(name) for name in file.keys()}
  metadata = archive.decode_metadata(
      path, "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}")
  return artifacts.from_arrays(path, arrays, metadata)


# PyTorch


def _write_torch(path, make_content):
  torch = torch_files.import_torch(path.suffix)
  content = make_content(lambda array: torch.from_numpy(np.array(array)))
  atomic.write(path, lambda file: torch.save(content, file))


def _split_data(artifact, format):
  """The arrays of a file: inputs and labels as PyTorch has them, and the others by name."""
  arrays = artifacts.to_arrays(artifact)
  if not arrays.keys() & {"images", "inputs"}:
    raise ValueError(f"inputs must be one array for the format {format}; got {list(arrays)}")
  inputs = (np.moveaxis(arrays.pop("images"), -1, -3) if "images" in arrays
            else arrays.pop("inputs"))
  labels = arrays.pop("labels")  # PyTorch's losses take int64 classes alone.
  return inputs, labels.astype(np.int64) if labels.dtype.kind in "iu" else labels, arrays


def _named_inputs(inputs):
  """PyTorch's `[S, B, ...]` by its name in distilled.npz."""
  return {"images": np.moveaxis(inputs, -3, -1)} if inputs.ndim == 5 else {"inputs": inputs}


def _write_tensors(path, artifact):
  *data, arrays = _split_data(artifact, "tensors")
  text = archive.encode_metadata(artifact.metadata)
  _write_torch(path, lambda tensor: {
      "data": [[tensor(array.reshape(-1, *array.shape[2:])) for array in data]],
      "metadata": text, **{name: tensor(array) for name, array in arrays.items()}})


def _read_tensors(path):
  content = torch_files.read(path)
  rule = (f'{path} must hold {{"data": [[images [n, C, H, W], labels]], "step_sizes" [E, S], '
          '"metadata", ...} of one set; ')
  missing = [name for name in ("data", "step_sizes", "metadata") if name not in content]
  if missing:
    raise ValueError(f"{rule}missing {missing}: files of other projects hold no step sizes")
  if len(content["data"]) != 1:
    raise ValueError(f"{rule}got {len(content['data'])} sets")
  metadata = archive.decode_metadata(path, content.pop("metadata"))
  data = [tensor.numpy() for tensor in content.pop("data")[0]]
  arrays = {name: tensor.numpy() for name, tensor in content.items()}
  num_steps = arrays["step_sizes"].shape[1]
  inputs, labels = (array.reshape(num_steps, -1, *array.shape[1:]) for array in data)
  return artifacts.from_arrays(path, {**arrays, **_named_inputs(inputs), "labels": labels},
                               metadata)


def _write_steps(path, artifact):
  inputs, labels, arrays = _split_data(artifact, "steps")
  optimizer = artifact.metadata.get("inner_optimizer", "gradient_descent")
  algorithm = artifact.metadata.get("inner_algorithm", "unroll")
  if (optimizer != "gradient_descent" or jax.tree.leaves(artifact.distilled.hyper)
      or algorithm not in ("unroll", "implicit")):
    hyper = [name for name in arrays if name.startswith("hyper")]
    raise ValueError("the format steps must be of data for plain gradient descent; these are for "
                     f"{optimizer} ({algorithm}) with {hyper}")

  def content(tensor):
    minibatches = [(tensor(inputs[s]), tensor(labels[s])) for s in range(len(inputs))]
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
  inputs, labels, step_sizes = map(np.stack, zip(*steps))
  if step_sizes[0].size != 1:
    raise ValueError(f"{path} must hold one step size for each inner step; "
                     f"got {list(step_sizes.shape)}")
  total = len(steps)
  num_steps = next(s for s in range(1, total + 1) if total % s == 0 and _repeats(inputs, s)
                   and _repeats(labels, s))
  return artifacts.from_arrays(
      path, {**_named_inputs(inputs[:num_steps]), "labels": labels[:num_steps],
             "step_sizes": step_sizes.reshape(-1, num_steps)}, {})


def _write_ranking(path, artifact):
  inputs, labels, arrays = _split_data(artifact, "dd_ranking")
  shape = labels.shape[:2]
  inputs, labels = (array.reshape(-1, *array.shape[2:]) for array in (inputs, labels))
  order = np.argsort(labels if labels.ndim == 1 else labels.argmax(-1), kind="stable")
  places = np.argsort(order).reshape(shape)
  with pictures.new_folder(path, "dd_ranking") as folder:
    for name, array in {"images": inputs[order], "labels": labels[order],
                        "lr": arrays["step_sizes"].mean(), "step_sizes": arrays["step_sizes"],
                        "places": places}.items():
      _write_torch(folder / f"{name}.pt", lambda tensor, array=array: tensor(array))
    (folder / "metadata.json").write_text(archive.encode_metadata(artifact.metadata))


def _read_ranking(path):
  inputs, labels, step_sizes, places = (
      torch_files.read(path / f"{name}.pt").numpy()
      for name in ("images", "labels", "step_sizes", "places"))
  metadata = archive.decode_metadata(path, (path / "metadata.json").read_text())
  return artifacts.from_arrays(
      path, {**_named_inputs(inputs[places]), "labels": labels[places], "step_sizes": step_sizes},
      metadata)


def _repeats(array, period):
  return np.array_equal(array[period:], array[:-period]) if period < len(array) else True


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
    "tensors": Format(".pt", _write_tensors, _read_tensors),
    "steps": Format(".pth", _write_steps, _read_steps),
    "png": Format("", pictures.write_folder, pictures.read_folder),
    "dd_ranking": Format("", _write_ranking, _read_ranking),
}
