"""Ordinary training by minibatches in random order: for pools, and on sets that were distilled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dd_jax import adapters
from dd_jax import types
from dd_jax.init_distributions import pool_size
from dd_jax.types import Array, Params, Train, check_at_least


def pretrain(key: Array, params: Params, loss: Callable, inputs: Any, labels: Array, *,
             optimizer: optax.GradientTransformation, num_epochs: int, batch_size: int,
             num_parallel: int | None = None) -> Params:
  """Trains P networks by minibatches of images, each in an order of its own.

  Args:
    key: consumed by the orders of the images, and by the loss where it takes a key.
    params: weights to start from, each leaf `[P, ...]`: fresh draws of an init
      distribution, or a pool to fine-tune.
    loss: `(params, inputs, labels) -> []`; it gets a key where it has an argument `key`.
    inputs, labels: `[n, ...]`, images in normalised space, and `[n]` or `[n, K]`.
    optimizer: optax transformation with its learning rate; one that asks for it gets the loss
      as `value`.
    num_epochs: passes over the images; each is a new permutation, whose last
      partial minibatch is left out.
    batch_size: images per step.
    num_parallel: networks side by side under `vmap`. One at a time is fastest
      on a CPU. None: all at once.

  Returns:
    The trained weights, each leaf `[P, ...]`.

  Raises:
    ValueError: num_epochs, batch_size or num_parallel out of its range, or inputs that are not as
      many as labels.
  """
  check_at_least(1, num_parallel=num_parallel)
  num_networks = pool_size(params)
  train = _minibatches(loss, optimizer, num_epochs, batch_size)

  def train_one(network):
    params, key = network
    return train(key, params, inputs, labels)[0]

  networks = params, jax.random.split(key, num_networks)
  if num_parallel is None or num_parallel >= num_networks > 1:
    return jax.vmap(train_one)(networks)
  return jax.lax.map(train_one, networks, batch_size=num_parallel if num_parallel > 1 else None)


def minibatches(loss: Callable, optimizer: optax.GradientTransformation, *, num_epochs: int,
                batch_size: int) -> Train:
  """Trains on distilled data as on any other set: in random order, without its step sizes.

  The protocol of later work, for `evaluation.evaluate`: a standard optimizer, many epochs, any
  network.

  Args:
    loss, optimizer, num_epochs, batch_size: as in `pretrain`.

  Returns:
    `train(key, params, distilled) -> (trained params, mean loss of each epoch)`.

  Raises:
    ValueError: num_epochs out of its range; when called, batch_size, or fields whose shapes do not
      fit.
  """
  train = _minibatches(loss, optimizer, num_epochs, batch_size)

  def train_on(key, params, distilled):
    types.check_distilled(distilled)
    return train(key, params, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]),
                                            (distilled.inputs, distilled.labels)))

  return train_on


def _minibatches(loss, optimizer, num_epochs, batch_size):
  """`(key, params, inputs, labels) -> (trained params, mean loss of each epoch)`."""
  check_at_least(1, num_epochs=num_epochs)
  keyed = adapters.takes_key(loss)
  value_and_grad = jax.value_and_grad(adapters.scalar(adapters.with_key(loss)))
  update = optax.with_extra_args_support(optimizer).update

  def train(key, params, inputs, labels):
    num_examples = types.num_examples(inputs, labels)
    if not 1 <= batch_size <= num_examples:
      raise ValueError(f"batch_size must lie in 1..{num_examples} (the examples); "
                       f"got {batch_size}")
    num_batches = num_examples // batch_size
    # NumPy arrays cannot be indexed inside the scan.
    examples = jax.tree.map(jnp.asarray, (inputs, labels))
    order_key, loss_key = jax.random.split(key) if keyed else (key, None)

    def step(state, batch_and_key):
      params, opt_state = state
      batch, step_key = batch_and_key
      value, gradient = value_and_grad(
          params, *jax.tree.map(lambda x: x[batch], examples), key=step_key)
      updates, opt_state = update(gradient, opt_state, params, value=value)
      return (optax.apply_updates(params, updates), opt_state), value

    def epoch(state, index):
      order = jax.random.permutation(jax.random.fold_in(order_key, index), num_examples)
      batches = order[:num_batches * batch_size].reshape(num_batches, batch_size)
      keys = jax.random.split(jax.random.fold_in(loss_key, index), num_batches) if keyed else None
      state, losses = jax.lax.scan(step, state, (batches, keys))
      return state, losses.mean()

    start = params, optimizer.init(params)
    (params, _), losses = jax.lax.scan(epoch, start, jnp.arange(num_epochs))
    return params, losses

  return train
