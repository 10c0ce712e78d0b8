"""From a config to what is learned, where it starts, and by which optimizer."""

import functools
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np
import optax

from dd_jax import baselines
from dd_jax import optimizers
from dd_jax import parametrization
from dd_jax import runs
from dd_jax import step_sizes
from dd_jax.files import artifacts
from dd_jax.runs import paths
from dd_jax.runs.settings import check_positive
from dd_jax.types import Part
from experiments.names import parts

_HYPER = ("decay", "b1", "b2", "weight_decay")


def make_parametrization(config: ConfigDict, data: runs.Data) -> parametrization.Parametrization:
  """What `config.distill` says is learned.

  Raises:
    ValueError: a field that does not fit, or more bytes than `distill.max_bytes`.
  """
  distill, num_classes = config.distill, data.num_classes
  hard = hard_labels(distill, num_classes)
  images_shape = (*hard.shape[:2], *runs.input_shapes(data))
  start = _make_start(config, data, hard, images_shape)
  learned = parametrization.join(
      _make_inputs(distill, images_shape, start.images),
      parts.choose({
          "hard": lambda: parametrization.fixed_labels(start.labels),
          "soft": lambda: parametrization.soft_labels(
              start.labels if start.labels.ndim == 3 else
              jax.nn.one_hot(start.labels, num_classes)),
          "tied": lambda: parametrization.tied_labels(hard, num_classes),
      }, distill.labels, "distill.labels")(),
      (step_sizes.fixed if distill.step_size_sharing == "fixed" else
       functools.partial(step_sizes.learned, scale=distill.step_size_scale,
                         sharing=distill.step_size_sharing))(
                             distill.num_epochs, distill.num_steps, start.step_sizes),
      make_hyper(config.inner))
  size = parametrization.num_bytes(jax.eval_shape(learned.init, jax.random.key(0)))
  if distill.max_bytes is not None and size > distill.max_bytes:
    raise ValueError(f"distill.max_bytes must be at least the {size} bytes that are learned; "
                     f"got {distill.max_bytes}")
  return learned


def _make_inputs(distill, shape, start):
  """What is learned of the inputs; one's own function makes a Part of their shape [S, B, ...]."""
  if parts.is_own(distill.images):
    return parts.make_own(distill.images, "distill.images", Part, shape=shape)
  return parts.choose({
      "pixels": lambda: parametrization.pixels(shape, start),
      "bases": lambda: parametrization.bases(shape, distill.num_bases),
      "upsampled": lambda: parametrization.upsampled(shape, distill.upsampling),
  }, distill.images, "distill.images")()


def hard_labels(distill: ConfigDict, num_classes: int) -> jax.Array:
  """Classes `[S, B]`; soft labels `[S, B, K]` where a step has fewer images than classes."""
  if distill.few_images is None:
    return parametrization.class_labels(distill.num_steps, num_classes, distill.images_per_class)
  if distill.labels != "soft":
    raise ValueError("distill.labels must be 'soft' for distill.few_images="
                     f"{distill.few_images}; got {distill.labels!r}")
  return parametrization.few_labels(distill.num_steps, num_classes, distill.few_images)


class _Start(NamedTuple):
  """Where images (None: noise), labels and step sizes start."""
  images: jax.Array | None
  labels: jax.Array
  step_sizes: float | np.ndarray


def _make_start(config, data, hard, images_shape):
  """What `config.distill.start` names; `hard` are the config's own labels."""
  distill = config.distill
  if distill.start != "noise" and distill.images != "pixels":
    raise ValueError(f"distill.images must be 'pixels' for distill.start={distill.start!r}; "
                     f"got {distill.images!r}")
  if distill.start.endswith(".npz"):
    return _start_from_file(config, data.num_classes, images_shape)

  def real():
    if hard.ndim == 3:
      raise ValueError("distill.start must be 'noise' where distill.few_images is given; "
                       "got 'real'")
    places = baselines.random_places(
        config.seed, data.train[1], num_classes=int(hard.max()) + 1,
        num_steps=distill.num_steps, images_per_class=distill.images_per_class)
    chosen, _ = runs.examples_at(data, data.train, places.reshape(-1))
    return np.reshape(chosen, images_shape)

  if distill.start not in ("noise", "real"):
    raise ValueError("distill.start must be 'noise', 'real' or the path of a distilled.npz; "
                     f"got {distill.start!r}")
  return _Start(real() if distill.start == "real" else None, hard, distill.step_size)


def _start_from_file(config, num_classes, images_shape):
  """Images in normalised space, labels and step sizes of a finished run; its weights stay there.

  Raises:
    ValueError: what the config learns has other shapes, or another whitening.
  """
  distill = config.distill
  path = paths.local(distill.start, "distill.start")
  artifact = artifacts.load(path)
  images, labels, sizes, *_ = artifact.distilled
  classes = labels.shape[-1] if labels.ndim == 3 else max(num_classes, int(labels.max()) + 1)
  for what, found, expected in (
      ("images [S, B, H, W, C]", list(images.shape), list(images_shape)),
      ("step sizes [E, S]", list(sizes.shape), [distill.num_epochs, distill.num_steps]),
      ("number of classes", classes, num_classes),
      ("whitening", artifact.metadata.get("whitening"), config.data.whitening)):
    if found != expected:
      raise ValueError(f"distill.start must fit the config: {what} {expected}; {path} has {found}")
  if distill.labels == "tied" or distill.labels == "hard" and labels.ndim == 3:
    raise ValueError(f"distill.labels must be 'soft' to start from the labels of {path}; "
                     f"got {distill.labels!r}")
  return _Start(images, labels, np.asarray(sizes))


def make_hyper(inner: ConfigDict) -> parametrization.Part:
  """Hyper-parameters of the inner optimizer: the config's, else the usual ones."""
  usual = optimizers.DEFAULTS.get(inner.optimizer, {})
  given = {name: inner[name] for name in _HYPER if inner[name] is not None}
  for name, value in given.items():
    if name not in usual and name != "weight_decay":
      raise ValueError(f"inner.{name} must be left out for inner.optimizer={inner.optimizer!r}, "
                       f"which has {sorted(usual)}; got {value}")
    if not 0 <= value < 1:
      raise ValueError(f"inner.{name} must lie in [0, 1); got {value}")
  part = optimizers.shares if inner.learned else optimizers.fixed_hyper
  return part({**usual, **given})


def make_optimizer(outer: ConfigDict, trainable: dict[str, Any]) -> optax.GradientTransformation:
  """Adam on all that is learned, each kind with its learning rate, after clipping."""
  def adam(field, weight_decay=0.):
    check_positive(f"outer.{field}", outer[field])
    return optax.adamw(make_schedule("outer", outer, outer[field]), b1=outer.beta1, b2=outer.beta2,
                       weight_decay=weight_decay)

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
  return parts.choose({
      "halving": lambda: lambda step: rate * 0.5 ** (step // section.halve_every),
      "cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps),
      "squared_cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps, exponent=2),
  }, section.schedule, f"{name}.schedule")()
