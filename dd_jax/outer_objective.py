"""The outer objective: how well real images are classified after the inner trajectory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax.inner_loop import inner_trajectory
from dd_jax.types import DistilledData


def make_outer_loss(decode: Callable[[Any], DistilledData], sample: Callable, inner_loss: Callable,
                    real_loss: Callable, *, num_inits: int, chunk_size: int | None = None,
                    **trajectory) -> Callable:
  """The expectation over p(theta_0) of the real loss at theta_T (section 3.2, eq. 3).

  Args:
    decode: trainable -> DistilledData.
    sample: `sample(init_state, key, num_inits) -> params [N, ...]`.
    inner_loss: `(params, images, labels) -> []` on distilled images.
    real_loss: `(params, images, labels) -> []` on real images: a mean over them.
    num_inits: N, drawn afresh in every call.
    chunk_size: real images per pass; the loss and its gradient at theta_T are
      summed over chunks, so that memory does not grow with R. None: all at once.
    **trajectory: options of `inner_trajectory` (optimizer, memory, gradient, ...).

  Returns:
    `outer_loss(trainable, init_state, key, images, labels) -> []` for images
    `[R, H, W, C]` and labels `[R]`, to be differentiated by `trainable`.
  """
  if num_inits < 1:
    raise ValueError(f"num_inits must be at least 1; got {num_inits}")
  if chunk_size is not None:
    real_loss = _in_chunks(real_loss, chunk_size)

  def loss_of_one(params, distilled, images, labels):
    final_params, _ = inner_trajectory(inner_loss, params, distilled, **trajectory)
    return real_loss(final_params, images, labels)

  def outer_loss(trainable, init_state, key, images, labels):
    params = sample(init_state, key, num_inits)
    if num_inits == 1:
      # Without the axis of length one XLA lays out its products better.
      return loss_of_one(jax.tree.map(lambda leaf: leaf[0], params), decode(trainable), images,
                         labels)
    losses = jax.vmap(loss_of_one, in_axes=(0, None, None, None))(
        params, decode(trainable), images, labels)
    return jnp.mean(losses)

  return outer_loss


def _in_chunks(loss, chunk_size):
  """`loss` over chunks of the examples; its gradient by `params` comes from the same pass.

  The gradient by the real images is not computed: they are constants here.
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")

  def accumulate(function, params, images, labels):
    """Mean over examples of `function`, chunk by chunk; a last partial chunk by its share."""
    num_whole, rest = divmod(images.shape[0], chunk_size)
    share = chunk_size / images.shape[0]
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(function, params, images, labels))
    if num_whole:
      whole = jax.tree.map(
          lambda x: x[:num_whole * chunk_size].reshape(num_whole, chunk_size, *x.shape[1:]),
          (images, labels))
      total, _ = jax.lax.scan(
          lambda total, chunk: (_add(total, function(params, *chunk), share), None), total, whole)
    if rest:
      tail = function(params, images[-rest:], labels[-rest:])
      total = _add(total, tail, rest / images.shape[0])
    return total

  @jax.custom_vjp
  def mean_loss(params, images, labels):
    return accumulate(loss, params, images, labels)

  def forward(params, images, labels):
    return accumulate(jax.value_and_grad(loss), params, images, labels)

  def backward(gradient, cotangent):
    return jax.tree.map(lambda g: cotangent * g, gradient), None, None

  mean_loss.defvjp(forward, backward)
  return mean_loss


def _add(total, term, weight):
  return jax.tree.map(lambda a, b: a + weight * b, total, term)
