"""Outer steps: compiled once, resumable at any step, frozen at the first bad one, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import evaluation
from dd_jax import parametrization
from dd_jax import step_sizes
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_RANDOM = dd_jax.random_init(problems.init)


def _outer_loss(decode, real_loss=problems.inner_loss, num_inits=1, init=_RANDOM):
  return dd_jax.make_outer_loss(decode, init, dd_jax.unroll(problems.inner_loss, memory="plain"),
                                real_loss, num_inits=num_inits)


def _loop(optimizer=optax.adam(.05), **options):
  """The outer step, and the state before the first."""
  trainable, decode = problems.trainable()
  loop = dd_jax.make_outer_loop(_outer_loss(decode, **options), optimizer)
  return loop.step, loop.init(trainable)


def _runner(outer_step, num_steps, batch_size=4, compiler_options=None, **options):
  return jax.jit(functools.partial(dd_jax.run_outer_steps, outer_step, jax.random.key(9),
                                   batch_size=batch_size, num_steps=num_steps, **options),
                 compiler_options=compiler_options)


@pytest.fixture(scope="module")
def six():
  """`run(state, stop, *real)` of up to six steps, compiled once, and where it begins."""
  step, state = _loop()
  return jax.jit(lambda state, stop, *real: dd_jax.run_outer_steps(
      step, jax.random.key(9), state, (), *real, batch_size=4, num_steps=6, stop=stop),
                 compiler_options=problems.USUAL_COMPILER), state


def _assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_one_outer_step_is_one_optax_update_of_the_hypergradient(x64):
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode, num_inits=2)
  loop = dd_jax.make_outer_loop(outer_loss, optax.sgd(.1))
  key, real = jax.random.key(4), problems.real()
  new_state, info = jax.jit(loop.step)(key, loop.init(trainable), (), *real)
  loss, gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(trainable, (), key, *real)
  for name in trainable:
    np.testing.assert_allclose(new_state.trainable[name], trainable[name] - .1 * gradient[name],
                               rtol=1e-12)
  np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
  np.testing.assert_allclose(info.hypergradient_norm, optax.tree.norm(gradient), rtol=1e-12)
  assert info.finite and new_state.step == 1


def test_a_hypergradient_of_few_bits_is_finite_though_its_square_is_not():
  loop = dd_jax.make_outer_loop(lambda trainable, *_: 300 * trainable.sum(), optax.sgd(1e-3))
  state, info = loop.step(jax.random.key(0), loop.init(jnp.ones(2, jnp.float16)), (), None, None)
  assert info.finite and state.step == 1
  np.testing.assert_allclose(info.hypergradient_norm, 300 * 2 ** .5, rtol=1e-6)


def test_the_second_call_does_not_compile(six):
  run, state = six
  real = problems.real(12)
  for stop in (2, 4, 6):
    state, _ = run(state, stop, *real)
    assert state.step == stop
  assert run._cache_size() == 1
  outer_step, state = _loop()
  step = jax.jit(outer_step)
  for seed in range(3):
    state, _ = step(jax.random.key(seed), state, (), *real)
  assert step._cache_size() == 1


def test_a_weakly_typed_trainable_compiles_once():
  loop = dd_jax.make_outer_loop(lambda trainable, *_: trainable.sum() ** 2, optax.sgd(.1))
  state, step = loop.init(jnp.full(3, .3)), jax.jit(loop.step)
  for seed in range(2):
    state, _ = step(jax.random.key(seed), state, (), None, None)
  assert step._cache_size() == 1


def test_interrupted_steps_continue_bit_for_bit():
  """11 images, R=4: epochs of 2 steps, so that the pieces begin inside and between epochs."""
  outer_step, state = _loop()
  real = problems.real(11)
  # As a run is compiled, whatever the suite's flags: else a scan of one step is another program.
  runner = functools.partial(_runner, outer_step,
                             compiler_options=problems.USUAL_COMPILER)
  whole, infos = runner(5)(state, (), *real)
  runs = {length: runner(length) for length in (1, 3)}
  pieces = []
  for length in (1, 3, 1):
    state, piece = runs[length](state, (), *real)
    pieces.append(piece)
  _assert_equal(state, whole)
  _assert_equal(jax.tree.map(lambda *x: jnp.concatenate(x), *pieces), infos)


@pytest.mark.parametrize("bad_step", [None, 1])
def test_minibatches_gathered_before_make_the_same_steps(bad_step):
  """In pieces of 1, 2 and 1; behind a step that is not finite none of them moves the state."""
  loop = dd_jax.make_outer_loop(
      lambda trainable, _, key, inputs, labels: (trainable - inputs.sum()) ** 2, optax.sgd(.1))
  key, inputs, labels = jax.random.key(0), jnp.arange(8.)[:, None], jnp.zeros(8, int)
  order = jnp.stack([dd_jax.distillation.epoch_order(key, epoch, 8) for epoch in (0, 1)])
  order, numbers = order.reshape(4, 4), jnp.arange(4)
  if bad_step is not None:
    inputs = inputs.at[order[bad_step, 0]].set(jnp.nan)
  start = state = loop.init(jnp.zeros(()))
  whole, infos = dd_jax.run_outer_steps(loop.step, key, start, (), inputs, labels, batch_size=4,
                                        num_steps=4)
  pieces = []
  for piece in (slice(0, 1), slice(1, 3), slice(3, 4)):
    state, info = dd_jax.distillation.run_on_minibatches(
        loop.step, key, state, (), numbers[piece], inputs[order[piece]], labels[order[piece]])
    pieces.append(info)
  assert state.step == (4 if bad_step is None else bad_step)
  _assert_equal(state, whole)
  _assert_equal(jax.tree.map(lambda *x: jnp.concatenate(x), *pieces), infos)


def test_stop_freezes_the_state(six):
  run, state = six
  real = problems.real(12)
  expected, _ = _runner(_loop()[0], 3, compiler_options=problems.USUAL_COMPILER)(state, (), *real)
  actual, infos = run(state, 3, *real)
  assert actual.step == 3
  _assert_equal(actual, expected)
  np.testing.assert_array_equal(infos.finite, [True] * 3 + [False] * 3)
  for values in (infos.loss, infos.hypergradient_norm):  # No step, no figure.
    np.testing.assert_array_equal(np.isnan(values), ~infos.finite)


@pytest.mark.parametrize("optimizer", [
    optax.chain(optax.sgd(.1), optax.contrib.reduce_on_plateau(patience=1, factor=.5)),
    optax.polyak_sgd(.1)], ids=["reduce_on_plateau", "polyak_sgd"])
def test_optimizers_that_want_the_loss_get_it(optimizer):
  """Three steps are three updates by hand with the loss as value."""
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode)
  loop = dd_jax.make_outer_loop(outer_loss, optimizer)
  step, state = jax.jit(loop.step), loop.init(trainable)
  value_and_grad = jax.jit(dd_jax.value_and_hypergrad(outer_loss))
  by_hand, opt_state = trainable, optimizer.init(trainable)
  for seed in range(3):
    key = jax.random.key(seed)
    state, _ = step(key, state, (), *problems.real())
    loss, gradient = value_and_grad(by_hand, (), key, *problems.real())
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradient, opt_state, by_hand, value=loss)
    by_hand = optax.apply_updates(by_hand, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
               state.trainable, by_hand)


def test_a_donated_state_leaves_the_callers_arrays():
  """`init` copies: the trainable, the carry, and what the parametrization starts from."""
  images = jax.random.normal(jax.random.key(0), (1, 3, *problems.IMAGE_SHAPE))
  labels = jnp.eye(3)[None]
  learned = parametrization.join(
      parametrization.pixels(images.shape, images), parametrization.soft_labels(labels),
      step_sizes.learned(2, 1, .1))
  networks = _RANDOM.sample(jax.random.key(3), 2)
  loop = dd_jax.make_outer_loop(
      _outer_loss(learned.decode, init=dd_jax.pretrained_init(networks)), optax.adam(.05),
      carry_on=lambda key, carry, init_state, trainable: carry)
  trainable = learned.init(jax.random.key(0))
  run = jax.jit(functools.partial(
      dd_jax.run_outer_steps, loop.step, jax.random.key(9), batch_size=4, num_steps=1),
                donate_argnums=0)
  begun = loop.init(trainable, networks)
  run(begun, (), *problems.real())
  assert begun.trainable["inputs"].is_deleted()  # Donation does take what it is given.
  kept = images, labels, trainable, networks
  assert not any(x.is_deleted() for x in jax.tree.leaves(kept))


def test_inputs_that_are_a_dict_are_distilled_and_evaluated():
  """Whole outer steps and an evaluation where an example is an image and a row of a table."""
  learned = parametrization.join(
      parametrization.parts({"image": parametrization.pixels((2, 3, *problems.IMAGE_SHAPE)),
                             "table": parametrization.pixels((2, 3, 3))}),
      parametrization.fixed_labels(parametrization.class_labels(2, 3, 1)),
      step_sizes.learned(1, 2, .3))

  def apply(params, inputs):
    return problems.apply(params["net"], inputs["image"]) + inputs["table"] @ params["table"]

  def init(key):
    return {"net": problems.init(key), "table": jnp.zeros((3, 3))}

  loss, init = dd_jax.losses.classification(apply), dd_jax.random_init(init)
  train = dd_jax.unroll(loss)
  images, table = (jax.random.normal(jax.random.key(i), (300, *shape))
                   for i, shape in enumerate((problems.IMAGE_SHAPE, (3,))))
  real = {"image": images, "table": table}, jnp.argmax(table, -1).astype(jnp.int32)
  loop = dd_jax.make_outer_loop(
      dd_jax.make_outer_loss(learned.decode, init, train, loss, num_inits=2), optax.adam(.05))
  state, infos = _runner(loop.step, 150, batch_size=50)(
      loop.init(learned.init(jax.random.key(0))), init.state, *real)
  result = jax.jit(lambda state: dd_jax.evaluate(
      jax.random.key(7), learned.decode(state.trainable), init, train, apply, *real, num_inits=8,
      plan=dd_jax.Plan(batch_size=70)))(state)
  assert infos.finite.all()
  assert result.before.accuracy.mean() < .5 and result.after.accuracy.mean() > .7


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
  """The loss is the sum of the pixels, 0 plus what augmentation drew; labels stay as they are."""
  def augment(key, images):
    return images + jax.random.normal(key, images.shape)

  def outer_loss(trainable, init_state, key, images, labels):
    return 0. * trainable + images.sum() + 1000. * labels.sum()

  def losses(augment, state, num_steps):
    loop = dd_jax.make_outer_loop(outer_loss, optax.sgd(.1), augment=augment)
    state, infos = _runner(loop.step, num_steps)(
        loop.init(jnp.zeros(())) if state is None else state, (), *real)
    return state, np.asarray(infos.loss)

  real = jnp.zeros((12, 1, 1, 1)), jnp.arange(12, dtype=jnp.int32)
  _, plain = losses(None, None, 6)
  middle, first = losses(augment, None, 2)
  _, rest = losses(augment, middle, 4)
  _, whole = losses(augment, None, 6)
  noise = whole - plain
  assert len(np.unique(noise)) == 6 and 0 < np.abs(noise).max() < 10
  np.testing.assert_array_equal(whole, np.concatenate([first, rest]))


def test_a_bad_step_leaves_the_last_good_state(six):
  """A real image of NaN in the second epoch: no later good step may move the state."""
  run, state = six
  images, labels = problems.real(12)
  poisoned = images.at[3].set(jnp.nan)
  frozen, infos = run(state, 99, poisoned, labels)
  bad = int(np.argmin(infos.finite))
  assert not infos.finite[bad:].any() and frozen.step == bad
  assert np.isnan(infos.loss[bad + 1:]).all() and np.isfinite(infos.loss[:bad]).all()
  expected, _ = run(state, bad, poisoned, labels)
  _assert_equal(frozen, expected)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(frozen.trainable))


@pytest.mark.slow
def test_distillation_learns():
  """Points labelled by their quadrant: from chance to 80 % on networks never seen."""
  images = jax.random.normal(jax.random.key(0), (600, *problems.IMAGE_SHAPE))
  labels = jnp.argmax(images.reshape(600, 4)[:, :3], -1).astype(jnp.int32)
  outer_step, state = _loop(num_inits=4)
  state, infos = _runner(outer_step, 400, batch_size=100)(state, (), images[:500], labels[:500])
  _, decode = problems.trainable()
  result = jax.jit(lambda state: dd_jax.evaluate(
      jax.random.key(77), decode(state.trainable), _RANDOM, dd_jax.unroll(problems.inner_loss),
      problems.apply, images[500:], labels[500:], num_inits=20))(state)
  assert result.before.accuracy.mean() < .5
  assert result.after.accuracy.mean() > .8
  assert infos.loss[-20:].mean() < .5 * infos.loss[:20].mean()


def test_bad_arguments_are_named():
  outer_step, state = _loop()
  for batch_size in (0, 12):
    with pytest.raises(ValueError, match=rf"batch_size must lie in 1..11 .*; got {batch_size}"):
      dd_jax.run_outer_steps(outer_step, jax.random.key(0), state, (), *problems.real(11),
                             batch_size=batch_size, num_steps=1)
  images, labels = problems.real(11)
  for call in (
      lambda: dd_jax.run_outer_steps(outer_step, jax.random.key(0), state, (), images[:9], labels,
                                     batch_size=4, num_steps=1),
      lambda: dd_jax.pretrain(jax.random.key(0), jax.vmap(problems.init)(jax.random.split(
          jax.random.key(0), 1)), problems.inner_loss, images[:9], labels,
                              optimizer=optax.sgd(.1), num_epochs=1, batch_size=4),
      lambda: evaluation.measure(problems.apply, problems.init(jax.random.key(0)), images[:9],
                                 labels, batch_size=4)):
    with pytest.raises(ValueError, match="inputs must be as many as the 11 labels; got 9"):
      call()


def test_a_state_that_changes_its_type_is_named():
  trainable, decode = problems.trainable()
  wider = optax.GradientTransformation(
      lambda params: jnp.zeros((), jnp.float16), lambda updates, state, params: (
          updates, state.astype(jnp.float32)))
  loop = dd_jax.make_outer_loop(dd_jax.make_outer_loss(
      decode, dd_jax.random_init(problems.init), dd_jax.unroll(problems.inner_loss),
      problems.inner_loss, num_inits=1), wider)
  with pytest.raises(ValueError, match="must keep the shapes and types of their state") as error:
    loop.step(jax.random.key(0), loop.init(trainable), (), *problems.real())
  assert "\n" not in str(error.value)
