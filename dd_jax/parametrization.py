"""What is learned, and the distilled data that it stands for.

The outer optimizer moves `trainable`, a dict of float arrays. `join` puts a pair of functions
together, `init(key) -> trainable` and `decode(trainable) -> DistilledData`, from one part for each
field of the distilled data; those of step sizes lie in `step_sizes`, those of hyper-parameters in
`optimizers`. What is not learned, such as hard labels, is closed over by its part.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from dd_jax import step_sizes
from dd_jax.types import Array, DistilledData, Part, check_at_least


class Parametrization(NamedTuple):
  """Where the learned numbers start, and what they stand for."""
  init: Callable[[Array], dict[str, Any]]  # key -> trainable
  decode: Callable[[dict[str, Any]], DistilledData]  # trainable -> what it stands for


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
    step_size_scale: as in `step_sizes.learned`.
    dtype: of every learned number.
  """
  return join(pixels((*labels.shape[:2], *image_shape)), fixed_labels(labels),
              step_sizes.learned(num_epochs, labels.shape[0], step_size, scale=step_size_scale),
              dtype=dtype)


def parts(named: dict[str, Part]) -> Part:
  """Inputs of several kinds, a dict of what each part stands for; each is drawn by its own key."""
  def init(key):
    return {name: part.init(part_key) for (name, part), part_key in
            zip(named.items(), jax.random.split(key, len(named)))}

  return Part(init, lambda learned: {name: part.decode(learned[name] if learned else ())
                                     for name, part in named.items()})


def num_bytes(trainable: Any) -> int:
  """The budget: bytes of everything learned."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trainable))


# Inputs


def inputs(shape: Any, num_steps: int, batch: int, *, start: Any = None,
           given: Mapping[str, ArrayLike] | None = None) -> Part:
  """Inputs of which every number is learned: an array, or a dict of which some are given.

  Args:
    shape: of one example's, `(H, W, C)` for instance, or a dict of such shapes.
    num_steps: S.
    batch: B.
    start: inputs `[S, B, ...]` to start from, the given ones among them. None: N(0, 1).
    given: those that are not learned, by their names in the dict, as each example has them.

  Raises:
    ValueError: a given input that the dict lacks, or of another shape, or beside one array; a start
      of another shape.
  """
  given = given or {}
  if not isinstance(shape, dict):
    if given:
      raise ValueError(f"given must be left out where inputs are one array; got {[*given]}")
    return pixels((num_steps, batch, *shape), start)
  if start is not None and {*start} != {*shape}:
    raise ValueError(f"start must hold the inputs {sorted(shape)}; got {sorted(start)}")
  for name, values in given.items():
    if name not in shape or tuple(shape[name]) != jnp.shape(values):
      raise ValueError(f"given must have the shapes of the inputs, {shape}; got {name} of "
                       f"{jnp.shape(values)}")

  def of(name):
    full = (num_steps, batch, *shape[name])
    if name not in given:
      return pixels(full, None if start is None else start[name])
    values = jnp.asarray(jnp.broadcast_to(given[name], full) if start is None else start[name])
    if values.shape != full:
      raise ValueError(f"start must have the shape {full} of {name}; got {values.shape}")
    return Part(lambda key: (), lambda learned: values)

  return parts({name: of(name) for name in shape})


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
  check_at_least(1, num_bases=num_bases)

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
  check_at_least(1, num_steps=num_steps)
  check_at_least(2, num_classes=num_classes)
  check_at_least(1, images_per_class=images_per_class)
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
  check_at_least(1, num_steps=num_steps)
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
