"""dd_jax.implicit: where the inner loop reaches its optimum, all hypergradients agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import implicit_gradients
from dd_jax import losses
from dd_jax import optimizers
from dd_jax import parametrization
from dd_jax import step_sizes
from dd_jax import truncation

_IMAGE_SHAPE, _CLASSES = (2, 2, 1), 3


def _apply(params, images):
  return images.reshape(images.shape[0], -1) @ params["weights"] + params["bias"][None]


def _init(key):
  return {"weights": jax.random.normal(key, (4, _CLASSES)), "bias": jnp.zeros(_CLASSES)}


def _inner_loss(params, images, labels):
  """Strongly convex: every trajectory ends at the same place."""
  decay = sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params))
  return losses.classification(_apply)(params, images, labels) + .2 * decay


def _learned(num_epochs=200, hyper=None):
  """Soft labels and images learned, step size .5; 200 steps reach the optimum to 1e-16."""
  labels = jax.random.uniform(jax.random.key(1), (1, 5, _CLASSES))
  return parametrization.join(
      parametrization.pixels((1, 5, *_IMAGE_SHAPE)), parametrization.soft_labels(labels),
      step_sizes.fixed(num_epochs, 1, .5), hyper, dtype=float)


def _outer_loss(learned, train):
  return dd_jax.make_outer_loss(learned.decode, dd_jax.random_init(_init), train,
                                losses.classification(_apply), num_inits=2)


def _arguments(learned):
  images = jax.random.normal(jax.random.key(2), (7, *_IMAGE_SHAPE))
  return (learned.init(jax.random.key(0)), (), jax.random.key(3), images,
          jnp.arange(7) % _CLASSES)


def _hypergradient(learned, train):
  return jax.jit(jax.value_and_grad(_outer_loss(learned, train)))(*_arguments(learned))


@functools.cache
def _full_unroll():
  return _hypergradient(_learned(), dd_jax.unroll(_inner_loss))


def _assert_close(actual, expected, tolerance=1e-8):
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * jnp.abs(b).max())


@pytest.mark.parametrize("options", [
    dict(num_terms=40), dict(solver="neumann", num_terms=300)], ids=["cg", "neumann"])
def test_either_solver_equals_the_full_unroll_at_an_optimum(x64, options):
  expected = _full_unroll()
  assert jnp.abs(expected[1]["inputs"]).max() > 1e-3
  _assert_close(_hypergradient(_learned(), dd_jax.implicit(_inner_loss, **options)), expected)


@pytest.mark.parametrize("num_terms", [1, 20])
def test_a_neumann_series_equals_as_many_steps_unrolled_at_an_optimum(x64, num_terms):
  """Truncation to the last K steps, K terms of the series: the same sum."""
  window = dd_jax.window(dd_jax.unroll(_inner_loss), start=truncation.last_start,
                         length=num_terms)
  neumann = dd_jax.implicit(_inner_loss, solver="neumann", num_terms=num_terms)
  _assert_close(_hypergradient(_learned(), neumann), _hypergradient(_learned(), window))


def test_an_optimum_does_not_depend_on_step_sizes_or_initial_weights(x64):
  learned = parametrization.paper(jnp.asarray([[0, 1, 2]]), _IMAGE_SHAPE, num_epochs=50,
                                  step_size=.5, dtype=float)
  train, distilled = dd_jax.implicit(_inner_loss), learned.decode(learned.init(jax.random.key(0)))

  def norm(params, inputs, step_sizes):
    final, _ = train(None, params, distilled._replace(inputs=inputs, step_sizes=step_sizes))
    return jnp.sum(final["weights"] ** 2)

  by_params, by_inputs, by_step_sizes = jax.jit(jax.grad(norm, (0, 1, 2)))(
      _init(jax.random.key(1)), distilled.inputs, distilled.step_sizes)
  assert not by_step_sizes.any() and by_inputs.any()
  assert not any(leaf.any() for leaf in jax.tree.leaves(by_params))


@pytest.mark.parametrize("solver", implicit_gradients.SOLVERS)
@pytest.mark.parametrize("decay, damping", [(0., 0.), (.5, 0.), (0., .5)])
def test_two_minibatches_in_closed_form(x64, solver, decay, damping):
  """theta is drawn to the mean of S x B inputs, and decays: its Hessian is 1 + decay.

  The last step size is another one, and the answer does not depend on it.
  """
  def loss(theta, inputs, labels):
    del labels
    return .5 * jnp.mean((theta - inputs) ** 2)

  train = dd_jax.implicit(loss, optimizers.gradient_descent, solver=solver, num_terms=400,
                          damping=damping)
  sizes = jnp.full((200, 2), .5).at[-1, -1].set(.1)

  def theta(inputs):
    return train(None, jnp.zeros(()), dd_jax.DistilledData(
        inputs, jnp.zeros((2, 3), int), sizes, {"weight_decay": jnp.asarray(decay)}))[0]

  found = jax.jit(jax.grad(theta))(jnp.arange(6.).reshape(2, 3))
  np.testing.assert_allclose(found, np.full((2, 3), 1 / (6 * (1 + decay + damping))), rtol=1e-9)


@pytest.mark.parametrize("options, message", [
    (dict(solver="lu"), r"solver must be one of \['conjugate_gradient', 'neumann'\]; got 'lu'"),
    (dict(num_terms=0), "num_terms must be at least 1; got 0"),
    (dict(damping=-1.), "damping must not be negative; got -1.0"),
])
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    dd_jax.implicit(_inner_loss, **options)


@pytest.mark.parametrize("optimizer, start", [
    ("gradient_descent", {"weight_decay": .5}),
    pytest.param("nesterov", {"weight_decay": .3, "decay": .4}, marks=pytest.mark.slow),
])
def test_weight_decay_is_a_part_of_the_optimum(x64, optimizer, start):
  """By images, labels, the decay itself and the momentum, as the full unroll has it."""
  learned = _learned(hyper=optimizers.shares(start))
  optimizer = optimizers.INNER_OPTIMIZERS[optimizer]
  expected = _hypergradient(learned, dd_jax.unroll(_inner_loss, optimizer))
  actual = _hypergradient(learned, dd_jax.implicit(_inner_loss, optimizer, num_terms=40))
  assert all(jnp.abs(x).max() > 1e-5 for x in jax.tree.leaves(expected[1]["hyper"]))
  _assert_close(actual, expected)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", [optax.sgd(1.), optax.sgd(.5, momentum=.5)])
def test_optimizers_of_optax_come_to_the_same_optimum(x64, optimizer):
  actual = _hypergradient(_learned(), dd_jax.implicit(_inner_loss, optimizer, num_terms=40))
  _assert_close(actual, _full_unroll())


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", [
    optax.chain(optax.add_decayed_weights(.1), optax.sgd(1.)), lambda hyper: optimizers.adam({
        "b1": .9, "b2": .99, "weight_decay": .1})])
def test_an_optimizer_that_rests_elsewhere_is_refused(optimizer):
  learned = _learned()
  with pytest.raises(ValueError, match="optimizer must come to rest where the gradient is zero"):
    jax.eval_shape(_outer_loss(learned, dd_jax.implicit(_inner_loss, optimizer)),
                   *_arguments(learned))


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("solver", ["conjugate_gradient", "neumann"])
@pytest.mark.slow
def test_weights_of_half_precision_beside_float32_data(solver):
  """Near the hypergradient of float32, in the types of what was given."""
  learned = _learned(num_epochs=40)
  train, distilled = dd_jax.implicit(_inner_loss, solver=solver), learned.decode(
      learned.init(jax.random.key(0)))

  def norm(inputs, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), _init(jax.random.key(1)))
    final, _ = train(None, params, distilled._replace(inputs=inputs))
    assert final["weights"].dtype == dtype
    return jnp.sum(final["weights"].astype(jnp.float32) ** 2)

  half, expected = (jax.jit(jax.grad(norm), static_argnums=1)(distilled.inputs, dtype)
                    for dtype in (jnp.bfloat16, jnp.float32))
  assert half.dtype == jnp.float32
  assert jnp.linalg.norm(half - expected) < .1 * jnp.linalg.norm(expected)


def test_forward_mode_through_an_optimum_is_refused_in_one_line():
  learned = _learned(num_epochs=2)
  trainable, *rest = _arguments(learned)
  outer_loss = _outer_loss(learned, dd_jax.implicit(_inner_loss))
  with pytest.raises(TypeError, match="^can.t apply forward-mode .* to a custom_vjp function"):
    jax.jvp(lambda t: outer_loss(t, *rest), (trainable,), (trainable,))


@pytest.mark.parametrize("solver", ["conjugate_gradient", "neumann"])
def test_a_loss_with_a_key_and_several_networks(x64, solver):
  """Each network's optimum is of its own key."""
  def noisy(params, images, labels, *, key):
    return _inner_loss(params, images + .1 * jax.random.normal(key, images.shape), labels)

  learned = _learned(num_epochs=3)
  train = dd_jax.implicit(noisy, solver=solver)
  both = dd_jax.make_outer_loss(learned.decode, dd_jax.random_init(_init), train,
                                losses.classification(_apply), num_inits=2)
  one_by_one = dd_jax.make_outer_loss(learned.decode, dd_jax.random_init(_init), train,
                                      losses.classification(_apply), num_inits=2, num_parallel=1)
  results = [jax.jit(jax.value_and_grad(loss))(*_arguments(learned)) for loss in (both, one_by_one)]
  _assert_close(*results)
  assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(results[0][1]["inputs"]))


@pytest.mark.parametrize("options", [{}, {"solver": "neumann", "num_terms": 400}],
                         ids=["conjugate_gradient", "neumann"])
def test_the_optimum_is_of_the_key_that_training_had(x64, options):
  """theta* = u mean(x), with the u of the key: its derivative by each x is u / n."""
  def loss(theta, inputs, labels, key):
    return .5 * jnp.mean((theta - jax.random.uniform(key) * inputs) ** 2)

  def of(x):
    return dd_jax.DistilledData(x[None], jnp.zeros((1, x.size), jnp.int32), jnp.full((60, 1), .5))

  train, key, x = dd_jax.implicit(loss, **options), jax.random.key(4), jnp.array([1., 2., 4.])
  found = jax.grad(lambda x: train(key, jnp.zeros(()), of(x))[0])(x)
  np.testing.assert_allclose(found, jax.random.uniform(key) / x.size, rtol=1e-9)


def test_an_optimizer_that_closes_over_a_traced_number_is_refused():
  learned = _learned(num_epochs=3)

  def value(decay):
    train = dd_jax.implicit(_inner_loss, optax.sgd(1., momentum=decay, nesterov=True))
    return _outer_loss(learned, train)(*_arguments(learned))

  with pytest.raises(ValueError, match="optimizer must not close over traced numbers"):
    jax.jit(value)(.9)


def test_what_a_loss_closes_over_gets_its_gradient(x64):
  """A learned strength of the weight decay."""
  learned = _learned()

  def of_strength(strength, make_train):
    train = make_train(lambda params, *batch: _inner_loss(params, *batch) + strength * sum(
        jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)))
    return _outer_loss(learned, train)(*_arguments(learned))

  by_strength = jax.jit(jax.value_and_grad(of_strength), static_argnums=1)
  actual, expected = (by_strength(jnp.asarray(.1), make_train) for make_train in (
      functools.partial(dd_jax.implicit, num_terms=40), dd_jax.unroll))
  assert abs(expected[1]) > 1e-2
  _assert_close(actual, expected)


def test_memory_does_not_grow_with_the_steps_for_a_loss_that_closes_over_a_learned_number():
  def used(num_epochs):
    learned = _learned(num_epochs)

    def of_strength(strength):
      train = dd_jax.implicit(lambda params, *batch: _inner_loss(params, *batch) + strength * sum(
          jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)))
      return _outer_loss(learned, train)(*_arguments(learned))

    return jax.jit(jax.grad(of_strength)).lower(.1).compile().memory_analysis().temp_size_in_bytes

  assert used(5000) - used(50) < 4 * 8 * 4950  # Losses and step sizes; a step has 15 weights.
