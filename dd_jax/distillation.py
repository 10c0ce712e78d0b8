"""Distillation: outer optax steps on the trainable, one or many per dispatch."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dd_jax import types
from dd_jax.hypergradient import value_and_hypergrad
from dd_jax.types import Array, OuterInfo, OuterState, wide


class OuterLoop(NamedTuple):
  """The outer steps of one loss and one optimizer."""
  init: Callable[..., OuterState]  # (trainable, carry=()) -> the state before the first step.
  step: Callable[..., tuple[OuterState, OuterInfo]]  # (key, state, init_state, inputs, labels)


def make_outer_loop(outer_loss: Callable, optimizer: optax.GradientTransformation, *,
                    augment: Callable | None = None, carry_on: Callable | None = None
                    ) -> OuterLoop:
  """Where outer steps begin, and one of them (algorithm 1).

  `init` copies what it is given, which a donating call may take. A step whose loss or hypergradient
  is not finite returns the state as it was.

  Args:
    outer_loss: `(trainable, init_state, key, inputs, labels) -> []`.
    optimizer: any optax transformation, with its learning rate; one that asks for it gets
      the outer loss as `value`.
    augment: `(key, inputs) -> inputs` on the real minibatch of every step.
    carry_on: `(key, carry, init_state, trainable) -> carry`, for warm starts: the outer loss then
      draws from the carry instead of `init_state`.

  Raises:
    ValueError: when traced, an optimizer or `carry_on` that changes a shape or type of its state.
  """
  value_and_grad = value_and_hypergrad(outer_loss)
  optimizer = optax.with_extra_args_support(optimizer)

  def init(trainable, carry=()):
    state = OuterState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32), carry)
    # Copies, and no weak type, which the first step would change and so be compiled again.
    return jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), state)

  def step(key, state, init_state, inputs, labels):
    carry = state.carry
    if augment is not None:
      key, augment_key = jax.random.split(key)
      inputs = augment(augment_key, inputs)
    loss, gradient = value_and_grad(state.trainable, init_state if carry_on is None else carry,
                                    key, inputs, labels)
    if carry_on is not None:
      carry = carry_on(key, carry, init_state, state.trainable)
    # Squares of what float16 holds are often more than it holds.
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(wide(g.dtype)), gradient))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable,
                                          value=loss)
    new_state = OuterState(optax.apply_updates(state.trainable, updates), opt_state,
                           state.step + 1, carry)
    # Else the scan over outer steps would not compile, and a resumed state would be another.
    try:
      chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    except AssertionError as error:
      raise ValueError("optimizer and carry_on must keep the shapes and types of their state; "
                       f"{' '.join(str(error).split())[:300]}") from error
    finite = functools.reduce(jnp.logical_and, (
        jnp.isfinite(x).all() for x in (loss, norm, *jax.tree.leaves(new_state.trainable))))
    return _select(finite, new_state, state), OuterInfo(loss, norm, finite)

  return OuterLoop(init, step)


def run_outer_steps(step: Callable, root_key: Array, state: OuterState, init_state: Any,
                    inputs: Any, labels: Array, *, batch_size: int, num_steps: int,
                    stop: Array | int | None = None) -> tuple[OuterState, OuterInfo]:
  """Many outer steps in one program; real minibatches are gathered on the device.

  Keys and the order of the real examples are functions of `root_key` and `state.step` alone: a run
  that was interrupted continues as if it had not been. Each epoch is a new permutation of the real
  examples; a last partial minibatch is left out of it.

  Args:
    step: of `make_outer_loop`.
    root_key: the run's key; every step folds its number into it.
    state: where to start.
    init_state: state of the init distribution.
    inputs, labels: all real examples `[n, ...]`, labels `[n]`.
    batch_size: R.
    num_steps: outer steps of this call; static.
    stop: step at which the state freezes, for a last short call; may be traced.

  Returns:
    The state, frozen at the first step that was not finite, and `OuterInfo` with a leading axis
    `[num_steps]`: NaN, and not `finite`, where no step was taken, behind either.

  Raises:
    ValueError: inputs that are not as many as labels, or a batch size beyond 1..n.
  """
  num_examples = types.num_examples(inputs, labels)
  batches_per_epoch = check_batch_size(batch_size, num_examples)
  # NumPy arrays cannot be indexed inside the scan.
  real = jax.tree.map(jnp.asarray, (inputs, labels))
  take = _guarded(step, root_key, init_state, stop)

  def body(carry, _):
    state, order, alive = carry
    epoch, batch = jnp.divmod(state.step, batches_per_epoch)
    order = jax.lax.cond(
        batch == 0, lambda: epoch_order(root_key, epoch, num_examples), lambda: order)
    chosen = jax.lax.dynamic_slice_in_dim(order, batch * batch_size, batch_size)
    state, alive, info = take(state, alive, *jax.tree.map(lambda x: x[chosen], real))
    return (state, order, alive), info

  order = epoch_order(root_key, state.step // batches_per_epoch, num_examples)
  (state, _, _), infos = jax.lax.scan(body, (state, order, jnp.array(True)), None,
                                      length=num_steps)
  return state, infos


def run_on_minibatches(step: Callable, root_key: Array, state: OuterState, init_state: Any,
                       numbers: Array, inputs: Any, labels: Array, *,
                       stop: Array | int | None = None) -> tuple[OuterState, OuterInfo]:
  """The steps of `run_outer_steps` on minibatches that were gathered before, as `epoch_order` says.

  Args:
    step, root_key, state, init_state, stop: as of `run_outer_steps`.
    numbers: of the outer steps that the minibatches are for, `[n]`. The state freezes where it is
      not at this step: behind a step that was not finite, in this call or in one before.
    inputs, labels: real minibatches `[n, R, ...]` and `[n, R]`.
  """
  take = _guarded(step, root_key, init_state, stop)

  def body(carry, minibatch):
    number, inputs, labels = minibatch
    state, alive = carry
    state, alive, info = take(state, alive & (state.step == number), inputs, labels)
    return (state, alive), info

  (state, _), infos = jax.lax.scan(body, (state, jnp.array(True)), (numbers, inputs, labels))
  return state, infos


def epoch_order(root_key: Array, epoch: Array | int, num_examples: int) -> Array:
  """The order `[n]` of the real examples in an epoch; step t of it takes the t-th R of them.

  Args:
    root_key: the run's key.
    epoch: its number; may be traced.
    num_examples: n.
  """
  data_root = jax.random.split(root_key, 3)[1]
  return jax.random.permutation(jax.random.fold_in(data_root, epoch), num_examples)


def check_batch_size(batch_size: int, num_examples: int) -> int:
  """Minibatches of an epoch; ValueError where there is none."""
  if not 1 <= batch_size <= num_examples:
    raise ValueError(f"batch_size must lie in 1..{num_examples} (the real examples); "
                     f"got {batch_size}")
  return num_examples // batch_size


def _guarded(step, root_key, init_state, stop):
  """`(state, alive, inputs, labels) -> (state, alive, info)`: a step where there is to be one."""
  step_root = jax.random.split(root_key, 3)[0]

  def take(state, alive, inputs, labels):
    new_state, info = step(jax.random.fold_in(step_root, state.step), state, init_state, inputs,
                           labels)
    running = alive if stop is None else alive & (state.step < stop)
    info = _select(running, info, jax.tree.map(_nothing, info))
    return _select(running, new_state, state), alive & info.finite, info

  return take


def _nothing(x):
  """NaN; zero or False where the type has none."""
  return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0)


def _select(condition, on_true, on_false):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)
