"""dd_jax.parametrization: what parts start as, what they decode to, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import optimizers
from dd_jax import parametrization
from dd_jax import step_sizes
from tests import problems
from tests.arrays import jit


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


def test_papers_choice():
  labels = jnp.asarray([[0, 1]] * 3)
  learned = parametrization.paper(labels, (4, 4, 1), num_epochs=2, step_size=.02,
                                  step_size_scale="log")
  trainable = learned.init(jax.random.key(0))
  assert jax.tree.map(jnp.shape, trainable) == {"inputs": (3, 2, 4, 4, 1), "step_sizes": (2, 3)}
  distilled = learned.decode(trainable)
  np.testing.assert_array_equal(distilled.inputs, trainable["inputs"])
  np.testing.assert_array_equal(distilled.labels, labels)
  np.testing.assert_allclose(distilled.step_sizes, np.exp(trainable["step_sizes"]), rtol=1e-6)
  np.testing.assert_allclose(distilled.step_sizes, np.full((2, 3), .02), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_everything_learned_is_of_the_type_asked_for(x64, dtype):
  """Learned or not, step sizes too; labels that are not learned keep theirs."""
  start = np.linspace(0, 1, 12).reshape(1, 3, 2, 2, 1)
  hard = jnp.asarray([[0, 1, 2]], jnp.int32)
  for sizes in (step_sizes.learned(2, 1, .1), step_sizes.fixed(2, 1, .1)):
    learned = parametrization.join(
        parametrization.pixels(start.shape, start), parametrization.fixed_labels(hard), sizes,
        optimizers.shares({"decay": .9}), dtype=dtype)
    trainable = learned.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype(dtype)}
    distilled = learned.decode(trainable)
    assert distilled.labels.dtype == jnp.int32
    learned_fields = distilled.inputs, distilled.step_sizes, distilled.hyper["decay"]
    assert {x.dtype for x in learned_fields} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(distilled.inputs, start.astype(dtype))
    np.testing.assert_allclose(np.asarray(distilled.step_sizes, float), np.full((2, 1), .1),
                               rtol=8 * float(jnp.finfo(dtype).eps))


def test_the_start_outlives_a_donated_trainable():
  start = jnp.arange(8.).reshape(1, 2, 2, 2, 1)
  learned = parametrization.join(
      parametrization.pixels(start.shape, start),
      parametrization.fixed_labels(jnp.zeros((1, 2), jnp.int32)), step_sizes.fixed(1, 1, .1))
  trainable = learned.init(jax.random.key(0))
  jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)(trainable)
  np.testing.assert_array_equal(start.ravel(), range(8))


def test_parts_are_inputs_of_several_kinds():
  """Each by its own name and key; nothing of a kind that is not learned."""
  table = jnp.arange(6.).reshape(1, 2, 3)
  kinds = parametrization.parts({
      "image": parametrization.pixels((1, 2, 4, 4, 1)),
      "copy": parametrization.pixels((1, 2, 4, 4, 1)),
      "low": parametrization.upsampled((1, 2, 4, 4, 1), 2),
      "table": parametrization.pixels((1, 2, 3), table)})
  learned = parametrization.join(
      kinds, parametrization.fixed_labels(jnp.asarray([[0, 1]])), step_sizes.fixed(1, 1, .1))
  trainable = jit(learned.init)(jax.random.key(0))
  assert set(trainable) == {"inputs"}
  inputs = learned.decode(trainable).inputs
  assert jax.tree.map(jnp.shape, inputs) == {
      "image": (1, 2, 4, 4, 1), "copy": (1, 2, 4, 4, 1), "low": (1, 2, 4, 4, 1), "table": (1, 2, 3)}
  assert trainable["inputs"]["low"].shape == (1, 2, 2, 2, 1)
  assert np.all(inputs["image"] != inputs["copy"])
  np.testing.assert_array_equal(inputs["table"], table)


def test_what_is_not_learned_is_not_in_the_trainable():
  labels = jnp.asarray([[[0.25, 0.75], [1.0, 0.0]]])
  learned = parametrization.join(
      parametrization.pixels((1, 2, 2, 2, 1)), parametrization.fixed_labels(labels),
      step_sizes.fixed(3, 1, .1))
  trainable = learned.init(jax.random.key(0))
  assert set(trainable) == {"inputs"}
  distilled = learned.decode(trainable)
  np.testing.assert_array_equal(distilled.labels, labels)
  np.testing.assert_allclose(distilled.step_sizes, np.full((3, 1), .1), rtol=1e-6)
  assert distilled.hyper == ()


@pytest.mark.parametrize("part", [
    parametrization.pixels((10, 50, 8, 8, 1)), parametrization.bases((10, 50, 8, 8, 1), 400)],
    ids=["pixels", "bases"])
def test_images_start_as_standard_normal_noise(part):
  images = jit(lambda key: part.decode(part.init(key)))(jax.random.key(0))
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


def test_images_are_upsampled_between_the_centres_of_their_pixels():
  part = parametrization.upsampled((1, 1, 2, 4, 1), 2)
  wide = part.decode(jnp.array([0., 1.]).reshape(1, 1, 1, 2, 1))
  np.testing.assert_allclose(wide.reshape(2, 4), [[0, .25, .75, 1]] * 2, atol=1e-6)


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
@pytest.mark.parametrize("labels, sizes", [
    (lambda hard: parametrization.soft_labels(jax.nn.one_hot(hard, 3)),
     {"sharing": "tied", "scale": "log"}),
    (lambda hard: parametrization.tied_labels(hard, 3), {"sharing": "per_epoch"})],
                         ids=["soft", "tied"])
def test_hypergradient_of_every_part_against_finite_differences(labels, sizes):
  """The images that the network sees are the sum of three kinds of inputs."""
  hard = jnp.asarray([[0, 1, 2, 1]] * problems.NUM_STEPS)
  shape = (*hard.shape, *problems.IMAGE_SHAPE)
  learned = parametrization.join(
      parametrization.parts({"pixels": parametrization.pixels(shape),
                             "bases": parametrization.bases(shape, 2),
                             "upsampled": parametrization.upsampled(shape, 2)}),
      labels(hard), step_sizes.learned(problems.NUM_EPOCHS, problems.NUM_STEPS, .3, **sizes),
      dtype=float)
  loss = losses.classification(
      lambda params, inputs: problems.apply(params, sum(inputs.values())))
  init = dd_jax.fixed_init(jit(problems.init)(jax.random.key(3)))
  value_and_grad = jit(jax.value_and_grad(dd_jax.make_outer_loss(
      learned.decode, init, dd_jax.unroll(loss, memory="plain"), loss, num_inits=1)))
  images, classes = jit(problems.real)()
  trainable = jit(learned.init)(jax.random.key(1))
  rest = init.state, jax.random.key(5), {name: images for name in trainable["inputs"]}, classes
  _, gradient = value_and_grad(trainable, *rest)
  direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(float(x.size))).reshape(x.shape), trainable)

  def along(t):
    return value_and_grad(jax.tree.map(lambda x, d: x + t * d, trainable, direction), *rest)[0]

  exact = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
  np.testing.assert_allclose(exact, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6)
  assert all(jnp.linalg.norm(leaf) > 1e-5 for leaf in jax.tree.leaves(gradient))


def test_hyper_parameters_start_at_their_values():
  for part, learned in ((optimizers.shares({"decay": .9, "b2": .25}), 2),
                        (optimizers.fixed_hyper({"decay": .9, "b2": .25}), 0)):
    start = part.init(jax.random.key(0))
    assert len(start) == learned
    np.testing.assert_allclose([part.decode(start)[name] for name in ("decay", "b2")], [.9, .25],
                               rtol=1e-6)
  with pytest.raises(ValueError, match="decay must lie between 0 and 1 .*; got 1.0"):
    optimizers.shares({"decay": 1.})


def test_labels_are_learned_of_inputs_that_are_all_given():
  labels = jnp.ones((1, 2, 3)) / 3
  learned = parametrization.join(
      parametrization.inputs({"mask": (4,)}, 1, 2, given={"mask": jnp.arange(4.)}),
      parametrization.soft_labels(labels), step_sizes.fixed(1, 1, .1))
  trainable = learned.init(jax.random.key(0))
  assert set(trainable) == {"labels"}
  np.testing.assert_array_equal(learned.decode(trainable).inputs["mask"],
                                np.broadcast_to(np.arange(4), (1, 2, 4)))


_HARD = jnp.zeros((1, 2), jnp.int32)


@pytest.mark.parametrize("call, message", [
    (lambda: parametrization.bases((1, 2, 2, 2, 1), 0), "num_bases must be at least 1; got 0"),
    (lambda: parametrization.upsampled((1, 2, 4, 4, 1), 3),
     "factor must divide the image size 4x4; got 3"),
    (lambda: parametrization.few_labels(1, 3, 4), r"batch must lie in 1\.\.3 .*; got 4"),
    (lambda: parametrization.soft_labels(_HARD), r"start must be floating.*got int32 \[1, 2\]"),
    (lambda: parametrization.tied_labels(_HARD + 3, 3), r"integers in 0\.\.2; got int32 in 3\.\.3"),
    (lambda: parametrization.inputs((2, 2, 1), 1, 2, given={"mask": jnp.ones(2)}),
     r"given must be left out where inputs are one array; got \['mask'\]"),
])
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_several_inputs_begin_at_their_start_learned_and_given_alike():
  start = {"a": np.arange(6.).reshape(1, 2, 3), "b": np.arange(2.).reshape(1, 2, 1)}
  part = parametrization.inputs({"a": (3,), "b": (1,)}, 1, 2, start=start,
                                given={"b": np.zeros(1)})
  learned = part.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, part.decode(learned), start)
  moved = part.decode(jax.tree.map(lambda x: x + 1, learned))
  np.testing.assert_array_equal(moved["a"], start["a"] + 1)
  np.testing.assert_array_equal(moved["b"], start["b"])


@pytest.mark.parametrize("start, message", [
    ({"a": np.zeros((1, 2, 3))}, r"start must hold the inputs \['a', 'b'\]; got \['a'\]"),
    ({"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 2, 7))},
     r"start must have the shape \(1, 2, 1\) of b; got \(1, 2, 7\)")])
def test_a_start_of_several_inputs_that_does_not_fit(start, message):
  with pytest.raises(ValueError, match=message):
    parametrization.inputs({"a": (3,), "b": (1,)}, 1, 2, start=start, given={"b": np.zeros(1)})
