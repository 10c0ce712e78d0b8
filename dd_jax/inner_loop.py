"""The inner trajectory: training one network on the distilled data, with `lax.scan`."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dd_jax import adapters
from dd_jax import checkpointing
from dd_jax import closures
from dd_jax.leaves import split_off_floating
from dd_jax.optimizers import INNER_OPTIMIZERS, check_differentiable, check_hyper
from dd_jax.types import Array, DistilledData, Params, check_distilled

MEMORY_MODES = ("plain", "remat", "nested")
GRADIENT_MODES = ("reverse", "forward_over_reverse")


class InnerState(NamedTuple):
  """What changes along a trajectory."""
  params: Params  # The weights.
  opt_state: Any  # Of the inner optimizer.


def inner_step(value_and_grad: Callable, optimizer: optax.GradientTransformation,
               state: InnerState, batch: tuple[Any, ...], step_size: Array
               ) -> tuple[InnerState, Array]:
  """One step: theta <- theta + step_size * what the optimizer's `update` returns.

  That is optax's convention: `optax.sgd(1.0)` descends. The update is computed in the
  widest of the three types; weights and optimizer state keep their own.

  Args:
    value_and_grad: `(params, *batch) -> (loss [], gradient)`.
    optimizer: optax transformation; one that asks for it gets the loss as `value`.
    state: weights and optimizer state before the step.
    batch: inputs `[B, ...]`, labels `[B]` or `[B, K]`, and what else `value_and_grad` takes.
    step_size: `[]`.

  Returns:
    The state after the step and the loss before it.
  """
  step_size = jnp.asarray(step_size)
  loss, gradient = value_and_grad(state.params, *batch)
  updates, opt_state = optax.with_extra_args_support(optimizer).update(
      gradient, state.opt_state, state.params, value=loss)

  def moved(weight, update):
    with jax.numpy_dtype_promotion("standard"):  # Also where the caller's is strict.
      dtype = jnp.result_type(weight, update, step_size)
    return (weight.astype(dtype) + step_size.astype(dtype) * update.astype(dtype)
            ).astype(weight.dtype)

  new = InnerState(jax.tree.map(moved, state.params, updates), opt_state)
  return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new, state), loss


def unroll(loss: Callable, optimizer: Any = None, *, memory: str | int = "remat",
           gradient: str = "reverse") -> "Unroll":
  """Trains step by step, and is differentiated through every step (section 3.4).

  Args:
    loss: `(params, inputs, labels) -> []`, or `([], anything)`. It gets a fresh key in every step
      where it has an argument `key`. What it closes over receives its gradient too.
    optimizer: optax transformation whose update the step size scales, or `hyper ->
      transformation` of the hyper-parameters of the distilled data. None: gradient descent.
    memory: what the backward pass keeps. "plain": every step's activations; "remat": the weights
      of every step; "nested": about 2 sqrt(T) sets of weights; a number from 2 to T: so many,
      by binomial checkpointing (`dd_jax.checkpointing`), where second derivatives are an error.
    gradient: "reverse" differentiates the inner gradient in reverse; "forward_over_reverse" takes
      the same product from one forward derivative, which less than halves what "plain" keeps and
      saves nothing in the others; forward mode (`jvp`, `jacfwd`) through it is an error.

  Returns:
    `train(key, params, distilled) -> (weights after T steps, loss before each step [T])`,
    differentiable with respect to the weights, inputs, soft labels, step sizes and hyper. Inside
    `jax.shard_map` that needs its `check_vma=False`, or the gradients of devices are added up.

  Raises:
    ValueError: an unknown mode; when called, distilled data whose shapes do not fit.
  """
  if memory not in MEMORY_MODES and not (
      isinstance(memory, (int, np.integer)) and not isinstance(memory, bool) and memory >= 2):
    raise ValueError(f"memory must be one of {list(MEMORY_MODES)}, or a number of states from 2 "
                     f"on; got {memory!r}")
  if gradient not in GRADIENT_MODES:
    raise ValueError(f"gradient must be one of {list(GRADIENT_MODES)}; got {gradient!r}")
  return Unroll(loss, optimizer, memory, gradient)


@dataclasses.dataclass(frozen=True)
class Unroll:
  """What `unroll` makes: a whole trajectory when called, and its stretches."""
  loss: Callable
  optimizer: Any
  memory: str | int
  gradient: str

  def __call__(self, key: Array, params: Params, distilled: DistilledData
               ) -> tuple[Params, Array]:
    check_distilled(distilled)
    state, losses = self.stretch(key, self.begin(params, distilled), distilled, 0,
                                 distilled.step_sizes.size)
    return state.params, losses

  def begin(self, params: Params, distilled: DistilledData) -> InnerState:
    """The state before the first step."""
    return InnerState(params, self._transformation(distilled.hyper).init(params))

  def stretch(self, key: Array, state: InnerState, distilled: DistilledData, start: Array | int,
              length: int) -> tuple[InnerState, Array]:
    """The state after the `length` steps from `start` on, which may be traced, and their losses.

    Raises:
      ValueError: a stretch that does not fit into the trajectory, or distilled data that are none.
    """
    step, rows, inputs = self._steps(key, distilled)
    check_stretch(start, length, distilled.step_sizes.size)
    positions = jnp.asarray(start, jnp.int32) + jnp.arange(length, dtype=jnp.int32)
    return _scan(step, distilled.hyper, rows, state, inputs(positions),
                 positions % distilled.step_sizes.shape[1], self.memory)

  def advance(self, key: Array, state: InnerState, distilled: DistilledData, start: Array | int,
              num_steps: Array | int) -> InnerState:
    """The same without a gradient, and without losses; `num_steps` may be traced too."""
    state, distilled = jax.lax.stop_gradient((state, distilled))
    step, rows, inputs = dataclasses.replace(self, gradient="reverse")._steps(key, distilled)
    num_steps_of_epoch = distilled.step_sizes.shape[1]

    def move(position, state):
      row = jax.tree.map(lambda x: x[position % num_steps_of_epoch], rows)
      now = jax.tree.map(lambda x: x[0], inputs(position[None]))
      return step(distilled.hyper, row, state, now)[0]

    # No gradient by what the loss closes over either.
    converted, closed = closures.hoist(move, jnp.zeros((), jnp.int32), state)
    closed = jax.lax.stop_gradient(closed)
    return jax.lax.fori_loop(
        start, start + num_steps,
        lambda position, state: converted(closed, jnp.asarray(position, jnp.int32), state), state)

  def check(self, params: Params, hyper: Any = ()) -> None:
    """A ValueError where no hypergradient can pass the optimizer; tracers will do."""
    if self.optimizer is not None and self.optimizer not in INNER_OPTIMIZERS.values():
      check_differentiable(self.optimizer, hyper, params)

  def _transformation(self, hyper):
    if callable(self.optimizer):
      check_hyper(self.optimizer, hyper)
      return self.optimizer(hyper)
    if jax.tree.leaves(hyper):
      raise ValueError("hyper must be () for an optimizer that is no function of it; "
                       f"got {jax.tree.structure(hyper)}")
    return optax.scale(-1.) if self.optimizer is None else self.optimizer

  def _steps(self, key, distilled):
    """`step(hyper, batch, state, input) -> (state, loss)`, all batches, positions `[n]`."""
    check_distilled(distilled)
    loss = adapters.scalar(adapters.with_key(self.loss))
    keyed = adapters.takes_key(self.loss)
    value_and_grad = (_symmetric_value_and_grad if self.gradient == "forward_over_reverse" else
                      jax.value_and_grad)(
                          lambda params, batch, key: loss(params, *batch, key=key))
    # NumPy arrays cannot be indexed by a step of the scan.
    batches = jax.tree.map(jnp.asarray, (distilled.inputs, distilled.labels))
    step_sizes = jnp.asarray(distilled.step_sizes).reshape(-1)

    def inputs(positions):
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions) if keyed else None
      return step_sizes[positions], keys

    def step(hyper, batch, state, inputs):
      step_size, step_key = inputs
      return inner_step(value_and_grad, self._transformation(hyper), state, (batch, step_key),
                        step_size)

    return step, batches, inputs


def check_stretch(start: Any, length: int, total: int) -> None:
  """A ValueError unless `length` steps from `start` on fit into a trajectory of `total`."""
  if not 1 <= length <= total:
    raise ValueError(f"length must lie in 1..{total} (E * S); got {length}")
  if isinstance(start, (int, np.integer)) and not 0 <= start <= total - length:
    raise ValueError(f"start must lie in 0..{total - length} (E * S - length); got {start}")


def _scan(step, hyper, batches, state, inputs, places, memory):
  """`lax.scan` that keeps for the backward pass what the memory mode says."""
  length = len(places)
  if memory not in MEMORY_MODES:
    if memory > length:
      raise ValueError(f"memory must be at most the {length} inner steps; got {memory}")
    return checkpointing.scan(step, hyper, batches, state, inputs, places, memory)

  def take(state, now):
    place, inputs = now
    return step(hyper, jax.tree.map(lambda x: x[place], batches), state, inputs)

  inputs = places, inputs
  if memory == "plain":
    return jax.lax.scan(take, state, inputs)
  # Inside a scan nothing can be merged with the recomputation: CSE needs no barrier.
  checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
  if memory == "remat":
    return jax.lax.scan(checkpoint(take), state, inputs)
  inner = math.isqrt(length)
  outer = length // inner
  head = jax.tree.map(lambda x: x[:outer * inner].reshape(outer, inner, *x.shape[1:]), inputs)
  tail = jax.tree.map(lambda x: x[outer * inner:], inputs)

  @checkpoint
  def stretch(state, inputs):
    return jax.lax.scan(checkpoint(take), state, inputs)

  state, head_losses = jax.lax.scan(stretch, state, head)
  state, tail_losses = stretch(state, tail)
  return state, jnp.concatenate([head_losses.reshape(-1), tail_losses])


def _symmetric_value_and_grad(loss):
  """`jax.value_and_grad` whose reverse rule is one forward derivative of the full gradient.

  The Hessian over the params and all else is symmetric, so the cotangents of both along v are the
  derivative of their own gradients in direction v of the params (Kemaev et al., arXiv 2505.00793).
  """
  def value_and_grad(params, batch, key):
    converted, closed = closures.hoist(loss, params, batch, key)
    return _symmetric(lambda params, others: converted(others[0], params, *others[1:]))(
        params, (closed, batch, key))

  return value_and_grad


def _symmetric(loss):
  """The same of a loss `(params, others)` that is closed over nothing."""
  @jax.custom_vjp
  def value_and_grad(params, others):
    return jax.value_and_grad(loss)(params, others)

  def forward(params, others):
    return value_and_grad(params, others), (params, others)

  def backward(residuals, cotangents):
    params, others = residuals
    loss_cotangent, direction = cotangents
    floating, join = split_off_floating(others)

    def full_gradient(params):
      return jax.grad(lambda params, floating: loss(params, join(floating)), (0, 1))(
          params, floating)

    gradients, tangents = jax.jvp(full_gradient, (params,), (direction,))
    return jax.tree.map(lambda g, t: loss_cotangent.astype(g.dtype) * g + t, gradients, tangents)

  value_and_grad.defvjp(forward, backward)
  return value_and_grad
