"""The linear case: closed forms against the library's own loop, constructions, bounds, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import inner_loop
from dd_jax import linear
from experiments.measurements import linear as experiment

_DIMENSION, _STEP_SIZE = 5, .3
_MODES = itertools.product(inner_loop.MEMORY_MODES, inner_loop.GRADIENT_MODES)


def _vectors(count, seed=0):
  """`count` random vectors `[D]`."""
  return jax.random.normal(jax.random.key(seed), (count, _DIMENSION))


def _random_data(num_points, seed=0, step_size=_STEP_SIZE):
  points, targets = jax.random.split(jax.random.key(seed))
  return dd_jax.DistilledData(jax.random.normal(points, (1, num_points, _DIMENSION)),
                              jax.random.normal(targets, (1, num_points)),
                              jnp.full((1, 1), step_size, float))


@jax.jit
def _train(distilled, params):
  """theta_1 `[N, D]` of theta_0 `[N, D]`, by the library's inner loop."""
  return jax.vmap(lambda theta: dd_jax.unroll(linear.loss)(None, theta, distilled)[0])(params)


def _residuals(distilled, params, theta_star):
  return jnp.sum((_train(distilled, params) - theta_star[None]) ** 2, axis=1)


@pytest.mark.parametrize("num_points", [5, 11])
def test_exact_data_send_every_theta_0_to_the_optimum_of_real_data(x64, num_points):
  images, labels = jax.random.normal(jax.random.key(1), (40, 5)), _random_data(40).labels[0]
  theta_star = linear.optimum(images, labels)
  np.testing.assert_allclose(jax.grad(linear.loss)(theta_star, images, labels), 0, atol=1e-14)
  distilled = linear.exact_data(theta_star, _STEP_SIZE, num_points=num_points)
  assert distilled.inputs.shape == (1, num_points, 5)
  assert jnp.max(_residuals(distilled, 10 * _vectors(1000), theta_star)) < 1e-24


def test_exact_data_of_default_size_are_d_points_in_the_dtype_of_theta_star():
  distilled = linear.exact_data(jnp.ones(5, jnp.float32), _STEP_SIZE)
  assert [leaf.shape for leaf in jax.tree.leaves(distilled)] == [(1, 5, 5), (1, 5), (1, 1)]
  assert {leaf.dtype for leaf in jax.tree.leaves(distilled)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("num_points", range(1, _DIMENSION))
def test_fewer_points_than_dimensions_leave_a_direction_where_it_was(x64, num_points):
  """Whatever the data, two theta_0 that differ in the null space of d still do, unchanged."""
  null = jnp.linalg.svd(_random_data(num_points).inputs[0])[2][-1]
  first = _vectors(1)
  moved = _train(_random_data(num_points), jnp.concatenate([first, first + null[None]]))
  np.testing.assert_allclose(moved[1] - moved[0], null, atol=1e-13)


@pytest.mark.parametrize("step_size", [.01, .3, 20.])
def test_one_point_suffices_for_one_theta_0(x64, step_size):
  theta_star, *thetas = _vectors(10)
  for theta_0 in (*thetas, theta_star):
    distilled = linear.exact_data_for(theta_0, theta_star, step_size)
    assert distilled.inputs.shape == (1, 1, 5)
    assert _residuals(distilled, theta_0[None], theta_star)[0] < 1e-24
  # It is made for that theta_0 alone.
  distilled = linear.exact_data_for(thetas[0], theta_star, step_size)
  assert _residuals(distilled, thetas[1][None], theta_star)[0] > 1e-3


@pytest.mark.parametrize("num_points", [1, 3, 8])
def test_expected_residual_is_the_mean_over_the_pool_and_over_gaussian_draws(x64, num_points):
  theta_star, mean = _vectors(2)
  distilled, std = _random_data(num_points), 1.7
  expected = linear.expected_residual(distilled, theta_star, mean=mean, std=std)
  pool = linear.gaussian_pool(mean, std)
  np.testing.assert_allclose(jnp.mean(_residuals(distilled, pool, theta_star)), expected,
                             rtol=1e-13)
  draws = mean[None] + std * jax.random.normal(jax.random.key(3), (100_000, _DIMENSION))
  residuals = _residuals(distilled, draws, theta_star)
  assert abs(residuals.mean() - expected) < 4 * residuals.std() / len(residuals) ** .5


def test_the_pool_has_the_gaussian_s_mean_and_covariance(x64):
  (mean,) = _vectors(1)
  pool = linear.gaussian_pool(mean, 1.7)
  np.testing.assert_allclose(pool.mean(axis=0), mean, atol=1e-14)
  np.testing.assert_allclose(jnp.cov(pool.T, bias=True), 1.7 ** 2 * np.eye(5), atol=1e-13)


@pytest.mark.parametrize("num_points", range(1, _DIMENSION + 1))
def test_optimal_data_attain_the_bound_that_no_data_pass(x64, num_points):
  theta_star, mean = _vectors(2)
  std, bound = .8, .8 ** 2 * (_DIMENSION - num_points)
  residual = functools.partial(linear.expected_residual, theta_star=theta_star, mean=mean, std=std)
  best = linear.optimal_data(theta_star, _STEP_SIZE, mean=mean, num_points=num_points)
  assert best.inputs.shape == (1, num_points, 5)
  np.testing.assert_allclose(residual(best), bound, rtol=1e-13, atol=1e-25)
  # Also where theta* - mean is zero and any rows span it.
  centred = linear.optimal_data(mean, _STEP_SIZE, mean=mean, num_points=num_points)
  np.testing.assert_allclose(residual(centred, theta_star=mean), bound, rtol=1e-13, atol=1e-25)
  draw, sizes = np.random.RandomState(0), np.repeat([.01, .3, 3.], 1000)
  others = jax.tree.map(lambda leaf: leaf[None] + sizes.reshape(-1, *[1] * leaf.ndim) *
                        draw.standard_normal((sizes.size, *leaf.shape)), best)
  values = jax.jit(jax.vmap(residual))(others)
  assert jnp.min(values) > bound


def _closed_form_hypergrad(distilled, params, theta_star):
  """The mean of ||theta_1 - theta*||^2 over given theta_0 `[N, D]`, and its gradient, by hand.

  With e = d theta_0 - t, r = theta_1 - theta* and means over theta_0:
  by d: -2 (eta/M) (e r^T + d r theta_0^T); by t: 2 (eta/M) d r; by eta: -(2/M) (d r)^T e.
  """
  points, targets = distilled.inputs[0], distilled.labels[0]
  num_inits, num_points = params.shape[0], targets.size
  step_size = distilled.step_sizes[0, 0] / num_points
  errors = params @ points.T - targets[None]  # [N, M], e of every theta_0.
  residuals = params - step_size * errors @ points - theta_star[None]  # [N, D], r.
  projected = residuals @ points.T  # [N, M], d r.
  by_points = -2 * step_size / num_inits * (errors.T @ residuals + projected.T @ params)
  by_targets = 2 * step_size * jnp.mean(projected, axis=0)
  by_step_size = -2 / (num_inits * num_points) * jnp.sum(projected * errors)
  return jnp.mean(jnp.sum(residuals ** 2, axis=1)), dd_jax.DistilledData(
      by_points[None], by_targets[None], by_step_size[None, None])


@pytest.mark.parametrize("num_points, modes", [
    pytest.param(*row, marks=[pytest.mark.slow] if row[0] > 2 else [])
    for row in enumerate(_MODES, 1)])
def test_the_hypergradient_equals_its_closed_form(x64, num_points, modes):
  """By points, targets and step size; N=3 given theta_0; relative to each leaf's norm."""
  memory, gradient = modes
  theta_star, *params = _vectors(4)
  pool = dd_jax.pretrained_init(jnp.stack(params))
  distilled = _random_data(num_points)

  def squared_distance(params, images, labels):
    return jnp.sum((images @ params - labels) ** 2)

  outer_loss = dd_jax.make_outer_loss(
      lambda distilled: distilled, pool, dd_jax.unroll(linear.loss, memory=memory,
                                                       gradient=gradient),
      squared_distance, num_inits=3)
  actual = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(
      distilled, pool.state, jax.random.key(0), jnp.eye(5), theta_star)
  expected = _closed_form_hypergrad(distilled, pool.state, theta_star)
  for leaf, closed in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert leaf.shape == closed.shape
    assert jnp.linalg.norm(leaf - closed) < 1e-12 * jnp.linalg.norm(closed)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("num_points", [
    3, *(pytest.param(num_points, marks=pytest.mark.slow) for num_points in (1, 5, 6))])
def test_points_learned_by_the_hypergradient_reach_the_bound(x64, num_points):
  """From three random starts each; and they have the structure that the theory asks for."""
  theta_star, mean = _vectors(2)
  run = jax.jit(jax.vmap(functools.partial(
      experiment.distill, std=1., num_points=num_points, num_steps=1500), (0, None, None)))
  starts, ends = run(jax.random.split(jax.random.key(1), 3), theta_star, mean)
  bound = max(_DIMENSION - num_points, 0)
  for start, end in zip(zip(*starts), zip(*ends)):
    start, end = dd_jax.DistilledData(*start), dd_jax.DistilledData(*end)
    residual = functools.partial(linear.expected_residual, theta_star=theta_star, mean=mean, std=1.)
    assert residual(start) > bound + .1
    np.testing.assert_allclose(residual(end), bound, atol=1e-3)
    points = end.inputs[0]
    projection = end.step_sizes[0, 0] / num_points * points.T @ points
    np.testing.assert_allclose(projection @ projection, projection, atol=.01)
    np.testing.assert_allclose(jnp.trace(projection), min(num_points, _DIMENSION), atol=.01)
    np.testing.assert_allclose(projection @ (theta_star - mean), theta_star - mean, atol=.05)


@pytest.mark.parametrize("call, message", [
    (lambda: linear.exact_data(jnp.ones(5), .1, num_points=4),
     "num_points must be at least D = 5 to be exact for every theta_0; got 4"),
    (lambda: linear.exact_data(jnp.ones(5), 0.), "step_size must be positive; got 0.0"),
    (lambda: linear.exact_data(jnp.ones((5, 1)), .1),
     r"theta_star must be floats \[D\]; got float32 \[5, 1\]"),
    (lambda: linear.exact_data(jnp.arange(5), .1),
     r"theta_star must be floats \[D\]; got int32 \[5\]"),
    (lambda: linear.exact_data_for(jnp.ones(4), jnp.ones(5), .1),
     "theta_0 must have D = 5 entries like theta_star; got 4"),
    (lambda: linear.exact_data_for(jnp.ones(5), jnp.ones(5), -1.),
     "step_size must be positive; got -1.0"),
    (lambda: linear.optimal_data(jnp.ones(5), .1, mean=jnp.ones(5), num_points=6),
     r"num_points must lie in 1..5 \(D\); got 6"),
    (lambda: linear.optimal_data(jnp.ones(5), .1, mean=jnp.ones(5), num_points=0),
     r"num_points must lie in 1..5 \(D\); got 0"),
    (lambda: linear.optimal_data(jnp.ones(5), .1, mean=jnp.ones(3), num_points=1),
     "mean must have D = 5 entries like theta_star; got 3"),
    (lambda: linear.gaussian_pool(jnp.ones((2, 5)), 1.),
     r"mean must be floats \[D\]; got float32 \[2, 5\]"),
    (lambda: linear.expected_residual(
        dd_jax.DistilledData(jnp.ones((2, 3, 5)), jnp.ones((2, 3)), jnp.ones((1, 2))),
        theta_star=jnp.ones(5), mean=jnp.ones(5), std=1.),
     r"distilled must be one step.*got \[2, 3, 5\], \[1, 2\]"),
])
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_targets_of_another_shape_are_not_broadcast():
  with pytest.raises(ValueError, match=r"labels must be \[M\] = \[4\]; got \[4, 1\]"):
    linear.loss(jnp.ones(3), jnp.ones((4, 3)), jnp.ones((4, 1)))
