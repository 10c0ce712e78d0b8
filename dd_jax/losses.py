"""Losses of the inner and the outer loop, as functions of params, inputs and labels."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from dd_jax import adapters
from dd_jax.types import Array, wide


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Cross-entropy of each example -> `[n]`, by optax, in float32 or wider.

  With integer labels a class of logit -inf has probability 0: it costs inf where it is the label,
  and changes nothing where it is not; with soft labels it gives NaN, as in optax. An integer label
  of K or more gives NaN, with its gradient, and as in optax a negative one counts from the last
  class or, below -K, gives NaN; `datasets` refuses both.

  Args:
    logits: `[n, K]`.
    labels: integer classes `[n]`, or soft labels `[n, K]` of any scale.

  Raises:
    ValueError: the labels are neither.
  """
  logits = logits.astype(wide(logits.dtype))
  if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == logits.shape[:-1]:
    size, held = logits.shape[-1], jnp.iinfo(labels.dtype)
    known = (labels <= min(size - 1, held.max)) & (labels >= max(-size, held.min))
    # optax has a NaN for an unknown class, and a gradient as if nothing were wrong.
    return (optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            * jnp.where(known, 1, jnp.nan).astype(logits.dtype))
  if jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape == logits.shape:
    return optax.softmax_cross_entropy(logits, labels.astype(wide(labels.dtype)))
  raise ValueError(
      f"labels must be integers {list(logits.shape[:-1])} or floats {list(logits.shape)}; "
      f"got {labels.dtype} {list(labels.shape)}")


def squared_error(outputs: Array, targets: Array) -> Array:
  """Half the squared distance of each example -> `[n]`, in float32 or wider (section 3.3).

  Args:
    outputs, targets: `[n, D]`.

  Raises:
    ValueError: the targets are of another shape, not `[n, D]`, or integers.
  """
  if (targets.shape != outputs.shape or targets.ndim != 2
      or not jnp.issubdtype(targets.dtype, jnp.floating)):
    raise ValueError(f"targets must be floats [n, D], as the outputs {list(outputs.shape)}; "
                     f"got {targets.dtype} {list(targets.shape)}")
  dtype = wide(outputs.dtype)
  return .5 * ((outputs.astype(dtype) - targets.astype(dtype)) ** 2).sum(-1)


def regression(apply: Callable) -> Callable:
  """`loss(params, inputs, targets, key=None) -> []`: mean `squared_error` of a network.

  Args:
    apply: `(params, inputs) -> outputs [n, D]`; of a key as in `classification`.
  """
  return _mean_of(squared_error, apply)


def classification(apply: Callable) -> Callable:
  """`loss(params, inputs, labels, key=None) -> []`: mean cross-entropy of a network.

  The inner loss of the method and, without a key, its outer loss on real examples.

  Args:
    apply: `(params, inputs) -> logits [n, K]`; where it has an argument `key` it gets that of the
      loss, and where it has none, neither has the loss.
  """
  return _mean_of(cross_entropy, apply)


def poisoning(apply: Callable, *, attack_class: int, target_class: int, num_classes: int
              ) -> Callable:
  """Mean cross-entropy with every label `attack_class` read as `target_class` (section 3.6).

  Args:
    apply: `(params, inputs) -> logits [n, K]`.
    attack_class: the class that is to be mistaken.
    target_class: what for.
    num_classes: K.

  Returns:
    `loss(params, inputs, labels) -> []`.

  Raises:
    ValueError: equal classes, or one that is not in 0..K-1; when called, labels that are no
      integers.
  """
  for name, value in (("attack_class", attack_class), ("target_class", target_class)):
    if not 0 <= value < num_classes:
      raise ValueError(f"{name} must lie in 0..{num_classes - 1}; got {value}")
  if attack_class == target_class:
    raise ValueError(f"target_class must differ from attack_class; got {target_class} for both")
  loss = classification(apply)

  def poisoned_loss(params, inputs, labels):
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
      raise ValueError(f"labels must be classes, integers [n], to be poisoned; got {labels.dtype}")
    return loss(params, inputs, jnp.where(labels == attack_class, target_class, labels))

  return poisoned_loss


def _mean_of(of_each, apply):
  """The mean over the examples, with a key where the network takes one."""
  if not adapters.takes_key(apply):
    return lambda params, inputs, labels: jnp.mean(of_each(apply(params, inputs), labels))

  def loss(params, inputs, labels, key=None):
    return jnp.mean(of_each(apply(params, inputs, key=key), labels))

  return loss


# The loss of networks, for classes and for targets.
LOSSES: dict[str, Callable] = {"classification": classification, "regression": regression}
