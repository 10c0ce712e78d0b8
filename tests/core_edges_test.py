"""What the functions of the core do at the edge of what they take."""

from typing import NamedTuple

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import evaluation
from dd_jax import inner_loop
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from dd_jax import ridge_regression
from dd_jax import types

_W = {"w": jnp.ones((3, 2))}
_X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
_Y = np.array([0, 1, 0, 0, 1])


def _apply(params, inputs):
  return inputs @ params["w"]


_LOSS = losses.classification(_apply)


def _distilled(num_steps=1, batch=4, num_epochs=3, hyper=()):
  return dd_jax.DistilledData(
      jnp.asarray(np.resize(_X, (num_steps, batch, 3))), jnp.zeros((num_steps, batch), int),
      jnp.full((num_epochs, num_steps), .1), hyper)


@pytest.mark.parametrize("change, message", [
    ({"step_sizes": .1}, r"step_sizes must be \[E, S\] with S = 1 of the inputs; got \[\]"),
    ({"step_sizes": np.zeros((0, 1))}, r"step_sizes must be \[E, S\] .*; got \[0, 1\]"),
    ({"labels": [0, 1]}, r"labels must begin with \[S, B\] = \[1, 4\] of the inputs; got \[2\]"),
    ({"inputs": np.zeros((1, 0, 3)), "labels": np.zeros((1, 0), int)},
     r"inputs must hold an example in every step; got \[S, B\] = \[1, 0\]"),
    ({"inputs": np.zeros((0, 4, 3)), "labels": np.zeros((0, 4), int)}, "an example in every step"),
])
def test_distilled_data_are_checked_before_they_are_used(change, message):
  distilled = _distilled()._replace(**change)
  train = dd_jax.unroll(_LOSS)
  for inner in (train, dd_jax.window(train, length=2)):
    with pytest.raises(ValueError, match=message):
      inner(jax.random.key(0), _W, distilled)


def test_an_update_beyond_the_type_of_what_is_learned_changes_nothing():
  """Loss and hypergradient are finite, and what a rate of 1e5 makes of them is not in float16."""
  def outer_loss(trainable, init_state, key, inputs, labels):
    return jnp.sum(trainable.astype(jnp.float32) ** 2)

  loop = dd_jax.make_outer_loop(outer_loss, optax.sgd(1e5))
  state = loop.init(jnp.ones(3, jnp.float16))
  after, info = loop.step(jax.random.key(0), state, (), _X, _Y)
  assert not info.finite and after.step == 0
  np.testing.assert_array_equal(after.trainable, np.ones(3))


def test_a_traced_class_below_zero_is_left_out_of_the_counts():
  found = jax.jit(lambda y: evaluation.measure(_apply, _W, _X, y, batch_size=5).confusion)(
      jnp.array([0, 1, -1, 0, 2]))
  assert found.sum() == 3
  many = evaluation.count(
      lambda params, x: x, (), jnp.arange(200.)[None], jnp.array([100], jnp.int8))
  assert many.confusion[100, 199] == 1 == many.confusion.sum()


def test_numpy_inputs_are_arrays_of_jax_in_every_batch():
  def apply(params, inputs):
    return inputs.at[:, 0].set(0.) @ params["w"]

  found = evaluation.measure(apply, _W, _X, _Y, batch_size=2)
  expected = evaluation.measure(apply, _W, jnp.asarray(_X), jnp.asarray(_Y), batch_size=5)
  np.testing.assert_array_equal(found.confusion, expected.confusion)


def test_without_jit_batches_are_tried_too():
  with jax.disable_jit():
    found = evaluation.measure(_apply, _W, _X, _Y, batch_size=2)
  np.testing.assert_allclose(
      found.loss, evaluation.measure(_apply, _W, _X, _Y, batch_size=5).loss, rtol=1e-6)


@pytest.mark.parametrize("inputs, labels, message", [
    ({}, np.zeros(3), "inputs must be as many as the 3 labels; got none"),
    (np.float32(1), np.zeros(3), "as many as the 3 labels; got a number"),
    (np.zeros((2, 4)), [0, 1, 0], "as many as the 3 labels; got 2"),
])
def test_inputs_that_are_not_as_many_as_labels(inputs, labels, message):
  with pytest.raises(ValueError, match=message):
    types.num_examples(inputs, labels)
  assert types.num_examples(np.zeros((3, 4)), [0, 1, 0]) == 3


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}])
def test_no_real_example_is_an_error(options):
  outer_loss = dd_jax.make_outer_loss(
      lambda trainable: _distilled()._replace(inputs=trainable), dd_jax.fixed_init(_W),
      dd_jax.unroll(_LOSS), _LOSS, num_inits=1, **options)
  with pytest.raises(ValueError, match="labels must hold at least one example; got none"):
    outer_loss(_distilled().inputs, _W, jax.random.key(0), _X[:0], _Y[:0])


def test_a_window_that_begins_elsewhere_stays_within_the_trajectory():
  distilled, train = _distilled(), dd_jax.unroll(_LOSS)
  whole = train(jax.random.key(0), _W, distilled)
  for start in (7, 1):
    window = dd_jax.window(train, start=lambda key, last, losses, at=start: jnp.array(at), length=2)
    found = window(jax.random.key(0), _W, distilled)
    np.testing.assert_allclose(found[1], whole[1][-2:], rtol=1e-6)
    np.testing.assert_allclose(found[0]["w"], whole[0]["w"], rtol=1e-6)
  placed = window.in_step(jax.random.key(1))
  np.testing.assert_allclose(jax.jit(placed)(jax.random.key(0), _W, distilled)[0]["w"],
                             whole[0]["w"], rtol=1e-6)


def test_a_step_of_a_number():
  value_and_grad = jax.value_and_grad(lambda params: jnp.sum(params ** 2))
  state = inner_loop.InnerState(jnp.ones(2), optax.sgd(1.).init(jnp.ones(2)))
  new, _ = dd_jax.inner_step(value_and_grad, optax.sgd(1.), state, (), .1)
  np.testing.assert_allclose(new.params, .8, rtol=1e-6)


def test_implicit_takes_hyper_parameters_of_any_kind():
  class Hyper(NamedTuple):
    decay: jax.Array

  train = dd_jax.implicit(_LOSS, lambda hyper: optax.chain(
      optax.trace(hyper.decay), optax.scale(-1.)), damping=.1)
  distilled = _distilled(hyper=Hyper(jnp.array(.5)))
  trained, _ = train(jax.random.key(0), _W, distilled)
  assert np.isfinite(trained["w"]).all()


@pytest.mark.parametrize("change, message", [
    (lambda p: {"first": p["first"]}, "second"),
    (lambda p: {**p, "first": {**p["first"], "kernel": jnp.ones((2, 5))}}, "first/kernel"),
])
def test_weights_of_an_nnx_module_are_all_its_own(change, message):
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.first, self.second = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
      return self.second(self.first(x))

  model = dd_jax.from_nnx(Net)
  params = model.init(jax.random.key(0))
  assert model.apply(params, jnp.ones((1, 2))).shape == (1, 2)
  with pytest.raises(ValueError, match=f"params must be weights of the module with {message}"):
    model.apply(change(params), jnp.ones((1, 2)))


def test_a_module_without_parameters_and_one_with_noise_of_its_own():
  class Cut(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x[:, :2]

  class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(x) + jax.random.normal(self.make_rng("noise"), (1, 2))

  cut = models.from_flax(Cut(), (3,))
  assert cut.init(jax.random.key(0)) == {}
  np.testing.assert_array_equal(cut.apply({}, _X), _X[:, :2])
  with pytest.raises(ValueError, match="module must be without noise where it gets no key; Noisy"):
    models.from_flax(Noisy(), (3,))


@pytest.mark.parametrize("maker, shape", [(models.mlp, [4]), (models.lenet, [28, 28, 1])])
def test_a_shape_may_be_a_list_and_a_target_one(maker, shape):
  model = maker(num_classes=1, image_shape=shape)
  outputs = model.apply(model.init(jax.random.key(0)), jnp.ones((2, *shape)))
  assert outputs.shape == (2, 1)
  given = parametrization.inputs({"mask": [5], "e": (5, 2)}, 1, 2, given={"mask": jnp.ones(5)})
  assert given.decode(given.init(jax.random.key(0)))["mask"].shape == (1, 2, 5)


def test_ridge_of_labels_features_and_types():
  features = ridge_regression.ridge_features(ridge_regression.ridge_model(
      models.Model(lambda key: {}, lambda params, x: x), 3, 2).apply, 3)
  np.testing.assert_array_equal(features({}, _X), _X)
  train = dd_jax.ridge(lambda params, x: x, 2, regularization=.1)
  distilled = _distilled()._replace(labels=jnp.array([[0, 1, 7, 1]]))
  params = {"features": {}, "head": jnp.zeros((3, 2))}
  assert np.isnan(train(jax.random.key(0), params, distilled)[1]).all()  # No class has that label.


def test_ridge_keeps_float32_beside_float64(x64):
  train = dd_jax.ridge(lambda params, x: x, 2, regularization=.1)
  params = {"features": {}, "head": jnp.zeros((3, 2), jnp.float32)}
  distilled = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x,
                           _distilled())
  trained, loss = train(jax.random.key(0), params, distilled)
  assert trained["head"].dtype == loss.dtype == jnp.float32


def test_noise_on_an_integer_is_refused():
  with pytest.raises(ValueError, match="params must be floating point for noise; got int32"):
    dd_jax.init_distributions.near_init({**_W, "n": jnp.zeros((), jnp.int32)}, .1)
