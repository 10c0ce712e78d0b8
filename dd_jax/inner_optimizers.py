"""Optimizers of the inner loop, with hyper-parameters that can be learned.

An optimizer is `hyper -> optax transformation` without a learning rate: the learned step sizes are
its learning rates. `hyper` is a dict of numbers; each optimizer lists what it takes, with
the usual values. Any other optax transformation is as good, fixed or as such a function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# The derivative of a square root is infinite at 0, where Adam's second moment is for any weight
# without a gradient: without this a dead unit makes the hypergradient NaN.
_EPS_ROOT = 1e-8


def gradient_descent(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """theta - step size * (gradient + weight_decay * theta)."""
  return _decayed(optax.identity(), hyper)


def momentum(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Heavy-ball momentum with `decay`."""
  return _decayed(optax.trace(hyper["decay"]), hyper)


def nesterov(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Nesterov's momentum with `decay`."""
  return _decayed(optax.trace(hyper["decay"], nesterov=True), hyper)


def adam(hyper: dict[str, Any]) -> optax.GradientTransformation:
  """Adam with `b1` and `b2`, differentiable where a gradient is exactly zero."""
  return _decayed(optax.scale_by_adam(hyper["b1"], hyper["b2"], eps_root=_EPS_ROOT), hyper)


INNER_OPTIMIZERS: dict[str, Callable] = {
    "gradient_descent": gradient_descent, "momentum": momentum, "nesterov": nesterov, "adam": adam}
DEFAULTS: dict[str, dict[str, float]] = {
    "gradient_descent": {}, "momentum": {"decay": 0.9}, "nesterov": {"decay": 0.9},
    "adam": {"b1": 0.9, "b2": 0.999}}


def check_differentiable(transformation: optax.GradientTransformation) -> None:
  """Differentiates one update, at gradients of zero and of one.

  Raises:
    ValueError: the derivative fails or is not finite: no hypergradient can pass the optimizer.
  """
  params = {"weight": jnp.zeros(2)}

  def update(gradient):
    updates, state = transformation.update({"weight": gradient}, transformation.init(params),
                                           params)
    return updates, [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]

  try:
    derivatives = jax.jacrev(update)(jnp.array([0., 1.]))
    found = "" if all(jnp.isfinite(x).all() for x in jax.tree.leaves(derivatives)) else (
        "a derivative that is not finite at a gradient of 0 (Adam needs eps_root > 0)")
  except Exception as error:  # Whatever a transformation does, the rule is the same.
    found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
  if found:
    raise ValueError(f"optimizer must have an update that can be differentiated; got {found}")


def _decayed(transformation, hyper):
  if "weight_decay" not in hyper:
    return transformation
  return optax.chain(transformation, optax.add_decayed_weights(hyper["weight_decay"]))
