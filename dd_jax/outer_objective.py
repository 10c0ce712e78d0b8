"""The outer objective: how well real images are classified after the inner trajectory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax.inner_loop import inner_trajectory
from dd_jax.types import DistilledData


def make_outer_loss(decode: Callable[[Any], DistilledData], sample: Callable, inner_loss: Callable,
                    real_loss: Callable, *, num_inits: int, num_parallel: int | None = None,
                    chunk_size: int | None = None, **trajectory) -> Callable:
  """The expectation over p(theta_0) of the real loss at theta_T (section 3.2, eq. 3).

  Args:
    decode: trainable -> DistilledData.
    sample: `sample(init_state, key, num_inits) -> params [N, ...]`.
    inner_loss: `(params, images, labels) -> []` on distilled images.
    real_loss: `(params, images, labels) -> []` on real images: a mean over them.
    num_inits: N, drawn afresh in every call.
    num_parallel: networks side by side under `vmap`; the loss and its gradient
      are summed over blocks of them, so that memory does not grow with N. One
      at a time is fastest on a CPU. None: all at once.
    chunk_size: real images per pass; the loss and its gradient at theta_T are
      summed over chunks, so that memory does not grow with R. None: all at once.
    **trajectory: options of `inner_trajectory` (optimizer, memory, gradient, ...).

  Returns:
    `outer_loss(trainable, init_state, key, images, labels) -> []` for images
    `[R, H, W, C]` and labels `[R]`, to be differentiated by `trainable`.

  Raises:
    ValueError: num_inits, num_parallel or chunk_size below 1.
  """
  for name, value in (("num_inits", num_inits), ("num_parallel", num_parallel),
                      ("chunk_size", chunk_size)):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")

  def loss_at(params, real):
    return real_loss(params, *real)

  if chunk_size is not None:
    loss_at = _in_chunks(loss_at, chunk_size)

  def loss_of_one(params, distilled, *real):
    final_params, _ = inner_trajectory(inner_loss, params, distilled, **trajectory)
    return loss_at(final_params, real)

  def loss_of_all(trainable, params, *real):
    distilled = decode(trainable)
    if jax.tree.leaves(params)[0].shape[0] == 1:
      # Without the axis of length one XLA lays out its products better.
      return loss_of_one(jax.tree.map(lambda leaf: leaf[0], params), distilled, *real)
    return jnp.mean(jax.vmap(lambda params: loss_of_one(params, distilled, *real))(params))

  if num_parallel is not None and num_parallel < num_inits:
    loss_of_all = _in_chunks(loss_of_all, num_parallel)

  def outer_loss(trainable, init_state, key, images, labels):
    return loss_of_all(trainable, sample(init_state, key, num_inits), images, labels)

  return outer_loss


def _in_chunks(loss, chunk_size):
  """`loss(variable, examples, *constants)`, a mean over examples, over chunks of them.

  Its gradient by `variable` comes from the same pass. The one by the others is
  not computed: they are constants here.
  """
  def accumulate(function, variable, examples, constants):
    """Mean over examples of `function`, chunk by chunk; a last partial chunk by its share."""
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    num_whole, rest = divmod(num_examples, chunk_size)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(function, variable, examples, *constants))
    if num_whole:
      whole = jax.tree.map(
          lambda x: x[:num_whole * chunk_size].reshape(num_whole, chunk_size, *x.shape[1:]),
          examples)
      share = chunk_size / num_examples
      total, _ = jax.lax.scan(
          lambda total, chunk: (_add(total, function(variable, chunk, *constants), share), None),
          total, whole)
    if rest:
      tail = function(variable, jax.tree.map(lambda x: x[-rest:], examples), *constants)
      total = _add(total, tail, rest / num_examples)
    return total

  @jax.custom_vjp
  def mean_loss(variable, examples, *constants):
    return accumulate(loss, variable, examples, constants)

  def forward(variable, examples, *constants):
    value, gradient = accumulate(jax.value_and_grad(loss), variable, examples, constants)
    return value, (gradient, (None,) * (1 + len(constants)))

  def backward(residuals, cotangent):
    gradient, nones = residuals
    return jax.tree.map(lambda g: cotangent * g, gradient), *nones

  mean_loss.defvjp(forward, backward)
  return mean_loss


def _add(total, term, weight):
  return jax.tree.map(lambda a, b: a + weight * b, total, term)
