"""dd_jax.parametrization: what parts start as, what they decode to, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import parametrization
from tests import problems


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
  labels = jnp.asarray([[0, 1]] * 3)
  learned = parametrization.paper(labels, (4, 4, 1), num_epochs=2, step_size=step_size,
                                  step_size_scale=scale, dtype=dtype)
  trainable = learned.init(jax.random.key(0))
  distilled = learned.decode(trainable)
  assert distilled.step_sizes.dtype == distilled.images.dtype == dtype
  np.testing.assert_allclose(distilled.step_sizes, np.full((2, 3), step_size), rtol=tolerance)
  np.testing.assert_array_equal(distilled.images, trainable["images"])
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
  part = parametrization.step_sizes(2, 2, .1, scale=scale)
  slope = jax.grad(lambda raw: jax.nn.softplus(part.decode(raw)).sum())(raw)
  np.testing.assert_allclose(slope, expected(np.asarray(raw)), rtol=1e-12)


@pytest.mark.parametrize("sharing, shape", [
    ("per_step", (3, 2)), ("per_epoch", (3, 1)), ("tied", (1, 1))])
def test_shared_step_sizes(sharing, shape):
  part = parametrization.step_sizes(3, 2, .1, sharing=sharing)
  start = part.init(jax.random.key(0))
  assert start.shape == shape
  learned = start + jnp.arange(float(start.size)).reshape(shape)
  raw = part.decode(learned)
  assert raw.shape == (3, 2)
  np.testing.assert_array_equal(raw, np.broadcast_to(learned, (3, 2)))


def test_what_is_not_learned_is_not_in_the_trainable():
  labels = jnp.asarray([[[0.25, 0.75], [1.0, 0.0]]])
  learned = parametrization.join(
      parametrization.pixels((1, 2, 2, 2, 1)), parametrization.fixed_labels(labels),
      parametrization.fixed_step_sizes(3, 1, .1))
  trainable = learned.init(jax.random.key(0))
  assert set(trainable) == {"images"}
  distilled = learned.decode(trainable)
  np.testing.assert_array_equal(distilled.labels, labels)
  np.testing.assert_allclose(distilled.step_sizes, np.full((3, 1), .1), rtol=1e-6)
  assert distilled.hyper == ()


@pytest.mark.parametrize("part", [
    parametrization.pixels((10, 50, 8, 8, 1)), parametrization.bases((10, 50, 8, 8, 1), 400)],
    ids=["pixels", "bases"])
def test_images_start_as_standard_normal_noise(part):
  images = part.decode(part.init(jax.random.key(0)))
  assert images.shape == (10, 50, 8, 8, 1)
  tolerance = .02  # Of 400 bases; independent pixels would be within .03 at five sigma.
  assert abs(images.mean()) < tolerance and abs(images.var() - 1) < 2 * tolerance


def test_images_start_where_they_are_told():
  start = jnp.arange(8.).reshape(1, 2, 2, 2, 1)
  part = parametrization.pixels((1, 2, 2, 2, 1), start)
  np.testing.assert_array_equal(part.decode(part.init(jax.random.key(0))), start)
  message = r"start must be .* = \[1, 3, 2, 2, 1\]; got \[1, 2, 2, 2, 1\]"
  with pytest.raises(ValueError, match=message):
    parametrization.pixels((1, 3, 2, 2, 1), start)


def test_images_are_sums_of_bases():
  learned = {"bases": jnp.asarray([[1., 2.], [10., 20.], [100., 200.]]).reshape(3, 1, 2, 1),
             "coefficients": jnp.asarray([[[1., 0., 0.], [2., 0., -1.]]])}
  images = parametrization.bases((1, 2, 1, 2, 1), 3).decode(learned)
  np.testing.assert_array_equal(images.reshape(2, 2), [[1, 2], [-98, -196]])


def test_upsampled_images_have_the_wanted_size_and_a_fraction_of_the_bytes():
  part = parametrization.upsampled((2, 3, 8, 8, 3), 2)
  small = part.init(jax.random.key(0))
  assert small.shape == (2, 3, 4, 4, 3)
  assert parametrization.num_bytes(small) == 4 * 2 * 3 * 4 * 4 * 3
  constant = part.decode(jnp.full((2, 3, 4, 4, 3), 7.))
  np.testing.assert_allclose(constant, np.full((2, 3, 8, 8, 3), 7.), rtol=1e-6)


def test_labels_start_one_hot_and_are_shared_by_a_class_where_tied():
  classes = jnp.asarray([[0, 2, 1], [2, 2, 0]])
  part = parametrization.tied_labels(classes, 3)
  table = part.init(jax.random.key(0))
  np.testing.assert_array_equal(part.decode(table), jax.nn.one_hot(classes, 3))
  table = table.at[2].set([5., -1., .5])
  np.testing.assert_array_equal(part.decode(table)[1, :2], [[5, -1, .5]] * 2)


def test_few_labels_share_the_classes_out():
  labels = parametrization.few_labels(2, 5, 2)
  np.testing.assert_allclose(labels, [[[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 0, .5, .5]]] * 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("images, labels, sharing", [
    (lambda shape: parametrization.pixels(shape),
     lambda hard: parametrization.soft_labels(jax.nn.one_hot(hard, 3)), "tied"),
    (lambda shape: parametrization.bases(shape, 2),
     lambda hard: parametrization.fixed_labels(hard), "per_epoch"),
    (lambda shape: parametrization.upsampled(shape, 2),
     lambda hard: parametrization.tied_labels(hard, 3), "fixed")],
                         ids=["pixels", "bases", "upsampled"])
def test_hypergradient_of_every_part_against_finite_differences(images, labels, sharing):
  hard = jnp.asarray([[0, 1, 2, 1]] * problems.NUM_STEPS)
  epochs, steps = problems.NUM_EPOCHS, problems.NUM_STEPS
  learned = parametrization.join(
      images((*hard.shape, *problems.IMAGE_SHAPE)), labels(hard),
      parametrization.fixed_step_sizes(epochs, steps, .3, dtype=float) if sharing == "fixed" else
      parametrization.step_sizes(epochs, steps, .3, sharing=sharing, scale="log"), dtype=float)
  outer_loss = jax.jit(dd_jax.make_outer_loss(
      learned.decode, dd_jax.random_init(problems.init).sample, problems.inner_loss,
      problems.inner_loss, num_inits=2))
  trainable, rest = learned.init(jax.random.key(1)), ((), jax.random.key(5), *problems.real())
  gradient = problems.check_hypergradient(outer_loss, trainable, *rest, rtol=1e-6)
  assert all(jnp.linalg.norm(leaf) > 1e-5 for leaf in jax.tree.leaves(gradient))


def test_learned_shares_start_at_their_values():
  part = parametrization.shares({"decay": .9, "b2": .25})
  np.testing.assert_allclose(list(part.decode(part.init(jax.random.key(0))).values()), [.25, .9],
                             rtol=1e-6)


_HARD = jnp.zeros((1, 2), jnp.int32)


@pytest.mark.parametrize("call, message", [
    (lambda: parametrization.encode_step_size(0.1, "linear"),
     r"step_size_scale must be one of \['softplus', 'log'\]; got 'linear'"),
    (lambda: parametrization.step_sizes(1, 1, .1, scale="linear"), "got 'linear'"),
    (lambda: parametrization.step_sizes(0, 1, .1), "num_epochs must be at least 1; got 0"),
    (lambda: parametrization.step_sizes(1, 1, .1, sharing="none"),
     r"sharing must be one of \['per_step', 'per_epoch', 'tied'\]; got 'none'"),
    (lambda: parametrization.bases((1, 2, 2, 2, 1), 0), "num_bases must be at least 1; got 0"),
    (lambda: parametrization.upsampled((1, 2, 4, 4, 1), 3),
     "factor must divide the image size 4x4; got 3"),
    (lambda: parametrization.few_labels(1, 3, 4), r"batch must lie in 1\.\.3 .*; got 4"),
    (lambda: parametrization.soft_labels(_HARD), r"start must be floating.*got int32 \[1, 2\]"),
    (lambda: parametrization.tied_labels(_HARD + 3, 3), r"integers in 0\.\.2; got int32 in 3\.\.3"),
    (lambda: parametrization.shares({"decay": 1.}), "decay must lie between 0 and 1 .*; got 1.0"),
])
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("scale", parametrization.STEP_SIZE_SCALES)
@pytest.mark.parametrize("step_size", [0, -0.1, float("nan")])
def test_step_size_must_be_positive(scale, step_size):
  with pytest.raises(ValueError, match=f"step_size must be positive; got {step_size}"):
    parametrization.encode_step_size(step_size, scale)
