"""From a config to what is learned, where it starts, and by which optimizer."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from dd_jax import optimizers
from dd_jax import parametrization
from dd_jax import perturbations
from dd_jax import runs
from dd_jax import step_sizes
from dd_jax.files import artifacts
from dd_jax.runs import paths
from dd_jax.runs.settings import check_choice, check_positive
from dd_jax.types import Part
from experiments.names import parts

_HYPER = ("decay", "b1", "b2", "weight_decay")


def make_parametrization(config: ConfigDict, data: runs.Data) -> parametrization.Parametrization:
  """What `config.distill` says is learned.

  Raises:
    ValueError: a field that does not fit, or more bytes than `distill.max_bytes`.
  """
  distill, num_classes = config.distill, data.num_classes
  check_choice("distill.step_size_scale", distill.step_size_scale, step_sizes.SCALES)
  hard = hard_labels(distill, data)
  start = _make_start(config, data, hard)
  learned = parametrization.join(
      _make_inputs(config, data, hard, start.images),
      parts.make({
          "hard": lambda: parametrization.fixed_labels(start.labels),
          "soft": lambda: parametrization.soft_labels(
              start.labels if start.labels.ndim == 3 or data.targets is not None else
              jax.nn.one_hot(start.labels, num_classes)),
          "tied": lambda: parametrization.tied_labels(hard, num_classes),
      }, distill.labels, "distill.labels", Part, start=start.labels),
      (step_sizes.fixed if distill.step_size_sharing == "fixed" else
       functools.partial(step_sizes.learned, scale=distill.step_size_scale,
                         sharing=distill.step_size_sharing))(
                             distill.num_epochs, distill.num_steps, start.step_sizes),
      make_hyper(config.inner, start.hyper))
  size = parametrization.num_bytes(jax.eval_shape(learned.init, jax.random.key(0)))
  if distill.max_bytes is not None and size > distill.max_bytes:
    raise ValueError(f"distill.max_bytes must be at least the {size} bytes that are learned; "
                     f"got {distill.max_bytes}")
  return learned


def _make_inputs(config, data, hard, start):
  """What is learned of the inputs; one's own function makes a Part of their shape [S, B, ...]."""
  distill, shapes = config.distill, runs.input_shapes(data)
  num_steps, batch = hard.shape[:2]
  if distill.images == "pixels" and not distill.real_per_class:
    return parametrization.inputs(shapes, num_steps, batch, start=start, given=data.given)
  if isinstance(shapes, dict):
    raise ValueError("distill.images must be 'pixels', and distill.real_per_class 0, for inputs "
                     f"{[*shapes]}; got {distill.images!r} and {distill.real_per_class}")
  if distill.real_per_class and data.targets is not None:
    raise ValueError("distill.real_per_class must be 0 for targets, of which there are no classes; "
                     f"got {distill.real_per_class}")
  real, num_learned = None, batch - distill.real_per_class * data.num_classes
  if distill.real_per_class or distill.images == "perturbed":
    real = _real(config, data, hard)
  shape = (num_steps, num_learned, *shapes)
  part = parts.make({
      "pixels": lambda: parametrization.pixels(
          shape, None if start is None else start[:, :num_learned]),
      "bases": lambda: parametrization.bases(shape, distill.num_bases),
      "upsampled": lambda: parametrization.upsampled(shape, distill.upsampling),
      "perturbed": lambda: _perturbed(distill, data, real[:, :num_learned]),
  }, distill.images, "distill.images", Part, shape=shape)
  return perturbations.beside(part, real[:, num_learned:]) if distill.real_per_class else part


def _perturbed(distill, data, real):
  """Real images within epsilon, of the range of the dataset's pixels, and within that range."""
  pixels = data.pixels
  if pixels is None or pixels.whitening is not None:
    raise ValueError("distill.images must be 'pixels' for data that are no images, or whitened; "
                     "got 'perturbed'")
  low, high = ((end - pixels.mean) / pixels.std for end in pixels.range)
  return perturbations.perturbed(
      real, distill.epsilon * (pixels.range[1] - pixels.range[0]), norm=distill.norm,
      scale=np.float32(pixels.std), low=np.float32(low), high=np.float32(high))


def hard_labels(distill: ConfigDict, data: runs.Data) -> jax.Array:
  """Classes `[S, B]`, those of real images last; soft labels `[S, B, K]` where a step has fewer
  images than classes; or targets `[S, B, D]`.
  """
  num_classes = data.num_classes
  if distill.few_images is None:
    learned = runs.start_labels(data, distill.num_steps, distill.images_per_class)
    if not distill.real_per_class:
      return learned
    return jnp.concatenate([learned, runs.start_labels(data, distill.num_steps,
                                                       distill.real_per_class)], 1)
  if distill.labels != "soft":
    raise ValueError("distill.labels must be 'soft' for distill.few_images="
                     f"{distill.few_images}; got {distill.labels!r}")
  return parametrization.few_labels(distill.num_steps, num_classes, distill.few_images)


class _Start(NamedTuple):
  """Where images (None: noise), labels, step sizes and, by name, hyper-parameters start."""
  images: jax.Array | None
  labels: jax.Array
  step_sizes: float | np.ndarray
  hyper: dict[str, Any] = {}


def _real(config, data, hard):
  """Real examples of the classes `[S, B]`, each of them once; of targets those that have them.

  Raises:
    ValueError: labels that are none of classes.
  """
  if hard.ndim == 3 and data.targets is None:
    raise ValueError("distill.few_images must be left out where images start as real ones; got "
                     f"{config.distill.few_images}")
  places = (_drawn(config.seed, np.asarray(hard), data.train[1]) if data.targets is None else
            runs.spread_places(data, *hard.shape[:2]))
  chosen, _ = runs.examples_at(data, data.train, places.reshape(-1))
  return jax.tree.map(lambda x: np.reshape(x, (*places.shape, *x.shape[1:])), chosen)


def _drawn(seed, wanted, labels):
  """Places of examples of the wanted classes."""
  rng, places = np.random.default_rng(seed), np.empty(wanted.shape, int)
  for label in np.unique(wanted):
    members = np.flatnonzero(labels == label)
    number = int((wanted == label).sum())
    if len(members) < number:
      raise ValueError(f"images must hold at least {number} of every class; got {len(members)} of "
                       f"class {label}")
    places[wanted == label] = rng.choice(members, number, replace=False)
  return places


def _make_start(config, data, hard):
  """What `config.distill.start` names; `hard` are the config's own labels."""
  distill = config.distill
  if distill.start != "noise" and distill.images != "pixels":
    raise ValueError(f"distill.images must be 'pixels' for distill.start={distill.start!r}; "
                     f"got {distill.images!r}")
  if distill.start.endswith(".npz"):
    return _start_from_file(config, data, hard)

  if distill.start not in ("noise", "real"):
    raise ValueError("distill.start must be 'noise', 'real' or the path of a distilled.npz; "
                     f"got {distill.start!r}")
  step_sizes.check_positive(distill.step_size, "distill.step_size")
  return _Start(_real(config, data, hard) if distill.start == "real" else None, hard,
                distill.step_size)


def _start_from_file(config, data, hard):
  """Images in normalised space, and all else that a run learned; its weights stay there.

  Epochs beyond those of the file begin with the step sizes of its last one.

  Raises:
    ValueError: what the config learns has other shapes, another whitening or inner optimizer, or
      real images of other classes.
  """
  distill, num_classes = config.distill, data.num_classes
  images_shape = (*hard.shape[:2], *runs.input_shapes(data))
  path = paths.local(distill.start, "distill.start")
  artifact = artifacts.load(path)
  images, labels, sizes, hyper = artifact.distilled
  sizes = np.concatenate([sizes, *[sizes[-1:]] * (distill.num_epochs - len(sizes))])
  if isinstance(images, dict):
    raise ValueError(f"distill.start must hold inputs that are one array; those of {path} are "
                     f"{sorted(images)}")
  classes = labels.shape[-1] if labels.ndim == 3 else max(num_classes, int(labels.max()) + 1)
  for what, found, expected in (
      ("images [S, B, H, W, C]", list(images.shape), list(images_shape)),
      ("step sizes [E, S]", list(sizes.shape), [distill.num_epochs, distill.num_steps]),
      ("number of classes", classes, num_classes),
      ("inner optimizer", *(
          name if name in optimizers.INNER_OPTIMIZERS else "own" for name in (
              artifact.metadata.get("inner_optimizer", "gradient_descent"),
              config.inner.optimizer))),
      ("whitening", artifact.metadata.get("whitening"), config.data.whitening)):
    if found != expected:
      raise ValueError(f"distill.start must fit the config: {what} {expected}; {path} has {found}")
  if distill.labels == "tied" or distill.labels == "hard" and labels.ndim == 3:
    raise ValueError(f"distill.labels must be 'soft' to start from the labels of {path}; "
                     f"got {distill.labels!r}")
  if num_real := distill.real_per_class * num_classes:
    found, expected = (x.argmax(-1) if x.ndim == 3 else x
                       for x in (labels[:, -num_real:], hard[:, -num_real:]))
    if (found != expected).any():
      raise ValueError(f"distill.start must have the classes of the real images, {expected[0]}, "
                       f"last in every step; {path} has {found[0]}")
  return _Start(_as_normalized(artifact, data, path), labels, np.asarray(sizes),
                {name: float(value) for name, value in dict(hyper).items()})


def _as_normalized(artifact, data, path):
  """The file's images in the normalised space of the data."""
  images, pixels = artifact.distilled.inputs, data.pixels
  names = ("mean", "std", "pixel_scale")
  if pixels is None or any(name not in artifact.metadata for name in names):
    return images
  found = [artifact.metadata[name] for name in names]
  expected = [pixels.mean.tolist(), pixels.std.tolist(), pixels.scale]
  if found == expected:
    return images
  if artifact.whitening is not None or found[2] != expected[2]:
    raise ValueError(f"distill.start must be of images normalised by mean, std and scale {expected}"
                     f", as the data; {path} has {found}")
  return jnp.asarray((artifact.pixels(clip=False) - pixels.mean) / pixels.std, images.dtype)


def make_hyper(inner: ConfigDict, start: dict[str, Any]) -> parametrization.Part:
  """Hyper-parameters of the inner optimizer: the config's, else those begun at, else the usual."""
  usual = optimizers.DEFAULTS.get(inner.optimizer, {})
  given = {name: inner[name] for name in _HYPER if inner[name] is not None}
  for name, value in given.items():
    if name not in usual and name != "weight_decay":
      raise ValueError(f"inner.{name} must be left out for inner.optimizer={inner.optimizer!r}, "
                       f"which has {sorted(usual)}; got {value}")
    if not 0 <= value < 1:
      raise ValueError(f"inner.{name} must lie in [0, 1); got {value}")
  part = optimizers.shares if inner.learned else optimizers.fixed_hyper
  return part({**usual, **start, **given})


def make_optimizer(outer: ConfigDict, trainable: dict[str, Any]) -> optax.GradientTransformation:
  """Adam on all that is learned, each kind with its learning rate, after clipping."""
  def adam(field, weight_decay=0.):
    check_positive(f"outer.{field}", outer[field])
    return optax.adamw(make_schedule("outer", outer, outer[field]), b1=outer.beta1, b2=outer.beta2,
                       weight_decay=weight_decay)

  for name in ("beta1", "beta2"):
    if not 0 <= outer[name] < 1:
      raise ValueError(f"outer.{name} must lie in [0, 1); got {outer[name]}")
  if not outer.weight_decay >= 0:
    raise ValueError(f"outer.weight_decay must not be negative; got {outer.weight_decay}")
  clip = optax.identity()
  if outer.clip_norm is not None:
    check_positive("outer.clip_norm", outer.clip_norm)
    clip = optax.clip_by_global_norm(outer.clip_norm)
  rates = {"inputs": adam("learning_rate", outer.weight_decay),
           "labels": adam("label_learning_rate"),
           "step_sizes": adam("step_size_learning_rate"),
           "hyper": adam("step_size_learning_rate")}
  partition = optax.partition({name: rates[name] for name in trainable},
                              {name: name for name in trainable})
  return optax.chain(clip, partition)


def make_schedule(name: str, section: ConfigDict, rate: float) -> optax.Schedule:
  """The learning rate over `section.num_steps` steps; `name` is the section's in the config."""
  for field in ("num_steps", "halve_every"):
    check_positive(f"{name}.{field}", section[field])
  return parts.make({
      "halving": lambda: lambda step: rate * 0.5 ** (step // section.halve_every),
      "cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps),
      "squared_cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps, exponent=2),
  }, section.schedule, f"{name}.schedule", Callable, rate=rate, num_steps=section.num_steps)
