"""Ridge regression as the inner algorithm: the last layer in closed form, on given features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dd_jax.models import Model
from dd_jax.types import Array, Train, check_distilled, wide


def ridge(features: Callable, num_classes: int | None, *, regularization: float) -> Train:
  """Solves the last layer in closed form and leaves the features as they are.

  Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", 2022 (arXiv
  2206.00719): kernel ridge regression of the labels, less their mean 1 / K, on the features of all
  distilled inputs. The outer loss is that of `ridge_apply`.

  Args:
    features: `(params["features"], inputs) -> [n, F]`.
    num_classes: K. None: labels are targets `[S, B, D]`, and none of a mean of 1 / K.
    regularization: lambda; the loss is mean |features head - labels|^2 + lambda |head|^2.

  Returns:
    `train(key, params, distilled)` of params `{"features", "head" [F, K]}`; its losses are the mean
    squared error `[1]`.

  Raises:
    ValueError: a regularization that is not positive; when called, fields whose shapes do not fit,
      or labels that are neither classes nor `[S, B, K]`.
  """
  if not regularization > 0:
    raise ValueError(f"regularization must be positive; got {regularization}")

  def train(key, params, distilled):
    del key
    check_distilled(distilled)
    inputs, labels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), distilled[:2])
    found = features(params["features"], inputs)
    if not (labels.ndim == 2 and num_classes in (None, labels.shape[1])
            or labels.ndim == 1 and num_classes and jnp.issubdtype(labels.dtype, jnp.integer)):
      kind = "[S, B, D]" if num_classes is None else f"classes [S, B] or [S, B, {num_classes}]"
      raise ValueError(f"labels must be {kind}; got {labels.dtype} {list(distilled.labels.shape)}")
    if num_classes is None:
      targets = labels
    elif jnp.issubdtype(labels.dtype, jnp.integer):
      known = (labels >= 0) & (labels < num_classes)  # Any other has no loss.
      targets = jnp.where(known[:, None], jax.nn.one_hot(
          labels, num_classes, dtype=found.dtype) - 1 / num_classes, jnp.nan)
    else:
      targets = labels - 1 / num_classes
    kernel = found @ found.T + len(found) * regularization * jnp.eye(
        len(found), dtype=wide(found.dtype))
    head = found.T @ solve_positive(kernel, targets)
    error = jnp.mean(jnp.sum((found @ head - targets) ** 2, -1))
    return {**params, "head": head}, error[None]

  return train


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
  """A network of features with a head that `ridge` solves; it starts at zero.

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
    `(params["features"], inputs) -> [n, F]`.
  """
  def features(params, inputs):
    leaves = jax.tree.leaves(params)
    head = jnp.eye(num_features, dtype=jnp.result_type(*leaves) if leaves else float)
    return apply({"features": params, "head": head}, inputs)

  return features


def ridge_apply(features: Callable) -> Callable:
  """`apply(params, inputs) -> logits [n, K]` of what `ridge` trains."""
  def apply(params, inputs):
    return features(params["features"], inputs) @ params["head"]

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
