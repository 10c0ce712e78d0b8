"""The hypergradient: the outer loss differentiated through the whole inner trajectory."""

from collections.abc import Callable

import jax


def value_and_hypergrad(outer_loss: Callable) -> Callable:
  """`(trainable, init_state, key, images, labels) -> (loss [], hypergradient)`.

  The hypergradient has the structure of `trainable`. It is exact (section 3.1,
  algorithm 1, line 7): how it is computed, and what it keeps in memory, are the
  options `memory` and `gradient` of the inner trajectory.

  Raises:
    ValueError: the inner loss closes over something that is differentiated.
  """
  gradient = jax.value_and_grad(outer_loss)

  def value_and_grad(trainable, init_state, key, images, labels):
    try:
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
