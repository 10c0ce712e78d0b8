"""The outer loss, an expectation over p(theta_0), and its gradient through the inner training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax import adapters
from dd_jax import batch_independence
from dd_jax import parallel
from dd_jax.init_distributions import InitDistribution
from dd_jax.truncation import objective_keys
from dd_jax.types import DistilledData, Train, check_at_least, num_examples


def make_outer_loss(decode: Callable[[Any], DistilledData], init: InitDistribution, train: Train,
                    real_loss: Callable, *, num_inits: int, num_parallel: int | None = None,
                    chunk_size: int | None = None, split: parallel.Split = parallel.Split()
                    ) -> Callable:
  """The expectation over p(theta_0) of the real loss at theta_T (section 3.2).

  Args:
    decode: trainable -> DistilledData.
    init: where the networks come from; its state is an argument of the outer loss.
    train: the inner algorithm, `(key, params, distilled) -> (trained params, losses)`: of
      `inner_loop.unroll`, `truncation`, `implicit_gradients`, `ridge_regression`, or the user's
      own. Each network has its own key. Where it has them, `train.check(params, hyper)` may refuse
      what cannot be differentiated, and `train.in_step(key)` is used, which all networks share.
    real_loss: `(params, inputs, labels) -> []` on real data, a mean over them; or `([], anything)`.
    num_inits: N, drawn afresh in every call.
    num_parallel: networks side by side under `vmap`, on each device; the loss
      and its gradient are summed over blocks of them, so that memory does not
      grow with N. One at a time is fastest on a CPU. None: all at once.
    chunk_size: real examples per pass; the loss and its gradient at theta_T are
      summed over chunks, so that memory does not grow with R. None: all at once.
    split: how devices share the networks and the real examples, from `parallel`.

  Returns:
    `outer_loss(trainable, init_state, key, inputs, labels) -> []` for inputs
    `[R, ...]` and labels `[R]`, to be differentiated by `trainable`.

  Raises:
    ValueError: num_inits, num_parallel or chunk_size below 1; when traced, an inner optimizer that
      cannot be differentiated, or a real loss that is not a mean where its batch is cut.
  """
  check_at_least(1, num_inits=num_inits, num_parallel=num_parallel, chunk_size=chunk_size)
  real_loss = adapters.scalar(real_loss)

  def loss_at(params, real):
    return real_loss(params, *real)

  cut_by = "chunk_size" if chunk_size is not None else "real images shared by devices"
  if chunk_size is not None:
    loss_at = parallel.in_chunks(loss_at, chunk_size)
  if split.examples is not None:
    loss_at = split.examples(loss_at)

  def loss_of_one(train, params, key, distilled, *real):
    if hasattr(train, "check"):
      train.check(params, distilled.hyper)
    trained, _ = train(key, params, distilled)
    is_cut = chunk_size is not None and chunk_size < len(real[1])
    if is_cut or split.examples is not None:
      batch_independence.check_mean(real_loss, trained, *real, cut_by=cut_by)
    return loss_at(trained, real)

  def loss_of_networks(trainable, networks, init_state, train_key, window_key, *real):
    distilled = decode(trainable)
    train_now = train.in_step(window_key) if hasattr(train, "in_step") else train

    def of_network(token, row):
      return loss_of_one(train_now, init.make(init_state, token),
                         jax.random.fold_in(train_key, row), distilled, *real)

    tokens, rows = networks
    if len(rows) == 1:
      # Without the axis of length one XLA lays out its products better.
      return of_network(tokens[0], rows[0])
    return jnp.mean(jax.vmap(of_network)(tokens, rows))

  if num_parallel is not None and num_parallel < num_inits:
    loss_of_networks = parallel.in_chunks(loss_of_networks, num_parallel)
  if split.networks is not None:
    loss_of_networks = split.networks(loss_of_networks)

  def outer_loss(trainable, init_state, key, inputs, labels):
    if num_examples(inputs, labels) < 1:
      raise ValueError("labels must hold at least one example; got none")
    draw_key, train_key, window_key = objective_keys(key)
    networks = init.draw(init_state, draw_key, num_inits), jnp.arange(num_inits)
    return loss_of_networks(trainable, networks, init_state, train_key, window_key, inputs, labels)

  return outer_loss


def value_and_hypergrad(outer_loss: Callable) -> Callable:
  """`(trainable, init_state, key, inputs, labels) -> (loss [], hypergradient)`.

  The hypergradient has the structure of `trainable`. It is exact (section 3.1, algorithm 1, line
  7): how it is computed, and what it keeps in memory, is the inner algorithm's. Products are of
  the precision of the caller's `jax.default_matmul_precision`; `runs` sets "highest".

  Args:
    outer_loss: from `make_outer_loss`.

  Raises:
    ValueError: a loss in blocks of networks or chunks of examples, which closes over something that
      is differentiated.
  """
  gradient = jax.value_and_grad(outer_loss)

  def value_and_grad(trainable, init_state, key, inputs, labels):
    try:
      return gradient(trainable, init_state, key, inputs, labels)
    except Exception as error:  # JAX has a private class for one of the two.
      if not (isinstance(error, jax.errors.UnexpectedTracerError)
              or "with respect to a closed-over value" in str(error)):
        raise
      raise ValueError(
          "inner_loss and real_loss must take everything that receives a gradient as an argument "
          "where num_parallel, chunk_size or devices cut networks or examples; one closes over a "
          "differentiated value") from error

  return value_and_grad
