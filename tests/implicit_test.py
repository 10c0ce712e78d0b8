"""dd_jax.implicit: where the inner loop reaches its optimum, all hypergradients agree."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import implicit
from dd_jax import optimizers
from dd_jax import losses
from dd_jax import parametrization
from dd_jax import truncation

_IMAGE_SHAPE, _CLASSES = (2, 2, 1), 3


def _apply(params, images, *, key=None):
  del key
  return images.reshape(images.shape[0], -1) @ params["weights"] + params["bias"][None]


def _init(key):
  return {"weights": jax.random.normal(key, (4, _CLASSES)), "bias": jnp.zeros(_CLASSES)}


def _inner_loss(params, images, labels):
  """Strongly convex: every trajectory ends at the same place."""
  decay = sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params))
  return losses.classification(_apply)(params, images, labels) + .2 * decay


def _problem(num_epochs=400, num_steps=1):
  """Soft labels and images learned, step size .5; 400 steps reach the optimum to 1e-13."""
  labels = jax.random.uniform(jax.random.key(1), (num_steps, 5, _CLASSES))
  learned = parametrization.join(
      parametrization.pixels((num_steps, 5, *_IMAGE_SHAPE)), parametrization.soft_labels(labels),
      parametrization.fixed_step_sizes(num_epochs, num_steps, .5, dtype=float), dtype=float)
  images = jax.random.normal(jax.random.key(2), (7, *_IMAGE_SHAPE))
  return learned, (images, jnp.arange(7) % _CLASSES)


def _hypergradient(learned, real, **options):
  outer_loss = dd_jax.make_outer_loss(
      learned.decode, dd_jax.random_init(_init).sample, _inner_loss,
      losses.classification(_apply), num_inits=2, **options)
  trainable = learned.init(jax.random.key(0))
  return jax.jit(jax.value_and_grad(outer_loss))(trainable, (), jax.random.key(3), *real)


def _assert_close(actual, expected, tolerance):
  for a, b in zip(*map(jax.tree.leaves, (actual, expected))):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * jnp.abs(b).max())


def test_conjugate_gradients_equal_the_full_unroll_at_an_optimum(x64):
  problem = _problem()
  expected = _hypergradient(*problem)
  assert jnp.abs(expected[1]["images"]).max() > 1e-3
  trajectory = functools.partial(implicit.implicit_trajectory, num_terms=40)
  _assert_close(_hypergradient(*problem, trajectory=trajectory), expected, 1e-8)


@pytest.mark.parametrize("num_terms", [1, 7, 60])
def test_a_neumann_series_equals_as_many_steps_unrolled_at_an_optimum(x64, num_terms):
  """Truncation to the last K steps, K terms of the series: the same sum."""
  problem = _problem()
  trajectory = functools.partial(implicit.implicit_trajectory, solver="neumann",
                                 num_terms=num_terms)
  actual = _hypergradient(*problem, trajectory=trajectory)
  _assert_close(actual, _hypergradient(*problem, window=truncation.last_window(num_terms)), 1e-8)


def test_many_terms_reach_the_full_unroll(x64):
  problem = _problem()
  trajectory = functools.partial(implicit.implicit_trajectory, solver="neumann", num_terms=300)
  _assert_close(_hypergradient(*problem, trajectory=trajectory), _hypergradient(*problem), 1e-8)


def test_an_optimum_does_not_depend_on_step_sizes(x64):
  labels = jnp.asarray([[0, 1, 2]])
  learned = parametrization.paper(labels, _IMAGE_SHAPE, num_epochs=50, step_size=.5, dtype=float)
  _, real = _problem()
  _, gradient = _hypergradient(learned, real, trajectory=implicit.implicit_trajectory)
  assert not gradient["step_sizes"].any() and gradient["images"].any()


def test_damping_is_added_to_the_diagonal(x64):
  """A Hessian of .4 I (no images that matter) makes the solution of v / (.4 + damping)."""
  problem = _problem()
  plain, damped = (_hypergradient(*problem, trajectory=functools.partial(
      implicit.implicit_trajectory, num_terms=60, damping=damping))[1] for damping in (0., 1e3))
  ratio = jnp.linalg.norm(damped["images"]) / jnp.linalg.norm(plain["images"])
  assert 1e-4 < ratio < 2e-3


def _features(params, images):
  return jnp.tanh(images.reshape(images.shape[0], -1) @ params)


def test_a_ridge_head_is_what_gradient_descent_on_the_head_reaches(x64):
  """Features of the fresh network, head by descent on the same loss for many steps."""
  regularization, num_classes = .05, _CLASSES
  learned, real = _problem(num_epochs=3000)

  def init(key):
    return {"features": jax.random.normal(key, (4, 6)), "head": jnp.zeros((6, num_classes))}

  def descent_loss(params, images, labels):
    inputs = _features(jax.lax.stop_gradient(params["features"]), images)
    error = inputs @ params["head"] - (labels - 1 / num_classes)
    # Half of mean |error|^2 + lambda |head|^2.
    return .5 * (jnp.mean(jnp.sum(error ** 2, -1)) + regularization * jnp.sum(params["head"] ** 2))

  def hypergradient(**options):
    outer_loss = dd_jax.make_outer_loss(
        learned.decode, dd_jax.random_init(init).sample, descent_loss,
        losses.classification(implicit.ridge_apply(_features)), num_inits=2, **options)
    return jax.jit(jax.value_and_grad(outer_loss))(
        learned.init(jax.random.key(0)), (), jax.random.key(3), *real)

  expected = hypergradient()
  actual = hypergradient(trajectory=implicit.ridge_trajectory(
      _features, num_classes, regularization=regularization))
  assert jnp.abs(expected[1]["images"]).max() > 1e-4
  _assert_close(actual, expected, 1e-7)


def test_hard_labels_are_one_hot_to_the_ridge(x64):
  params = {"features": jax.random.normal(jax.random.key(0), (4, 6)), "head": jnp.zeros((6, 3))}
  images, hard = jax.random.normal(jax.random.key(1), (2, 3, *_IMAGE_SHAPE)), jnp.asarray(
      [[0, 1, 2]] * 2)
  ridge = implicit.ridge_trajectory(_features, 3, regularization=.1)
  results = [ridge(None, params, dd_jax.DistilledData(images, labels, jnp.zeros((1, 2))))
             for labels in (hard, jax.nn.one_hot(hard, 3, dtype=float))]
  np.testing.assert_array_equal(results[0][0]["head"], results[1][0]["head"])


@pytest.mark.parametrize("options, message", [
    (dict(solver="lu"), r"solver must be one of \['conjugate_gradient', 'neumann'\]; got 'lu'"),
    (dict(num_terms=0), "num_terms must be at least 1; got 0"),
    (dict(damping=-1.), "damping must not be negative; got -1.0"),
])
def test_bad_options_are_named(options, message):
  learned, real = _problem(num_epochs=1)
  with pytest.raises(ValueError, match=message):
    _hypergradient(learned, real, trajectory=functools.partial(
        implicit.implicit_trajectory, **options))


def test_a_regularization_must_be_positive():
  with pytest.raises(ValueError, match="regularization must be positive; got 0"):
    implicit.ridge_trajectory(_features, 3, regularization=0)


@pytest.mark.parametrize("optimizer, start", [
    ("gradient_descent", {"weight_decay": .5}),
    ("momentum", {"weight_decay": .3, "decay": .4}),
    ("nesterov", {"weight_decay": .3, "decay": .4}),
])
def test_weight_decay_is_a_part_of_the_optimum(x64, optimizer, start):
  """By images, labels, the decay itself and the momentum, as the full unroll has it."""
  learned, real = _problem()
  hyper = parametrization.shares(start)

  def decode(trainable):
    return learned.decode(trainable)._replace(hyper=hyper.decode(trainable["hyper"]))

  decayed = learned._replace(
      init=lambda key: {**learned.init(key), "hyper": hyper.init(key)}, decode=decode)
  optimizer = optimizers.INNER_OPTIMIZERS[optimizer]
  expected = _hypergradient(decayed, real, optimizer=optimizer)
  trajectory = functools.partial(implicit.implicit_trajectory, num_terms=40)
  actual = _hypergradient(decayed, real, optimizer=optimizer, trajectory=trajectory)
  assert all(jnp.abs(x).max() > 1e-5 for x in jax.tree.leaves(expected[1]["hyper"]))
  _assert_close(actual, expected, 1e-8)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", [
    optax.add_decayed_weights(.1), lambda hyper: optimizers.adam({
        "b1": .9, "b2": .99, "weight_decay": .1})])
def test_an_optimizer_that_rests_elsewhere_is_refused(optimizer):
  with pytest.raises(ValueError, match="optimizer must come to rest where the gradient is zero"):
    _hypergradient(*_problem(), optimizer=optimizer, trajectory=implicit.implicit_trajectory)


def test_forward_mode_through_an_optimum_is_refused_in_one_line():
  learned, real = _problem(num_epochs=2)
  outer_loss = dd_jax.make_outer_loss(
      learned.decode, dd_jax.random_init(_init).sample, _inner_loss,
      losses.classification(_apply), num_inits=1, trajectory=implicit.implicit_trajectory)
  trainable = learned.init(jax.random.key(0))
  with pytest.raises(TypeError, match="^can.t apply forward-mode .* to a custom_vjp function"):
    jax.jvp(lambda t: outer_loss(t, (), jax.random.key(3), *real), (trainable,), (trainable,))


@pytest.mark.parametrize("n, k", [(1, 1), (5, 3), (64, 10), (65, 10), (150, 4)])
def test_positive_solve_is_that_of_lapack_with_its_derivatives(x64, n, k):
  factor, right = (jax.random.normal(jax.random.key(i), (3, n, m), jnp.float64)
                   for i, m in enumerate((n, k)))

  def outer(solve):
    def loss(factor, right):
      matrix = jnp.matmul(factor, factor.mT) + .1 * jnp.eye(n)[None]
      x = jax.vmap(solve)(matrix, right)
      return jnp.sum(jnp.sin(x)), x
    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(factor, right)

  expected = outer(lambda a, b: jax.scipy.linalg.solve(a, b, assume_a="pos"))
  for a, b in zip(*map(jax.tree.leaves, (outer(implicit.solve_positive), expected))):
    assert jnp.linalg.norm(a - b) <= 1e-10 * jnp.linalg.norm(b)


def _ridge_hypergradient(num_images=100):
  """Four networks: the hypergradient by the images, and one set of images."""
  images = jax.random.normal(jax.random.key(0), (1, num_images, 5))
  params = {"features": jax.random.normal(jax.random.key(1), (4, 5, 4)),
            "head": jnp.zeros((4, 4, 3))}
  labels = jnp.arange(num_images)[None] % 3
  ridge = implicit.ridge_trajectory(lambda w, x: jnp.tanh(x @ w), 3, regularization=.1)

  def loss(images):
    distilled = dd_jax.DistilledData(images, labels, jnp.zeros((1, 1)))
    return sum(jnp.sum(jax.vmap(lambda p: ridge(None, p, distilled)[1])(
        jax.tree.map(lambda leaf: scale * leaf, params))) for scale in (1., .9, .8, .7))

  return jax.jit(jax.grad(loss)), images


def test_a_ridge_calls_no_lapack():
  gradient, images = _ridge_hypergradient()
  assert "custom_call" not in gradient.lower(images).as_text()


@pytest.mark.slow
def test_a_thousand_ridges_of_four_networks_end():
  """Of LAPACK's solves, four batches of one program, hung within some hundred on two cores."""
  program = """
import jax
from tests.implicit_test import _ridge_hypergradient
gradient, images = _ridge_hypergradient()
for _ in range(1000):
  jax.block_until_ready(gradient(images))
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300,
                 cwd=pathlib.Path(__file__).parents[1])
