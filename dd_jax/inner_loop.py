"""The inner trajectory: training one network on the distilled data, with `lax.scan`."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dd_jax.types import Array, DistilledData, Params

MEMORY_MODES = ("plain", "remat", "nested")
GRADIENT_MODES = ("reverse", "forward_over_reverse")


class InnerState(NamedTuple):
  """What changes along a trajectory."""
  params: Params  # The weights.
  opt_state: Any  # Of the inner optimizer.


def inner_step(inner_value_and_grad: Callable, optimizer: optax.GradientTransformation,
               state: InnerState, batch: tuple[Array, ...], step_size: Array
               ) -> tuple[InnerState, Array]:
  """One step: theta <- theta - step_size * optimizer(grad of the inner loss).

  Args:
    inner_value_and_grad: `(params, *batch) -> (loss [], gradient)`.
    optimizer: optax transformation without a learning rate.
    state: weights and optimizer state before the step.
    batch: images `[B, H, W, C]`, labels `[B]` or `[B, K]`, and a key where the loss takes one.
    step_size: `[]`.

  Returns:
    The state after the step and the loss before it.
  """
  loss, gradient = inner_value_and_grad(state.params, *batch)
  updates, opt_state = optax.with_extra_args_support(optimizer).update(
      gradient, state.opt_state, state.params, value=loss)
  params = jax.tree.map(lambda p, u: p - step_size * u, state.params, updates)
  return InnerState(params, opt_state), loss


def inner_trajectory(inner_loss: Callable, params: Params, distilled: DistilledData, *,
                     optimizer: Any = None, hyper: Any = None, key: Array | None = None,
                     opt_state: Any = None, start: Array | int = 0, length: int | None = None,
                     memory: str = "remat", gradient: str = "reverse") -> tuple[Params, Array]:
  """Trains `params` on the distilled data, step by step in its order (section 3.1, eq. 6).

  Differentiable with respect to `params`, the images, soft labels, step sizes
  and `hyper`. Whatever receives a gradient must be an argument: `inner_loss`
  may not close over it.

  Args:
    inner_loss: `(params, images, labels) -> []`, with a fourth argument `key`
      where `key` is given.
    params: initial weights theta_0.
    distilled: images `[S, B, H, W, C]`, labels, raw step sizes `[E, S]`.
    optimizer: optax transformation without a learning rate, whose update is
      scaled by the step size; or `hyper -> transformation`. None: gradient descent.
    hyper: differentiable hyper-parameters of the optimizer. None: those of the distilled data.
    key: consumed by the inner loss, a fresh one per step.
    opt_state: optimizer state to start from. None: a new one.
    start: first step of the window; may be traced.
    length: steps of the window, T by default; static.
    memory: what the backward pass keeps. "plain": every step's activations;
      "remat": the weights of every step; "nested": about 2 sqrt(T) sets of weights.
    gradient: "reverse" differentiates the inner gradient in reverse;
      "forward_over_reverse" takes the same product from one forward derivative, which less than
      halves what "plain" keeps and saves nothing in the others; forward mode (`jvp`, `jacfwd`)
      through it is an error.

  Returns:
    Weights after the window, and the inner loss before each step `[length]`.

  Raises:
    ValueError: an argument that does not fit, named with its rule and value.
  """
  total = distilled.raw_step_sizes.size
  length = total if length is None else length
  check_length(length, total)
  if isinstance(start, int) and not 0 <= start <= total - length:
    raise ValueError(f"start must lie in 0..{total - length} (E * S - length); got {start}")
  if memory not in MEMORY_MODES:
    raise ValueError(f"memory must be one of {list(MEMORY_MODES)}; got {memory!r}")
  if gradient not in GRADIENT_MODES:
    raise ValueError(f"gradient must be one of {list(GRADIENT_MODES)}; got {gradient!r}")

  step, inputs, state = _begin(inner_loss, params, distilled, optimizer, hyper, key, opt_state,
                               gradient)
  state, losses = _scan(step, state, inputs(start + jnp.arange(length)), length, memory)
  return state.params, losses


def advance(inner_loss: Callable, params: Params, distilled: DistilledData, num_steps: Array | int,
            *, optimizer: Any = None, hyper: Any = None, key: Array | None = None,
            opt_state: Any = None, start: Array | int = 0) -> InnerState:
  """The state after `num_steps` steps from `start` on, without a gradient; both may be traced.

  The other arguments are those of `inner_trajectory`, whose keys and steps it takes.
  """
  params, distilled, hyper, opt_state = jax.lax.stop_gradient(
      (params, distilled, hyper, opt_state))
  step, inputs, state = _begin(inner_loss, params, distilled, optimizer, hyper, key, opt_state,
                               "reverse")

  def body(position, state):
    return step(state, jax.tree.map(lambda x: x[0], inputs(jnp.asarray(position)[None])))[0]

  return jax.lax.fori_loop(start, start + num_steps, body, state)


def check_length(length: int, total: int) -> None:
  """A ValueError unless a window of `length` steps fits into a trajectory of `total`."""
  if not 1 <= length <= total:
    raise ValueError(f"length must lie in 1..{total} (E * S); got {length}")


def _begin(inner_loss, params, distilled, optimizer, hyper, key, opt_state, gradient):
  """`step(state, input) -> (state, loss)`, the inputs of steps at positions `[n]`, the state."""
  _check_distilled(distilled)
  value_and_grad = (_symmetric_value_and_grad(inner_loss) if gradient == "forward_over_reverse"
                    else jax.value_and_grad(inner_loss))
  transformation = optax.identity() if optimizer is None else optimizer
  if callable(transformation):
    transformation = transformation(distilled.hyper if hyper is None else hyper)
  if opt_state is None:
    opt_state = transformation.init(params)
  # NumPy arrays cannot be indexed by a step of the scan.
  images, labels = jnp.asarray(distilled.images), jnp.asarray(distilled.labels)
  step_sizes = jnp.asarray(distilled.step_sizes).reshape(-1)
  num_steps = images.shape[0]

  def inputs(positions):
    keys = () if key is None else (jax.vmap(jax.random.fold_in, (None, 0))(key, positions),)
    return positions, step_sizes[positions], *keys

  def step(state, inputs):
    position, step_size, *step_key = inputs
    batch = images[position % num_steps], labels[position % num_steps]
    return inner_step(value_and_grad, transformation, state, (*batch, *step_key), step_size)

  return step, inputs, InnerState(params, opt_state)


def _scan(step, state, inputs, length, memory):
  """`lax.scan` that keeps for the backward pass what the memory mode says."""
  if memory == "plain":
    return jax.lax.scan(step, state, inputs)
  # Inside a scan nothing can be merged with the recomputation: CSE needs no barrier.
  checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)
  if memory == "remat":
    return jax.lax.scan(checkpoint(step), state, inputs)
  inner = math.isqrt(length)
  outer = length // inner
  head = jax.tree.map(lambda x: x[:outer * inner].reshape(outer, inner, *x.shape[1:]), inputs)
  tail = jax.tree.map(lambda x: x[outer * inner:], inputs)

  @checkpoint
  def stretch(state, inputs):
    return jax.lax.scan(checkpoint(step), state, inputs)

  state, head_losses = jax.lax.scan(stretch, state, head)
  state, tail_losses = stretch(state, tail)
  return state, jnp.concatenate([head_losses.reshape(-1), tail_losses])


def _symmetric_value_and_grad(inner_loss):
  """`jax.value_and_grad` whose reverse rule is one forward derivative of the full gradient.

  The Hessian over (params, images, labels) is symmetric, so the cotangents of
  all three along v are the derivative of their own gradients in direction v of
  the params (Kemaev et al., arXiv 2505.00793).
  """
  @jax.custom_vjp
  def value_and_grad(params, *batch):
    return jax.value_and_grad(inner_loss)(params, *batch)

  def forward(params, *batch):
    return value_and_grad(params, *batch), (params, batch)

  def backward(residuals, cotangents):
    params, batch = residuals
    loss_cotangent, direction = cotangents
    floating = [i for i, x in enumerate(batch) if jnp.issubdtype(x.dtype, jnp.floating)]

    def full_gradient(params):
      return jax.grad(inner_loss, argnums=(0, *(i + 1 for i in floating)))(params, *batch)

    gradients, tangents = jax.jvp(full_gradient, (params,), (direction,))
    params_bar, *floating_bars = jax.tree.map(
        lambda g, t: loss_cotangent * g + t, gradients, tangents)
    batch_bars = [None] * len(batch)
    for i, bar in zip(floating, floating_bars):
      batch_bars[i] = bar
    return params_bar, *batch_bars

  value_and_grad.defvjp(forward, backward)
  return value_and_grad


def _check_distilled(distilled):
  images, labels, raw_step_sizes, _ = distilled
  if images.ndim < 2:
    raise ValueError(f"images must be [S, B, ...]; got {list(images.shape)}")
  if labels.shape[:2] != images.shape[:2]:
    raise ValueError(f"labels must begin with [S, B] = {list(images.shape[:2])} of the images; "
                     f"got {list(labels.shape)}")
  if raw_step_sizes.ndim != 2 or raw_step_sizes.shape[1] != images.shape[0]:
    raise ValueError(f"raw_step_sizes must be [E, S] with S = {images.shape[0]} of the images; "
                     f"got {list(raw_step_sizes.shape)}")
