"""Hypergradients that do not differentiate the steps: of an optimum, and of a closed form.

Each function here stands in for `inner_trajectory`, as `trajectory` of `make_outer_loss`.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax import optimizers
from dd_jax.inner_loop import inner_trajectory
from dd_jax.models import Model
from dd_jax.types import Array, DistilledData, Params

SOLVERS = ("conjugate_gradient", "neumann")


def implicit_trajectory(inner_loss: Callable, params: Params, distilled: DistilledData, *,
                        solver: str = "conjugate_gradient", num_terms: int = 20,
                        damping: float = 0.0, **options: Any) -> tuple[Params, Array]:
  """Trains as `inner_trajectory`; the gradient is that of the optimum it is taken to have reached.

  The steps end where the gradient of the mean inner loss over the S minibatches is g = -c theta,
  with c from the optimizer's weight decay. There the implicit function theorem gives
  d theta / d (data, c) = -(H + c)^-1 d (g + c theta) / d (data, c). Memory does not grow with T.
  Step sizes and initial weights have no influence on an optimum: their gradient is zero. Forward
  mode (`jvp`, `jacfwd`) is an error.

  Args:
    inner_loss, params, distilled: as in `inner_trajectory`.
    solver: of H u = v. "conjugate_gradient", or "neumann": the series u = eta sum (I - eta H)^k v,
      which is the hypergradient of `num_terms` steps at the optimum; eta is the last step size.
    num_terms: iterations or terms.
    damping: added to the diagonal of H.
    **options: optimizer, hyper and key of `inner_trajectory`.

  Returns:
    The weights after T steps, and the inner loss before each.

  Raises:
    ValueError: an unknown solver, num_terms below 1, a negative damping, or an optimizer that
      ends elsewhere (`optimizers.pull`).
  """
  if solver not in SOLVERS:
    raise ValueError(f"solver must be one of {list(SOLVERS)}; got {solver!r}")
  if num_terms < 1:
    raise ValueError(f"num_terms must be at least 1; got {num_terms}")
  if not damping >= 0:
    raise ValueError(f"damping must not be negative; got {damping}")
  keys = () if options.get("key") is None else (options["key"],)

  hyper = distilled.hyper if options.get("hyper") is None else options["hyper"]
  pull = optimizers.pull(options.get("optimizer"), hyper, params)

  def residual(params, pull, images, labels):
    """Zero at the optimum."""
    gradient = jax.grad(lambda params: jnp.mean(jax.vmap(
        lambda images, labels: inner_loss(params, images, labels, *keys))(images, labels)))(params)
    return jax.tree.map(lambda g, p: g + jnp.asarray(pull, p.dtype) * p, gradient, params)

  final, losses = inner_trajectory(
      inner_loss, *jax.lax.stop_gradient((params, distilled)), memory="plain", **options)

  @jax.custom_vjp
  def optimum(final, step_size, pull, images, labels):
    return final

  def forward(final, step_size, *data):
    return final, (final, step_size, data)

  def backward(residuals, direction):
    final, step_size, data = residuals

    def product(u):
      curved = jax.jvp(lambda p: residual(p, *data), (final,), (u,))[1]
      return jax.tree.map(lambda c, x: c + damping * x, curved, u)

    if solver == "neumann":
      u = _neumann(product, direction, step_size, num_terms)
    else:
      tolerance = float(jnp.finfo(step_size.dtype).eps)
      u, _ = jax.scipy.sparse.linalg.cg(product, direction, tol=tolerance, maxiter=num_terms)
    _, back = jax.vjp(functools.partial(residual, final), *data)
    return None, None, *back(jax.tree.map(jnp.negative, u))

  optimum.defvjp(forward, backward)
  step_size = jax.lax.stop_gradient(distilled.step_sizes[-1, -1])
  return optimum(final, step_size, pull, distilled.images, distilled.labels), losses


def ridge_trajectory(features: Callable, num_classes: int, *, regularization: float) -> Callable:
  """A trajectory that solves the last layer in closed form and leaves the features as they are.

  Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", 2022 (arXiv
  2206.00719): kernel ridge regression of the labels, less their mean 1 / K, on the features of all
  distilled images. The outer loss is that of `ridge_apply`.

  Args:
    features: `(params["features"], images) -> [n, F]`.
    num_classes: K.
    regularization: lambda; the loss is mean |features head - labels|^2 + lambda |head|^2.

  Returns:
    A function of inner loss (not used), params `{"features", "head" [F, K]}` and distilled data;
    its losses are the mean squared error `[1]`.

  Raises:
    ValueError: a regularization that is not positive.
  """
  if not regularization > 0:
    raise ValueError(f"regularization must be positive; got {regularization}")

  def trajectory(inner_loss, params, distilled, **options):
    del inner_loss, options
    images = distilled.images.reshape(-1, *distilled.images.shape[2:])
    labels = distilled.labels
    if jnp.issubdtype(labels.dtype, jnp.integer):
      labels = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    targets = labels.reshape(-1, num_classes) - 1 / num_classes
    inputs = features(params["features"], images)
    kernel = inputs @ inputs.T + len(inputs) * regularization * jnp.eye(len(inputs))
    head = inputs.T @ solve_positive(kernel, targets)
    error = jnp.mean(jnp.sum((inputs @ head - targets) ** 2, -1))
    return {**params, "head": head}, error[None]

  return trajectory


def solve_positive(matrix: Array, right: Array) -> Array:
  """x `[n, k]` of matrix x = right: elimination by matrix products and a loop, without LAPACK.

  Several batched Cholesky solves of one program can wait for each other for ever in XLA's CPU pool
  of two threads.

  Args:
    matrix: `[n, n]`, symmetric and positive definite.
    right: `[n, k]`.
  """
  fixed = jax.lax.stop_gradient(matrix)
  return jax.lax.custom_linear_solve(
      lambda x: _product(matrix, x), right, lambda _, b: _eliminate(fixed, b), symmetric=True)


def ridge_model(features: Model, num_features: int, num_classes: int) -> Model:
  """A network of features with a head that `ridge_trajectory` solves; it starts at zero.

  Args:
    features: the network whose `num_features` F outputs are the features.
    num_features: F.
    num_classes: K.
  """
  def init(key):
    return {"features": features.init(key), "head": jnp.zeros((num_features, num_classes))}

  return Model(init, ridge_apply(features.apply))


def ridge_features(apply: Callable, num_features: int) -> Callable:
  """The features below the head of a `ridge_model`, from its `apply`: those of an identity head.

  Args:
    apply: that of the model.
    num_features: F.

  Returns:
    `(params["features"], images) -> [n, F]`.
  """
  def features(params, images):
    head = jnp.eye(num_features, dtype=images.dtype)
    return apply({"features": params, "head": head}, images)

  return features


def ridge_apply(features: Callable) -> Callable:
  """`apply(params, images, *, key=None) -> logits [n, K]` of what `ridge_trajectory` trains."""
  def apply(params, images, *, key=None):
    del key
    return features(params["features"], images) @ params["head"]

  return apply


def _eliminate(matrix, right):
  """Gauss-Jordan row by row; larger matrices by halves and their Schur complement."""
  n = len(matrix)
  if n <= 64:
    def step(i, rows):
      row = rows[i] / rows[i, i]
      return (rows - rows[:, i, None] * row[None]).at[i].set(row)

    return jax.lax.fori_loop(0, n, step, jnp.concatenate([matrix, right], 1))[:, n:]
  half = n // 2
  solved = _eliminate(matrix[:half, :half],
                      jnp.concatenate([matrix[:half, half:], right[:half]], 1))
  across, upper = solved[:, :n - half], solved[:, n - half:]
  lower = _eliminate(matrix[half:, half:] - _product(matrix[half:, :half], across),
                     right[half:] - _product(matrix[half:, :half], upper))
  return jnp.concatenate([upper - _product(across, lower), lower])


def _product(a, b):
  return jnp.matmul(a, b, precision="highest")


def _neumann(product, direction, step_size, num_terms):
  def body(_, carry):
    term, total = carry
    term = jax.tree.map(lambda t, p: t - step_size * p, term, product(term))
    return term, jax.tree.map(jnp.add, total, term)

  _, total = jax.lax.fori_loop(1, num_terms, body, (direction, direction))
  return jax.tree.map(lambda x: step_size * x, total)
