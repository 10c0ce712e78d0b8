"""What is learned, and the distilled data that it stands for.

The outer optimizer moves `trainable`, a dict of float arrays. `join` puts a pair of functions
together, `init(key) -> trainable` and `decode(trainable) -> DistilledData`, from one part for each
field of the distilled data. What is not learned, such as hard labels, is closed over by its part.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from dd_jax.types import Array, DistilledData

STEP_SIZE_SCALES = ("softplus", "log")
STEP_SIZE_SHARING = ("per_step", "per_epoch", "tied")


class Parametrization(NamedTuple):
  """Where the learned numbers start, and what they stand for."""
  init: Callable[[Array], dict[str, Any]]  # key -> trainable
  decode: Callable[[dict[str, Any]], DistilledData]  # trainable -> what it stands for


class Part(NamedTuple):
  """One field of the distilled data; `init` gives `()` where nothing is learned."""
  init: Callable[[Array], Any]  # key -> what is learned
  decode: Callable[[Any], Any]  # what is learned -> the field


def join(inputs: Part, labels: Part, step_sizes: Part, hyper: Part | None = None, *,
         dtype: DTypeLike = jnp.float32) -> Parametrization:
  """The parametrization whose trainable holds the learned parts by these names.

  Args:
    inputs: of any pytree of `[S, B, ...]`; the one part that is drawn: the others start at given
      values. Several kinds of inputs are put together by `parts`.
    labels: of `[S, B]`, `[S, B, K]` or `[S, B, D]`.
    step_sizes: of step sizes `[E, S]`.
    hyper: of the hyper-parameters of the inner optimizer.
    dtype: of every learned number, and of the step sizes.
  """
  fields = {"inputs": inputs, "labels": labels, "step_sizes": step_sizes,
           **({} if hyper is None else {"hyper": hyper})}

  def init(key):
    trainable = {name: part.init(key) for name, part in fields.items()}
    # Copies: the caller's own start outlives a call that the trainable is donated to.
    return {name: jax.tree.map(lambda x: jnp.array(x, dtype), tree)
            for name, tree in trainable.items() if jax.tree.leaves(tree)}

  def decode(trainable):
    found = DistilledData(**{name: part.decode(trainable.get(name, ()))
                             for name, part in fields.items()})
    return found._replace(step_sizes=found.step_sizes.astype(dtype))

  return Parametrization(init, decode)


def paper(labels: Array, image_shape: tuple[int, ...], *, num_epochs: int, step_size: float,
          step_size_scale: str = "softplus", dtype: DTypeLike = jnp.float32) -> Parametrization:
  """The paper's choice: every pixel and every step size is learned, labels are not.

  Args:
    labels: `[S, B]` hard or `[S, B, K]` soft labels.
    image_shape: `(H, W, C)`.
    num_epochs: E.
    step_size: the initial one.
    step_size_scale: as in `step_sizes`.
    dtype: of every learned number.
  """
  return join(pixels((*labels.shape[:2], *image_shape)), fixed_labels(labels),
              step_sizes(num_epochs, labels.shape[0], step_size, scale=step_size_scale),
              dtype=dtype)


def parts(named: dict[str, Part]) -> Part:
  """Inputs of several kinds, a dict of what each part stands for; each is drawn by its own key."""
  def init(key):
    return {name: part.init(part_key) for (name, part), part_key in
            zip(named.items(), jax.random.split(key, len(named)))}

  return Part(init, lambda learned: {name: part.decode(learned[name])
                                     for name, part in named.items()})


def num_bytes(trainable: Any) -> int:
  """The budget: bytes of everything learned."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trainable))


# Images


def pixels(shape: tuple[int, ...], start: Array | None = None) -> Part:
  """The paper's images: every pixel is learned by itself; so may be any array of inputs.

  Args:
    shape: `(S, B, H, W, C)`, or `(S, B, ...)`.
    start: an array of that shape to start from. None: N(0, 1), in normalised space.

  Raises:
    ValueError: a start of another shape.
  """
  if start is None:
    return Part(lambda key: jax.random.normal(key, shape), lambda images: images)
  if start.shape != tuple(shape):
    raise ValueError(f"start must be [S, B, ...] = {list(shape)}; got {list(start.shape)}")
  return Part(lambda key: jnp.asarray(start), lambda images: images)


def bases(shape: tuple[int, ...], num_bases: int) -> Part:
  """Every image is a weighted sum of bases that all images share.

  Deng and Russakovsky, "Remember the Past", 2022 (arXiv 2206.02916).

  Args:
    shape: `(S, B, H, W, C)` of the images.
    num_bases: how many. Learned are bases `[num_bases, H, W, C]` and coefficients
      `[S, B, num_bases]`; both start at random, so that images are N(0, 1).

  Raises:
    ValueError: num_bases below 1.
  """
  check_at_least("num_bases", num_bases, 1)

  def init(key):
    bases_key, coefficients_key = jax.random.split(key)
    return {"bases": jax.random.normal(bases_key, (num_bases, *shape[2:])),
            "coefficients": (jax.random.normal(coefficients_key, (*shape[:2], num_bases))
                             / math.sqrt(num_bases))}

  return Part(init, lambda learned: jnp.tensordot(learned["coefficients"], learned["bases"], 1))


def upsampled(shape: tuple[int, ...], factor: int) -> Part:
  """Images of a lower resolution, enlarged bilinearly: factor^2 of them in one image's budget.

  Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", 2022
  (arXiv 2205.14959).

  Args:
    shape: `(S, B, H, W, C)` of the images.
    factor: learned are `[S, B, H / factor, W / factor, C]`, which start as N(0, 1).

  Raises:
    ValueError: a factor below 1, or one that does not divide H and W.
  """
  *batch, height, width, channels = shape
  if factor < 1 or height % factor or width % factor:
    raise ValueError(f"factor must divide the image size {height}x{width}; got {factor}")
  small = (*batch, height // factor, width // factor, channels)
  return Part(lambda key: jax.random.normal(key, small),
              lambda images: jax.image.resize(images, shape, "bilinear"))


# Labels


def class_labels(num_steps: int, num_classes: int, images_per_class: int) -> Array:
  """Hard labels `[S, B]`, class-sorted and the same in every step.

  Args:
    num_steps: S.
    num_classes: K, at least 2.
    images_per_class: B / K.

  Raises:
    ValueError: a number that is too small.
  """
  check_at_least("num_steps", num_steps, 1)
  check_at_least("num_classes", num_classes, 2)
  check_at_least("images_per_class", images_per_class, 1)
  labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), images_per_class)
  return jnp.tile(labels, (num_steps, 1))


def few_labels(num_steps: int, num_classes: int, batch: int) -> Array:
  """Soft labels `[S, B, K]` of fewer images than classes: image b stands for a run of classes.

  Args:
    num_steps: S.
    num_classes: K.
    batch: B, at most K.

  Raises:
    ValueError: B out of 1..K.
  """
  check_at_least("num_steps", num_steps, 1)
  if not 1 <= batch <= num_classes:
    raise ValueError(f"batch must lie in 1..{num_classes} (the classes); got {batch}")
  owner = jnp.arange(num_classes) * batch // num_classes
  labels = jax.nn.one_hot(owner, batch).T
  return jnp.tile(labels / labels.sum(-1, keepdims=True), (num_steps, 1, 1))


def fixed_labels(labels: Array) -> Part:
  """Labels `[S, B]` or `[S, B, K]` that are not learned."""
  return Part(lambda key: (), lambda learned: labels)


def soft_labels(start: Array) -> Part:
  """A label vector `[S, B, K]` for each image, of any scale and sign, learned from `start` on.

  Bohdal et al., "Flexible Dataset Distillation", 2020 (arXiv 2006.08572); Sucholutsky and
  Schonlau, "Soft-Label Dataset Distillation", 2019 (arXiv 1910.02551).

  Raises:
    ValueError: labels that are not floating-point vectors.
  """
  if start.ndim != 3 or not jnp.issubdtype(start.dtype, jnp.floating):
    raise ValueError("start must be floating-point labels [S, B, K]; "
                     f"got {start.dtype} {list(start.shape)}")
  return Part(lambda key: start, lambda labels: labels)


def tied_labels(labels: Array, num_classes: int) -> Part:
  """One learned label vector for each class, `[K, K]`, shared by all its images; one-hot at first.

  Args:
    labels: the classes of the images `[S, B]`.
    num_classes: K.

  Raises:
    ValueError: labels that are not integers in 0..K-1.
  """
  if not jnp.issubdtype(labels.dtype, jnp.integer) or not (
      0 <= labels.min() and labels.max() < num_classes):
    raise ValueError(f"labels must be integers in 0..{num_classes - 1}; "
                     f"got {labels.dtype} in {labels.min()}..{labels.max()}")
  return Part(lambda key: jnp.eye(num_classes), lambda table: table[labels])


# Step sizes and hyper-parameters


def step_sizes(num_epochs: int, num_steps: int, start: float | Array, *, scale: str = "softplus",
               sharing: str = "per_step") -> Part:
  """Learned step sizes of the inner gradient descent.

  Args:
    num_epochs: E.
    num_steps: S.
    start: all of them at first, positive; or `[E, S]`, alike where they are shared.
    scale: what is learned. "softplus": numbers whose softplus they are (the authors' choice);
      "log": their logarithms, under which an optimizer changes them by a ratio.
    sharing: "per_step" learns `[E, S]`, "per_epoch" `[E, 1]`, "tied" one for all, `[1, 1]`.

  Raises:
    ValueError: an argument out of range, named with its rule and value.
  """
  check_at_least("num_epochs", num_epochs, 1)
  check_at_least("num_steps", num_steps, 1)
  if sharing not in STEP_SIZE_SHARING:
    raise ValueError(f"sharing must be one of {list(STEP_SIZE_SHARING)}; got {sharing!r}")
  shape = {"per_step": (num_epochs, num_steps), "per_epoch": (num_epochs, 1),
           "tied": (1, 1)}[sharing]
  encoded = encode_step_size(_shared(start, num_epochs, num_steps, shape), scale, float)

  def decode(learned):
    values = jnp.exp(learned) if scale == "log" else jax.nn.softplus(learned)
    return jnp.broadcast_to(values, (num_epochs, num_steps))

  return Part(lambda key: jnp.full(shape, encoded), decode)


def _shared(values, num_epochs, num_steps, shape):
  """The step sizes that are learned, `[]` or of the shape, of a number or `[E, S]`."""
  if np.ndim(values) == 0:
    return values
  values, whole = np.asarray(values), (num_epochs, num_steps)
  if values.shape != whole:
    raise ValueError(f"step_size must be a number or [E, S] = {list(whole)}; "
                     f"got {list(values.shape)}")
  learned = values[:shape[0], :shape[1]]
  if not (values == learned).all():
    raise ValueError("step_size must be alike where step sizes are shared, "
                     f"{list(shape)} of {list(whole)}; got {values.tolist()}")
  return learned


def fixed_step_sizes(num_epochs: int, num_steps: int, value: float | Array) -> Part:
  """Step sizes `[E, S]` that are not learned.

  Args:
    num_epochs: E.
    num_steps: S.
    value: all of them, positive; or `[E, S]`.

  Raises:
    ValueError: an argument out of range, named with its rule and value.
  """
  check_at_least("num_epochs", num_epochs, 1)
  check_at_least("num_steps", num_steps, 1)
  shape = num_epochs, num_steps
  check_positive(value)
  values = jnp.full(shape, _shared(value, *shape, shape), float)
  return Part(lambda key: (), lambda learned: values)


def encode_step_size(step_size: float | Array, scale: str, dtype: DTypeLike = jnp.float32) -> Array:
  """What `step_sizes` learns for positive `step_size`, of its shape; `scale` as there.

  Raises:
    ValueError: another scale, or a step size that is not positive.
  """
  if scale not in STEP_SIZE_SCALES:
    raise ValueError(f"step_size_scale must be one of {list(STEP_SIZE_SCALES)}; got {scale!r}")
  check_positive(step_size)
  value = jnp.asarray(step_size, dtype)
  # The inverse of softplus, without overflow for any size.
  return jnp.log(value) if scale == "log" else value + jnp.log(-jnp.expm1(-value))


def check_positive(step_size: float | Array) -> None:
  """A ValueError unless every step size is positive."""
  if not np.all(np.asarray(step_size) > 0):
    raise ValueError(f"step_size must be positive; got {step_size}")


def shares(start: dict[str, float]) -> Part:
  """Learned hyper-parameters between 0 and 1, such as momentum, by their logits.

  Raises:
    ValueError: a start that does not lie between 0 and 1.
  """
  for name, value in start.items():
    if not 0 < value < 1:
      raise ValueError(f"{name} must lie between 0 and 1 to be learned; got {value}")
  return Part(
      lambda key: {name: jnp.asarray(math.log(x / (1 - x))) for name, x in start.items()},
      lambda learned: jax.tree.map(jax.nn.sigmoid, learned))


def fixed_hyper(values: dict[str, float]) -> Part:
  """Hyper-parameters that are not learned."""
  return Part(lambda key: (),
              lambda learned: {name: jnp.asarray(value, float) for name, value in values.items()})


def check_at_least(name: str, value: int, least: int) -> None:
  """A ValueError that names the argument `name`, unless `value` is at least `least`."""
  if value < least:
    raise ValueError(f"{name} must be at least {least}; got {value}")
