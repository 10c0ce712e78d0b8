"""Distilled data as a file that says everything needed to use it elsewhere.

`distilled.npz` is read with numpy alone; nothing in it is pickled:

  images          [S, B, H, W, C]  normalised space
  labels          [S, B], [S, B, K] or [S, B, D]
  step_sizes      [E, S]           inner step t = e * S + s
  metadata        JSON text        normalisation, network, init, dataset, accuracy, ...
  hyper/...       arrays           hyper-parameters of the inner optimizer, learned or not
  whitening/...   mean [D], directions [D, D], scales [D] where images are whitened, D = H W C
  init/...        arrays           weights theta_0 of a fixed init, by `trees`
  inputs/...      [S, B, ...]      instead of images where the inputs are something else, by `trees`

docs/format.md explains every field. Version 1 had raw_step_sizes besides, before the softplus.
"""

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import whitening as zca
from dd_jax.datasets import denormalize
from dd_jax.datasets import normalize
from dd_jax.datasets import pictures
from dd_jax.files import archive
from dd_jax.datasets import npz
from dd_jax.files import trees
from dd_jax.types import DistilledData, Params
from dd_jax.whitening import Whitening


class Artifact(NamedTuple):
  """What `load` returns."""
  distilled: DistilledData
  init_params: Params | None  # theta_0 of a fixed init.
  metadata: dict[str, Any]
  whitening: Whitening | None = None  # Of the images' space, with its way back to pixels.

  def field(self, name: str) -> Any:
    """What the metadata hold as `name`.

    Raises:
      ValueError: nothing, as in a file of another version or of other hands.
    """
    if name not in self.metadata:
      raise ValueError(f"metadata must hold {name!r}; the file has {sorted(self.metadata)}")
    return self.metadata[name]

  @property
  def images(self) -> np.ndarray:
    """The distilled images `[S, B, H, W, C]`, in their normalised space.

    Raises:
      ValueError: the inputs are something else.
    """
    if not _are_images(self.distilled.inputs):
      found = {name: f"{leaf.dtype} {list(leaf.shape)}"
               for name, leaf in trees.flatten(self.distilled.inputs, "inputs", "inputs").items()}
      raise ValueError(f"inputs must be images [S, B, H, W, C] for this; the file has {found}")
    return np.asarray(self.distilled.inputs)

  def normalize(self, images: np.ndarray) -> np.ndarray:
    """Real images, in the space of the distilled ones: what a network trained on them takes.

    Args:
      images: `[n, H, W, C]` as in the dataset: uint8 or uint16, or the same as floats in 0..1;
        floats of the dataset's own range where it was of floats (`pixel_scale` 1).

    Returns:
      float32 `[n, H, W, C]`, normalised and, where the distilled images are, whitened.

    Raises:
      ValueError: images of another shape, type or range, beyond float32 once normalised, inputs
        that are no images, or metadata without the normalisation.
    """
    images, shape = np.asarray(images), self.images.shape[2:]
    if images.shape[1:] != shape:
      raise ValueError(f"images must be [n, H, W, C] with (H, W, C) = {shape}; "
                       f"got {list(images.shape)}")
    integers = [name for name in ("uint8", "uint16")
                if self.field("pixel_scale") == np.iinfo(name).max]
    if images.dtype.name not in integers and images.dtype.kind != "f":
      raise ValueError(f"images must be {' or '.join([*integers, 'floating point'])}, as the "
                       f"dataset was; got {images.dtype}")
    if integers and images.dtype.kind == "f" and not (0 <= images.min(initial=0)
                                                      and images.max(initial=0) <= 1):
      raise ValueError("images must lie in 0..1 where they are floating point; "
                       f"got {images.min()}..{images.max()}")
    images = normalize(images, self.field("mean"), self.field("std"))
    return images if self.whitening is None else zca.whiten(self.whitening, images)

  def pixels(self, *, clip: bool = True) -> np.ndarray:
    """The distilled images as pixels, float64 `[S, B, H, W, C]`.

    They are in the units of the dataset's own pixels; of integers, of pixels / `pixel_scale`.

    Args:
      clip: to `pixel_range`, which nothing keeps distilled images in.

    Raises:
      ValueError: inputs that are no images, or metadata without the normalisation.
    """
    return denormalize(self._unwhitened(), self.field("mean"), self.field("std"), clip=clip,
                       pixel_range=self.pixel_range)

  def pictures(self) -> np.ndarray:
    """The same to look at, in 0..1: black and white are the ends of `pixel_range`."""
    return pictures(self._unwhitened(), self.field("mean"), self.field("std"),
                    pixel_range=self.pixel_range)

  @property
  def pixel_range(self) -> tuple[float, float]:
    """The least and the largest pixel of the training images; of uint8 and old files 0..1.

    Raises:
      ValueError: metadata with anything else.
    """
    found = self.metadata.get("pixel_range", [0., 1.])
    try:
      low, high = map(float, found)
    except (TypeError, ValueError, OverflowError):
      low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
      raise ValueError("pixel_range of the metadata must be two finite numbers, the lower first; "
                       f"got {found!r}")
    return low, high

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes 0..K-1; none of a file without them.

    Raises:
      ValueError: metadata with anything else.
    """
    found, size = self.metadata.get("class_names"), self.metadata.get("num_classes")
    if found is not None and not (
        isinstance(found, list) and all(isinstance(name, str) for name in found)
        and len({*found}) == len(found) == size):
      raise ValueError(f"class_names of the metadata must be {size} different strings, as "
                       f"num_classes; got {found!r}")
    return tuple(found or ())

  def _unwhitened(self):
    images = self.images.astype(np.float32)
    return images if self.whitening is None else zca.restore(self.whitening, images)


def save(path: str | os.PathLike, distilled: DistilledData, *, init_params: Params | None = None,
         whitening: Whitening | None = None, metadata: dict[str, Any] | None = None) -> None:
  """Writes one file, whole or not at all.

  Args:
    path: ends in .npz.
    distilled: inputs and labels of S steps, step sizes `[E, S]`.
    init_params: weights of a fixed init: dicts, lists and tuples of arrays.
    whitening: that of the space of the images, where there is one.
    metadata: anything JSON can hold.

  Raises:
    ValueError: arrays of other shapes or types, or that are not finite; inputs, hyper or weights
      in other containers or of other types (cast bfloat16 to float32 first); metadata that JSON
      cannot hold.
  """
  arrays = to_arrays(Artifact(distilled, init_params, {}, whitening))
  check_labels("distilled", arrays["labels"], metadata)
  archive.write(path, arrays, metadata)


def to_arrays(artifact: Artifact) -> dict[str, np.ndarray]:
  """The arrays of a file by their names in it, without the metadata; errors as of `save`."""
  distilled, init_params, _, whitening = artifact
  inputs = trees.flatten(distilled.inputs, "inputs", "inputs")
  arrays = {"images": inputs["inputs"]} if _are_images(distilled.inputs) else inputs
  for name in ("labels", "step_sizes"):
    arrays[name] = npz.numeric(getattr(distilled, name), f"{name} must be a numpy array")
  if jax.tree.leaves(distilled.hyper) or distilled.hyper != ():
    arrays |= trees.flatten(distilled.hyper, "hyper", "hyper")
  if whitening is not None:
    arrays |= trees.flatten(whitening._asdict(), "whitening", "whitening")
  if init_params is not None:
    arrays |= trees.flatten(init_params, "init", "init_params")
  _check("distilled", distilled.inputs, arrays)
  return arrays


def load(path: str | os.PathLike) -> Artifact:
  """Reads a file written by `save`, of this version or of an older one.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a file, it is damaged, its format is newer than this package, or
      its numbers are beyond the types that JAX is set to.
  """
  return from_arrays(path, *archive.read(path, "a distilled .npz file"))


def from_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
                ) -> Artifact:
  """The inverse of `to_arrays`, checked, with its `metadata`; `path` begins the messages.

  Raises:
    ValueError: arrays that are missing, or that do not belong together.
  """
  arrays = {name: archive.canonical(f"{path}: {name}", array) for name, array in arrays.items()}
  inputs, hyper, params = (trees.unflatten(arrays, name, path)
                           for name in ("inputs", "hyper", "init"))
  archive.check_present(path, arrays, (*(("images",) if inputs is None else ()),
                                       "labels", "step_sizes"))
  if inputs is None:
    inputs = arrays["images"]
  elif "images" in arrays:
    raise ValueError(f"{path} must hold images or inputs; got both")
  _check(path, inputs, arrays)
  check_labels(path, arrays["labels"], metadata)
  _check_raw_step_sizes(path, arrays)
  whitening = None
  if "whitening/mean" in arrays:
    whitening = Whitening(*(arrays[f"whitening/{name}"] for name in Whitening._fields))
  fields, params = jax.tree.map(jnp.asarray, (
      (inputs, arrays["labels"], arrays["step_sizes"], () if hyper is None else hyper), params))
  return Artifact(DistilledData(*fields), params, metadata, whitening)


def _are_images(inputs):
  return jax.tree_util.all_leaves([inputs]) and np.ndim(inputs) == 5


def _check(where, inputs, arrays):
  """Raises ValueError unless the arrays of a file are those of an artifact with such inputs."""
  named = jax.tree_util.tree_leaves_with_path(inputs)
  batch = next((list(np.shape(leaf)[:2]) for _, leaf in named), None)
  if batch is None:
    raise ValueError(f"{where}: inputs must hold an array; got {inputs}")
  if "images" in arrays:
    images = arrays["images"]
    _require(where, "images", images, "finite floating point [S, B, H, W, C]",
             images.ndim == 5 and _is_finite(images))
  else:
    for path, leaf in named:
      leaf = np.asarray(leaf)
      _require(where, f"inputs{jax.tree_util.keystr(path)}", leaf,
               f"finite numbers [S, B, ...] with S, B = {batch}",
               len(batch) == 2 and list(leaf.shape[:2]) == batch
               and (leaf.dtype.kind in "iub" or _is_finite(leaf)))
  labels, step_sizes = arrays["labels"], arrays["step_sizes"]
  are_classes = labels.ndim == 2 and labels.dtype.kind in "iu" and labels.min(initial=0) >= 0
  _require(where, "labels", labels,
           f"classes [S, B] or finite floating point [S, B, K] with S, B = {batch}",
           list(labels.shape[:2]) == batch
           and (are_classes or labels.ndim == 3 and _is_finite(labels)))
  _require(where, "step_sizes", step_sizes, f"finite floating point [E, S] with S = {batch[0]}",
           step_sizes.ndim == 2 and step_sizes.shape[1] == batch[0] and _is_finite(step_sizes))
  found = {name: array for name, array in arrays.items() if name.startswith("whitening/")}
  if found:
    size = math.prod(np.shape(inputs)[2:]) if "images" in arrays else 0
    expected = {"whitening/mean": (size,), "whitening/directions": (size, size),
                "whitening/scales": (size,)}
    shapes = {name: array.shape for name, array in found.items()}
    if not (size and shapes == expected and all(map(_is_finite, found.values()))
            and (found["whitening/scales"] > 0).all()):
      raise ValueError(f"{where} must hold a whitening of its images, finite {expected} with "
                       f"positive scales; got {shapes}")


def check_labels(where: Any, labels: np.ndarray, metadata: Any) -> None:
  """Raises ValueError, begun with `where`, for labels of a class that the metadata do not count."""
  size = metadata.get("num_classes") if isinstance(metadata, dict) else None
  if labels.ndim == 2 and isinstance(size, int) and labels.max() >= size:
    raise ValueError(f"{where}: labels must lie in 0..{size - 1}, as num_classes of the metadata "
                     f"says; got {labels.max()}")


def _require(where, name, array, rule, holds):
  if not (holds and array.size):
    values = f" of {array.min()}..{array.max()}" if array.size else ""
    raise ValueError(f"{where}: {name} must be {rule}; "
                     f"got {array.dtype} {list(array.shape)}{values}")


def _check_raw_step_sizes(path, arrays):
  """Version 1 holds the step sizes before their softplus too; damage would make them differ."""
  if "raw_step_sizes" in arrays:
    step_sizes = arrays["step_sizes"]
    with np.errstate(invalid="ignore"):  # NaN is no softplus either.
      expected = np.logaddexp(0, arrays["raw_step_sizes"].astype(np.float64))
    precision = np.finfo(step_sizes.dtype)
    if step_sizes.shape != expected.shape or not np.allclose(
        step_sizes, expected, rtol=precision.eps**0.5, atol=precision.tiny):
      raise ValueError(f"{path}: step_sizes must be the softplus of raw_step_sizes; they differ")


def _is_finite(array):
  return array.dtype.kind == "f" and np.isfinite(array).all()
