"""Distilled data as a file that says everything needed to use it elsewhere.

`distilled.npz` is read with numpy alone; nothing in it is pickled:

  images          [S, B, H, W, C]  normalised space
  labels          [S, B] or [S, B, K]
  raw_step_sizes  [E, S]           before the softplus
  step_sizes      [E, S]           after it; inner step t = e * S + s
  metadata        JSON text        normalisation, network, init, dataset, accuracy, ...
  hyper/...       arrays           learned hyper-parameters of the inner optimizer
  whitening/...   mean [D], directions [D, D], scales [D] where images are whitened, D = H W C
  init/...        arrays           weights theta_0 of a fixed init, by path

docs/format.md explains every field. A pool of pre-trained networks is such a file too:
`params/...` `[P, ...]` and metadata. Image grids for looking at distilled data are here too.
"""

from collections.abc import Callable
import json
import math
import os
import pathlib
import tempfile
from typing import Any, BinaryIO, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dd_jax.files import npz
from dd_jax import whitening as zca
from dd_jax.datasets import denormalize
from dd_jax.datasets import normalize
from dd_jax.datasets import pictures
from dd_jax.types import DistilledData, Params
from dd_jax.whitening import Whitening

FORMAT_VERSION = 1
_FIELDS = ("images", "labels", "raw_step_sizes")
_REQUIRED = (*_FIELDS, "step_sizes", "metadata")


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

  def normalize(self, images: np.ndarray) -> np.ndarray:
    """Real images, in the space of the distilled ones: what a network trained on them takes.

    Args:
      images: `[n, H, W, C]` as in the dataset: uint8 in 0..255, or the same as floats in 0..1;
        floats of the dataset's own range where it was not of uint8 (`pixel_scale` 1).

    Returns:
      float32 `[n, H, W, C]`, normalised and, where the distilled images are, whitened.

    Raises:
      ValueError: images of another shape, type or range, beyond float32 once normalised, or
        metadata without the normalisation.
    """
    images, shape = np.asarray(images), self.distilled.images.shape[2:]
    if images.shape[1:] != shape:
      raise ValueError(f"images must be [n, H, W, C] with (H, W, C) = {shape}; "
                       f"got {list(images.shape)}")
    is_bytes, of_bytes = images.dtype == np.uint8, self.field("pixel_scale") == 255
    if not (is_bytes and of_bytes or images.dtype.kind == "f"):
      raise ValueError(f"images must be {'uint8 or ' if of_bytes else ''}floating point, as the "
                       f"dataset was; got {images.dtype}")
    if of_bytes and not is_bytes and not (0 <= images.min(initial=0)
                                          and images.max(initial=0) <= 1):
      raise ValueError("images must lie in 0..1 where they are floating point; "
                       f"got {images.min()}..{images.max()}")
    images = normalize(images, self.field("mean"), self.field("std"))
    return images if self.whitening is None else zca.whiten(self.whitening, images)

  def pixels(self, *, clip: bool = True) -> np.ndarray:
    """The distilled images as pixels, float64 `[S, B, H, W, C]`.

    They are in the units of the dataset's own pixels; of uint8, in those of pixels / 255.

    Args:
      clip: to `pixel_range`, which nothing keeps distilled images in.

    Raises:
      ValueError: metadata without the normalisation.
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

  def _unwhitened(self):
    images = np.asarray(self.distilled.images, np.float32)
    if self.whitening is None:
      return images
    flat = zca.restore(self.whitening, images.reshape(-1, *images.shape[2:]))
    return flat.reshape(images.shape)


class Pool(NamedTuple):
  """What `load_pool` returns."""
  params: Params  # Each leaf [P, ...].
  metadata: dict[str, Any]


def save(path: str | os.PathLike, distilled: DistilledData, *, init_params: Params | None = None,
         whitening: Whitening | None = None, metadata: dict[str, Any] | None = None) -> None:
  """Writes one file, whole or not at all.

  Args:
    path: ends in .npz.
    distilled: images `[S, B, H, W, C]`, labels, raw step sizes `[E, S]`.
    init_params: weights of a fixed init, nested dicts of arrays.
    whitening: that of the space of the images, where there is one.
    metadata: anything JSON can hold.

  Raises:
    ValueError: arrays of other shapes or types, or that are not finite; weights that are not
      nested dicts of numpy arrays (cast bfloat16 to float32 first), or metadata that JSON cannot
      hold.
  """
  arrays: dict[str, Any] = to_arrays(Artifact(distilled, init_params, {}, whitening))
  arrays["metadata"] = np.array(encode_metadata(metadata))
  write_atomically(pathlib.Path(path), lambda file: np.savez(file, **arrays))


def to_arrays(artifact: Artifact) -> dict[str, np.ndarray]:
  """The arrays of a file by their names in it, without the metadata; errors as of `save`."""
  distilled, init_params, _, whitening = artifact
  arrays = {name: _numeric(getattr(distilled, name), f"{name} must be a numpy array")
            for name in _FIELDS}
  _check_distilled("distilled", **arrays)
  arrays["step_sizes"] = np.asarray(distilled.step_sizes)
  if distilled.hyper:
    arrays |= _flat(distilled.hyper, "hyper", "hyper")
  if whitening is not None:
    arrays |= _flat(whitening._asdict(), "whitening", "whitening")
  if init_params is not None:
    arrays |= _flat(init_params, "init", "init_params")
  return arrays


def save_pool(path: str | os.PathLike, params: Params, metadata: dict[str, Any]) -> None:
  """Writes a pool of networks, whole or not at all.

  Args:
    path: ends in .npz.
    params: weights of P networks, nested dicts of arrays `[P, ...]`.
    metadata: anything JSON can hold.

  Raises:
    ValueError: as of `save`, or weights without one leading axis.
  """
  arrays = _flat(params, "params", "params")
  _check_pool("params", arrays)
  arrays["metadata"] = np.array(encode_metadata(metadata))
  write_atomically(pathlib.Path(path), lambda file: np.savez(file, **arrays))


def load(path: str | os.PathLike) -> Artifact:
  """Reads a file written by `save`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not such a file, it is damaged, its format is newer than this package, or
      its numbers are beyond the types that JAX is set to.
  """
  arrays, metadata = _read(path, "a distilled .npz file", _REQUIRED)
  return from_arrays(path, arrays, metadata)


def from_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
                ) -> Artifact:
  """The inverse of `to_arrays`, checked, with its `metadata`; `path` begins the messages.

  Raises:
    ValueError: arrays that are missing, or that do not belong together.
  """
  _check_present(path, arrays, (*_FIELDS, "step_sizes"))
  arrays = {name: _canonical(f"{path}: {name}", array) for name, array in arrays.items()}
  fields: dict[str, Any] = {name: arrays[name] for name in _FIELDS}
  _check_distilled(path, **fields)
  raw = fields["raw_step_sizes"]
  precision = np.finfo(raw.dtype)
  if arrays["step_sizes"].shape != raw.shape or not np.allclose(
      arrays["step_sizes"], np.logaddexp(0, raw.astype(np.float64)),
      rtol=precision.eps**0.5, atol=precision.tiny):
    raise ValueError(f"{path}: step_sizes must be the softplus of raw_step_sizes; they differ")
  fields["hyper"] = _nested(path, arrays, "hyper") or ()
  params, whitening = (_nested(path, arrays, name) for name in ("init", "whitening"))
  if whitening is not None:
    whitening = _checked_whitening(path, whitening, math.prod(fields["images"].shape[2:]))
  return Artifact(DistilledData(**jax.tree.map(jnp.asarray, fields)),
                  jax.tree.map(jnp.asarray, params), metadata, whitening)


def load_pool(path: str | os.PathLike) -> Pool:
  """Reads a file written by `save_pool`: weights as numpy arrays, to be spread over the devices.

  Errors as of `load`.
  """
  arrays, metadata = _read(path, "a pool of networks (.npz)", ("metadata",))
  params = _nested(path, arrays, "params")
  if params is None:
    raise ValueError(f"{path} must be a pool of networks (.npz); it holds no weights params/...")
  _check_pool(path, {name: array for name, array in arrays.items() if name.startswith("params/")})
  return Pool(params, metadata)


def image_grid(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
  """Images in rows on white: `[rows, columns, H, W, C]` in 0..1 -> `[h, w, 3]` in 0..1."""
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


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
  """Calls `write(file)` on a temporary neighbour of `path`, then puts it in place.

  Raises:
    OSError: it cannot be written; a file that was there stays as it is.
  """
  try:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        write(file)
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise
  except OSError as error:
    raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error


def encode_metadata(metadata: dict[str, Any] | None) -> str:
  """JSON text of the metadata and of the format's version; ValueError for what JSON cannot hold."""
  try:
    return json.dumps({**(metadata or {}), "format_version": FORMAT_VERSION})
  except TypeError as error:
    raise ValueError(f"metadata must be JSON: {error}") from error


def _flat(params, prefix, argument):
  """Nested dicts as `{"prefix/path": array}`."""
  rule = f"{argument} must be nested dicts of arrays"
  if not isinstance(params, dict):
    raise ValueError(f"{rule}; got {type(params)}")
  return {f"{prefix}/{name}": _numeric(leaf, rule)
          for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def _nested(path, arrays, prefix):
  """What `_flat` wrote, or None."""
  flat = {tuple(name.split("/")[1:]): value for name, value in arrays.items()
          if name.startswith(f"{prefix}/")}
  for name in flat:
    if any(name[:i] in flat for i in range(1, len(name))):
      raise ValueError(f"{path} must be nested dicts of arrays; {prefix}/{'/'.join(name)!r} lies "
                       "within another array")
  return traverse_util.unflatten_dict(flat) if flat else None


def _check_distilled(where, images, labels, raw_step_sizes):
  """Raises ValueError unless the arrays are those of `DistilledData`."""
  num_steps, batch = images.shape[:2] if images.ndim == 5 else (0, 0)
  are_classes = labels.ndim == 2 and labels.dtype.kind in "iu" and labels.min(initial=0) >= 0
  for name, array, rule, holds in (
      ("images", images, "finite floating point [S, B, H, W, C]",
       images.ndim == 5 and _is_finite(images)),
      ("labels", labels, "classes [S, B] or finite floating point [S, B, K] with "
                         f"S={num_steps}, B={batch}",
       labels.shape[:2] == (num_steps, batch)
       and (are_classes or labels.ndim == 3 and _is_finite(labels))),
      ("raw_step_sizes", raw_step_sizes, f"finite floating point [E, S] with S={num_steps}",
       raw_step_sizes.ndim == 2 and raw_step_sizes.shape[1] == num_steps
       and _is_finite(raw_step_sizes))):
    if not (holds and array.size):
      values = f" of {array.min()}..{array.max()}" if array.size else ""
      raise ValueError(f"{where}: {name} must be {rule}; "
                       f"got {array.dtype} {list(array.shape)}{values}")


def _checked_whitening(path, found, size):
  """The whitening of images of `size` numbers; ValueError where it is not one."""
  expected = {"mean": (size,), "directions": (size, size), "scales": (size,)}
  shapes = {name: np.shape(value) for name, value in found.items()}
  if shapes != expected or not all(map(_is_finite, found.values())) or (found["scales"] <= 0).any():
    raise ValueError(f"{path} must hold a whitening of finite {expected} with positive scales; "
                     f"got {shapes}")
  return Whitening(**found)


def _is_finite(array):
  return array.dtype.kind == "f" and np.isfinite(array).all()


def _check_pool(where, arrays):
  """Raises ValueError unless all weights have one leading axis, of the networks."""
  counts = {array.shape[:1] for array in arrays.values()}
  if len(counts) > 1 or counts & {(), (0,)}:
    raise ValueError(f"{where} must be arrays [P, ...] of one number of networks P; "
                     f"got {sorted(counts)}")


def _canonical(where, array):
  """`array` in the type that JAX holds it in, which is 32-bit unless it is told otherwise."""
  dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  if array.dtype == dtype:
    return array
  with np.errstate(over="ignore"):  # Becomes inf, which is refused below.
    narrow = array.astype(dtype)
  lost = np.isfinite(array) & (~np.isfinite(narrow) if dtype.kind == "f" else narrow != array)
  if lost.any():
    raise ValueError(f"{where} must fit {dtype}, or jax_enable_x64 be set; got {array[lost][0]}")
  return narrow


def _read(path, kind, required):
  """The arrays and the metadata of a file."""
  try:
    arrays = npz.read(path)
  except FileNotFoundError:
    raise
  except Exception as error:  # numpy and zipfile meet a bad byte with nearly any exception.
    raise ValueError(f"{path} must be {kind}; it cannot be read: "
                     f"{' '.join(str(error).split())}") from error
  _check_present(path, arrays, required)
  text = arrays.pop("metadata")
  if text.dtype.kind != "U" or text.ndim:
    raise ValueError(f"{path} must hold metadata as text; got {text.dtype} {list(text.shape)}")
  metadata = decode_metadata(path, str(text))
  for name, array in arrays.items():
    _numeric(array, f"{path} must hold {name!r} as an array")
  return arrays, metadata


def _check_present(path, arrays, required):
  missing = [name for name in required if name not in arrays]
  if missing:
    raise ValueError(f"{path} must hold {list(required)}; missing {missing}")


def decode_metadata(path: str | os.PathLike, text: str) -> dict[str, Any]:
  """The metadata in a text of `encode_metadata`; `path` begins the messages.

  Raises:
    ValueError: it is not such a text, or of a newer version than this package reads.
  """
  rule = f"{path} must hold metadata as a JSON object with its format_version"
  try:
    metadata = json.loads(text)
    version = metadata.pop("format_version")
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f"{rule}; got {type(error).__name__}: {error}") from error
  if type(version) is not int or version < 1:
    raise ValueError(f"{rule}, an integer from 1; got {str(version)[:40]!r}")
  if version > FORMAT_VERSION:
    raise ValueError(f"{path} has format version {version}; this package reads up to "
                     f"{FORMAT_VERSION}: install a newer dd_jax")
  return metadata


def _numeric(value, rule):
  """`value` as an array; npz would pickle objects, and cannot hold bfloat16, JAX no longdouble."""
  array = np.asarray(value)
  if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
    raise ValueError(f"{rule} of numbers; got {array.dtype}")
  return array
