"""dd_jax.truncation: windows against the trajectory they are cut from, and warm starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import truncation
from dd_jax.inner_loop import InnerState
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_TOTAL = problems.NUM_STEPS * problems.NUM_EPOCHS
_RANDOM = dd_jax.random_init(problems.init)
_MOMENTUM = optax.sgd(1., momentum=.9)
_STARTS = {"last": truncation.last_start, "random": truncation.random_start,
           "adaptive": truncation.adaptive_start()}


def _outer_loss(decode, train, num_inits=1, **options):
  return dd_jax.make_outer_loss(decode, _RANDOM, train, problems.inner_loss, num_inits=num_inits,
                                **options)


def _window(start, length, memory="remat"):
  return dd_jax.window(dd_jax.unroll(problems.inner_loss, _MOMENTUM, memory=memory), start=start,
                       length=length)


def _networks(key, num_inits):
  """Those of one outer step."""
  networks = _RANDOM.sample(truncation.objective_keys(key)[0], num_inits)
  return [jax.tree.map(lambda leaf, n=n: leaf[n], networks) for n in range(num_inits)]


def _window_loss(trainable, decode, params, start, length):
  """The definition: momentum steps, the first `start` of them without a gradient."""
  distilled = decode(trainable)
  velocity = jax.tree.map(jnp.zeros_like, params)
  for t in range(start + length):
    data = jax.lax.stop_gradient(distilled) if t < start else distilled
    gradient = jax.grad(problems.inner_loss)(params, data.inputs[t % 3], data.labels[t % 3])
    velocity = jax.tree.map(lambda v, g: .9 * v + g, velocity, gradient)
    size = data.step_sizes[t // 3, t % 3]
    params = jax.tree.map(lambda p, v: p - size * v, params, velocity)
    if t == start - 1:
      params, velocity = jax.lax.stop_gradient((params, velocity))
  return problems.inner_loss(params, *problems.real())


@pytest.mark.parametrize("length, memory", [(2, "plain"), (3, "nested")])
def test_the_hypergradient_of_a_window_is_its_definition(x64, length, memory):
  trainable, decode = problems.trainable(soft=True)
  key = jax.random.key(5)
  outer_loss = _outer_loss(decode, _window(truncation.last_start, length, memory))
  actual = jax.jit(jax.value_and_grad(outer_loss))(trainable, (), key, *problems.real())
  expected = jax.jit(jax.value_and_grad(lambda trainable, params: _window_loss(
      trainable, decode, params, _TOTAL - length, length)))(trainable, *_networks(key, 1))
  problems.assert_close(actual, expected, 1e-9)


def test_a_window_of_a_plateau_follows_the_trajectory(x64):
  """An optimizer whose state begins at infinity."""
  trainable, decode = problems.trainable(soft=True)
  plateau = optax.chain(optax.sgd(1.), optax.contrib.reduce_on_plateau(patience=1, factor=.1))
  train = dd_jax.unroll(problems.inner_loss, plateau)
  params, distilled = problems.init(jax.random.key(0)), decode(trainable)
  found, _ = dd_jax.window(train, start=truncation.last_start, length=2)(
      jax.random.key(1), params, distilled)
  problems.assert_close(found, train(jax.random.key(1), params, distilled)[0], 1e-12)


@pytest.mark.parametrize("kept", [False, True], ids=["beside", "in its state"])
def test_a_window_gives_closed_values_and_hyper_parameters_its_own_gradient(x64, kept):
  """As the window's steps from a fixed state; wherever the optimizer keeps its learning rate."""
  trainable, decode = problems.trainable()
  start, length, key = _TOTAL - 2, 2, jax.random.key(5)

  def descend(learning_rate):
    return optax.chain(optax.trace(.3), optax.scale(-learning_rate))

  def make(scale, rate, optimizer=descend):
    unrolled = dd_jax.unroll(lambda *args: scale * problems.inner_loss(*args), optimizer)
    return unrolled, decode(trainable)._replace(hyper=rate)

  def outer_loss(scale, rate):
    unrolled, distilled = make(scale, rate, lambda hyper: optax.inject_hyperparams(descend)(
        learning_rate=hyper) if kept else descend(hyper))
    return _outer_loss(lambda _: distilled, dd_jax.window(
        unrolled, start=truncation.last_start, length=length))(
            trainable, (), key, *problems.real())

  at = jnp.asarray(1.3), jnp.asarray(.9)
  (params,) = _networks(key, 1)
  unrolled, distilled = make(*at)
  state = unrolled.advance(None, unrolled.begin(params, distilled), distilled, 0, start)

  def of_window(scale, rate):
    unrolled, distilled = make(scale, rate)
    moved, _ = unrolled.stretch(None, state, distilled, start, length)
    return problems.inner_loss(moved.params, *problems.real())

  expected = jax.grad(of_window, (0, 1))(*at)
  assert np.abs(expected).min() > 1e-3
  problems.assert_close(expected, jax.jit(jax.grad(outer_loss, (0, 1)))(*at), 1e-10)


@pytest.mark.slow
def test_random_windows_occur_everywhere_and_one_program_serves_all(x64):
  """Two networks in blocks of one or together: an outer step has one window for all of them."""
  trainable, decode = problems.trainable()
  steps = [jax.jit(jax.value_and_grad(_outer_loss(
      decode, _window(truncation.random_start, 3), 2, num_parallel=num_parallel)))
           for num_parallel in (None, 1)]
  loss_of = jax.jit(lambda params, start: problems.inner_loss(  # Up to the end of a window.
      dd_jax.unroll(problems.inner_loss, _MOMENTUM).advance(
          None, InnerState(params, _MOMENTUM.init(params)), decode(trainable), 0, start + 3).params,
      *problems.real()))
  reached = np.zeros(_TOTAL - 2, int)
  for seed in range(40):
    key = jax.random.key(seed)
    (loss, gradient), in_blocks = (step(trainable, (), key, *problems.real()) for step in steps)
    problems.assert_close(in_blocks, (loss, gradient), 1e-11)
    values = [np.mean([loss_of(params, start) for params in _networks(key, 2)])
              for start in range(_TOTAL - 2)]
    (start,) = np.flatnonzero(np.abs(np.array(values) - loss) < 1e-9)
    reached[start] += 1
    # Step sizes outside the window have no gradient.
    inside = (np.arange(_TOTAL) >= start) & (np.arange(_TOTAL) < start + 3)
    np.testing.assert_array_equal(np.asarray(gradient["step_sizes"]).reshape(-1) != 0, inside)
  assert [step._cache_size() for step in steps] == [1, 1]
  assert reached.min() >= 3


@pytest.mark.parametrize("name", [
    name if name == "random" else pytest.param(name, marks=pytest.mark.slow) for name in _STARTS])
def test_an_inner_loss_with_keys_sees_those_of_its_steps(name):
  """A window of the whole trajectory is the trajectory, noise of every step included."""
  trainable, decode = problems.trainable()

  def noisy(params, inputs, labels, key):
    return problems.inner_loss(params, inputs + jax.random.normal(key, inputs.shape), labels)

  whole = dd_jax.unroll(noisy)
  window = dd_jax.window(whole, start=_STARTS[name], length=_TOTAL)
  actual, expected = (jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, train, 2)))(
      trainable, (), jax.random.key(3), *problems.real()) for train in (window, whole))
  problems.assert_close(actual, expected, 1e-5)


def test_an_adaptive_window_prefers_where_the_inner_loss_changes():
  """Step sizes of zero everywhere but in the last two steps: only there the loss moves."""
  trainable, decode = problems.trainable()
  distilled = decode(trainable)
  distilled = distilled._replace(
      inputs=jnp.tile(distilled.inputs[:1], (3, 1, 1, 1, 1)),
      labels=jnp.tile(distilled.labels[:1], (3, 1)),
      step_sizes=jnp.zeros((problems.NUM_EPOCHS, problems.NUM_STEPS)).at[1, 1:].set(.7))
  losses = dd_jax.unroll(problems.inner_loss)(None, problems.init(jax.random.key(0)), distilled)[1]

  def starts(temperature):
    start = truncation.adaptive_start(temperature)
    return np.asarray(jax.vmap(lambda key: start(key, _TOTAL - 2, lambda: losses))(
        jax.random.split(jax.random.key(0), 30)))

  # The losses before steps 4 and 5 differ by step 4; what step 5 changes is never seen.
  assert set(starts(.2).tolist()) <= {3, 4}
  assert len(set(starts(1e6).tolist())) >= 4


@pytest.mark.parametrize("temperature", [.5, 1., 2.])
def test_an_adaptive_window_is_drawn_by_its_share_of_the_change(temperature):
  losses = jnp.array([7., 6., 6., 4., 4.])  # Windows of two steps change by 1, 2, 2 and 0.
  start, number = truncation.adaptive_start(temperature), 20_000
  found = jax.vmap(lambda key: start(key, 3, lambda: losses))(
      jax.random.split(jax.random.key(0), number))
  expected = np.array([1., 2., 2., 0.]) ** (1 / temperature)
  np.testing.assert_allclose(np.bincount(found, minlength=4) / number, expected / expected.sum(),
                             atol=.018)  # Five standard errors.


def test_a_start_sees_the_losses_of_the_whole_trajectory_with_the_key_of_training(x64):
  trainable, decode = problems.trainable()
  params, distilled, seen = problems.init(jax.random.key(0)), decode(trainable), []

  def noisy(params, inputs, labels, key):
    return problems.inner_loss(params, inputs + jax.random.normal(key, inputs.shape), labels)

  def start(key, last, losses):
    seen.append(losses())
    return 0

  train = dd_jax.unroll(noisy, _MOMENTUM)
  key = jax.random.key(7)
  dd_jax.window(train, start=start, length=2)(key, params, distilled)
  np.testing.assert_allclose(seen[0], train(key, params, distilled)[1], rtol=1e-12)


def test_a_window_by_itself_has_the_losses_of_the_trajectory_there(x64):
  """Outside of an outer loss every network places its own window, by its key."""
  trainable, decode = problems.trainable()
  params, distilled = problems.init(jax.random.key(0)), decode(trainable)
  _, losses = dd_jax.unroll(problems.inner_loss, _MOMENTUM)(None, params, distilled)
  train = jax.jit(_window(truncation.random_start, 4))
  found = set()
  for seed in range(12):
    _, piece = train(jax.random.key(seed), params, distilled)
    (start,) = (s for s in range(3) if np.allclose(piece, losses[s:s + 4], rtol=1e-11, atol=0))
    found.add(start)
  assert found == {0, 1, 2}


def _warm(size=4, length=2, num_inits=2, loss=problems.inner_loss, optimizer=_MOMENTUM):
  return dd_jax.warm_start(_RANDOM, dd_jax.unroll(loss, optimizer), size=size, length=length,
                           num_inits=num_inits)


def test_warm_starts_move_on_by_windows_and_begin_anew_at_the_end(x64):
  """With frozen distilled data every network of the pool lies on a trajectory of its own."""
  trainable, decode = problems.trainable()
  distilled, warm = decode(trainable), _warm()
  train = dd_jax.unroll(problems.inner_loss, _MOMENTUM)
  pool = warm.begin(jax.random.key(0), (), distilled)
  positions = [np.zeros(4, int)]
  carry_on = jax.jit(warm.carry_on)
  advance = jax.jit(lambda state, start: train.advance(None, state, distilled, start, 2))
  for seed in range(12):
    before, key = pool, jax.random.key(seed)
    chosen = np.asarray(warm.init.draw(pool, truncation.objective_keys(key)[0], 2))
    pool = carry_on(key, pool, (), distilled)
    positions.append(np.asarray(pool.position))
    fresh = _RANDOM.sample(truncation.objective_keys(key)[2], 2)
    for place, row in enumerate(chosen):  # A trajectory that has ended makes room for a network.
      if positions[-1][row] == 0:
        new = jax.tree.map(lambda leaf, row=row: leaf[row], pool)
        problems.assert_close(new.params, jax.tree.map(
            lambda leaf, place=place: leaf[place], fresh), 1e-12)
        assert not any(leaf.any() for leaf in jax.tree.leaves(new.opt_state))
    for row in range(4):
      expected = positions[-2][row] + 2 * (row in chosen)
      assert positions[-1][row] == (0 if expected + 2 > _TOTAL else expected)
      start, end = (jax.tree.map(lambda leaf, row=row: leaf[row], at) for at in (before, pool))
      if row in chosen and positions[-1][row]:
        problems.assert_close(end[:2], tuple(advance(InnerState(*start[:2]), start.position)),
                              1e-11)
  assert set(np.concatenate(positions)) == {0, 2, 4}


@pytest.mark.slow
def test_warm_outer_steps_with_augmentation_and_keys_are_their_definition(x64):
  """Noise in every inner step, augmented real images; network by network, step by step."""
  trainable, decode = problems.trainable(soft=True)

  def noisy(params, inputs, labels, key):
    return problems.inner_loss(params, inputs + jax.random.normal(key, inputs.shape), labels)

  def augment(key, images):
    return images + .1 * jax.random.normal(key, images.shape)

  warm, train = _warm(loss=noisy), dd_jax.unroll(noisy, _MOMENTUM)
  loop = dd_jax.make_outer_loop(
      dd_jax.make_outer_loss(decode, warm.init, warm.train, problems.inner_loss, num_inits=2),
      optax.sgd(.1), augment=augment, carry_on=lambda key, pool, init_state, trainable:
      warm.carry_on(key, pool, init_state, decode(trainable)))
  state = loop.init(trainable, warm.begin(jax.random.key(0), (), decode(trainable)))
  step, (images, labels) = jax.jit(loop.step), problems.real()

  @jax.jit
  def by_hand(key, trainable, pool):
    key, augment_key = jax.random.split(key)
    draw_key, train_key, _ = truncation.objective_keys(key)
    places = jax.random.permutation(draw_key, 4)[:2]

    def loss(trainable):
      ends = []
      for n in range(2):
        network = jax.tree.map(lambda leaf, n=n: leaf[places[n]], pool)
        ends.append(train.stretch(jax.random.fold_in(train_key, n), InnerState(*network[:2]),
                                  decode(trainable), network.position, 2)[0])
      values = [problems.inner_loss(end.params, augment(augment_key, images), labels)
                for end in ends]
      return (values[0] + values[1]) / 2, ends

    (value, ends), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
    return value, jax.tree.map(lambda x, g: x - .1 * g, trainable, gradient), places, ends

  moved = 0
  for seed in range(4):
    key, before = jax.random.key(seed), state
    state, info = step(key, before, (), images, labels)
    value, expected, places, ends = by_hand(key, before.trainable, before.carry)
    np.testing.assert_allclose(info.loss, value, rtol=1e-11)
    problems.assert_close(state.trainable, expected, 1e-11)
    for place, end in zip(places, ends, strict=True):
      position = before.carry.position[place] + 2
      if position + 2 <= _TOTAL:
        moved += 1
        network = jax.tree.map(lambda leaf, place=place: leaf[place], state.carry)
        assert network.position == position
        problems.assert_close(network[:2], tuple(end), 1e-11)
  assert moved >= 4


@pytest.mark.slow
def test_outer_steps_with_warm_starts_learn_and_carry_their_pool():
  trainable, decode = problems.trainable(soft=True)
  warm = _warm()
  loop = dd_jax.make_outer_loop(
      dd_jax.make_outer_loss(decode, warm.init, warm.train, problems.inner_loss, num_inits=2),
      optax.adam(.05), carry_on=lambda key, pool, init_state, trainable: warm.carry_on(
          key, pool, init_state, decode(trainable)))
  images, _ = problems.real(64)
  labels = jnp.argmax(images.reshape(64, -1)[:, :3], -1)  # Something that can be learned.
  state = loop.init(trainable, warm.begin(jax.random.key(0), (), decode(trainable)))
  state, infos = jax.jit(lambda state: jax.lax.scan(
      lambda state, key: loop.step(key, state, (), images, labels), state,
      jax.random.split(jax.random.key(1), 150)))(state)
  assert set(np.asarray(state.carry.position)) <= {0, 2, 4} and state.carry.position.any()
  assert infos.finite.all() and np.mean(infos.loss[-30:]) < .7 * np.mean(infos.loss[:30])


@pytest.mark.parametrize("start", _STARTS.values(), ids=_STARTS)
def test_a_window_longer_than_the_trajectory_is_named(start):
  trainable, decode = problems.trainable()
  with pytest.raises(ValueError, match=r"length must lie in 1\.\.6 \(E \* S\); got 7"):
    _outer_loss(decode, _window(start, 7))(trainable, (), jax.random.key(0), *problems.real())


def test_a_pool_whose_windows_are_longer_than_the_trajectory_is_named():
  trainable, decode = problems.trainable()
  warm = _warm(length=7)
  pool = warm.begin(jax.random.key(0), (), decode(trainable))
  with pytest.raises(ValueError, match=r"length must lie in 1\.\.6 \(E \* S\); got 7"):
    warm.carry_on(jax.random.key(0), pool, (), decode(trainable))


def test_other_bad_arguments_are_named():
  with pytest.raises(ValueError, match="temperature must be positive; got 0"):
    truncation.adaptive_start(0)
  with pytest.raises(ValueError, match="size must be at least num_inits=2; got 1"):
    _warm(size=1)
  with pytest.raises(ValueError, match="train must be one of inner_loop.unroll to have windows"):
    dd_jax.window(dd_jax.implicit(problems.inner_loss), length=2)
  with pytest.raises(ValueError, match="train must be one of inner_loop.unroll to have windows"):
    dd_jax.warm_start(_RANDOM, dd_jax.implicit(problems.inner_loss), size=2, length=2, num_inits=1)


def test_an_outer_loss_of_another_n_than_the_warm_start_is_named():
  trainable, decode = problems.trainable()
  warm = _warm()
  outer_loss = dd_jax.make_outer_loss(decode, warm.init, warm.train, problems.inner_loss,
                                      num_inits=4)
  pool = warm.begin(jax.random.key(0), (), decode(trainable))
  with pytest.raises(ValueError, match="num_inits must be 2, as of the warm start; got 4"):
    outer_loss(trainable, pool, jax.random.key(0), *problems.real())


def test_warm_starts_of_flax_networks_take_their_batch_in_chunks():
  model = models.mlp(num_classes=3, image_shape=problems.IMAGE_SHAPE)
  loss = losses.classification(model.apply)
  trainable, decode = problems.trainable()
  warm = dd_jax.warm_start(dd_jax.random_init(model.init), dd_jax.unroll(loss), size=2, length=2,
                           num_inits=1)
  pool = warm.begin(jax.random.key(0), (), decode(trainable))
  whole, cut = (dd_jax.make_outer_loss(
      decode, warm.init, warm.train, loss, num_inits=1, chunk_size=size)(
          trainable, pool, jax.random.key(1), *problems.real()) for size in (None, 4))
  np.testing.assert_allclose(cut, whole, rtol=1e-5)


@pytest.mark.parametrize("warm", [False, True], ids=["window", "warm start"])
def test_an_optimizer_that_cannot_be_differentiated_is_refused_in_stretches_too(warm):
  trainable, decode = problems.trainable()
  init, train, state = _RANDOM, dd_jax.unroll(problems.inner_loss, optax.adam(1.)), ()
  if warm:
    begin, init, train, _ = dd_jax.warm_start(init, train, size=2, length=2, num_inits=1)
    state = jax.eval_shape(begin, jax.random.key(0), (), decode(trainable))
  else:
    train = dd_jax.window(train, length=2)
  outer_loss = dd_jax.make_outer_loss(decode, init, train, problems.inner_loss, num_inits=1)
  with pytest.raises(ValueError, match=r"\(Adam needs eps_root > 0\)"):
    jax.eval_shape(outer_loss, trainable, state, jax.random.key(0), *problems.real())


def test_a_warm_start_without_its_pool_is_refused():
  trainable, decode = problems.trainable()
  warm = _warm()
  loss = dd_jax.make_outer_loss(decode, warm.init, warm.train, problems.inner_loss, num_inits=2)
  with pytest.raises(ValueError, match="carry must be the pool of a warm start"):
    loss(trainable, (), jax.random.key(0), *problems.real())
