"""The linear case (section 3.3): what one step on M points can reach, in closed form.

The weights are a vector theta `[D]`. A step of size eta on M points d `[M, D]`
with targets t `[M]` is the affine map

  theta_1 = A theta_0 + b,   A = I - (eta/M) d^T d,   b = (eta/M) d^T t.

It sends every theta_0 to the optimum theta* of the real data only if d^T d has
rank D, hence M >= D. Distilled data here are one step of M points of shape
`[D]`: inputs `[1, M, D]`, labels `[1, M]`, step sizes `[1, 1]`.
"""

import math

import jax.numpy as jnp

from dd_jax.step_sizes import check_positive
from dd_jax.types import Array, DistilledData


def loss(params: Array, inputs: Array, labels: Array) -> Array:
  """1/(2M) ||d theta - t||^2 -> `[]`; the inner or the real loss.

  Args:
    params: theta `[D]`.
    inputs: points d `[M, D]`.
    labels: targets t `[M]`.

  Raises:
    ValueError: labels of another shape, which would be broadcast.
  """
  if jnp.shape(labels) != jnp.shape(inputs)[:1]:
    raise ValueError(f"labels must be [M] = {list(jnp.shape(inputs)[:1])}; "
                     f"got {list(jnp.shape(labels))}")
  return .5 * jnp.mean((inputs @ params - labels) ** 2)


def optimum(inputs: Array, labels: Array) -> Array:
  """theta* `[D]` of real data `[R, D]`, `[R]`; below full column rank that of least norm."""
  return jnp.linalg.lstsq(inputs, labels)[0]


def exact_data(theta_star: Array, step_size: float, *, num_points: int | None = None
               ) -> DistilledData:
  """M >= D points that send every theta_0 to theta*: d = sqrt(M/eta) [I_D; 0], t = d theta*.

  Args:
    theta_star: `[D]`.
    step_size: eta, positive.
    num_points: M. None: D.

  Raises:
    ValueError: fewer points than D, which cannot do it; a step size that is not positive.
  """
  _check_vector("theta_star", theta_star)
  dimension = theta_star.size
  num_points = dimension if num_points is None else num_points
  if num_points < dimension:
    raise ValueError(f"num_points must be at least D = {dimension} to be exact for every theta_0; "
                     f"got {num_points}")
  return _scaled(jnp.eye(num_points, dimension, dtype=theta_star.dtype), theta_star, step_size)


def exact_data_for(theta_0: Array, theta_star: Array, step_size: float) -> DistilledData:
  """One point that sends one theta_0 to theta*: d = (theta* - theta_0)^T, t = d theta_0 + 1/eta.

  Where theta_0 is theta* already, the point is zero and the step moves nothing.

  Args:
    theta_0, theta_star: `[D]`.
    step_size: eta, positive.

  Raises:
    ValueError: shapes that differ; a step size that is not positive.
  """
  _check_vector("theta_star", theta_star)
  _check_vector("theta_0", theta_0, like=theta_star)
  check_positive(step_size)
  point = theta_star - theta_0
  target = point @ theta_0 + 1 / step_size
  return DistilledData(point[None, None], target[None, None],
                       jnp.full((1, 1), step_size, theta_star.dtype))


def optimal_data(theta_star: Array, step_size: float, *, mean: Array, num_points: int
                 ) -> DistilledData:
  """M <= D points of least E ||theta_1 - theta*||^2 over theta_0 ~ N(mean, sigma^2 I).

  That is sigma^2 (D - M), for any sigma: the rows of d are orthogonal, of squared
  norm M/eta, their span holds theta* - mean, and t = d theta*.

  Args:
    theta_star, mean: `[D]`.
    step_size: eta, positive.
    num_points: M.

  Raises:
    ValueError: M outside 1..D; shapes that differ; a step size that is not positive.
  """
  _check_vector("theta_star", theta_star)
  _check_vector("mean", mean, like=theta_star)
  dimension = theta_star.size
  if not 1 <= num_points <= dimension:
    raise ValueError(f"num_points must lie in 1..{dimension} (D); got {num_points}")
  spanned = jnp.column_stack([theta_star - mean,
                              jnp.eye(dimension, num_points - 1, dtype=theta_star.dtype)])
  return _scaled(jnp.linalg.qr(spanned)[0].T, theta_star, step_size)


def gaussian_pool(mean: Array, std: float) -> Array:
  """2D equally likely points `[2D, D]`, mean +- std sqrt(D) e_i, for N(mean, std^2 I).

  Mean and covariance are the Gaussian's, so that the mean of a quadratic of
  theta_0, such as ||theta_1 - theta*||^2, over the pool is its expectation.
  """
  _check_vector("mean", mean)
  offsets = std * math.sqrt(mean.size) * jnp.eye(mean.size, dtype=mean.dtype)
  return mean[None] + jnp.concatenate([offsets, -offsets])


def expected_residual(distilled: DistilledData, theta_star: Array, *, mean: Array, std: float
                      ) -> Array:
  """E ||theta_1 - theta*||^2 over theta_0 ~ N(mean, std^2 I), of any data of one step -> `[]`.

  ||A mean + b - theta*||^2 + std^2 ||A||_F^2; with M points at least std^2 (D - M).

  Args:
    distilled: M points `[1, M, D]` with their targets `[1, M]` and one step size.
    theta_star: theta* `[D]`.
    mean: of theta_0, `[D]`.
    std: of every component of theta_0.

  Raises:
    ValueError: data of more than one step.
  """
  points, targets, step_size = _one_step(distilled)
  matrix = jnp.eye(mean.size, dtype=mean.dtype) - step_size * points.T @ points
  offset = matrix @ mean + step_size * points.T @ targets - theta_star
  return jnp.sum(offset ** 2) + std ** 2 * jnp.sum(matrix ** 2)


def _scaled(directions, theta_star, step_size):
  """Distilled data of d = sqrt(M/eta) directions `[M, D]` and t = d theta*."""
  check_positive(step_size)
  points = math.sqrt(len(directions) / step_size) * directions
  return DistilledData(points[None], (points @ theta_star)[None],
                       jnp.full((1, 1), step_size, theta_star.dtype))


def _one_step(distilled):
  """d `[M, D]`, t `[M]` and eta/M `[]`."""
  if distilled.inputs.ndim != 3 or distilled.step_sizes.shape != (1, 1):
    raise ValueError("distilled must be one step: inputs [1, M, D], step_sizes [1, 1]; got "
                     f"{list(distilled.inputs.shape)}, {list(distilled.step_sizes.shape)}")
  points, targets = distilled.inputs[0], distilled.labels[0]
  return points, targets, distilled.step_sizes[0, 0] / targets.size


def _check_vector(name, value, like=None):
  if value.ndim != 1 or not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name} must be floats [D]; got {value.dtype} {list(value.shape)}")
  if like is not None and value.shape != like.shape:
    raise ValueError(f"{name} must have D = {like.size} entries like theta_star; got {value.size}")
