"""The data that flows through the library, and the letters of its shapes.

Every docstring of the package uses these letters:

  S      distill steps: distinct minibatches of distilled data
  E      distill epochs: passes over the S minibatches; T = S * E inner steps
  B      distilled examples per step
  K      classes
  N      initial weights drawn from p(theta_0) in one outer step
  R      real examples in one outer minibatch
  H W C  image height, width and channels, channels last

Inputs are arrays or any pytree of them, such as `{"image": ..., "table": ...}`. Images are floating
point in normalised space: (pixel - mean) / std.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

Params = Any  # A pytree of arrays: the weights of one network.
Array = jax.Array


class DistilledData(NamedTuple):
  """Synthetic examples that train a network, in the order they are used.

  Inner step t = e * S + s trains on `inputs[s]` with step size `step_sizes[e, s]`.
  """
  inputs: Any  # Pytree of [S, B, ...]; images are [S, B, H, W, C].
  labels: Array  # [S, B] integer classes, [S, B, K] soft labels, or targets [S, B, D].
  step_sizes: Array  # [E, S].
  hyper: Any = ()  # Hyper-parameters of the inner optimizer, by name.


class Part(NamedTuple):
  """One field of the distilled data; `init` gives `()` where nothing is learned."""
  init: Callable[[Array], Any]  # key -> what is learned
  decode: Callable[[Any], Any]  # what is learned -> the field


# An inner algorithm: `train(key, params, distilled) -> (trained params, losses)`.
Train = Callable[[Array, Params, DistilledData], tuple[Params, Array]]


class OuterState(NamedTuple):
  """Everything that changes from one outer step to the next."""
  trainable: Any  # Pytree of float arrays that `decode` turns into DistilledData.
  opt_state: Any  # State of the outer optax optimizer.
  step: Array  # [] int32, outer steps taken.
  carry: Any = ()  # The pool of warm starts, where there is one.


class OuterInfo(NamedTuple):
  """What one outer step reports."""
  loss: Array  # [] outer loss, mean over the N initialisations.
  hypergradient_norm: Array  # [] global L2 norm over all of `trainable`.
  # [] bool; False: loss, hypergradient or what it led to was not finite, the state did not change.
  finite: Array


def num_examples(inputs: Any, labels: Array) -> int:
  """n of real inputs `[n, ...]` and labels `[n]`; a ValueError where they are not as many."""
  found = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
  if found != {np.shape(labels)[:1]}:
    raise ValueError(f"inputs must be as many as the {len(labels)} labels; got "
                     f"{', '.join(str(*shape) or 'a number' for shape in sorted(found)) or 'none'}")
  return len(labels)


def check_labels(labels: Array, num_classes: int) -> None:
  """A ValueError where classes `[n]` that are no tracers lie outside of 0..K-1; targets may."""
  if isinstance(labels, jax.core.Tracer) or jnp.issubdtype(labels.dtype, jnp.floating):
    return
  classes = np.asarray(labels)  # Not of JAX, which would trace it.
  if classes.min() < 0 or classes.max() >= num_classes:
    raise ValueError(f"labels must lie in 0..{num_classes - 1}, the classes of the network; got "
                     f"{classes.min()}..{classes.max()}")


def check_distilled(distilled: DistilledData) -> None:
  """A ValueError that names the field whose shape does not fit the others."""
  inputs, labels, step_sizes, _ = distilled
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
  if not shapes or min(map(len, shapes)) < 2 or len({shape[:2] for shape in shapes}) > 1:
    raise ValueError("inputs must be arrays [S, B, ...] with one S and one B; "
                     f"got {[list(shape) for shape in shapes]}")
  batch = shapes[0][:2]
  if not all(batch):
    raise ValueError(f"inputs must hold an example in every step; got [S, B] = {list(batch)}")
  if np.shape(labels)[:2] != batch:
    raise ValueError(f"labels must begin with [S, B] = {list(batch)} of the inputs; "
                     f"got {list(np.shape(labels))}")
  found = np.shape(step_sizes)
  if len(found) != 2 or found[1] != batch[0] or not found[0]:
    raise ValueError(f"step_sizes must be [E, S] with S = {batch[0]} of the inputs; "
                     f"got {list(found)}")


def wide(dtype: DTypeLike) -> DTypeLike:
  """float32, or the floating-point type itself where it has more bits: what sums are taken in."""
  return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def check_at_least(least: int, **named: int | None) -> None:
  """A ValueError that names the first argument below `least`; None is none."""
  for name, value in named.items():
    if value is not None and value < least:
      raise ValueError(f"{name} must be at least {least}; got {value}")
