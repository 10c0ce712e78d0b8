"""Outer steps: compiled once, resumable at any step, frozen at the first bad one, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import parametrization
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_RANDOM = dd_jax.random_init(problems.init)


def _outer_step(optimizer=None, real_loss=problems.inner_loss, num_inits=2):
  trainable, decode = problems.trainable()
  optimizer = optimizer or optax.adam(.05)
  outer_loss = dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss, real_loss,
                                      num_inits=num_inits)
  return (dd_jax.make_outer_step(outer_loss, optimizer),
          dd_jax.init_outer_state(trainable, optimizer))


def _runner(outer_step, num_steps, batch_size=4, compiler_options=None, **options):
  return jax.jit(functools.partial(dd_jax.run_outer_steps, outer_step, jax.random.key(9),
                                   batch_size=batch_size, num_steps=num_steps, **options),
                 compiler_options=compiler_options)


def _assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_one_outer_step_is_one_optax_update_of_the_hypergradient(x64):
  trainable, decode = problems.trainable()
  optimizer = optax.sgd(.1)
  outer_loss = dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss,
                                      problems.inner_loss, num_inits=2)
  state = dd_jax.init_outer_state(trainable, optimizer)
  key, real = jax.random.key(4), problems.real()
  new_state, info = dd_jax.make_outer_step(outer_loss, optimizer)(key, state, (), *real)
  loss, gradient = dd_jax.value_and_hypergrad(outer_loss)(trainable, (), key, *real)
  for name in trainable:
    np.testing.assert_allclose(new_state.trainable[name], trainable[name] - .1 * gradient[name],
                               rtol=1e-12)
  np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
  np.testing.assert_allclose(info.hypergradient_norm, optax.tree.norm(gradient), rtol=1e-12)
  assert info.finite and new_state.step == 1


def test_the_second_call_does_not_compile():
  outer_step, state = _outer_step()
  run = _runner(outer_step, 2)
  real = problems.real()
  for _ in range(3):
    state, _ = run(state, (), *real)
  assert run._cache_size() == 1
  step = jax.jit(outer_step)
  for seed in range(3):
    state, _ = step(jax.random.key(seed), state, (), *real)
  assert step._cache_size() == 1


def test_interrupted_steps_continue_bit_for_bit():
  """11 images, R=4: epochs of 2 steps, so that the pieces begin inside and between epochs."""
  outer_step, state = _outer_step()
  real = problems.real(11)
  # As a run is compiled, whatever the suite's flags: else a scan of one step is another program.
  runner = functools.partial(_runner, outer_step,
                             compiler_options={"xla_backend_optimization_level": 3})
  whole, infos = runner(6)(state, (), *real)
  pieces = []
  for length in (1, 3, 2):
    state, piece = runner(length)(state, (), *real)
    pieces.append(piece)
  _assert_equal(state, whole)
  _assert_equal(jax.tree.map(lambda *x: jnp.concatenate(x), *pieces), infos)


def test_stop_freezes_the_state():
  outer_step, state = _outer_step()
  real = problems.real()
  expected, _ = _runner(outer_step, 3)(state, (), *real)
  actual, infos = _runner(outer_step, 5, stop=3)(state, (), *real)
  assert actual.step == 3
  _assert_equal(actual, expected)
  np.testing.assert_array_equal(infos.finite, [True] * 3 + [False] * 2)
  for values in (infos.loss, infos.hypergradient_norm):  # No step, no figure.
    np.testing.assert_array_equal(np.isnan(values), ~infos.finite)


@pytest.mark.parametrize("optimizer", [
    optax.chain(optax.sgd(.1), optax.contrib.reduce_on_plateau(patience=1, factor=.5)),
    optax.polyak_sgd(.1), optax.adam(.05)], ids=["reduce_on_plateau", "polyak_sgd", "adam"])
def test_optimizers_that_want_the_loss_get_it(optimizer):
  """Two steps are two updates by hand with the loss as value."""
  trainable, decode = problems.trainable()
  outer_loss = dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss,
                                      problems.inner_loss, num_inits=2)
  step = jax.jit(dd_jax.make_outer_step(outer_loss, optimizer))
  state = dd_jax.init_outer_state(trainable, optimizer)
  by_hand, opt_state = trainable, optimizer.init(trainable)
  for seed in range(3):
    arguments = (), jax.random.key(seed), *problems.real()
    state, _ = step(arguments[1], state, (), *arguments[2:])
    loss, gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(by_hand, *arguments)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradient, opt_state, by_hand, value=loss)
    by_hand = optax.apply_updates(by_hand, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
               state.trainable, by_hand)


def test_a_donated_state_leaves_the_callers_arrays():
  images = jax.random.normal(jax.random.key(0), (1, 3, *problems.IMAGE_SHAPE))
  labels = jnp.eye(3)[None]
  learned = parametrization.join(
      parametrization.pixels(images.shape, images), parametrization.soft_labels(labels),
      parametrization.step_sizes(2, 1, .1))
  outer_loss = dd_jax.make_outer_loss(
      learned.decode, _RANDOM.sample, problems.inner_loss, problems.inner_loss, num_inits=2)
  optimizer = optax.adam(.05)
  trainable = learned.init(jax.random.key(0))
  run = jax.jit(functools.partial(
      dd_jax.run_outer_steps, dd_jax.make_outer_step(outer_loss, optimizer), jax.random.key(9),
      batch_size=4, num_steps=1), donate_argnums=0)
  run(dd_jax.init_outer_state(trainable, optimizer), (), *problems.real())
  assert not any(x.is_deleted() for x in (images, labels, *jax.tree.leaves(trainable)))
  run(dd_jax.OuterState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32)), (),
      *problems.real())
  assert trainable["images"].is_deleted()  # Donation does take what it is given.
  assert not any(x.is_deleted() for x in (images, labels))


def test_every_epoch_is_another_permutation_of_the_real_images():
  """The outer step reports which images it was given: here their only pixel is their index."""
  images = jnp.arange(12.).reshape(12, 1, 1, 1)
  labels = jnp.arange(12, dtype=jnp.int32)

  def outer_step(key, state, init_state, images, labels):
    np.testing.assert_equal(images.shape, (4, 1, 1, 1))
    return state._replace(step=state.step + 1), dd_jax.OuterInfo(
        images.ravel(), labels, jnp.array(True))

  state = dd_jax.OuterState((), (), jnp.zeros((), jnp.int32))
  _, infos = _runner(outer_step, 6)(state, (), images, labels)
  np.testing.assert_array_equal(infos.loss.astype(int), infos.hypergradient_norm)
  first, second = infos.loss[:3].ravel(), infos.loss[3:].ravel()
  np.testing.assert_array_equal(np.sort(first), np.arange(12))
  np.testing.assert_array_equal(np.sort(second), np.arange(12))
  assert (first != second).any()


def test_every_minibatch_is_augmented_with_a_key_of_its_own():
  """The outer step reports the pixels it was given: 0 plus what augmentation drew."""
  def outer_step(key, state, init_state, images, labels):
    return state._replace(step=state.step + 1), dd_jax.OuterInfo(
        images.ravel(), labels, jnp.array(True))

  def augment(key, images):
    return images + jax.random.normal(key, images.shape)

  state = dd_jax.OuterState((), (), jnp.zeros((), jnp.int32))
  real = jnp.zeros((12, 1, 1, 1)), jnp.arange(12, dtype=jnp.int32)
  _, plain = _runner(outer_step, 6)(state, (), *real)
  middle, first = _runner(outer_step, 2, augment=augment)(state, (), *real)
  _, rest = _runner(outer_step, 4, augment=augment)(middle, (), *real)
  _, whole = _runner(outer_step, 6, augment=augment)(state, (), *real)
  assert not plain.loss.any() and len(np.unique(whole.loss)) == 24
  np.testing.assert_array_equal(whole.loss, np.concatenate([first.loss, rest.loss]))
  np.testing.assert_array_equal(whole.hypergradient_norm, plain.hypergradient_norm)


def test_a_bad_step_leaves_the_last_good_state():
  """A real image of NaN in the second epoch: no later good step may move the state."""
  outer_step, state = _outer_step()
  images, labels = problems.real(12)
  _, infos = _runner(outer_step, 6)(state, (), images, labels)
  poisoned = images.at[3].set(jnp.nan)
  frozen, infos = _runner(outer_step, 6)(state, (), poisoned, labels)
  bad = int(np.argmin(infos.finite))
  assert not infos.finite[bad:].any() and frozen.step == bad
  assert np.isnan(infos.loss[bad + 1:]).all() and np.isfinite(infos.loss[:bad]).all()
  expected, _ = _runner(outer_step, 6, stop=bad)(state, (), poisoned, labels)
  _assert_equal(frozen, expected)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(frozen.trainable))


def test_distillation_learns():
  """Points labelled by their quadrant: from chance to 80 % on networks never seen."""
  images = jax.random.normal(jax.random.key(0), (600, *problems.IMAGE_SHAPE))
  labels = jnp.argmax(images.reshape(600, 4)[:, :3], -1).astype(jnp.int32)
  outer_step, state = _outer_step(num_inits=4)
  state, infos = _runner(outer_step, 400, batch_size=100)(state, (), images[:500], labels[:500])
  _, decode = problems.trainable()
  result = dd_jax.evaluate(
      jax.random.key(77), decode(state.trainable), _RANDOM, problems.apply, images[500:],
      labels[500:], num_inits=20, inner_loss=problems.inner_loss)
  assert result.before.accuracy.mean() < .5
  assert result.after.accuracy.mean() > .8
  assert infos.loss[-20:].mean() < .5 * infos.loss[:20].mean()


def test_bad_arguments_are_named():
  outer_step, state = _outer_step()
  for batch_size in (0, 12):
    with pytest.raises(ValueError, match=rf"batch_size must lie in 1..11 .*; got {batch_size}"):
      dd_jax.run_outer_steps(outer_step, jax.random.key(0), state, (), *problems.real(11),
                             batch_size=batch_size, num_steps=1)
