"""dd_jax.models.norm: which numbers are normalised together, to any order of derivative."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from dd_jax.models import norm
from tests.arrays import assert_close
from tests.arrays import normal

# Of [n, H, W, groups, channels of a group].
AXES = {"instance": (1, 2), "batch": (0, 1, 2), "layer": (1, 2, 3, 4), "group": (1, 2, 4)}


def params(channels):
  return {"scale": normal(channels, seed=1), "bias": normal(channels, seed=2)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("channels, groups", [(4, 2), (64, 32), (6, 1)])
def test_every_norm_takes_its_axes(kind, channels, groups):
  """4 channels make two groups of two, 64 make 32; 6 are one group."""
  images, own = normal(3, 4, 2, channels), params(channels)
  x = np.asarray(images).reshape(3, 4, 2, groups, -1)
  x = (x - x.mean(AXES[kind], keepdims=True)) / np.sqrt(x.var(AXES[kind], keepdims=True) + 1e-5)
  assert_close(norm.Norm(kind).apply({"params": own}, images),
               x.reshape(images.shape) * np.asarray(own["scale"]) + np.asarray(own["bias"]))


def test_no_norm():
  images = normal(2, 3, 3, 4)
  assert norm.Norm("none").init(jax.random.key(0), images) == {}
  np.testing.assert_array_equal(norm.Norm("none").apply({}, images), images)


@pytest.mark.usefixtures("x64")
def test_layer_norm_of_the_last_axis():
  x, own = normal(3, 4, 5), params(5)
  expected = np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
  expected = expected / np.sqrt(np.asarray(x).var(-1, keepdims=True) + 1e-5)
  assert_close(norm.LayerNorm().apply({"params": own}, x),
               expected * np.asarray(own["scale"]) + np.asarray(own["bias"]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", AXES)
def test_second_derivatives_of_every_norm(kind):
  """Against finite differences, and finite where every variance is zero."""
  images, own = normal(2, 2, 2, 4), params(4)
  weights = normal(2, 2, 2, 4, seed=3)

  @jax.jit
  @jax.grad
  def gradient(images):
    return jnp.sum(weights * jnp.sin(norm.Norm(kind).apply({"params": own}, images)))

  check_grads(gradient, (images,), order=1, modes=["rev"], rtol=1e-6)
  constant = jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(jnp.ones_like(images))
  assert jnp.isfinite(constant).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_type_is_kept(dtype):
  images = normal(2, 3, 3, 4).astype(dtype)
  out, own = norm.Norm("group").init_with_output(jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves((out, own))} == {jnp.dtype(dtype)}


def response_norm_by_loop(x, alpha):
  x = np.asarray(x)
  out = np.empty_like(x)
  for *position, c in np.ndindex(x.shape):
    window = x[(*position, slice(max(c - 2, 0), c + 2))]
    out[(*position, c)] = x[(*position, c)] / (1 + alpha / 4 * np.sum(window ** 2)) ** 0.75
  return out


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 3, 3, 1), (1, 2, 2, 2), (2, 3, 2, 6), (1, 2, 2, 64)])
@pytest.mark.parametrize("options, alpha", [({}, 0.001 / 9), ({"alpha": 2.0}, 2.0)])
def test_local_response_norm(shape, options, alpha):
  x = 10 * normal(*shape)
  assert_close(norm.local_response_norm(x, **options), response_norm_by_loop(x, alpha))


@pytest.mark.usefixtures("x64")
def test_local_response_norm_gradient():
  x, weights, step = normal(1, 2, 1, 6), np.asarray(normal(1, 2, 1, 6, seed=1)), 1e-5

  def loss(x):
    return jnp.sum(weights * norm.local_response_norm(x, alpha=2.0))

  def loss_by_loop(x):
    return np.sum(weights * response_norm_by_loop(x, 2.0))

  differences = np.zeros(x.shape)
  for position in np.ndindex(x.shape):
    shift = np.zeros(x.shape)
    shift[position] = step
    differences[position] = (loss_by_loop(x + shift) - loss_by_loop(x - shift)) / (2 * step)
  assert_close(jax.grad(loss)(x), differences, tolerance=1e-8)
