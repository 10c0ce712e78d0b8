"""From what is learned to distilled data: `decode(trainable) -> DistilledData`.

The outer optimizer moves `trainable`, any pytree of float arrays. What is not
learned, such as hard labels, is closed over by `decode`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dd_jax.types import Array, DistilledData

STEP_SIZE_SCALES = ("softplus", "log")


def class_labels(num_steps: int, num_classes: int, images_per_class: int) -> Array:
  """Hard labels `[S, B]`, class-sorted and the same in every step; B = K * images_per_class."""
  for name, value, least in (("num_steps", num_steps, 1), ("num_classes", num_classes, 2),
                             ("images_per_class", images_per_class, 1)):
    if value < least:
      raise ValueError(f"{name} must be at least {least}; got {value}")
  labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), images_per_class)
  return jnp.tile(labels, (num_steps, 1))


def inverse_softplus(x: Array) -> Array:
  """The raw value whose softplus is `x` > 0, without overflow for any size."""
  return x + jnp.log(-jnp.expm1(-x))


def pixels(labels: Array, *, step_size_scale: str = "softplus"
           ) -> Callable[[dict[str, Array]], DistilledData]:
  """The paper's parametrisation: every pixel and every step size is learned by itself.

  Args:
    labels: `[S, B]` hard or `[S, B, K]` soft labels, not learned.
    step_size_scale: what `trainable["step_sizes"]` `[E, S]` holds. "softplus":
      the raw step sizes (the authors' choice); "log": their logarithms, under
      which an optimizer changes them by a ratio.

  Returns:
    `decode` of trainables `{"images": [S, B, H, W, C], "step_sizes": [E, S]}`.
  """
  _check_scale(step_size_scale)

  def decode(trainable):
    raw = trainable["step_sizes"]
    if step_size_scale == "log":
      raw = inverse_softplus(jnp.exp(raw))
    return DistilledData(trainable["images"], labels, raw)

  return decode


def encode_step_size(step_size: float, step_size_scale: str, dtype=jnp.float32) -> Array:
  """What `trainable["step_sizes"]` holds for one positive step size -> `[]`."""
  _check_scale(step_size_scale)
  if not step_size > 0:
    raise ValueError(f"step_size must be positive; got {step_size}")
  step_size = jnp.asarray(step_size, dtype)
  return jnp.log(step_size) if step_size_scale == "log" else inverse_softplus(step_size)


def _check_scale(step_size_scale):
  if step_size_scale not in STEP_SIZE_SCALES:
    raise ValueError(
        f"step_size_scale must be one of {list(STEP_SIZE_SCALES)}; got {step_size_scale!r}")
