"""Optimizers of the inner loop, with hyper-parameters that can be learned.

An optimizer is `hyper -> optax transformation` of learning rate 1: the learned step sizes scale
what its `update` returns, which is added to the weights. `hyper` is a dict of numbers; each
optimizer lists what it takes, with the usual values; `shares` and `fixed_hyper` are the parts of a
parametrization that hold them. Any other optax transformation is as good, fixed or as such a
function.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dd_jax.types import Array, Params, Part

# The derivative of a square root is infinite at 0, where Adam's second moment is for any weight
# without a gradient: without this a dead unit makes the hypergradient NaN.
_EPS_ROOT = 1e-8


def gradient_descent(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """theta - step size * (gradient + weight_decay * theta)."""
  return _descent(optax.identity(), hyper)


def momentum(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Heavy-ball momentum with `decay`."""
  return _descent(optax.trace(hyper["decay"]), hyper)


def nesterov(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Nesterov's momentum with `decay`."""
  return _descent(optax.trace(hyper["decay"], nesterov=True), hyper)


def adam(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Adam with `b1` and `b2`, differentiable where a gradient is exactly zero."""
  return _descent(optax.scale_by_adam(hyper["b1"], hyper["b2"], eps_root=_EPS_ROOT), hyper)


INNER_OPTIMIZERS: dict[str, Callable] = {
    "gradient_descent": gradient_descent, "momentum": momentum, "nesterov": nesterov, "adam": adam}
DEFAULTS: dict[str, dict[str, float]] = {
    "gradient_descent": {}, "momentum": {"decay": 0.9}, "nesterov": {"decay": 0.9},
    "adam": {"b1": 0.9, "b2": 0.999}}


def shares(start: dict[str, float]) -> Part:
  """Learned hyper-parameters between 0 and 1, such as momentum, by their logits.

  Raises:
    ValueError: a start that does not lie between 0 and 1.
  """
  for name, value in start.items():
    if not 0 < value < 1:
      raise ValueError(f"{name} must lie between 0 and 1 to be learned; got {value}")
  return Part(
      lambda key: {name: jnp.asarray(math.log(x / (1 - x))) for name, x in start.items()},
      lambda learned: jax.tree.map(jax.nn.sigmoid, learned))


def fixed_hyper(values: dict[str, float]) -> Part:
  """Hyper-parameters that are not learned."""
  return Part(lambda key: (),
              lambda learned: {name: jnp.asarray(value, float) for name, value in values.items()})


def check_differentiable(optimizer: Any, hyper: Any, params: Params) -> None:
  """Differentiates one update of such weights as hypergradients do, from its end to its beginning.

  The gradient that it is tried at is 1, but 0 for the first of each last axis: units that are dead.

  Args:
    optimizer: as in `inner_loop.unroll`.
    hyper: its hyper-parameters; tracers will do, as each is tried at one half.
    params: of the weights' structure, shapes and types; tracers will do.

  Raises:
    ValueError: the derivative fails or is not finite: no hypergradient can pass the optimizer.
  """
  def update(gradient):
    transformation = optax.with_extra_args_support(_of_one_half(optimizer, hyper))
    weights = jax.tree.map(jnp.zeros_like, gradient)
    updates, state = transformation.update(gradient, transformation.init(weights), weights,
                                           value=jnp.ones(()))
    return [x for x in jax.tree.leaves((updates, state))
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)]

  try:
    with jax.ensure_compile_time_eval():
      gradient = jax.tree.map(
          lambda x: jnp.ones(jnp.shape(x), jnp.result_type(x)).at[..., :1].set(0)
          if jnp.ndim(x) else jnp.zeros((), jnp.result_type(x)), params)
      if any(isinstance(x, jax.core.Tracer) for x in update(gradient)):
        return  # It closes over a number of the program that is traced: nothing can be tried.
      updates, backward = jax.vjp(update, gradient)
      (derivatives,) = backward(jax.tree.map(jnp.ones_like, updates))
      finite = all(jnp.isfinite(x).all() for x in jax.tree.leaves(derivatives))
    found = "" if finite else (
        "a derivative that is not finite at a gradient of 0 (Adam needs eps_root > 0)")
  except Exception as error:  # Whatever a transformation does, the rule is the same.
    found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
  if found:
    raise ValueError(f"optimizer must have an update that can be differentiated; got {found}")


def check_hyper(optimizer: Any, hyper: Any) -> None:
  """A ValueError unless one of `INNER_OPTIMIZERS` has its hyper-parameters, and no others."""
  for name, known in INNER_OPTIMIZERS.items():
    needed, given = {*DEFAULTS[name]}, {*hyper} if isinstance(hyper, dict) else set()
    if optimizer is known and not needed <= given <= needed | {"weight_decay"}:
      raise ValueError(f"hyper must hold {sorted(needed)} for {name}, and weight_decay where it is "
                       f"wanted; got {sorted(given)}")


def pull(optimizer: Any, hyper: Any, params: Any) -> Array:
  """The c of an optimizer's fixed point, where the gradient of the loss is -c theta -> `[]`.

  Args:
    optimizer: as in `inner_loop.unroll`.
    hyper: its hyper-parameters.
    params: of the weights' shapes; tracers will do.

  Raises:
    ValueError: an optimizer that ends where the gradient is neither zero nor, by the weight decay
      of gradient descent or momentum, a multiple of theta.
  """
  if optimizer in (gradient_descent, momentum, nesterov):
    hyper = dict(hyper) if hyper else {}
    # Momentum multiplies a constant gradient by 1 / (1 - decay), and not the weight decay.
    return jnp.asarray(hyper.get("weight_decay", 0.)) * (1 - jnp.asarray(hyper.get("decay", 0.)))
  try:
    moves = _moves_at_rest(optimizer, hyper, params)
  except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError) as error:
    raise ValueError("optimizer must not close over traced numbers for implicit hypergradients; "
                     "it may have them as hyper-parameters") from error
  if moves:
    raise ValueError("optimizer must come to rest where the gradient is zero for implicit "
                     "hypergradients; got one that moves weights of 1 at a gradient of 0 (weight "
                     "decay is followed for gradient_descent, momentum and nesterov)")
  return jnp.zeros(())


def _moves_at_rest(optimizer, hyper, params):
  """Whether weights of 1 change at a gradient of 0."""
  with jax.ensure_compile_time_eval():
    zeros, ones = (jax.tree.map(lambda x, value=value: jnp.full(x.shape, value, x.dtype), params)
                   for value in (0, 1))
    transformation = _of_one_half(optax.scale(-1.) if optimizer is None else optimizer, hyper)
    updates, _ = optax.with_extra_args_support(transformation).update(
        zeros, transformation.init(ones), ones, value=jnp.ones(()))
    return any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(updates))


def _of_one_half(optimizer, hyper):
  """The transformation that it is, or makes of such hyper-parameters."""
  if not callable(optimizer):
    return optimizer
  return optimizer(jax.tree.map(lambda x: jnp.full(jnp.shape(x), .5), hyper))


def _descent(transformation, hyper):
  decay = ((optax.add_decayed_weights(hyper["weight_decay"]),) if "weight_decay" in hyper else ())
  return optax.chain(transformation, *decay, optax.scale(-1.))
