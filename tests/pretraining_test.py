"""dd_jax.pretraining: the weights of a loop by hand, whatever runs side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import losses
from tests import problems
from tests.arrays import jit

_EPOCHS, _BATCH = 3, 4
_OPTIMIZER = optax.sgd(0.1, momentum=0.9)
_loss = losses.classification(lambda params, inputs: problems.apply(params, inputs))


@pytest.fixture(autouse=True)
def double_precision(x64):
  """One program serves most tests."""


def _pool(size):
  return jit(jax.vmap(problems.init))(jax.random.split(jax.random.key(3), size))


@functools.cache
def _real():
  return jit(problems.real)()


def _pretrain(params, real=None, **options):
  inputs, labels = _real() if real is None else real
  options = {"loss": _loss, "optimizer": _OPTIMIZER, "num_epochs": _EPOCHS, "batch_size": _BATCH,
             **options}
  return _compiled(*options.items())(jax.random.key(5), params, inputs=inputs, labels=labels)


@functools.cache
def _compiled(*options):
  return jit(functools.partial(dd_jax.pretrain, **dict(options)))


def _first(pool, network=0):
  return jax.tree.map(lambda leaf: leaf[network], pool)


def _assert_close(actual, expected):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13),
               actual, expected)


def test_equals_a_loop_by_hand():
  """Orders are permutations per network and epoch; the last three of eleven images are left out."""
  images, labels = _real()
  pool = _pool(3)
  trained, grad = _pretrain(pool), jit(jax.grad(_loss))
  for network, key in enumerate(jax.random.split(jax.random.key(5), 3)):
    params = _first(pool, network)
    momentum = jax.tree.map(jnp.zeros_like, params)
    for epoch in range(_EPOCHS):
      order = jax.random.permutation(jax.random.fold_in(key, epoch), 11)
      assert sorted(order.tolist()) == list(range(11))
      for start in (0, 4):
        batch = order[start:start + _BATCH]
        gradient = grad(params, images[batch], labels[batch])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)
    _assert_close(_first(trained, network), params)


@pytest.mark.parametrize("num_parallel", [1, 2])
def test_networks_side_by_side_change_nothing(num_parallel):
  pool = _pool(3)
  _assert_close(_pretrain(pool, num_parallel=num_parallel), _pretrain(pool))


def test_an_optimizer_that_wants_the_loss_gets_it():
  """One epoch of one whole batch is one update by hand."""
  images, labels = _real()
  optimizer, pool = optax.polyak_sgd(.1), _pool(1)
  trained = _pretrain(pool, optimizer=optimizer, num_epochs=1, batch_size=11)
  params = _first(pool)
  loss, gradient = jax.value_and_grad(_loss)(params, images, labels)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params, value=loss)
  _assert_close(_first(trained), optax.apply_updates(params, updates))


def test_a_loss_that_wants_a_key_gets_one_in_every_step():
  """Of its network, epoch and minibatch; what it returns beside the loss is dropped."""
  def noisy(params, inputs, labels, key):
    return _loss(params, inputs + jax.random.normal(key, inputs.shape), labels), "beside"

  inputs, labels = _real()
  pool = _pool(2)
  trained = _pretrain(pool, loss=noisy, optimizer=optax.sgd(.1), num_epochs=2)
  grad = jit(jax.grad(lambda *args: noisy(*args)[0]))
  for network, key in enumerate(jax.random.split(jax.random.key(5), 2)):
    order_key, loss_key = jax.random.split(key)
    params = _first(pool, network)
    for epoch in range(2):
      order = jax.random.permutation(jax.random.fold_in(order_key, epoch), 11)
      for step, step_key in enumerate(jax.random.split(jax.random.fold_in(loss_key, epoch), 2)):
        batch = order[step * _BATCH:(step + 1) * _BATCH]
        gradient = grad(params, inputs[batch], labels[batch], step_key)
        params = jax.tree.map(lambda p, g: p - .1 * g, params, gradient)
    _assert_close(_first(trained, network), params)


def test_minibatches_train_on_distilled_data_as_on_any_set():
  """All S B examples in one order, soft labels and inputs of several kinds; losses by epoch."""
  inputs, _ = _real()
  distilled = dd_jax.DistilledData(
      {"left": inputs[:6].reshape(2, 3, 4)[..., :2], "right": inputs[:6].reshape(2, 3, 4)[..., 2:]},
      jax.random.uniform(jax.random.key(8), (2, 3, 3)), jnp.full((1, 2), jnp.nan))

  def loss(params, inputs, labels):
    joined = jnp.concatenate([inputs["left"], inputs["right"]], -1).reshape(-1, 2, 2, 1)
    return _loss(params, joined, labels)

  params = _first(_pool(1))
  options = {"num_epochs": 2, "batch_size": 6}
  trained, losses_seen = jit(dd_jax.minibatches(loss, _OPTIMIZER, **options))(
      jax.random.key(1), params, distilled)
  whole = inputs[:6], distilled.labels.reshape(6, 3)
  _assert_close(trained, _first(_pretrain(_pool(1), real=whole, **options)))
  assert losses_seen.shape == (2,)
  np.testing.assert_allclose(losses_seen[0], _loss(params, *whole), rtol=1e-11)


def test_minibatches_of_other_labels_than_inputs_are_named():
  train = dd_jax.minibatches(_loss, _OPTIMIZER, num_epochs=1, batch_size=2)
  with pytest.raises(ValueError, match=r"labels must begin with .* = \[2, 3\] .*; got \[3, 2\]"):
    train(jax.random.key(0), _first(_pool(1)), dd_jax.DistilledData(
        jnp.zeros((2, 3, 2, 2, 1)), jnp.zeros((3, 2), int), jnp.ones((1, 2))))


def test_every_network_sees_an_order_of_its_own():
  pool = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), _pool(1))
  trained = _pretrain(pool)
  assert not np.allclose(trained["first"][0], trained["first"][1], rtol=1e-4)


def test_a_trained_network_classifies():
  labels = jnp.asarray(np.arange(60) % 3, jnp.int32)
  centres = jnp.asarray([[2., 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
  images = (centres[labels] + 0.2 * jax.random.normal(jax.random.key(0), (60, 4))
            ).reshape(60, 2, 2, 1)
  trained = _pretrain(_pool(2), real=(images, labels), num_epochs=20)
  predicted = jax.vmap(lambda params: problems.apply(params, images).argmax(-1))(trained)
  np.testing.assert_array_equal(predicted, [labels] * 2)


@pytest.mark.parametrize("options, message", [
    ({"num_epochs": 0}, "num_epochs must be at least 1; got 0"),
    ({"batch_size": 0}, r"batch_size must lie in 1\.\.11 \(the examples\); got 0"),
    ({"batch_size": 12}, r"batch_size must lie in 1\.\.11 \(the examples\); got 12"),
    ({"num_parallel": 0}, "num_parallel must be at least 1; got 0"),
])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    _pretrain(_pool(2), **options)
