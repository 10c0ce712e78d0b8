"""dd_jax.models.pooling: the numbers of lax, to any order of derivative."""

import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax.models import convolution
from dd_jax.models import pooling
from tests.arrays import assert_close
from tests.arrays import jit
from tests.arrays import normal


def reduce_window(x, window, strides, padding):
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return lax.reduce_window(x, -np.inf, lax.max, (1, *window, 1),
                           (1, *strides, 1), sides)


POOLS = [  # Images, window, strides, padding.
    ((2, 6, 8, 3), (2, 2), (2, 2), 0),
    ((2, 7, 5, 2), (2, 2), (2, 2), 0),
    ((1, 8, 8, 2), (3, 3), (2, 2), 1),
    ((1, 7, 9, 2), (3, 3), (2, 2), 1),
    ((1, 8, 7, 1), (3, 3), (2, 2), 0),
    ((1, 8, 8, 1), (3, 2), (1, 2), 0),
    ((1, 8, 9, 1), (2, 1), (3, 2), 0),
    ((1, 1, 4, 1), (2, 2), (2, 2), 1),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape, window, strides, padding", POOLS)
@pytest.mark.parametrize("shift", [0, -100], ids=["any sign", "negative"])
def test_max_pool(shape, window, strides, padding, shift):
  values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)  # No ties.
  x = jnp.asarray(values / values.size - 0.5 + shift)

  def all_of(pool):
    def loss(x):
      return jnp.sum(jnp.sin(pool(x, window, strides, padding)))
    return pool(x, window, strides, padding), jax.grad(loss)(x)

  value, gradient = jit(lambda: all_of(pooling.max_pool))()
  assert np.all(np.isfinite(value))
  assert_close((value, gradient), jit(lambda: all_of(reduce_window))())


@pytest.mark.usefixtures("x64")
def test_max_pool_second_derivative():
  """Of sum(g^2) with g the gradient of sum(sin(max)): 2 cos * -sin at each window's maximum."""
  x = normal(2, 4, 6, 3)

  @jit
  @jax.grad
  def second(x):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pooling.max_pool(x, (2, 2), (2, 2)))))(x)
    return jnp.sum(jnp.square(gradient))

  x_max = np.repeat(np.repeat(pooling.max_pool(x, (2, 2), (2, 2)), 2, axis=1), 2, axis=2)
  assert_close(second(x), np.where(x == x_max, -2 * np.cos(x) * np.sin(x), 0))


@jit
@jax.grad
def gradient_of_max(x):
  return 3 * jnp.sum(pooling.max_pool(x, (2, 2), (2, 2)))


@jit
@jax.grad
def gradient_of_pooled_copy(x):
  """The same maximum, taken within the tile of a convolution that copies the pixels."""
  copy = convolution.tiled(x, jnp.ones((1, 1, 1, 1), x.dtype), (1, 1), "VALID",
                           dimension_numbers=("NHWC", "HWIO", "NHWC"), pool=2)
  return 3 * jnp.sum(copy)


@pytest.mark.parametrize("gradient_of_maximum", [gradient_of_max, gradient_of_pooled_copy])
@pytest.mark.parametrize("tied", [
    pixels for n in (2, 3, 4) for pixels in itertools.combinations(range(4), n)])
def test_max_pool_gives_one_of_tied_pixels_the_gradient(tied, gradient_of_maximum):
  x = np.zeros(4, np.float32)
  x[list(tied)] = 1
  gradient = gradient_of_maximum(x.reshape(1, 2, 2, 1)).reshape(4)
  assert sorted(gradient) == [0, 0, 0, 3]
  assert int(np.argmax(gradient)) in tied
  if tied in ((0, 1), (0, 2), (0, 1, 2, 3)):
    assert gradient[0] == 3


@pytest.mark.parametrize("shape, window, strides, padding", POOLS[:4])
def test_max_pool_conserves_the_gradient_of_constant_images(shape, window, strides, padding):
  x = jnp.full(shape, -2.0, jnp.float32)

  @jit
  def both(weights):
    out, vjp = jax.vjp(lambda x: pooling.max_pool(x, window, strides, padding), x)
    return out, vjp(weights)[0]

  out_shape = jax.eval_shape(lambda: reduce_window(x, window, strides, padding)).shape
  weights = np.random.default_rng(0).integers(1, 9, out_shape).astype(np.float32)
  out, gradient = both(weights)
  np.testing.assert_array_equal(out, np.full(out_shape, -2.0))
  np.testing.assert_array_equal(gradient.sum((1, 2)), weights.sum((1, 2)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape, window", [((2, 4, 6, 3), 2), ((2, 7, 5, 1), 2), ((1, 7, 6, 2), 3)])
def test_avg_pool(shape, window):
  x = normal(*shape)
  n, height, width, channels = shape
  expected = np.array([[[[np.mean(x[i, r:r + window, c:c + window, k]) for k in range(channels)]
                         for c in range(0, width - window + 1, window)]
                        for r in range(0, height - window + 1, window)] for i in range(n)])
  assert_close(pooling.avg_pool(x, window), expected)
