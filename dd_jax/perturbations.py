"""Real examples changed within a bound, and real examples beside learned ones.

What is poisonous without being seen as such (section 3.6): images that stay within epsilon of real
ones, in batches with real ones as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax.types import Array, Part

NORMS = ("linf", "l2")
# Of a bound, or of 1 if that is more: by how much normalised pixels may miss theirs, in float32.
_ROUNDING = 1e-4


def perturbed(real: Array, epsilon: float, *, norm: str = "linf", scale: Array | float = 1.,
              low: Array | None = None, high: Array | None = None) -> Part:
  """Real inputs, each with a learned change of at most epsilon; they start as they are.

  What is learned is the change in units of epsilon, before the bound: a learning rate serves any.
  Its gradient is that of inputs which nothing keeps within low and high: else a black pixel that
  once was to become darker would stay as it is for ever.

  Args:
    real: `[S, B, ...]`, floating point.
    epsilon: the bound of each example's change.
    norm: "linf" bounds every number of it, by a tanh; "l2" the root of the sum of squares.
    scale: what inputs are multiplied with before they are measured, broadcast: the standard
      deviation of normalised pixels, for an epsilon in pixels.
    low, high: what inputs stay within besides, broadcast; None: anything.

  Raises:
    ValueError: an unknown norm, an epsilon or scale that is not positive, real inputs that are
      integers or do not lie in low..high but for rounding, within which they are moved there.
  """
  if norm not in NORMS:
    raise ValueError(f"norm must be one of {list(NORMS)}; got {norm!r}")
  if not 0 < epsilon < np.inf:
    raise ValueError(f"epsilon must be positive and finite; got {epsilon}")
  real = jnp.asarray(real)
  if not jnp.issubdtype(real.dtype, jnp.floating):
    raise ValueError(f"real must be floating point; got {real.dtype}")
  scale = jnp.broadcast_to(jnp.asarray(scale, real.dtype), real.shape)
  if not (scale > 0).all():
    raise ValueError(f"scale must be positive; got {scale.min()}")
  low, high = (None if x is None else jnp.broadcast_to(jnp.asarray(x, real.dtype), real.shape)
               for x in (low, high))
  within = jnp.clip(real, low, high)
  outside = jnp.abs(real - within) > _ROUNDING * jnp.maximum(1, jnp.abs(within))
  if np.any(outside):
    raise ValueError(f"real must lie in low..high; {np.sum(outside)} of its {real.size} numbers "
                     f"do not, and it is in {real.min()}..{real.max()}")
  real = within

  def decode(learned):
    if norm == "linf":
      change = epsilon * jnp.tanh(learned)
    else:
      axes = tuple(range(2, real.ndim))
      squared = (learned ** 2).sum(axes, keepdims=True)
      # At least 1; the root is taken where it has a derivative.
      change = epsilon * learned / jnp.sqrt(jnp.where(squared <= 1, 1, squared))
    moved = real + change / scale
    fixed = jax.lax.stop_gradient(moved)
    return jnp.clip(fixed, low, high) + (moved - fixed)  # The second is 0, and has the gradient.

  return Part(lambda key: jnp.zeros_like(real), decode)


def beside(part: Part, real: Array) -> Part:
  """Learned inputs `[S, B, ...]` with real ones `[S, M, ...]` behind them in every step."""
  real = jnp.asarray(real)
  return Part(part.init, lambda learned: jnp.concatenate([part.decode(learned), real], 1))
