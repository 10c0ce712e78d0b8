"""Step sizes of the inner loop as parts of a parametrization: learned or fixed, shared or not."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from dd_jax.types import Array, Part, check_at_least

SCALES = ("softplus", "log")
SHARING = ("per_step", "per_epoch", "tied")


def learned(num_epochs: int, num_steps: int, start: float | Array, *, scale: str = "softplus",
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
  check_at_least(1, num_epochs=num_epochs, num_steps=num_steps)
  if sharing not in SHARING:
    raise ValueError(f"sharing must be one of {list(SHARING)}; got {sharing!r}")
  shape = {"per_step": (num_epochs, num_steps), "per_epoch": (num_epochs, 1),
           "tied": (1, 1)}[sharing]
  _check_scale(scale)
  check_positive(start, "start")
  encoded = encode(_shared(start, num_epochs, num_steps, shape, "start"), scale, float)

  def decode(learned):
    values = jnp.exp(learned) if scale == "log" else jax.nn.softplus(learned)
    return jnp.broadcast_to(values, (num_epochs, num_steps))

  return Part(lambda key: jnp.full(shape, encoded), decode)


def fixed(num_epochs: int, num_steps: int, value: float | Array) -> Part:
  """Step sizes `[E, S]` that are not learned.

  Args:
    num_epochs: E.
    num_steps: S.
    value: all of them, positive; or `[E, S]`.

  Raises:
    ValueError: an argument out of range, named with its rule and value.
  """
  check_at_least(1, num_epochs=num_epochs, num_steps=num_steps)
  shape = num_epochs, num_steps
  check_positive(value, "value")
  values = jnp.full(shape, _shared(value, *shape, shape, "value"), float)
  return Part(lambda key: (), lambda learned: values)


def encode(step_size: float | Array, scale: str, dtype: DTypeLike = jnp.float32) -> Array:
  """What `learned` learns for a positive `step_size`, of its shape and this `dtype`.

  `scale` is as there.

  Raises:
    ValueError: another scale, or a step size that is not positive.
  """
  _check_scale(scale)
  check_positive(step_size)
  value = jnp.asarray(step_size, dtype)
  # The inverse of softplus, without overflow for any size.
  return jnp.log(value) if scale == "log" else value + jnp.log(-jnp.expm1(-value))


def check_positive(step_size: float | Array, name: str = "step_size") -> None:
  """A ValueError unless every step size, the argument `name`, is positive and finite."""
  values = np.asarray(step_size)
  if not np.all((values > 0) & np.isfinite(values)):
    raise ValueError(f"{name} must be positive; got {step_size}")


def _check_scale(scale):
  if scale not in SCALES:
    raise ValueError(f"scale must be one of {list(SCALES)}; got {scale!r}")


def _shared(values, num_epochs, num_steps, shape, name):
  """The step sizes that are learned, `[]` or of the shape, of a number or `[E, S]`."""
  if np.ndim(values) == 0:
    return values
  values, whole = np.asarray(values), (num_epochs, num_steps)
  if values.shape != whole:
    raise ValueError(f"{name} must be a number or [E, S] = {list(whole)}; "
                     f"got {list(values.shape)}")
  learned = values[:shape[0], :shape[1]]
  if not (values == learned).all():
    raise ValueError(f"{name} must be alike where step sizes are shared, "
                     f"{list(shape)} of {list(whole)}; got {values.tolist()}")
  return learned
