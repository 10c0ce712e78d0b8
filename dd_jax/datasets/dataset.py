"""The `Dataset` record: what is checked of arrays, and the validation split.

Letters: n images, H W C height, width and channels, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple
import warnings

import numpy as np
from numpy.typing import ArrayLike

from dd_jax.datasets import normalization
from dd_jax.datasets import rows
from dd_jax.datasets import splits
from dd_jax.datasets.labels import as_array, as_classes
from dd_jax.datasets.rows import Rows


class Dataset(NamedTuple):
  """A labelled image set. Statistics are of pixels / 255 for uint8, and / 65535 for uint16."""

  name: str
  train_images: np.ndarray | Rows  # [n, H, W, C] uint8, uint16, float32 or float64
  train_labels: np.ndarray  # [n] int32, 0..K-1
  test_images: np.ndarray | Rows  # [n, H, W, C] uint8, uint16, float32 or float64
  test_labels: np.ndarray  # [n] int32, 0..K-1
  num_classes: int  # K
  mean: np.ndarray  # [C] float64
  std: np.ndarray  # [C] float64, positive
  pixel_range: tuple[float, float] = (0., 1.)  # Of the training images: black and white.
  class_names: tuple[str, ...] = ()  # Of the labels 0..K-1, where they have names.


def from_arrays(train_images: ArrayLike | Rows, train_labels: ArrayLike,
                test_images: ArrayLike | Rows,
                test_labels: ArrayLike, *, num_classes: int | None = None, name: str = "arrays",
                mean: ArrayLike | None = None, std: ArrayLike | None = None,
                class_names: Sequence[str] | None = None) -> Dataset:
  """Checks the user's arrays and makes a `Dataset` of them.

  Args:
    train_images: `[n, H, W, C]` or `[n, H, W]`, uint8, uint16 or floating point. float64 stays so
      until it is normalised: large offsets, as of time stamps, leave no digits to float32. Or rows
      that stay in their files, which are read once here.
    train_labels: `[n]` integers in 0..K-1, of which every class occurs; without `num_classes` and
      `class_names` anything that `labels.as_classes` takes, as strings.
    test_images: as `train_images`, with the same `H W C` and the same kind of pixels.
    test_labels: as `train_labels`, though a class may be absent.
    num_classes: K; the number of different training labels when None.
    name: what the set is called.
    mean: `[C]`, for `normalize`; of the training images when None.
    std: `[C]`, for `normalize`; of the training images when None (1 for a constant channel, with
      a UserWarning that names it).
    class_names: K strings, of the labels 0..K-1; those of the labels, where they are other than
      0..K-1, when None.

  Raises:
    ValueError: an array breaks one of these rules, or is beyond float32 once normalised.
  """
  train_images = _check_images("train_images", train_images)
  test_images = _check_images("test_images", test_images)
  if test_images.shape[1:] != train_images.shape[1:]:
    raise ValueError(f"test_images must have the image shape of train_images, "
                     f"{train_images.shape[1:]}; got {test_images.shape[1:]}")
  if test_images.dtype != train_images.dtype:
    raise ValueError(f"test_images must have the dtype of train_images, "
                     f"{train_images.dtype}; got {test_images.dtype}")
  if class_names is not None:
    class_names = _check_names(class_names, num_classes)
    num_classes = len(class_names)
  train_labels, test_labels = (_array("train_labels", train_labels, as_array),
                               _array("test_labels", test_labels, as_array))
  _check_count("train_labels", train_labels, "train_images", train_images.shape[0])
  _check_count("test_labels", test_labels, "test_images", test_images.shape[0])
  if num_classes is None:
    train_labels, test_labels, class_names = as_classes(train_labels, test_labels)
    num_classes = int(train_labels.max()) + 1
  if not isinstance(num_classes, (int, np.integer)):
    raise ValueError(f"num_classes must be an integer; got {type(num_classes).__name__}")
  if num_classes < 2:
    raise ValueError(f"num_classes must be at least 2; got {num_classes}")
  train_labels = _check_range("train_labels", train_labels, num_classes)
  test_labels = _check_range("test_labels", test_labels, num_classes)
  present = np.unique(train_labels)
  if len(present) < num_classes:
    absent = np.argmin(np.append(present, -1) == np.arange(len(present) + 1))
    raise ValueError(f"train_labels must hold every class of 0..{num_classes - 1}; "
                     f"got none of class {absent}")

  channels = train_images.shape[-1]
  found = {"train_images": _statistics("train_images", train_images)}
  mean = found["train_images"].mean if mean is None else mean
  if std is None:
    std = found["train_images"].std
    _warn_of_constants(name, np.flatnonzero(std == 0), channels)
    std = np.where(std == 0, 1, std)
  mean = _check_per_channel("mean", mean, channels)
  std = _check_per_channel("std", std, channels)
  if not (std > 0).all():
    raise ValueError(f"std must be positive; got {std.tolist()}")
  pixel_range = (0., 1.)
  if train_images.dtype != np.uint8:  # The 12 bits of a camera leave most of 16 black.
    pixel_range = (float(found["train_images"].low.min()), float(found["train_images"].high.max()))
  if train_images.dtype.kind == "f":
    found["test_images"] = _statistics("test_images", test_images)
    for argument, of in found.items():
      extremes = np.stack([of.low, of.high]).astype(train_images.dtype)
      normalization.normalize_named(argument, extremes, mean, std)  # For its check alone.
  return Dataset(name, train_images, train_labels, test_images, test_labels,
                 int(num_classes), mean, std, pixel_range, class_names or ())


def reframe(dataset: Dataset, image_shape: tuple[int, int, int]) -> Dataset:
  """Brings a set to another image shape: by a black border, and grey repeated as three channels.

  Black is 0 of integers, else the least of `pixel_range`. Mean, std and range stay those of the set
  as it was: a border is not part of its statistics.

  Args:
    dataset: a `Dataset` of images `[n, H, W, C]`.
    image_shape: `(H', W', C')`, H' - H and W' - W even and not negative, C' = C, or 3 for C = 1.

  Raises:
    ValueError: `image_shape` breaks one of these rules.
  """
  splits.check_shape(image_shape)
  if dataset.train_images.shape[1:] == tuple(image_shape):
    return dataset
  *size, channels = dataset.train_images.shape[1:]
  *new_size, new_channels = image_shape
  borders = [new - old for new, old in zip(new_size, size)]
  if (any(border < 0 or border % 2 for border in borders)
      or new_channels not in {channels, 3 if channels == 1 else channels}):
    raise ValueError(f"image_shape must add an even border to {(*size, channels)} of "
                     f"{dataset.name}, and may turn 1 channel into 3; got {tuple(image_shape)}")
  sides = [(border // 2, border // 2) for border in borders]
  black = dataset.pixel_range[0] if dataset.train_images.dtype.kind == "f" else 0

  def frame(images):
    images = np.pad(images, ((0, 0), *sides, (0, 0)), constant_values=black)
    return np.repeat(images, new_channels // channels, axis=-1)

  def per_channel(values):
    return np.repeat(values, new_channels // channels)

  return dataset._replace(
      train_images=rows.change(dataset.train_images, frame),
      test_images=rows.change(dataset.test_images, frame),
      mean=per_channel(dataset.mean), std=per_channel(dataset.std))


def split_validation(dataset: Dataset, num_validation: int, *, seed: int
                     ) -> tuple[Dataset, np.ndarray | Rows, np.ndarray]:
  """Sets aside a class-stratified share of the training split.

  Every class keeps at least one image on either side; `mean`, `std` and the test split stay.

  Args:
    dataset: a `Dataset`.
    num_validation: how many images to set aside, at least K.
    seed: the split is a function of it.

  Returns:
    `(dataset without them, validation_images [num_validation, H, W, C], validation_labels
    [num_validation])`, both parts in the order of the training split.

  Raises:
    ValueError: `num_validation` does not allow one image of each class on either side.
  """
  labels = dataset.train_labels
  chosen = stratified_indices(labels, num_validation, num_classes=dataset.num_classes, seed=seed)
  kept = np.setdiff1d(np.arange(len(labels)), chosen)
  rest = dataset._replace(train_images=rows.choose(dataset.train_images, kept),
                          train_labels=labels[kept])
  return rest, rows.choose(dataset.train_images, chosen), labels[chosen]


def stratified_indices(labels: np.ndarray, num_validation: int, *, num_classes: int, seed: int
                       ) -> np.ndarray:
  """Sorted indices `[num_validation]` into `labels`, each class in proportion.

  Args:
    labels: `[n]` integers.
    num_validation: how many to choose.
    num_classes: K.
    seed: the choice is a function of it.

  Raises:
    ValueError: some class cannot have one image chosen and one left.
  """
  counts = np.bincount(labels, minlength=num_classes)
  if counts.min() < 2:
    raise ValueError(f"a split needs two images of every class; "
                     f"got {counts.min()} of class {counts.argmin()}")
  most = len(labels) - num_classes
  if not num_classes <= num_validation <= most:
    raise ValueError(f"num_validation must lie in {num_classes}..{most} (one image of each of "
                     f"{num_classes} classes on either side); got {num_validation}")
  # Largest remainders, within 1..count-1 for every class.
  quota = num_validation * counts / len(labels)
  take = np.clip(np.floor(quota).astype(int), 1, counts - 1)
  while take.sum() < num_validation:
    take[np.argmax(np.where(take < counts - 1, quota - take, -np.inf))] += 1
  while take.sum() > num_validation:
    take[np.argmin(np.where(take > 1, quota - take, np.inf))] -= 1
  rng = np.random.default_rng(seed)
  return np.sort(np.concatenate([
      rng.permutation(np.flatnonzero(labels == label))[:count]
      for label, count in enumerate(take)]))


def _array(argument, values, convert=np.asarray):
  if np.ma.is_masked(values):
    raise ValueError(f"{argument} must have every value; got a masked array")
  try:
    return convert(values)
  except ValueError as error:  # rows of several lengths
    raise ValueError(f"{argument} must be an array; got {type(values).__name__}: "
                     f"{error}") from error


def _check_images(argument, images):
  if isinstance(images, Rows):
    return images  # What reads them has looked at shape and type.
  images = _array(argument, images)
  if images.ndim not in (3, 4):
    raise ValueError(f"{argument} must be [n, H, W, C] or [n, H, W]; got shape {images.shape}")
  if images.dtype.name not in ("uint8", "uint16") and images.dtype.kind != "f":
    raise ValueError(f"{argument} must be uint8, uint16 or floating point; got {images.dtype}")
  if not images.size:
    raise ValueError(f"{argument} must hold at least one image of at least one pixel; "
                     f"got shape {images.shape}")
  if images.dtype.kind == "f":
    with np.errstate(over="ignore"):  # longdouble beyond float64 becomes inf, refused below
      images = images.astype(normalization.precision(images))
    finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    if not finite.all():
      raise ValueError(f"{argument} must be finite; got NaN or infinity in image "
                       f"{finite.argmin()}")
  images = images.astype(images.dtype.newbyteorder("="), copy=False)
  return images if images.ndim == 4 else images[..., None]


def _statistics(argument, images):
  """Of arrays that are finite, and of rows, which are read here first."""
  found = normalization.statistics(images)
  if not np.isfinite([found.low, found.high]).all():
    raise ValueError(f"{argument} must be finite; got NaN or infinity")
  return found


def _check_count(argument, labels, images_argument, num_images):
  if labels.ndim == 0 or len(labels) != num_images:
    raise ValueError(f"{argument} must have one label per image of {images_argument}, "
                     f"{num_images}; got {len(labels) if labels.ndim else 'a single one'}")


def _check_names(class_names, num_classes):
  names = tuple(class_names)
  if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
    raise ValueError(f"class_names must be different strings; got {names}")
  if num_classes not in (None, len(names)):
    raise ValueError(f"class_names must be of num_classes={num_classes} classes; got {len(names)}")
  return names


def _check_range(argument, labels, num_classes):
  if labels.ndim != 1:
    raise ValueError(f"{argument} must be [n]; got shape {labels.shape}")
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{argument} must be integers; got {labels.dtype}")
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    raise ValueError(f"{argument} must lie in 0..{num_classes - 1} (num_classes={num_classes}); "
                     f"got {labels[wrong[0]]} at index {wrong[0]}")
  return labels.astype(np.int32)


def _check_per_channel(argument, values, channels):
  values = _array(argument, values)
  if values.dtype.kind not in "fiu":
    raise ValueError(f"{argument} must be numbers; got {values.dtype}")
  with np.errstate(over="ignore"):  # becomes inf, which is refused below
    values = values.astype(np.float64)
  if values.shape != (channels,):
    raise ValueError(f"{argument} must be [C] with C={channels}; got shape {values.shape}")
  if not np.isfinite(values).all():
    raise ValueError(f"{argument} must be finite; got {values.tolist()}")
  return values


def _warn_of_constants(name, constant, channels):
  if constant.size:
    shown = ", ".join(map(str, constant[:10])) + (", ..." if constant.size > 10 else "")
    warnings.warn(f"{name}: {constant.size} of {channels} channels are constant in train_images "
                  f"and become 0 (std 1): {shown}", stacklevel=3)
