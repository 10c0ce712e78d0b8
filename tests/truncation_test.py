"""dd_jax.truncation: windows against the trajectory they are cut from, and warm starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import inner_loop
from dd_jax import optimizers
from dd_jax import truncation
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_TOTAL = problems.NUM_STEPS * problems.NUM_EPOCHS
_RANDOM = dd_jax.random_init(problems.init)
_MOMENTUM = optax.trace(.9)


def _outer_loss(window, decode, num_inits=2, optimizer=_MOMENTUM, **options):
  return dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss, problems.inner_loss,
                                num_inits=num_inits, window=window, optimizer=optimizer, **options)


def _window_loss(trainable, decode, params, start, length):
  """The definition: momentum steps, the first `start` of them without a gradient."""
  distilled = decode(trainable)
  velocity = jax.tree.map(jnp.zeros_like, params)
  for t in range(start + length):
    data = jax.lax.stop_gradient(distilled) if t < start else distilled
    gradient = jax.grad(problems.inner_loss)(params, data.images[t % 3], data.labels[t % 3])
    velocity = jax.tree.map(lambda v, g: .9 * v + g, velocity, gradient)
    size = data.step_sizes[t // 3, t % 3]
    params = jax.tree.map(lambda p, v: p - size * v, params, velocity)
    if t == start - 1:
      params, velocity = jax.lax.stop_gradient((params, velocity))
  return problems.inner_loss(params, *problems.real())


@pytest.mark.parametrize("memory", ["plain", "nested"])
def test_the_hypergradient_of_a_window_is_its_definition(x64, memory):
  trainable, decode = problems.trainable(soft=True)
  key = jax.random.key(5)
  params = jax.tree.map(lambda leaf: leaf[0],
                        _RANDOM.sample((), truncation.objective_keys(key)[0], 1))
  for window, start in ((truncation.last_window(2), 4), (None, 0)):
    outer_loss = _outer_loss(window, decode, 1, memory=memory)
    actual = jax.jit(jax.value_and_grad(outer_loss))(trainable, (), key, *problems.real())
    expected = jax.value_and_grad(_window_loss)(trainable, decode, params, start, _TOTAL - start)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected))):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_random_windows_occur_everywhere_and_one_program_serves_all(x64):
  trainable, decode = problems.trainable()
  step = jax.jit(jax.value_and_grad(_outer_loss(truncation.random_window(3), decode, 1)))
  reached = {start: [] for start in range(_TOTAL - 2)}
  for seed in range(40):
    key = jax.random.key(seed)
    loss, gradient = step(trainable, (), key, *problems.real())
    params = jax.tree.map(lambda leaf: leaf[0],
                          _RANDOM.sample((), truncation.objective_keys(key)[0], 1))
    values = {start: float(_window_loss(trainable, decode, params, start, 3)) for start in reached}
    (start,) = (s for s, value in values.items() if abs(value - loss) < 1e-9)
    reached[start].append(seed)
    # Step sizes outside the window have no gradient.
    outside = [t for t in range(_TOTAL) if not start <= t < start + 3]
    assert not gradient["step_sizes"].reshape(-1)[np.array(outside)].any()
  assert step._cache_size() == 1
  assert min(map(len, reached.values())) >= 3


@pytest.mark.parametrize("name", truncation.WINDOWS)
def test_an_inner_loss_with_keys_sees_those_of_its_steps(name):
  """A window of the whole trajectory is the trajectory, noise of every step included."""
  trainable, decode = problems.trainable()

  def noisy(params, images, labels, key):
    return problems.inner_loss(params, images + jax.random.normal(key, images.shape), labels)

  def gradient(window):
    outer_loss = dd_jax.make_outer_loss(decode, _RANDOM.sample, noisy, problems.inner_loss,
                                        num_inits=2, window=window, keyed=True)
    return jax.jit(dd_jax.value_and_hypergrad(outer_loss))(
        trainable, (), jax.random.key(3), *problems.real())

  for actual, expected in zip(*map(jax.tree.leaves, (
      gradient(truncation.WINDOWS[name](_TOTAL)), gradient(None)))):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_an_adaptive_window_prefers_where_the_inner_loss_changes():
  """Step sizes of zero everywhere but in the last two steps: only there the loss moves."""
  trainable, decode = problems.trainable()
  distilled = decode(trainable)
  raw = jnp.full((problems.NUM_EPOCHS, problems.NUM_STEPS), -80.).at[1, 1:].set(0.)
  distilled = distilled._replace(images=jnp.tile(distilled.images[:1], (3, 1, 1, 1, 1)),
                                 labels=jnp.tile(distilled.labels[:1], (3, 1)),
                                 raw_step_sizes=raw)
  params = problems.init(jax.random.key(0))

  def starts(temperature):
    window = truncation.adaptive_window(2, temperature)
    start = lambda key: window(key, problems.inner_loss, params, distilled)["start"]
    return np.asarray(jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), 30)))

  # The losses before steps 4 and 5 differ by step 4; what step 5 changes is never seen.
  assert set(starts(.2).tolist()) <= {3, 4}
  assert len(set(starts(1e6).tolist())) >= 4


def test_what_a_window_begins_with_is_the_state_of_the_trajectory_there(x64):
  trainable, decode = problems.trainable()
  params, distilled = problems.init(jax.random.key(0)), decode(trainable)
  adam = optimizers.adam({"b1": .9, "b2": .99})
  run = functools.partial(dd_jax.inner_trajectory, problems.inner_loss, distilled=distilled,
                          optimizer=adam)
  whole, _ = run(params=params)
  begun = truncation.last_window(2)(jax.random.key(0), problems.inner_loss, params, distilled,
                                    optimizer=adam)
  end, _ = run(**begun)
  for a, b in zip(*map(jax.tree.leaves, (end, whole))):
    np.testing.assert_allclose(a, b, rtol=1e-11)


def _warm(size=4, length=2, num_inits=2):
  return truncation.warm_start(_RANDOM.sample, problems.inner_loss, size=size, length=length,
                               num_inits=num_inits, optimizer=_MOMENTUM)


def test_warm_starts_move_on_by_windows_and_begin_anew_at_the_end(x64):
  """With frozen distilled data every network of the pool lies on a trajectory of its own."""
  trainable, decode = problems.trainable()
  distilled, warm = decode(trainable), _warm()
  pool = warm.init(jax.random.key(0), (), distilled)
  positions = [np.zeros(4, int)]
  carry_on = jax.jit(warm.carry_on)
  for seed in range(12):
    before, key = pool, jax.random.key(seed)
    chosen = np.asarray(dd_jax.init_distributions.pool_rows(
        truncation.objective_keys(key)[0], 4, 2))
    pool = carry_on(key, pool, (), distilled)
    positions.append(np.asarray(pool.position))
    moved = {row: positions[-2][row] + 2 for row in chosen}
    for row in range(4):
      expected = moved.get(row, positions[-2][row])
      assert positions[-1][row] == (0 if expected + 2 > _TOTAL and row in moved else expected)
      start, end = (jax.tree.map(lambda leaf: leaf[row], at) for at in (before, pool))
      if row in moved and positions[-1][row]:
        state = inner_loop.advance(
            problems.inner_loss, start.params, distilled, 2, optimizer=_MOMENTUM,
            opt_state=start.opt_state, start=start.position)
        for a, b in zip(*map(jax.tree.leaves, (end[:2], state))):
          np.testing.assert_allclose(a, b, rtol=1e-11)
  assert set(np.concatenate(positions)) == {0, 2, 4}


def test_outer_steps_with_warm_starts_learn_and_carry_their_pool(x64):
  trainable, decode = problems.trainable(soft=True)
  warm, optimizer = _warm(), optax.adam(.05)
  outer_loss = dd_jax.make_outer_loss(decode, warm.sample, problems.inner_loss,
                                      problems.inner_loss, num_inits=2, window=warm.window,
                                      optimizer=_MOMENTUM)
  outer_step = jax.jit(dd_jax.make_outer_step(
      outer_loss, optimizer, carry_on=lambda key, pool, init_state, trainable: warm.carry_on(
          key, pool, init_state, decode(trainable))))
  state = dd_jax.init_outer_state(trainable, optimizer,
                                  warm.init(jax.random.key(0), (), decode(trainable)))
  images, _ = problems.real(64)
  labels = jnp.argmax(images.reshape(64, -1)[:, :3], -1)  # Something that can be learned.
  losses = []
  for step in range(150):
    state, info = outer_step(jax.random.key(step), state, (), images, labels)
    losses.append(float(info.loss))
  assert set(np.asarray(state.carry.position)) <= {0, 2, 4} and state.carry.position.any()
  assert np.mean(losses[-30:]) < .7 * np.mean(losses[:30])


@pytest.mark.parametrize("make", truncation.WINDOWS.values())
def test_a_window_longer_than_the_trajectory_is_named(make):
  trainable, decode = problems.trainable()
  with pytest.raises(ValueError, match=r"length must lie in 1\.\.6 \(E \* S\); got 7"):
    _outer_loss(make(7), decode)(trainable, (), jax.random.key(0), *problems.real())


def test_other_bad_arguments_are_named():
  with pytest.raises(ValueError, match="temperature must be positive; got 0"):
    truncation.adaptive_window(2, 0)
  with pytest.raises(ValueError, match="size must be at least num_inits=2; got 1"):
    _warm(size=1)
