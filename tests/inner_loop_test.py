"""The inner trajectory: closed forms, modes that must agree, windows, optimizers, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import inner_loop
from dd_jax import parametrization
from tests import problems

_MODES = [(memory, gradient) for memory in inner_loop.MEMORY_MODES
          for gradient in inner_loop.GRADIENT_MODES]
# eps_root: the derivative of a square root at zero is infinite.
_OPTIMIZERS = {
    "sgd": None,
    "momentum": optax.trace(decay=.9),
    "adam": optax.scale_by_adam(eps_root=1e-8),
}


def _relative_error(actual, expected):
  return optax.tree.norm(jax.tree.map(jnp.subtract, actual, expected)) / optax.tree.norm(
      expected)


def test_gradient_descent_on_least_squares_has_its_closed_form(x64):
  """Section 3.3: theta_1 = (I - (eta/M) d^T d) theta_0 + (eta/M) d^T t, applied T times."""
  draw = np.random.RandomState(0)
  points, targets = draw.standard_normal((2, 4, 3)), draw.standard_normal((2, 4))
  theta = draw.standard_normal(3)
  sizes = np.array([[.3, .2], [.1, .4]])
  data = dd_jax.DistilledData(jnp.asarray(points), jnp.asarray(targets),
                              parametrization.inverse_softplus(jnp.asarray(sizes)))

  def loss(theta, points, targets):
    return .5 * jnp.mean((points @ theta - targets) ** 2)

  final, losses = dd_jax.inner_trajectory(loss, jnp.asarray(theta), data)
  expected_losses = []
  for e in range(2):
    for s in range(2):
      d, t, eta = points[s], targets[s], sizes[e, s] / 4
      expected_losses.append(.5 * np.mean((d @ theta - t) ** 2))
      theta = (np.eye(3) - eta * d.T @ d) @ theta + eta * d.T @ t
  np.testing.assert_allclose(final, theta, rtol=1e-12)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
def test_memory_and_gradient_modes_agree(x64, optimizer):
  """With respect to images, soft labels, step sizes and theta_0."""
  trainable, decode = problems.trainable(soft=True)
  params, real = problems.init(jax.random.key(0)), problems.real()

  def outer(variables, memory, gradient):
    trainable, params = variables
    final, losses = dd_jax.inner_trajectory(
        problems.inner_loss, params, decode(trainable), optimizer=_OPTIMIZERS[optimizer],
        memory=memory, gradient=gradient)
    # The reported losses carry a gradient too.
    return problems.inner_loss(final, *real) + .1 * losses.sum()

  results = {mode: jax.jit(jax.grad(functools.partial(outer, memory=mode[0], gradient=mode[1])))(
      (trainable, params)) for mode in _MODES}
  reference = results["plain", "reverse"]
  assert optax.tree.norm(reference) > 1e-2
  for mode, result in results.items():
    assert _relative_error(result, reference) < 1e-12, mode


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_nested_covers_every_length(x64, length):
  trainable, decode = problems.trainable()
  params = problems.init(jax.random.key(0))
  run = functools.partial(dd_jax.inner_trajectory, problems.inner_loss, params, decode(trainable),
                          length=length)
  for nested, plain in zip(jax.tree.leaves(run(memory="nested")),
                           jax.tree.leaves(run(memory="plain"))):
    np.testing.assert_allclose(nested, plain, rtol=1e-13)


@pytest.mark.parametrize("memory", ["remat", "nested"])
def test_windows_chain_to_the_whole_trajectory(x64, memory):
  """A traced start: the same program serves every window."""
  trainable, decode = problems.trainable()
  params, distilled = problems.init(jax.random.key(0)), decode(trainable)
  whole, losses = dd_jax.inner_trajectory(problems.inner_loss, params, distilled)
  count = 0

  @jax.jit
  def window(params, start):
    nonlocal count
    count += 1
    return dd_jax.inner_trajectory(problems.inner_loss, params, distilled, start=start, length=2,
                                   memory=memory)

  pieces = []
  for start in (0, 2, 4):
    params, piece = window(params, start)
    pieces.append(piece)
  assert count == 1
  np.testing.assert_allclose(jnp.concatenate(pieces), losses, rtol=1e-12)
  assert _relative_error(params, whole) < 1e-12


def test_every_step_has_a_key_of_its_own(x64):
  """The keys belong to the position: a window draws what the whole trajectory drew there."""
  trainable, decode = problems.trainable()
  params = problems.init(jax.random.key(0))

  def noisy_loss(params, images, labels, key):
    return jax.random.uniform(key) + 0 * problems.inner_loss(params, images, labels)

  run = functools.partial(dd_jax.inner_trajectory, noisy_loss, params, decode(trainable),
                          key=jax.random.key(3))
  _, draws = run()
  assert len(np.unique(draws)) == 6
  _, window = run(start=2, length=3)
  np.testing.assert_array_equal(window, draws[2:5])


def test_momentum_follows_its_definition(x64):
  trainable, decode = problems.trainable()
  distilled, params = decode(trainable), problems.init(jax.random.key(0))
  actual, _ = dd_jax.inner_trajectory(problems.inner_loss, params, distilled,
                                      optimizer=optax.trace(decay=.9))
  velocity = jax.tree.map(jnp.zeros_like, params)
  for t in range(6):
    gradient = jax.grad(problems.inner_loss)(params, distilled.images[t % 3],
                                             distilled.labels[t % 3])
    velocity = jax.tree.map(lambda v, g: .9 * v + g, velocity, gradient)
    size = jax.nn.softplus(distilled.raw_step_sizes[t // 3, t % 3])
    params = jax.tree.map(lambda p, v: p - size * v, params, velocity)
  assert _relative_error(actual, params) < 1e-12


def test_an_optimizer_that_wants_the_loss_gets_it(x64):
  """Updates of loss times gradient, against the same steps by hand."""
  def update(gradient, state, params=None, *, value, **_):
    del params
    return jax.tree.map(lambda g: value * g, gradient), state

  optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
  trainable, decode = problems.trainable()
  distilled, params = decode(trainable), problems.init(jax.random.key(0))
  trained, _ = dd_jax.inner_trajectory(problems.inner_loss, params, distilled, optimizer=optimizer)
  for e, s in np.ndindex(distilled.step_sizes.shape):
    loss, gradient = jax.value_and_grad(problems.inner_loss)(
        params, distilled.images[s], distilled.labels[s])
    params = jax.tree.map(lambda p, g, e=e, s=s, loss=loss: p - distilled.step_sizes[e, s] * loss * g,
                          params, gradient)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), trained, params)


def test_hyper_parameters_of_the_optimizer_receive_a_gradient(x64):
  trainable, decode = problems.trainable()
  params, real = problems.init(jax.random.key(0)), problems.real()

  def outer(decay):
    final, _ = dd_jax.inner_trajectory(
        problems.inner_loss, params, decode(trainable), hyper=decay,
        optimizer=lambda decay: optax.trace(decay=decay), gradient="forward_over_reverse")
    return problems.inner_loss(final, *real)

  step = 1e-6
  numeric = (outer(.5 + step) - outer(.5 - step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(outer)(.5), numeric, rtol=1e-6)
  assert abs(numeric) > 1e-4


@pytest.mark.parametrize("options, message", [
    (dict(memory="swap"), r"memory must be one of \['plain', 'remat', 'nested'\]; got 'swap'"),
    (dict(gradient="numeric"), r"gradient must be one of .*; got 'numeric'"),
    (dict(length=7), r"length must lie in 1..6 \(E \* S\); got 7"),
    (dict(length=0), r"length must lie in 1..6 \(E \* S\); got 0"),
    (dict(start=3, length=4), r"start must lie in 0..2 \(E \* S - length\); got 3"),
])
def test_bad_options_are_named(options, message):
  trainable, decode = problems.trainable()
  with pytest.raises(ValueError, match=message):
    dd_jax.inner_trajectory(problems.inner_loss, problems.init(jax.random.key(0)),
                            decode(trainable), **options)


@pytest.mark.parametrize("field, value, message", [
    ("labels", jnp.zeros((3, 5), jnp.int32),
     r"labels must begin with \[S, B\] = \[3, 4\].*\[3, 5\]"),
    ("raw_step_sizes", jnp.zeros((2, 4)), r"raw_step_sizes must be \[E, S\] with S = 3.*\[2, 4\]"),
    ("raw_step_sizes", jnp.zeros(6), r"raw_step_sizes must be \[E, S\] with S = 3.*\[6\]"),
    ("images", jnp.zeros(3), r"images must be \[S, B, ...\].*\[3\]"),
])
def test_distilled_data_that_does_not_fit_is_named(field, value, message):
  trainable, decode = problems.trainable()
  with pytest.raises(ValueError, match=message):
    dd_jax.inner_trajectory(problems.inner_loss, problems.init(jax.random.key(0)),
                            decode(trainable)._replace(**{field: value}))
