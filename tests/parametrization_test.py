"""dd_jax.parametrization: labels, step sizes that come out as they went in, and decode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import parametrization


@pytest.mark.parametrize("arguments, expected", [
    ((1, 2, 1), [[0, 1]]),
    ((3, 2, 1), [[0, 1]] * 3),
    ((2, 3, 2), [[0, 0, 1, 1, 2, 2]] * 2),
    ((1, 10, 1), [range(10)]),
])
def test_class_labels(arguments, expected):
  labels = parametrization.class_labels(*arguments)
  np.testing.assert_array_equal(labels, [list(row) for row in expected])
  assert labels.dtype == jnp.int32


@pytest.mark.parametrize("arguments, text", [
    ((0, 2, 1), "num_steps must be at least 1; got 0"),
    ((1, 1, 1), "num_classes must be at least 2; got 1"),
    ((1, 2, 0), "images_per_class must be at least 1; got 0"),
    ((1, 2, -3), "images_per_class must be at least 1; got -3"),
])
def test_class_labels_errors(arguments, text):
  with pytest.raises(ValueError, match=text):
    parametrization.class_labels(*arguments)


@pytest.mark.usefixtures("x64")
def test_inverse_softplus_float64():
  x = np.logspace(-8, 3, 111)
  raw = parametrization.inverse_softplus(jnp.asarray(x))
  np.testing.assert_allclose(jax.nn.softplus(raw), x, rtol=1e-13)
  moderate = x < 30  # Beyond, exp(x) - 1 and exp(x) are the same.
  np.testing.assert_allclose(raw[moderate], np.log(np.expm1(x[moderate])), rtol=1e-11, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_softplus_then_inverse():
  raw = np.linspace(-18, 500, 100)
  back = parametrization.inverse_softplus(jax.nn.softplus(jnp.asarray(raw)))
  np.testing.assert_allclose(back, raw, rtol=1e-13)


def test_inverse_softplus_float32():
  """Neither the value nor the derivative 1 / (1 - exp(-x)) overflows."""
  x = np.logspace(-8, 30, 77, dtype=np.float32)
  raw = parametrization.inverse_softplus(jnp.asarray(x))
  assert raw.dtype == jnp.float32
  np.testing.assert_allclose(jax.nn.softplus(raw), x, rtol=1e-5)
  slope = jax.vmap(jax.grad(parametrization.inverse_softplus))(jnp.asarray(x))
  np.testing.assert_allclose(slope, -1 / np.expm1(-x.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("scale", parametrization.STEP_SIZE_SCALES)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("step_size", [1e-6, 0.001, 0.02, 1.0, 50.0])
def test_step_size_comes_out_as_it_went_in(x64, scale, dtype, tolerance, step_size):
  del x64
  raw = parametrization.encode_step_size(step_size, scale, dtype)
  assert (raw.shape, raw.dtype) == ((), dtype)
  labels = jnp.asarray([[0, 1]] * 3)
  images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4, 4, 1)), dtype)
  decode = parametrization.pixels(labels, step_size_scale=scale)
  distilled = decode({"images": images, "step_sizes": jnp.tile(raw, (2, 3))})
  assert distilled.step_sizes.dtype == dtype
  np.testing.assert_allclose(distilled.step_sizes, np.full((2, 3), step_size), rtol=tolerance)
  np.testing.assert_array_equal(distilled.images, images)
  np.testing.assert_array_equal(distilled.labels, labels)


def test_encoded_values():
  np.testing.assert_allclose(parametrization.encode_step_size(0.02, "log"), np.log(0.02), rtol=1e-6)
  np.testing.assert_allclose(parametrization.encode_step_size(0.02, "softplus"),
                             np.log(np.expm1(0.02)), rtol=1e-5)
  assert parametrization.encode_step_size(0.02, "log").dtype == jnp.float32


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale, expected", [
    ("softplus", lambda raw: 1 / (1 + np.exp(-raw))),  # Derivative of the softplus.
    ("log", np.exp),  # The step size itself: a step in the logarithm is a ratio.
])
def test_gradient_of_step_sizes(scale, expected):
  raw = jnp.asarray([[-4.0, -0.5], [0.0, 2.0]])
  decode = parametrization.pixels(jnp.zeros((2, 2), jnp.int32), step_size_scale=scale)

  def total(raw):
    return decode({"images": jnp.zeros((2, 2, 1, 1, 1)), "step_sizes": raw}).step_sizes.sum()

  np.testing.assert_allclose(jax.grad(total)(raw), expected(np.asarray(raw)), rtol=1e-12)


def test_soft_labels_pass_through():
  labels = jnp.asarray([[[0.25, 0.75], [1.0, 0.0]]])
  distilled = parametrization.pixels(labels)(
      {"images": jnp.zeros((1, 2, 2, 2, 1)), "step_sizes": jnp.zeros((1, 1))})
  np.testing.assert_array_equal(distilled.labels, labels)
  np.testing.assert_allclose(distilled.step_sizes, [[np.log(2)]], rtol=1e-6)


@pytest.mark.parametrize("call", [
    lambda: parametrization.pixels(jnp.zeros((1, 2), jnp.int32), step_size_scale="linear"),
    lambda: parametrization.encode_step_size(0.1, "linear"),
])
def test_unknown_scale(call):
  with pytest.raises(ValueError, match=r"step_size_scale must be one of \['softplus', 'log'\]; "
                                       r"got 'linear'"):
    call()


@pytest.mark.parametrize("scale", parametrization.STEP_SIZE_SCALES)
@pytest.mark.parametrize("step_size", [0, -0.1, float("nan")])
def test_step_size_must_be_positive(scale, step_size):
  with pytest.raises(ValueError, match=f"step_size must be positive; got {step_size}"):
    parametrization.encode_step_size(step_size, scale)
