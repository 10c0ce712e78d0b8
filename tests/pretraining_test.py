"""dd_jax.pretraining: the weights of a loop by hand, whatever runs side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from tests import problems

_EPOCHS, _BATCH = 3, 4
_OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def _pool(size):
  return jax.vmap(problems.init)(jax.random.split(jax.random.key(3), size))


def _real():
  return problems.real(num_images=11)


def _pretrain(params, key=jax.random.key(5), real=None, **options):
  images, labels = _real() if real is None else real
  options = {"optimizer": _OPTIMIZER, "num_epochs": _EPOCHS, "batch_size": _BATCH, **options}
  return jax.jit(functools.partial(dd_jax.pretrain, loss=problems.inner_loss, **options))(
      key, params, images=images, labels=labels)


@pytest.mark.usefixtures("x64")
def test_equals_a_loop_by_hand():
  """Orders are permutations per network and epoch; the last three of eleven images are left out."""
  images, labels = _real()
  pool = _pool(2)
  trained = _pretrain(pool)
  for network, key in enumerate(jax.random.split(jax.random.key(5), 2)):
    params = jax.tree.map(lambda leaf, network=network: leaf[network], pool)
    momentum = jax.tree.map(jnp.zeros_like, params)
    for epoch in range(_EPOCHS):
      order = jax.random.permutation(jax.random.fold_in(key, epoch), 11)
      assert sorted(order.tolist()) == list(range(11))
      for start in (0, 4):
        batch = order[start:start + _BATCH]
        gradient = jax.grad(problems.inner_loss)(params, images[batch], labels[batch])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)
    for name, leaf in params.items():
      np.testing.assert_allclose(trained[name][network], leaf, rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_parallel", [1, 2, 3, 7])
def test_networks_side_by_side_change_nothing(num_parallel):
  pool = _pool(3)
  expected, actual = _pretrain(pool), _pretrain(pool, num_parallel=num_parallel)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13),
               actual, expected)


@pytest.mark.usefixtures("x64")
def test_an_optimizer_that_wants_the_loss_gets_it():
  """One epoch of one whole batch is one update by hand."""
  images, labels = _real()
  optimizer, pool = optax.polyak_sgd(.1), _pool(1)
  trained = _pretrain(pool, optimizer=optimizer, num_epochs=1, batch_size=11)
  params = jax.tree.map(lambda leaf: leaf[0], pool)
  loss, gradient = jax.value_and_grad(problems.inner_loss)(params, images, labels)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params, value=loss)
  for name, leaf in optax.apply_updates(params, updates).items():
    np.testing.assert_allclose(trained[name][0], leaf, rtol=1e-11, atol=1e-13)


def test_every_network_sees_an_order_of_its_own():
  pool = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), _pool(1))
  trained = _pretrain(pool)
  assert not np.allclose(trained["first"][0], trained["first"][1], rtol=1e-4)


def test_a_trained_network_classifies():
  labels = jnp.asarray(np.arange(60) % 3, jnp.int32)
  centres = jnp.asarray([[2., 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
  images = (centres[labels] + 0.2 * jax.random.normal(jax.random.key(0), (60, 4))
            ).reshape(60, 2, 2, 1)
  trained = _pretrain(_pool(2), real=(images, labels), num_epochs=20)
  predicted = jax.vmap(lambda params: problems.apply(params, images).argmax(-1))(trained)
  assert (predicted == labels[None]).all()


@pytest.mark.parametrize("options, message", [
    ({"num_epochs": 0}, "num_epochs must be at least 1; got 0"),
    ({"batch_size": 0}, r"batch_size must lie in 1\.\.11 \(the images\); got 0"),
    ({"batch_size": 12}, r"batch_size must lie in 1\.\.11 \(the images\); got 12"),
    ({"num_parallel": 0}, "num_parallel must be at least 1; got 0"),
])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    _pretrain(_pool(2), **options)
