"""dd_jax.ridge_regression: the closed form against descent, its solver against LAPACK's."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import parametrization
from dd_jax import step_sizes
from dd_jax import ridge_regression
from tests import problems

_CLASSES = 3


def _features(params, images):
  return jnp.tanh(images.reshape(images.shape[0], -1) @ params)


def test_a_ridge_head_is_what_gradient_descent_on_the_head_reaches(x64):
  """Features of the fresh network, head by descent on the same loss for many steps."""
  regularization = .1
  labels = jax.random.uniform(jax.random.key(1), (1, 5, _CLASSES))
  learned = parametrization.join(
      parametrization.pixels((1, 5, *problems.IMAGE_SHAPE)), parametrization.soft_labels(labels),
      step_sizes.fixed(800, 1, .5), dtype=float)

  def init(key):
    return {"features": jax.random.normal(key, (4, 6)), "head": jnp.zeros((6, _CLASSES))}

  def descent_loss(params, images, labels):
    inputs = _features(jax.lax.stop_gradient(params["features"]), images)
    error = inputs @ params["head"] - (labels - 1 / _CLASSES)
    # Half of mean |error|^2 + lambda |head|^2.
    return .5 * (jnp.mean(jnp.sum(error ** 2, -1)) + regularization * jnp.sum(params["head"] ** 2))

  def hypergradient(train):
    outer_loss = dd_jax.make_outer_loss(
        learned.decode, dd_jax.random_init(init), train,
        losses.classification(ridge_regression.ridge_apply(_features)), num_inits=2)
    return jax.jit(jax.value_and_grad(outer_loss))(
        learned.init(jax.random.key(0)), (), jax.random.key(3), *problems.real())

  actual = hypergradient(dd_jax.ridge(_features, _CLASSES, regularization=regularization))
  expected = hypergradient(dd_jax.unroll(descent_loss))
  assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected))
  problems.assert_close(actual, expected, 1e-7)


def test_hard_labels_are_one_hot_to_the_ridge(x64):
  params = {"features": jax.random.normal(jax.random.key(0), (4, 6)), "head": jnp.zeros((6, 3))}
  images, hard = jax.random.normal(jax.random.key(1), (2, 3, *problems.IMAGE_SHAPE)), jnp.asarray(
      [[0, 1, 2]] * 2)
  ridge = dd_jax.ridge(_features, 3, regularization=.1)
  results = [ridge(None, params, dd_jax.DistilledData(images, labels, jnp.zeros((1, 2))))
             for labels in (hard, jax.nn.one_hot(hard, 3, dtype=float))]
  np.testing.assert_array_equal(results[0][0]["head"], results[1][0]["head"])


@pytest.mark.parametrize("num_classes, labels, message", [
    (3, jnp.zeros((3, 2), int), r"labels must begin with \[S, B\] = \[2, 3\]"),
    (3, jnp.zeros((2, 3, 4)), r"labels must be classes \[S, B\] or \[S, B, 3\]; got .*\[2, 3, 4"),
    (3, jnp.zeros((2, 3)), r"labels must be classes .*; got float32 \[2, 3\]"),
    (None, jnp.zeros((2, 3), int), r"labels must be \[S, B, D\]; got int32 \[2, 3\]")])
def test_labels_that_do_not_fit_a_ridge_are_named(num_classes, labels, message):
  params = {"features": jnp.zeros((4, 6)), "head": jnp.zeros((6, 3))}
  with pytest.raises(ValueError, match=message):
    dd_jax.ridge(_features, num_classes, regularization=.1)(None, params, dd_jax.DistilledData(
        jnp.zeros((2, 3, *problems.IMAGE_SHAPE)), labels, jnp.zeros((1, 2))))


def test_a_regularization_must_be_positive():
  with pytest.raises(ValueError, match="regularization must be positive; got 0"):
    dd_jax.ridge(_features, 3, regularization=0)


@pytest.mark.parametrize("n, k", [(1, 1), (64, 10), (150, 4)])
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
  for a, b in zip(*map(jax.tree.leaves, (outer(ridge_regression.solve_positive), expected))):
    assert jnp.linalg.norm(a - b) <= 1e-10 * jnp.linalg.norm(b)


def _ridge_hypergradient(num_images=100):
  """Four networks: the hypergradient by the images, and one set of images."""
  images = jax.random.normal(jax.random.key(0), (1, num_images, 5))
  params = {"features": jax.random.normal(jax.random.key(1), (4, 5, 4)),
            "head": jnp.zeros((4, 4, 3))}
  labels = jnp.arange(num_images)[None] % 3
  ridge = dd_jax.ridge(lambda w, x: jnp.tanh(x @ w), 3, regularization=.1)

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
from tests.ridge_regression_test import _ridge_hypergradient
gradient, images = _ridge_hypergradient()
for _ in range(1000):
  jax.block_until_ready(gradient(images))
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300,
                 cwd=pathlib.Path(__file__).parents[1])


def test_targets_are_reached_as_they_are(x64):
  """Numbers to predict have no mean of 1 / K."""
  inputs = jnp.eye(3).reshape(1, 3, 3)
  targets = jnp.asarray([[[1., 2.], [3., 4.], [5., 6.]]])
  train = dd_jax.ridge(lambda params, x: x @ params, None, regularization=1e-9)
  params, _ = train(None, {"features": jnp.eye(3), "head": jnp.zeros((3, 2))},
                    dd_jax.DistilledData(inputs, targets, jnp.zeros((1, 1))))
  predicted = ridge_regression.ridge_apply(lambda params, x: x @ params)(params, inputs[0])
  np.testing.assert_allclose(predicted, targets[0], atol=1e-6)
