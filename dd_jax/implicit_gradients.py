"""The hypergradient of an optimum, which does not differentiate the steps that lead to it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax import adapters
from dd_jax import closures
from dd_jax import optimizers
from dd_jax.inner_loop import unroll
from dd_jax.leaves import split_off_floating
from dd_jax.types import Train, check_at_least

SOLVERS = ("conjugate_gradient", "neumann")


def implicit(loss: Callable, optimizer: Any = None, *, solver: str = "conjugate_gradient",
             num_terms: int = 20, damping: float = 0.0) -> Train:
  """Trains as `unroll`; the gradient is that of the optimum it is taken to have reached.

  The steps end where the gradient of the mean inner loss over the S minibatches is g = -c theta,
  with c from the optimizer's weight decay. There the implicit function theorem gives
  d theta / d (data, c) = -(H + c)^-1 d (g + c theta) / d (data, c). Memory does not grow with T.
  Step sizes and initial weights have no influence on an optimum: their gradient is zero. Forward
  mode (`jvp`, `jacfwd`) is an error.

  Args:
    loss, optimizer: as in `inner_loop.unroll`.
    solver: of H u = v. "conjugate_gradient", or "neumann": the series u = eta sum (I - eta H)^k v,
      which is the hypergradient of `num_terms` steps at the optimum; eta is the last step size.
    num_terms: iterations or terms.
    damping: added to the diagonal of H.

  Returns:
    `train(key, params, distilled) -> (weights after T steps, loss before each)`.

  Raises:
    ValueError: an unknown solver, num_terms below 1, a negative damping; when called, an optimizer
      that ends elsewhere (`optimizers.pull`).
  """
  if solver not in SOLVERS:
    raise ValueError(f"solver must be one of {list(SOLVERS)}; got {solver!r}")
  check_at_least(1, num_terms=num_terms)
  if not damping >= 0:
    raise ValueError(f"damping must not be negative; got {damping}")
  unrolled = unroll(loss, optimizer, memory="plain")
  loss_of_batch = adapters.scalar(adapters.with_key(loss))

  def train(key, params, distilled):
    begin = jax.lax.stop_gradient((params, distilled))
    # What the loss closes over is stopped too, or every step would be kept for its sake.
    converted, closed = closures.hoist(lambda begin: unrolled(key, *begin), begin)
    final, losses = converted(jax.lax.stop_gradient(closed), begin)
    pull = optimizers.pull(optimizer, distilled.hyper, params)
    batches = distilled.inputs, distilled.labels

    def mean_loss(params, key, batches):
      return jnp.mean(jax.vmap(lambda batch: loss_of_batch(params, *batch, key=key))(batches))

    converted, closed = closures.hoist(mean_loss, final, key, batches)
    solve = _optimum(converted, solver, num_terms, damping)
    step_size = jax.lax.stop_gradient(distilled.step_sizes[-1, -1])
    return solve(final, step_size, key, pull, closed, batches), losses

  return train


def _optimum(loss, solver, num_terms, damping):
  """`(final, step_size, key, *data) -> final`, with the derivative of an optimum by the data.

  The data are the optimizer's pull, what the `loss(closed, params, key, batches)` was closed over,
  and the batches.
  """
  def residual(key, params, pull, closed, batches):
    """Zero at the optimum."""
    gradient = jax.grad(loss, 1)(closed, params, key, batches)
    return jax.tree.map(lambda g, p: g + jnp.asarray(pull, p.dtype) * p, gradient, params)

  @jax.custom_vjp
  def optimum(final, step_size, key, *data):
    return final

  def forward(final, step_size, key, *data):
    return final, (final, step_size, key, data)

  def backward(residuals, direction):
    final, step_size, key, data = residuals

    def product(u):
      curved = jax.jvp(lambda p: residual(key, p, *data), (final,), (u,))[1]
      return jax.tree.map(lambda c, x: c + damping * x, curved, u)

    if solver == "neumann":
      u = _neumann(product, direction, step_size, num_terms)
    else:
      tolerance = float(jnp.finfo(step_size.dtype).eps)
      u, _ = jax.scipy.sparse.linalg.cg(product, direction, tol=tolerance, maxiter=num_terms)
    floating, join = split_off_floating(data)
    _, back = jax.vjp(lambda floating: residual(key, final, *join(floating)), floating)
    return None, None, None, *back(jax.tree.map(jnp.negative, u))[0]

  optimum.defvjp(forward, backward)
  return optimum


def _neumann(product, direction, step_size, num_terms):
  def body(_, carry):
    term, total = carry
    term = jax.tree.map(lambda t, p: t - step_size.astype(p.dtype) * p, term, product(term))
    return term, jax.tree.map(jnp.add, total, term)

  _, total = jax.lax.fori_loop(1, num_terms, body, (direction, direction))
  return jax.tree.map(lambda x: step_size.astype(x.dtype) * x, total)
