"""dd_jax.step_sizes: what is learned of step sizes, what they decode to, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import step_sizes


def inverse_softplus(x):
  return step_sizes.encode(x, "softplus", x.dtype)


@pytest.mark.usefixtures("x64")
def test_inverse_softplus_float64():
  x = np.logspace(-8, 3, 111)
  raw = inverse_softplus(x)
  np.testing.assert_allclose(jax.nn.softplus(raw), x, rtol=1e-13)
  moderate = x < 30  # Beyond, exp(x) - 1 and exp(x) are the same.
  np.testing.assert_allclose(raw[moderate], np.log(np.expm1(x[moderate])), rtol=1e-11, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_softplus_then_inverse():
  raw = np.linspace(-18, 500, 100)
  np.testing.assert_allclose(inverse_softplus(jax.nn.softplus(jnp.asarray(raw))), raw, rtol=1e-13)


def test_inverse_softplus_float32():
  """It does not overflow."""
  x = np.logspace(-8, 30, 77, dtype=np.float32)
  raw = inverse_softplus(x)
  assert raw.dtype == jnp.float32
  np.testing.assert_allclose(jax.nn.softplus(raw), x, rtol=1e-5)


def test_encoded_values():
  np.testing.assert_allclose(step_sizes.encode(0.02, "log"), np.log(0.02), rtol=1e-6)
  np.testing.assert_allclose(step_sizes.encode(0.02, "softplus"), np.log(np.expm1(0.02)), rtol=1e-5)
  assert step_sizes.encode(0.02, "log").dtype == jnp.float32


@pytest.mark.parametrize("scale", step_sizes.SCALES)
@pytest.mark.parametrize("start", [1e-6, 0.001, 0.02, 1.0, 50.0])
def test_a_step_size_comes_out_as_it_went_in(scale, start):
  part = step_sizes.learned(2, 3, start, scale=scale)
  np.testing.assert_allclose(part.decode(part.init(jax.random.key(0))), np.full((2, 3), start),
                             rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale, sizes, slope", [
    # The softplus and its derivative.
    ("softplus", lambda raw: np.log1p(np.exp(raw)), lambda raw: 1 / (1 + np.exp(-raw))),
    # The derivative is the step size itself: a step in the logarithm is a ratio.
    ("log", np.exp, np.exp),
])
def test_learned_numbers_stand_for_step_sizes_themselves(scale, sizes, slope):
  raw = np.asarray([[-4.0, -0.5], [0.0, 2.0]])
  part = step_sizes.learned(2, 2, .1, scale=scale)
  np.testing.assert_allclose(part.decode(jnp.asarray(raw)), sizes(raw), rtol=1e-12)
  actual = jax.grad(lambda raw: part.decode(raw).sum())(jnp.asarray(raw))
  np.testing.assert_allclose(actual, slope(raw), rtol=1e-12)


@pytest.mark.parametrize("scale", step_sizes.SCALES)
@pytest.mark.parametrize("sharing, shape", [
    ("per_step", (3, 2)), ("per_epoch", (3, 1)), ("tied", (1, 1))])
def test_shared_step_sizes(scale, sharing, shape):
  part = step_sizes.learned(3, 2, .1, sharing=sharing, scale=scale)
  start = part.init(jax.random.key(0))
  assert start.shape == shape
  learned = start + jnp.arange(float(start.size)).reshape(shape)
  sizes = np.exp(learned) if scale == "log" else np.log1p(np.exp(learned))
  np.testing.assert_allclose(part.decode(learned), np.broadcast_to(sizes, (3, 2)), rtol=1e-6)


@pytest.mark.parametrize("make", [step_sizes.learned, step_sizes.fixed])
def test_every_step_may_start_at_its_own(make):
  start = np.asarray([[.1, .2], [.3, .4], [.5, .6]], np.float32)
  part = make(3, 2, start)
  np.testing.assert_allclose(part.decode(part.init(jax.random.key(0))), start, rtol=1e-6)


def test_what_is_shared_may_start_as_a_whole_array():
  start = np.asarray([[.1, .1], [.3, .3]], np.float32)
  part = step_sizes.learned(2, 2, start, sharing="per_epoch")
  learned = part.init(jax.random.key(0))
  assert learned.shape == (2, 1)
  np.testing.assert_allclose(part.decode(learned), start, rtol=1e-6)
  with pytest.raises(ValueError, match=r"^start must be alike where step sizes are shared, "
                                       r"\[1, 1\] of \[2, 2\]; got"):
    step_sizes.learned(2, 2, start, sharing="tied")


def test_fixed_step_sizes_are_not_learned():
  part = step_sizes.fixed(2, 3, .25)
  assert part.init(jax.random.key(0)) == ()
  np.testing.assert_array_equal(part.decode(()), np.full((2, 3), .25))


@pytest.mark.parametrize("call, message", [
    (lambda: step_sizes.encode(0.1, "linear"),
     r"^scale must be one of \['softplus', 'log'\]; got 'linear'"),
    (lambda: step_sizes.learned(1, 1, .1, scale="linear"), "got 'linear'"),
    (lambda: step_sizes.learned(0, 1, .1), "num_epochs must be at least 1; got 0"),
    (lambda: step_sizes.fixed(1, 0, .1), "num_steps must be at least 1; got 0"),
    (lambda: step_sizes.learned(1, 1, .1, sharing="none"),
     r"sharing must be one of \['per_step', 'per_epoch', 'tied'\]; got 'none'"),
    (lambda: step_sizes.learned(3, 2, np.ones((2, 3))),
     r"^start must be a number or \[E, S\] = \[3, 2\]; got \[2, 3\]"),
])
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("step_size", [0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name, call", [
    ("step_size", lambda value: step_sizes.encode(value, "softplus")),
    ("step_size", lambda value: step_sizes.encode(value, "log")),
    ("start", lambda value: step_sizes.learned(1, 1, value)),
    ("value", lambda value: step_sizes.fixed(1, 1, value))])
def test_a_step_size_must_be_positive(name, call, step_size):
  with pytest.raises(ValueError, match=f"^{name} must be positive; got {step_size}"):
    call(step_size)
