"""The data of a run: splits as they are stored, what networks take of them, and pictures again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import datasets
from dd_jax import parametrization
from dd_jax import whitening as zca
from dd_jax.datasets import normalization
from dd_jax.datasets import rows
from dd_jax.types import Array, check_at_least

# Inputs, any pytree of arrays [n, ...] or of `datasets.Rows`, and labels [n].
Examples = tuple[Any, Array]
_AT_ONCE = 1000  # Examples that are prepared together, on the device.


class Pixels(NamedTuple):
  """How normalised images become pixels again."""
  mean: np.ndarray
  std: np.ndarray
  range: tuple[float, float]
  scale: int  # 255 of uint8, 65535 of uint16, whose pixels are divided by it; else 1.
  whitening: zca.Whitening | None = None
  regularization: float | None = None  # Of the whitening.

  def pictures(self, images: np.ndarray) -> np.ndarray:
    """Images `[..., H, W, C]` to look at, in 0..1."""
    if self.whitening is not None:
      images = zca.restore(self.whitening, images)
    return datasets.pictures(images, self.mean, self.std, pixel_range=self.range)


class Preparation(NamedTuple):
  """What networks take of stored inputs, made anew of every minibatch on the device."""
  state: Any = ()  # Arrays.
  apply: Callable[[Any, Any], Any] = lambda state, inputs: inputs  # (state, inputs) -> inputs.
  costly: bool = False  # An evaluation on a device prepares all examples once, for all networks.


class Targets(NamedTuple):
  """What numbers are predicted, instead of classes: labels `[n, D]` are (target - mean) / std."""
  names: tuple[str, ...]  # D.
  mean: np.ndarray  # [D].
  std: np.ndarray  # [D].


class Data(NamedTuple):
  """What networks are trained, chosen and tested on."""
  train: Examples  # What is distilled.
  validation: Examples  # A part of the training set.
  test: Examples  # Used once, at the end.
  num_classes: int  # K; of targets D, the outputs of a network.
  name: str = "arrays"
  digest: dict[str, str] = {}  # Of `datasets.digest`: a run goes on with the same data alone.
  pixels: Pixels | None = None  # None: the inputs are no images, and no pictures are made.
  class_names: tuple[str, ...] = ()  # Of the labels 0..K-1, where they have names.
  preparation: Preparation = Preparation()  # From what is stored to what networks take.
  targets: Targets | None = None  # None: the labels are classes [n].
  # Of inputs that are a dict: those that are not learned, as each distilled example has them.
  given: dict[str, np.ndarray] = {}
  readable: Callable[[Any], dict[str, Any]] | None = None  # Distilled inputs in words, for JSON.
  seed: int | None = None  # Of the split into training and validation examples.

  @property
  def objective(self) -> str:
    """Which of `losses.LOSSES` is usual."""
    return "classification" if self.targets is None else "regression"


def from_dataset(dataset: datasets.Dataset, *, num_validation: int, seed: int = 0,
                 whitening: float | None = None,
                 image_shape: tuple[int, int, int] | None = None) -> Data:
  """The data of an image set, with validation images set aside.

  Pixels that are integers stay so, and are normalised where they are used; floating point is
  normalised once, in its own precision.

  Args:
    dataset: of `datasets.load` or `datasets.from_arrays`.
    num_validation: training images set aside; a function of the seed.
    seed: of the split.
    whitening: regularization of ZCA fitted to the training images. None: none.
    image_shape: (H, W, C) to bring the images to. None: their own.

  Raises:
    ValueError: as of `datasets.split_validation`, `datasets.reframe` and `whitening.fit`.
  """
  digest = datasets.digest(dataset)
  if image_shape is not None:
    dataset = datasets.reframe(dataset, image_shape)
  dataset, validation_images, validation_labels = datasets.split_validation(
      dataset, num_validation, seed=seed)
  dtype = dataset.train_images.dtype

  def normalized(images):
    return datasets.normalize(images, dataset.mean, dataset.std)

  fitted = None
  if whitening is not None:
    fitted = zca.fit(normalized(rows.in_memory(dataset.train_images)), regularization=whitening)

  def examples(images, labels):
    return images if dtype.kind == "u" else rows.change(images, normalized), np.asarray(labels)

  return Data(
      examples(dataset.train_images, dataset.train_labels),
      examples(validation_images, validation_labels),
      examples(dataset.test_images, dataset.test_labels),
      dataset.num_classes, dataset.name, digest,
      Pixels(dataset.mean, dataset.std, dataset.pixel_range, normalization.pixel_scale(dtype),
             fitted, whitening),
      dataset.class_names,
      Preparation({
          **(_normalization(dataset) if dtype.kind == "u" else {}),
          **({} if fitted is None else {"whitening": zca.as_product(fitted)})}, _prepare,
                  costly=fitted is not None), seed=seed)


def input_shapes(data: Data) -> Any:
  """The shapes of one example's inputs as networks take them; `(H, W, C)` of images."""
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), data.train[0])
  prepared = jax.eval_shape(data.preparation.apply, data.preparation.state, one)
  return jax.tree.map(lambda x: tuple(x.shape[1:]), prepared)


def start_labels(data: Data, num_steps: int, images_per_class: int) -> Array:
  """Classes `[S, B]`, each as often; or targets `[S, B, D]` of training examples, spread evenly.

  Args:
    data: whose labels.
    num_steps: S.
    images_per_class: in every step; of targets B.

  Raises:
    ValueError: a number that is too small.
  """
  if data.targets is None:
    return parametrization.class_labels(num_steps, data.num_classes, images_per_class)
  check_at_least(1, num_steps=num_steps, images_per_class=images_per_class)
  return jnp.asarray(np.asarray(data.train[1])[spread_places(data, num_steps, images_per_class)])


def spread_places(data: Data, num_steps: int, batch: int) -> np.ndarray:
  """Of the training examples `[S, B]` whose targets `start_labels` has: the first target's range.

  Args:
    data: with targets.
    num_steps: S.
    batch: B.
  """
  order, number = np.argsort(np.asarray(data.train[1])[:, 0], kind="stable"), num_steps * batch
  places = ((np.arange(number) + .5) / number * len(order)).astype(int)
  return order[places].reshape(batch, num_steps).T


def read_all(examples: Examples) -> Examples:
  """The examples as NumPy arrays, as they are stored."""
  return jax.tree.map(lambda x: np.asarray(rows.in_memory(x)), examples)


def on_host(examples: Examples) -> Examples:
  """The examples as NumPy arrays, but for what lies in files and stays there."""
  return jax.tree.map(lambda x: x if isinstance(x, datasets.Rows) else np.asarray(x), examples)


def examples_at(data: Data, examples: Examples, places: np.ndarray) -> Examples:
  """Some examples as networks take them, as NumPy arrays.

  Args:
    data: whose preparation it is.
    examples: of one of its splits.
    places: which of them, `[n]`.
  """
  inputs, labels = jax.tree.map(lambda x: rows.read(x, places), examples)
  with jax.default_matmul_precision("highest"):  # Of a whitening, as NumPy would.
    found = jax.jit(data.preparation.apply)(data.preparation.state, inputs)
  return jax.tree.map(np.asarray, found), labels


def prepared(data: Data, examples: Examples) -> Examples:
  """All examples as networks take them, as NumPy arrays.

  Args:
    data: whose preparation it is.
    examples: of one of its splits.
  """
  size = len(examples[1])
  parts = [examples_at(data, examples, np.arange(start, min(start + _AT_ONCE, size)))
           for start in range(0, size, _AT_ONCE)]
  return jax.tree.map(lambda *blocks: np.concatenate(blocks), *parts)


def _normalization(dataset):
  """What `_prepare` needs to give what `datasets.normalize` does, but for rounding."""
  def per_channel(values):
    return np.asarray(values, np.float32).reshape(1, 1, 1, -1)

  return {"scale": np.float32(normalization.pixel_scale(dataset.train_images.dtype)),
          "mean": per_channel(dataset.mean), "std": per_channel(dataset.std)}


def _prepare(state, images):
  if "scale" in state:
    images = (images.astype(jnp.float32) / state["scale"] - state["mean"]) / state["std"]
  if "whitening" in state:
    images = zca.apply_product(state["whitening"], images)
  return images
