"""The hypergradient: the outer loss differentiated through the whole inner trajectory."""

from collections.abc import Callable

import jax

PRECISIONS = ("highest", "high", "default")


def value_and_hypergrad(outer_loss: Callable, *, precision: str = "highest") -> Callable:
  """`(trainable, init_state, key, images, labels) -> (loss [], hypergradient)`.

  The hypergradient has the structure of `trainable`. It is exact (section 3.1,
  algorithm 1, line 7): how it is computed, and what it keeps in memory, are the
  options `memory` and `gradient` of the inner trajectory.

  Args:
    outer_loss: from `make_outer_loss`.
    precision: of float32 matrix products in the trajectory, the outer loss and
      their gradients. "highest" is float32 proper; "high" and "default" let a
      GPU take TF32 and a TPU bfloat16 passes. A CPU computes the same in all.

  Raises:
    ValueError: an unknown precision; an inner loss that closes over something
      that is differentiated.
  """
  if precision not in PRECISIONS:
    raise ValueError(f"precision must be one of {list(PRECISIONS)}; got {precision!r}")
  gradient = jax.value_and_grad(outer_loss)

  def value_and_grad(trainable, init_state, key, images, labels):
    try:
      with jax.default_matmul_precision(precision):
        return gradient(trainable, init_state, key, images, labels)
    except Exception as error:  # JAX has a private class for one of the two.
      if not (isinstance(error, jax.errors.UnexpectedTracerError)
              or "with respect to a closed-over value" in str(error)):
        raise
      raise ValueError(
          "inner_loss must take everything that receives a gradient as an argument; it closes "
          'over a differentiated value, which gradient="forward_over_reverse" cannot follow'
      ) from error

  return value_and_grad
