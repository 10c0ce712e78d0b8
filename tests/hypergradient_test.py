"""The outer loss and its hypergradient: finite differences, chunks, means, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import truncation
from tests import problems

_RANDOM = dd_jax.random_init(problems.init)


def _outer_loss(decode, num_inits=1, **options):
  return dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss, problems.inner_loss,
                                num_inits=num_inits, **options)


@pytest.mark.parametrize("options", [
    dict(memory="plain"),
    dict(memory="remat", chunk_size=4),
    dict(memory="nested", gradient="forward_over_reverse"),
], ids=lambda options: "-".join(map(str, options.values())))
def test_hypergradient_equals_finite_differences_under_jit_and_vmap(x64, options):
  """Along random directions in all of images, soft labels and step sizes; N=3 under vmap."""
  trainable, decode = problems.trainable(soft=True)
  key, real = jax.random.key(5), problems.real()
  outer_loss = jax.jit(_outer_loss(decode, num_inits=3, **options))
  _, gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(trainable, (), key, *real)
  for seed in range(4):
    keys = jax.random.split(jax.random.key(seed), 3)
    direction = {name: jax.random.normal(k, trainable[name].shape)
                 for k, name in zip(keys, trainable)}
    def along(t):
      moved = jax.tree.map(lambda x, d: x + t * d, trainable, direction)
      return outer_loss(moved, (), key, *real)
    step = 1e-5
    numeric = (along(step) - along(-step)) / (2 * step)
    exact = sum(jnp.vdot(gradient[name], direction[name]) for name in trainable)
    assert abs(numeric) > 1e-3
    np.testing.assert_allclose(exact, numeric, rtol=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 4, 20])
def test_chunks_of_any_size_change_nothing(x64, chunk_size):
  """11 real images: a last partial chunk counts by its share."""
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real(11)
  whole = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 2)))(*arguments)
  chunked = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 2, chunk_size=chunk_size)))(
      *arguments)
  for actual, expected in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole)):
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)
  np.testing.assert_allclose(_outer_loss(decode, 2, chunk_size=chunk_size)(*arguments), whole[0],
                             rtol=1e-12)


@pytest.mark.parametrize("num_parallel", [1, 2, 9])
def test_blocks_of_networks_change_nothing(x64, num_parallel):
  """5 networks: a last partial block counts by its share; with chunks of the real images inside."""
  trainable, decode = problems.trainable(soft=True)
  arguments = trainable, (), jax.random.key(0), *problems.real(11)
  together = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 5)))(*arguments)
  blocks = _outer_loss(decode, 5, num_parallel=num_parallel, chunk_size=4)
  in_blocks = jax.jit(dd_jax.value_and_hypergrad(blocks))(*arguments)
  for actual, expected in zip(jax.tree.leaves(in_blocks), jax.tree.leaves(together)):
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)
  np.testing.assert_allclose(jax.jit(blocks)(*arguments), together[0], rtol=1e-12)


def test_outer_loss_is_the_mean_over_the_sampled_inits(x64):
  trainable, decode = problems.trainable()
  key, real = jax.random.key(7), problems.real()
  params = _RANDOM.sample((), truncation.objective_keys(key)[0], 4)
  one_by_one = []
  for n in range(4):
    final, _ = dd_jax.inner_trajectory(
        problems.inner_loss, jax.tree.map(lambda leaf: leaf[n], params), decode(trainable))
    one_by_one.append(problems.inner_loss(final, *real))
  actual = _outer_loss(decode, num_inits=4)(trainable, (), key, *real)
  np.testing.assert_allclose(actual, np.mean(one_by_one), rtol=1e-12)


def test_an_inner_loss_that_closes_over_a_learned_value_is_explained():
  trainable, decode = problems.trainable()

  def outer_loss(trainable, init_state, key, images, labels):
    def inner_loss(params, images, labels):
      return trainable["step_sizes"][0, 0] * problems.inner_loss(params, images, labels)
    loss = dd_jax.make_outer_loss(
        decode, _RANDOM.sample, inner_loss, problems.inner_loss, num_inits=1,
        gradient="forward_over_reverse")
    return loss(trainable, init_state, key, images, labels)

  with pytest.raises(ValueError, match="inner_loss must take everything that receives a gradient"):
    dd_jax.value_and_hypergrad(outer_loss)(trainable, (), jax.random.key(0), *problems.real())


@pytest.mark.parametrize("options, message", [
    (dict(num_inits=0), "num_inits must be at least 1; got 0"),
    (dict(num_inits=1, chunk_size=0), "chunk_size must be at least 1; got 0"),
])
def test_bad_options_are_named(options, message):
  _, decode = problems.trainable()
  with pytest.raises(ValueError, match=message):
    _outer_loss(decode, **options)


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_precision_reaches_every_product_of_trajectory_and_gradient(precision):
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode, 2, memory="remat", gradient="forward_over_reverse",
                           chunk_size=4)
  gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss, precision=precision))
  text = gradient.lower(trainable, (), jax.random.key(0), *problems.real()).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  assert len(products) > 10
  assert all(f"precision = [{precision.upper()}, {precision.upper()}]" in line
             for line in products)


def test_an_unknown_precision_lists_the_choices():
  with pytest.raises(ValueError, match=r"precision must be one of \['highest', 'high', "
                                       r"'default'\]; got 'tf32'"):
    dd_jax.value_and_hypergrad(lambda trainable: 0., precision="tf32")
