"""Binomial checkpointing: the fewest steps, the same gradients in every composition, its errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import checkpointing
from dd_jax import optimizers
from dd_jax import truncation
from tests import problems

_KEY = jax.random.key(3)


@functools.cache
def _fewest(length, num_states):
  """Steps forward beside the backward pass, by trying every place for the next kept state."""
  if num_states == 1 or length == 1:
    return length * (length - 1) // 2
  return min(first + _fewest(length - first, num_states - 1) + _fewest(first, num_states)
             for first in range(1, length))


def _replay(schedule, length, num_states):
  """Follows the tables by hand: the steps taken; every place is gone back by once, last first."""
  slots = dict(enumerate(schedule.kept.tolist()))
  assert schedule.kept[0] == 0 and len(slots) <= num_states
  taken, back = int(schedule.kept[-1]), []
  for slot, begin, end, target in zip(*(table.tolist() for table in schedule[1:]), strict=True):
    assert slots[slot] == begin <= end < length
    taken += end - begin
    if target == num_states:
      back.append(end)
    else:
      assert 0 <= target < num_states
      slots[target] = end
  assert back == list(range(length))[::-1]
  return taken


@pytest.mark.parametrize("num_states", [2, 3, 4, 7])
def test_no_schedule_takes_fewer_steps(num_states):
  for length in range(num_states, 41):
    found = checkpointing.schedule(length, num_states)
    assert _replay(found, length, num_states) == _fewest(length, num_states), length


def test_long_trajectories_take_what_the_binomials_say():
  """T = 3,000 with 16 states: at most four times each, 4 T - C(20, 17) steps."""
  for length, num_states in ((3000, 16), (30000, 8), (4096, 32)):
    repeats = next(r for r in range(99) if math.comb(num_states + r, r) >= length)
    expected = repeats * length - math.comb(num_states + repeats, repeats - 1)
    taken = _replay(checkpointing.schedule(length, num_states), length, num_states)
    assert taken == expected


def _outer(variables, memory, gradient="reverse", optimizer=None):
  trainable, params, hyper = variables
  decode = problems.trainable(soft=True)[1]
  train = dd_jax.unroll(problems.inner_loss, optimizer, memory=memory, gradient=gradient)
  final, losses = train(None, params, decode(trainable)._replace(hyper=hyper))
  # The reported losses carry a gradient too.
  return problems.inner_loss(final, *problems.real()) + .1 * losses.sum()


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name, gradient, memory", [
    ("gradient_descent", "reverse", 2), ("adam", "forward_over_reverse", 3),
    *(pytest.param(name, gradient, memory, marks=pytest.mark.slow)
      for name in ("gradient_descent", "momentum", "adam")
      for gradient in ("reverse", "forward_over_reverse") for memory in (2, 3, 5, 6))])
def test_the_gradient_is_that_of_the_plain_scan(x64, name, gradient, memory):
  """By inputs, soft labels, step sizes, theta_0 and hyper-parameters."""
  hyper = {key: jnp.asarray(value) for key, value in optimizers.DEFAULTS[name].items()}
  variables = problems.trainable(soft=True)[0], problems.init(jax.random.key(0)), hyper
  run = functools.partial(_outer, gradient=gradient, optimizer=optimizers.INNER_OPTIMIZERS[name])
  expected, actual = (jax.jit(jax.value_and_grad(functools.partial(run, memory=how)))(variables)
                      for how in ("plain", memory))
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-14)
  *by_data, by_hyper = zip(actual[1], expected[1], strict=True)
  for pair in by_data:
    problems.assert_close(*pair, 1e-12)
  problems.assert_close(*by_hyper, 1e-11)  # One number, of terms that cancel.


def test_it_composes_with_blocks_of_networks_chunks_and_hard_labels(x64):
  """Two networks side by side, three drawn, real examples in chunks."""
  trainable, decode = problems.trainable()
  init = dd_jax.random_init(problems.init)

  def hypergradient(memory):
    loss = dd_jax.make_outer_loss(
        decode, init, dd_jax.unroll(problems.inner_loss, memory=memory), problems.inner_loss,
        num_inits=3, num_parallel=2, chunk_size=4)
    return jax.jit(dd_jax.value_and_hypergrad(loss))(trainable, (), _KEY, *problems.real())

  problems.assert_close(hypergradient(3), hypergradient("plain"), 1e-12)


def _noisy_loss(params, inputs, labels, key):
  noise = 1 + .3 * jax.random.normal(key, inputs.shape, inputs.dtype)
  return problems.inner_loss(params, noise * inputs, labels)


@pytest.mark.parametrize("kind", [
    "window", pytest.param("warm start", marks=pytest.mark.slow)])
def test_windows_and_warm_starts_go_through_it(x64, kind):
  """With a loss that has keys, from a start that is traced."""
  trainable, decode = problems.trainable()
  init = dd_jax.random_init(problems.init)

  def hypergradient(memory):
    train = dd_jax.unroll(_noisy_loss, memory=memory)
    key, state = _KEY, init.state
    if kind == "window":
      used, train = init, truncation.window(train, length=4)
    else:
      warm = truncation.warm_start(init, train, size=3, length=3, num_inits=2)
      state = warm.begin(key, state, decode(trainable))
      state = warm.carry_on(key, state, (), decode(trainable))
      used, train = warm.init, warm.train
    loss = dd_jax.make_outer_loss(decode, used, train, problems.inner_loss, num_inits=2)
    return jax.jit(dd_jax.value_and_hypergrad(loss))(trainable, state, key, *problems.real())

  problems.assert_close(hypergradient(2), hypergradient("plain"), 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_half_precision_keeps_its_types(x64):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problems.init(jax.random.key(0)))
  variables = problems.trainable(soft=True)[0], params, ()
  gradient = jax.grad(_outer)(variables, 3)
  assert jax.tree.map(jnp.result_type, gradient) == jax.tree.map(jnp.result_type, variables)
  problems.assert_close(gradient[0], jax.grad(_outer)(variables, "plain")[0], .02)


def test_what_is_kept_does_not_grow_with_the_trajectory():
  """Temporary bytes of 50 and of 800 steps, beside those of a scan that keeps every state."""
  params = {"square": jnp.eye(64)}

  def loss(params, inputs, labels):
    return jnp.mean((inputs @ params["square"] - labels[:, None]) ** 2)

  def temporary(memory, length):
    data = dd_jax.DistilledData(jnp.ones((1, 4, 64)), jnp.ones((1, 4)),
                                jnp.full((length, 1), .01))

    def outer(data):
      return loss(dd_jax.unroll(loss, memory=memory)(None, params, data)[0], data.inputs[0],
                  data.labels[0])

    return jax.jit(jax.grad(outer)).lower(data).compile().memory_analysis().temp_size_in_bytes

  assert temporary(5, 800) < 1.3 * temporary(5, 50)
  assert temporary("remat", 800) > 8 * temporary("remat", 50)


@pytest.mark.parametrize("memory", [1, 0, -3, True, 2.5, "4"])
def test_a_number_of_states_that_cannot_be(memory):
  with pytest.raises(ValueError, match=r"^memory must be one of \['plain', 'remat', 'nested'\], or "
                     rf"a number of states from 2 on; got {memory!r}$"):
    dd_jax.unroll(problems.inner_loss, memory=memory)


def test_more_states_than_steps():
  trainable, decode = problems.trainable()
  with pytest.raises(ValueError, match="^memory must be at most the 6 inner steps; got 7$"):
    dd_jax.unroll(problems.inner_loss, memory=7)(
        None, problems.init(jax.random.key(0)), decode(trainable))
