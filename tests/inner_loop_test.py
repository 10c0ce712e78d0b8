"""The inner trajectory: closed forms, modes that must agree, stretches, types, keys, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import inner_loop
from dd_jax import optimizers
from dd_jax import parametrization
from dd_jax import step_sizes
from tests import problems

_MODES = [(memory, gradient) for memory in inner_loop.MEMORY_MODES
          for gradient in inner_loop.GRADIENT_MODES]
_KEY = jax.random.key(3)


def _start():
  """Weights and distilled data, the labels hard."""
  trainable, decode = problems.trainable()
  return problems.init(jax.random.key(0)), decode(trainable)


def test_gradient_descent_on_least_squares_has_its_closed_form(x64):
  """Section 3.3: theta_1 = (I - (eta/M) d^T d) theta_0 + (eta/M) d^T t, applied T times."""
  draw = np.random.RandomState(0)
  points, targets = draw.standard_normal((2, 4, 3)), draw.standard_normal((2, 4))
  theta = draw.standard_normal(3)
  sizes = np.array([[.3, .2], [.1, .4]])

  def loss(theta, points, targets):
    return .5 * jnp.mean((points @ theta - targets) ** 2)

  final, losses = dd_jax.unroll(loss)(None, theta, dd_jax.DistilledData(points, targets, sizes))
  expected_losses = []
  for e in range(2):
    for s in range(2):
      d, t, eta = points[s], targets[s], sizes[e, s] / 4
      expected_losses.append(.5 * np.mean((d @ theta - t) ** 2))
      theta = (np.eye(3) - eta * d.T @ d) @ theta + eta * d.T @ t
  np.testing.assert_allclose(final, theta, rtol=1e-12)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [None, optax.sgd(1., momentum=.9)])
def test_hyper_parameters_that_nothing_reads_are_named(optimizer):
  trainable, decode = problems.trainable(soft=True)
  distilled = decode(trainable)._replace(hyper={"decay": jnp.asarray(.9)})
  with pytest.raises(ValueError, match=r"hyper must be \(\) for an optimizer that is no function"):
    dd_jax.unroll(problems.inner_loss, optimizer)(None, problems.init(jax.random.key(0)), distilled)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", [
    pytest.param("gradient_descent", marks=pytest.mark.slow), "adam"])
def test_memory_and_gradient_modes_agree(x64, name):
  """By inputs, soft labels, step sizes, theta_0 and hyper-parameters."""
  trainable, decode = problems.trainable(soft=True)
  hyper = {key: jnp.asarray(value) for key, value in optimizers.DEFAULTS[name].items()}
  variables = trainable, problems.init(jax.random.key(0)), hyper

  def outer(variables, memory, gradient):
    trainable, params, hyper = variables
    train = dd_jax.unroll(problems.inner_loss, optimizers.INNER_OPTIMIZERS[name], memory=memory,
                          gradient=gradient)
    final, losses = train(None, params, decode(trainable)._replace(hyper=hyper))
    # The reported losses carry a gradient too.
    return problems.inner_loss(final, *problems.real()) + .1 * losses.sum()

  results = {mode: jax.jit(jax.grad(functools.partial(outer, memory=mode[0], gradient=mode[1])))(
      variables) for mode in _MODES}
  assert all(jnp.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(results["plain", "reverse"]))
  for result in results.values():
    *by_data, by_hyper = zip(result, results["plain", "reverse"], strict=True)
    for pair in by_data:
      problems.assert_close(*pair, 1e-12)
    problems.assert_close(*by_hyper, 1e-11)  # One number, of terms that cancel.


def test_memory_and_gradient_modes_agree_for_a_loss_that_takes_a_key(x64):
  trainable, decode = problems.trainable()
  params = problems.init(jax.random.key(0))

  def noisy(params, inputs, labels, key):
    return problems.inner_loss(params, inputs + jax.random.normal(key, inputs.shape), labels)

  def outer(trainable, memory, gradient):
    train = dd_jax.unroll(noisy, memory=memory, gradient=gradient)
    return problems.inner_loss(train(jax.random.key(1), params, decode(trainable))[0],
                               *problems.real())

  expected, *others = (jax.jit(jax.grad(functools.partial(
      outer, memory=memory, gradient=gradient)))(trainable) for memory, gradient in (
          ("plain", "reverse"), (2, "reverse"), ("plain", "forward_over_reverse"),
          (2, "forward_over_reverse")))
  for other in others:
    problems.assert_close(other, expected, 1e-12)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_nested_covers_every_length(x64, length):
  params, distilled = _start()

  def run(memory):
    train = dd_jax.unroll(problems.inner_loss, memory=memory)
    return train.stretch(None, train.begin(params, distilled), distilled, 0, length)

  problems.assert_close(run("nested"), run("plain"), 1e-13)


def test_stretches_chain_to_the_whole_trajectory_and_one_program_serves_all(x64):
  """With the state of the optimizer; steps without a gradient lead to the same place."""
  params, distilled = _start()
  train = dd_jax.unroll(problems.inner_loss, optax.sgd(1., momentum=.9), memory="nested")
  whole, losses = train(None, params, distilled)
  stretch = jax.jit(lambda state, start: train.stretch(None, state, distilled, start, 2))
  state, pieces = train.begin(params, distilled), []
  for start in (0, 2, 4):
    state, piece = stretch(state, start)
    pieces.append(piece)
  assert stretch._cache_size() == 1
  np.testing.assert_allclose(jnp.concatenate(pieces), losses, rtol=1e-12)
  problems.assert_close(state.params, whole, 1e-12)
  advanced = train.advance(None, train.begin(params, distilled), distilled, 0, 6)
  problems.assert_close(advanced, state, 1e-12)


def test_every_step_has_a_key_of_its_own(x64):
  """The keys belong to the position: a stretch draws what the whole trajectory drew there."""
  params, distilled = _start()

  def noisy_loss(params, inputs, labels, key):
    return jax.random.uniform(key) + 0 * problems.inner_loss(params, inputs, labels)

  train = dd_jax.unroll(noisy_loss)
  _, draws = train(_KEY, params, distilled)
  assert len(np.unique(draws)) == 6
  _, piece = train.stretch(_KEY, train.begin(params, distilled), distilled, 2, 3)
  np.testing.assert_array_equal(piece, draws[2:5])


def test_a_network_with_dropout_gets_the_key_of_its_step(x64):
  """`classification` of an apply that takes a key, by hand; without one it has no noise."""
  params, distilled = _start()

  def apply(params, inputs, key=None):
    kept = 1. if key is None else jax.random.bernoulli(key, .5, inputs.shape).astype(inputs.dtype)
    return problems.apply(params, kept * inputs)

  loss = dd_jax.losses.classification(apply)
  trained, _ = dd_jax.unroll(loss)(_KEY, params, distilled)
  for t in range(6):
    gradient = jax.grad(loss)(params, distilled.inputs[t % 3], distilled.labels[t % 3],
                              key=jax.random.fold_in(_KEY, t))
    params = jax.tree.map(lambda p, g, t=t: p - distilled.step_sizes[t // 3, t % 3] * g, params,
                          gradient)
  problems.assert_close(trained, params, 1e-12)
  images, labels = problems.real()
  np.testing.assert_array_equal(loss(params, images, labels),
                                problems.inner_loss(params, images, labels))


@pytest.mark.parametrize("gradient", inner_loop.GRADIENT_MODES)
def test_what_a_loss_returns_beside_is_ignored(x64, gradient):
  params, distilled = _start()

  def with_auxiliary(params, inputs, labels):
    logits = problems.apply(params, inputs)
    return jnp.mean(dd_jax.losses.cross_entropy(logits, labels)), {"logits": logits}

  actual, expected = (
      jax.grad(lambda distilled, loss=loss: dd_jax.unroll(loss, gradient=gradient)(
          None, params, distilled)[1].sum(), allow_int=True)(distilled)
      for loss in (with_auxiliary, problems.inner_loss))
  np.testing.assert_allclose(actual.inputs, expected.inputs, rtol=1e-12)
  assert jnp.abs(expected.inputs).max() > 1e-3


def test_momentum_follows_its_definition(x64):
  params, distilled = _start()
  actual, _ = dd_jax.unroll(problems.inner_loss, optax.sgd(1., momentum=.9))(
      None, params, distilled)
  velocity = jax.tree.map(jnp.zeros_like, params)
  for t in range(6):
    gradient = jax.grad(problems.inner_loss)(params, distilled.inputs[t % 3],
                                             distilled.labels[t % 3])
    velocity = jax.tree.map(lambda v, g: .9 * v + g, velocity, gradient)
    size = distilled.step_sizes[t // 3, t % 3]
    params = jax.tree.map(lambda p, v: p - size * v, params, velocity)
  problems.assert_close(actual, params, 1e-12)


def test_an_optimizer_that_wants_the_loss_gets_it(x64):
  """Updates of loss times gradient, against the same steps by hand."""
  def update(gradient, state, params=None, *, value, **_):
    del params
    return jax.tree.map(lambda g: -value * g, gradient), state

  optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
  params, distilled = _start()
  trained, _ = dd_jax.unroll(problems.inner_loss, optimizer)(None, params, distilled)
  for e, s in np.ndindex(distilled.step_sizes.shape):
    loss, gradient = jax.value_and_grad(problems.inner_loss)(
        params, distilled.inputs[s], distilled.labels[s])
    scale = distilled.step_sizes[e, s] * loss
    params = jax.tree.map(lambda p, g, scale=scale: p - scale * g, params, gradient)
  problems.assert_close(trained, params, 1e-12)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("weights, name, mode", [
    pytest.param("bfloat16", "momentum", ("plain", "forward_over_reverse"), marks=pytest.mark.slow),
    pytest.param("bfloat16", "adam", ("nested", "reverse"), marks=pytest.mark.slow),
    ("float16", "momentum", ("remat", "reverse"))])
def test_weights_of_half_precision_keep_their_type_beside_float32_data(weights, name, mode):
  """Near the trajectory and the hypergradient of float32, in the types of what was given."""
  trainable, decode = problems.trainable()
  params = problems.init(jax.random.key(0))

  def outer(trainable, params):
    distilled = decode(trainable)._replace(hyper=dict(optimizers.DEFAULTS[name]))
    distilled = distilled._replace(step_sizes=.1 * distilled.step_sizes)
    train = dd_jax.unroll(problems.inner_loss, optimizers.INNER_OPTIMIZERS[name], memory=mode[0],
                          gradient=mode[1])
    final, losses = train(None, params, distilled)
    return problems.inner_loss(final, *problems.real()) + losses.mean(), (final, losses)

  run = jax.jit(jax.value_and_grad(outer, (0, 1), has_aux=True))
  half = jax.tree.map(lambda x: x.astype(weights), params)
  (value, (final, losses)), gradient = run(trainable, half)
  (expected, _), expected_gradient = run(trainable, params)
  assert losses.dtype == value.dtype == jnp.float32
  for leaf in jax.tree.leaves((final, gradient[1])):
    assert leaf.dtype == weights
  for leaf in jax.tree.leaves(gradient[0]):
    assert leaf.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=.02)
  difference = optax.tree.norm(jax.tree.map(lambda a, b: a.astype(b.dtype) - b, gradient,
                                            expected_gradient))
  assert difference < .1 * optax.tree.norm(expected_gradient)


@pytest.mark.usefixtures("optax_promotion")
def test_float32_weights_and_data_stay_float32_in_x64_mode(x64):
  """Momentum and fixed step sizes that were given as Python numbers are float64 there."""
  trainable, _ = problems.trainable()
  learned = parametrization.join(
      parametrization.pixels(trainable["inputs"].shape),
      parametrization.fixed_labels(jnp.zeros((3, 4), jnp.int32)),
      step_sizes.fixed(2, 3, .1), optimizers.fixed_hyper({"decay": .9}))
  distilled = learned.decode(learned.init(jax.random.key(1)))
  assert distilled.inputs.dtype == distilled.step_sizes.dtype == jnp.float32
  assert distilled.hyper["decay"].dtype == jnp.float64
  params = jax.tree.map(lambda x: x.astype(jnp.float32), problems.init(jax.random.key(0)))
  for memory, gradient in (("remat", "reverse"), ("nested", "forward_over_reverse")):
    train = dd_jax.unroll(problems.inner_loss, optimizers.momentum, memory=memory,
                          gradient=gradient)
    final, losses = train(None, params, distilled)
    assert {x.dtype for x in jax.tree.leaves((final, losses))} == {jnp.dtype("float32")}
    assert losses[-1] < losses[0]
    state, _ = train.stretch(None, train.begin(params, distilled), distilled, 0, 2)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_a_step_is_computed_in_the_widest_type_where_promotion_is_strict(x64):
  weight, step_size = jnp.array([1.], jnp.float32), jnp.array(1e-9, jnp.float64)
  state = inner_loop.InnerState(weight, optax.sgd(1.).init(weight))
  new, _ = inner_loop.inner_step(lambda params: (jnp.zeros(()), -1e9 * params), optax.sgd(1.),
                                 state, (), step_size)
  assert new.params.dtype == jnp.float32 and new.params == 2.


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_fixed_step_sizes_have_the_type_of_what_is_learned(x64, dtype):
  for value in (.1, np.full((2, 3), .1)):
    learned = parametrization.join(
        parametrization.pixels((3, 4, 2)), parametrization.fixed_labels(jnp.zeros((3, 4), int)),
        step_sizes.fixed(2, 3, value), dtype=dtype)
    trainable = learned.init(jax.random.key(0))
    assert trainable.keys() == {"inputs"} and trainable["inputs"].dtype == dtype
    found = learned.decode(trainable).step_sizes
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.full((2, 3), .1).astype(dtype))


@pytest.mark.usefixtures("optax_promotion")
def test_an_optimizer_with_a_key_in_its_state_runs(x64):
  params, distilled = _start()
  quiet, noisy = (dd_jax.unroll(problems.inner_loss, optax.chain(
      optax.add_noise(eta, .5, jax.random.key(0)), optax.sgd(1.)))(None, params, distilled)[0]
                  for eta in (0., 1.))
  problems.assert_close(quiet, dd_jax.unroll(problems.inner_loss)(None, params, distilled)[0],
                        1e-12)
  assert jnp.abs(noisy["first"] - quiet["first"]).max() > 1e-3


@pytest.mark.parametrize("options, message", [
    (dict(memory="swap"), r"memory must be one of \['plain', 'remat', 'nested'\], or a number of "
     r"states from 2 on; got 'swap'"),
    (dict(gradient="numeric"), r"gradient must be one of .*; got 'numeric'"),
])
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    dd_jax.unroll(problems.inner_loss, **options)


@pytest.mark.parametrize("start, length, message", [
    (0, 7, r"length must lie in 1..6 \(E \* S\); got 7"),
    (0, 0, r"length must lie in 1..6 \(E \* S\); got 0"),
    (3, 4, r"start must lie in 0..2 \(E \* S - length\); got 3"),
    (np.int64(5), 2, r"start must lie in 0..4 \(E \* S - length\); got 5"),
    (np.int64(-1), 2, r"start must lie in 0..4 \(E \* S - length\); got -1"),
])
def test_a_stretch_that_does_not_fit_is_named(start, length, message):
  params, distilled = _start()
  train = dd_jax.unroll(problems.inner_loss)
  with pytest.raises(ValueError, match=message):
    train.stretch(None, train.begin(params, distilled), distilled, start, length)


@pytest.mark.parametrize("field, value, message", [
    ("labels", np.zeros((3, 5), np.int32),
     r"labels must begin with \[S, B\] = \[3, 4\].*\[3, 5\]"),
    ("step_sizes", np.zeros((2, 4)), r"step_sizes must be \[E, S\] with S = 3.*\[2, 4\]"),
    ("step_sizes", np.zeros(6), r"step_sizes must be \[E, S\] with S = 3.*\[6\]"),
    ("inputs", np.zeros(3), r"inputs must be arrays \[S, B, ...\].*\[\[3\]\]"),
    ("inputs", {"a": np.zeros((3, 4)), "b": np.zeros((3, 5))},
     r"inputs must be arrays \[S, B, ...\] with one S and one B; got \[\[3, 4\], \[3, 5\]\]"),
    ("inputs", {}, r"inputs must be arrays \[S, B, ...\] with one S and one B; got \[\]"),
])
def test_distilled_data_that_does_not_fit_is_named(field, value, message):
  params, distilled = _start()
  with pytest.raises(ValueError, match=message):
    dd_jax.unroll(problems.inner_loss)(None, params, distilled._replace(**{field: value}))
