"""Ordinary training of many networks at once, for the pools of pre-trained inits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dd_jax.types import Array, Params


def pretrain(key: Array, params: Params, loss: Callable, images: Array, labels: Array, *,
             optimizer: optax.GradientTransformation, num_epochs: int, batch_size: int,
             keyed: bool = False, num_parallel: int | None = None) -> Params:
  """Trains P networks by minibatches of images, each in an order of its own.

  Args:
    key: consumed by the orders of the images, and by the loss where it takes a key.
    params: weights to start from, each leaf `[P, ...]`: fresh draws of an init
      distribution, or a pool to fine-tune.
    loss: `(params, images, labels) -> []`, with a fourth argument `key` where `keyed`.
    images, labels: `[n, H, W, C]` in normalised space, and `[n]` or `[n, K]`.
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
    ValueError: num_epochs, batch_size or num_parallel out of its range.
  """
  num_images = images.shape[0]
  num_networks = jax.tree.leaves(params)[0].shape[0]
  if not 1 <= batch_size <= num_images:
    raise ValueError(f"batch_size must lie in 1..{num_images} (the images); got {batch_size}")
  for name, value in (("num_epochs", num_epochs), ("num_parallel", num_parallel)):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  num_batches = num_images // batch_size
  update = optax.with_extra_args_support(optimizer).update
  # NumPy arrays cannot be indexed inside the scan.
  images, labels = jnp.asarray(images), jnp.asarray(labels)

  def train_one(network: tuple[Params, Array]) -> Params:
    params, key = network
    order_key, loss_key = jax.random.split(key) if keyed else (key, None)

    def step(state, inputs):
      params, opt_state = state
      batch, *keys = inputs
      value, gradient = jax.value_and_grad(loss)(params, images[batch], labels[batch], *keys)
      updates, opt_state = update(gradient, opt_state, params, value=value)
      return (optax.apply_updates(params, updates), opt_state), None

    def epoch(state, index):
      order = jax.random.permutation(jax.random.fold_in(order_key, index), num_images)
      batches = order[:num_batches * batch_size].reshape(num_batches, batch_size)
      keys = ((jax.random.split(jax.random.fold_in(loss_key, index), num_batches),)
              if keyed else ())
      return jax.lax.scan(step, state, (batches, *keys))[0], None

    state: Any = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(epoch, state, jnp.arange(num_epochs))
    return params

  networks = params, jax.random.split(key, num_networks)
  if num_parallel is None or num_parallel >= num_networks > 1:
    return jax.vmap(train_one)(networks)
  return jax.lax.map(train_one, networks, batch_size=num_parallel if num_parallel > 1 else None)
