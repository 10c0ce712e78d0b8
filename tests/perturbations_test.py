"""Changes of real examples stay within their bound, and have the right derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax import parametrization
from dd_jax import perturbations

_REAL = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 1))


@pytest.mark.parametrize("size", [1e-3, 1., 1e3])
def test_no_change_leaves_its_bound(x64, size):
  learned = size * jax.random.normal(jax.random.key(1), _REAL.shape)
  scale = np.array([2.])
  for norm, length in (("linf", lambda x: np.abs(x).max((2, 3, 4))),
                       ("l2", lambda x: np.sqrt((x ** 2).sum((2, 3, 4))))):
    part = perturbations.perturbed(_REAL, .3, norm=norm, scale=scale)
    np.testing.assert_array_equal(part.decode(part.init(jax.random.key(0))), _REAL)
    change = length(np.asarray(part.decode(learned) - _REAL) * scale)
    assert (change <= .3 + 1e-12).all()
    if size == 1e3:
      np.testing.assert_allclose(change, .3, rtol=1e-6)
    if size == 1e-3:
      np.testing.assert_allclose(part.decode(learned), _REAL + .3 * np.asarray(learned) / scale,
                                 atol=1e-7)


def test_pixels_stay_within_their_range():
  part = perturbations.perturbed(_REAL, 5., low=np.float32(-1), high=np.float32(2))
  for change, border in ((-100., -1), (100., 2)):
    np.testing.assert_array_equal(part.decode(jnp.full(_REAL.shape, change)),
                                  np.full(_REAL.shape, border))


@pytest.mark.parametrize("mean, std", [(.1307, .3081), (.4914, .2023), (.97, .01)])
def test_normalised_pixels_lie_in_their_range_but_for_rounding(mean, std):
  """Black and white in float32, against bounds that were computed in float64."""
  pixels = np.array([0, 255, 128, 1], np.uint8).reshape(1, 1, 2, 2, 1)
  real = datasets.normalize(pixels[0], [mean], [std])[None]
  low, high = (np.float32((end - mean) / std) for end in (0., 1.))
  part = perturbations.perturbed(real, 1 / 255, scale=np.float32(std), low=low, high=high)
  found = part.decode(part.init(jax.random.key(0)))
  np.testing.assert_allclose(found, real, rtol=1e-4)
  assert (found >= low).all() and (found <= high).all()


@pytest.mark.parametrize("norm", perturbations.NORMS)
@pytest.mark.parametrize("size", [0., .01, 3.])
def test_the_derivative_is_that_of_finite_differences(x64, norm, size):
  part = perturbations.perturbed(_REAL, .3, norm=norm, scale=2.)
  learned = size * jax.random.normal(jax.random.key(1), _REAL.shape)
  weights = jax.random.normal(jax.random.key(2), _REAL.shape)

  def value(learned):
    return (part.decode(learned) * weights).sum()

  gradient = jax.grad(value)(learned)
  assert jnp.isfinite(gradient).all()
  along = jax.random.normal(jax.random.key(3), _REAL.shape)
  found = (value(learned + 1e-6 * along) - value(learned - 1e-6 * along)) / 2e-6
  np.testing.assert_allclose(found, (gradient * along).sum(), rtol=1e-6)


def test_a_pixel_that_was_pushed_beyond_its_range_comes_back():
  """The gradient of the clip itself would be 0 there, and black would stay black for ever."""
  part = perturbations.perturbed(np.zeros((1, 1, 1), np.float32), .1, low=0., high=1.)

  def gradient(learned):
    return jax.grad(lambda learned: part.decode(learned).sum())(jnp.full((1, 1, 1), learned)).item()

  for learned in (0., -.01, -.5):
    assert part.decode(jnp.full((1, 1, 1), learned)).item() == 0
    assert gradient(learned) == pytest.approx(.1 * (1 - np.tanh(learned) ** 2), rel=1e-5)


def test_real_examples_stand_behind_the_learned_ones():
  part = perturbations.beside(parametrization.pixels((2, 1, 4, 4, 1)), _REAL)
  learned = part.init(jax.random.key(0))
  found = part.decode(learned)
  assert learned.shape == (2, 1, 4, 4, 1) and found.shape == (2, 4, 4, 4, 1)
  np.testing.assert_array_equal(found[:, :1], learned)
  np.testing.assert_array_equal(found[:, 1:], np.float32(_REAL))


@pytest.mark.parametrize("options, message", [
    ({"norm": "l1"}, r"norm must be one of \['linf', 'l2'\]; got 'l1'"),
    ({"epsilon": 0.}, "epsilon must be positive and finite; got 0.0"),
    ({"epsilon": float("nan")}, "epsilon must be positive and finite; got nan"),
    ({"epsilon": float("inf")}, "epsilon must be positive and finite; got inf"),
    ({"scale": 0.}, "scale must be positive; got 0.0"),
    ({"real": np.full((1, 2, 3), 30, np.uint8)}, "real must be floating point; got uint8"),
    ({"real": np.full((1, 2, 3), 30.), "high": 1.},
     r"real must lie in low\.\.high; 6 of its 6 numbers do not, and it is in 30\.0\.\.30\.0"),
    ({"real": np.array([[[-.5, .5]]]), "low": 0., "high": 1.}, "1 of its 2 numbers do not")])
def test_what_does_not_fit_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    perturbations.perturbed(**{"real": _REAL, "epsilon": .1, **options})
