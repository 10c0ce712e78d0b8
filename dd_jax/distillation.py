"""Distillation: outer optax steps on the trainable, one or many per dispatch."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dd_jax.hypergradient import value_and_hypergrad
from dd_jax.types import Array, OuterInfo, OuterState


def init_outer_state(trainable: Any, optimizer: optax.GradientTransformation, carry: Any = ()
                     ) -> OuterState:
  """The state before the first outer step: copies, which a donating call may take.

  Args:
    trainable: what `decode` takes, from the `init` of a parametrization.
    optimizer: the one of `make_outer_step`.
    carry: the pool of warm starts, where there is one.
  """
  return jax.tree.map(jnp.copy, OuterState(trainable, optimizer.init(trainable),
                                           jnp.zeros((), jnp.int32), carry))


def make_outer_step(outer_loss: Callable, optimizer: optax.GradientTransformation, *,
                    precision: str = "highest", carry_on: Callable | None = None) -> Callable:
  """`outer_step(key, state, init_state, images, labels) -> (state, info)` (algorithm 1).

  A step whose loss or hypergradient is not finite returns the state as it was.

  Args:
    outer_loss: `(trainable, init_state, key, images, labels) -> []`.
    optimizer: any optax transformation, with its learning rate; one that asks for it gets
      the outer loss as `value`.
    precision: as in `value_and_hypergrad`.
    carry_on: `(key, carry, init_state, trainable) -> carry`, for warm starts: the outer loss then
      draws from the carry instead of `init_state`.
  """
  value_and_grad = value_and_hypergrad(outer_loss, precision=precision)
  optimizer = optax.with_extra_args_support(optimizer)

  def outer_step(key, state, init_state, images, labels):
    carry = state.carry
    loss, gradient = value_and_grad(state.trainable, init_state if carry_on is None else carry,
                                    key, images, labels)
    if carry_on is not None:
      carry = carry_on(key, carry, init_state, state.trainable)
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable,
                                          value=loss)
    new_state = OuterState(optax.apply_updates(state.trainable, updates), opt_state,
                           state.step + 1, carry)
    # Else the scan over outer steps would not compile, and a resumed state would be another.
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    return _select(finite, new_state, state), OuterInfo(loss, norm, finite)

  return outer_step


def run_outer_steps(outer_step: Callable, root_key: Array, state: OuterState, init_state: Any,
                    train_images: Array, train_labels: Array, *, batch_size: int,
                    num_steps: int, stop: Array | int | None = None,
                    augment: Callable[[Array, Array], Array] | None = None
                    ) -> tuple[OuterState, OuterInfo]:
  """Many outer steps in one program; real minibatches are gathered on the device.

  Keys and the order of the real images are functions of `root_key` and
  `state.step` alone: a run that was interrupted continues as if it had not been.
  Each epoch is a new permutation of the real images; a last partial minibatch
  is left out of it.

  Args:
    outer_step: from `make_outer_step`.
    root_key: the run's key; every step folds its number into it.
    state: where to start.
    init_state: state of the init distribution.
    train_images, train_labels: all real images `[n, H, W, C]`, labels `[n]`.
    batch_size: R.
    num_steps: outer steps of this call; static.
    stop: step at which the state freezes, for a last short call; may be traced.
    augment: `(key, images) -> images` on every real minibatch.

  Returns:
    The state, frozen at the first step that was not finite, and `OuterInfo` with a leading axis
    `[num_steps]`: NaN, and not `finite`, where no step was taken, behind either.
  """
  num_images = train_images.shape[0]
  if not 1 <= batch_size <= num_images:
    raise ValueError(f"batch_size must lie in 1..{num_images} (the real images); got {batch_size}")
  batches_per_epoch = num_images // batch_size
  # NumPy arrays cannot be indexed inside the scan.
  train_images, train_labels = jnp.asarray(train_images), jnp.asarray(train_labels)
  step_root, data_root, augment_root = jax.random.split(root_key, 3)

  def order_of(epoch):
    return jax.random.permutation(jax.random.fold_in(data_root, epoch), num_images)

  def body(carry, _):
    state, order, alive = carry
    epoch, batch = jnp.divmod(state.step, batches_per_epoch)
    order = jax.lax.cond(batch == 0, lambda: order_of(epoch), lambda: order)
    chosen = jax.lax.dynamic_slice_in_dim(order, batch * batch_size, batch_size)
    images = train_images[chosen]
    if augment is not None:
      images = augment(jax.random.fold_in(augment_root, state.step), images)
    new_state, info = outer_step(jax.random.fold_in(step_root, state.step), state, init_state,
                                 images, train_labels[chosen])
    running = alive if stop is None else alive & (state.step < stop)
    info = _select(running, info, jax.tree.map(_nothing, info))
    return (_select(running, new_state, state), order, alive & info.finite), info

  carry = state, order_of(state.step // batches_per_epoch), jnp.array(True)
  (state, _, _), infos = jax.lax.scan(body, carry, None, length=num_steps)
  return state, infos


def _nothing(x):
  """NaN; zero or False where the type has none."""
  return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0)


def _select(condition, on_true, on_false):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)
