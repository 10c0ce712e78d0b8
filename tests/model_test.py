"""dd_jax.models.model: modules of linen and NNX, and plain functions, as networks."""

import inspect

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from tests.arrays import assert_close
from tests.arrays import jit
from tests.arrays import normal


def module_of(call):
  """A linen module with this `__call__`."""
  return type("Own", (nn.Module,), {"__call__": nn.compact(call)})()


def half(x, deterministic):
  return nn.Dropout(.5, deterministic=deterministic)(x)


def arguments_of(apply):
  return list(inspect.signature(apply).parameters)


class Dropping(nn.Module):
  """Drops half of the inputs while training."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(8)(nn.Dropout(0.5, deterministic=not train)(x))


def test_key_means_training():
  model = dd_jax.from_flax(Dropping(), (2, 2, 2))
  params = {"Dense_0": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  x = np.random.default_rng(0).integers(1, 9, (20, 8)).astype(np.float32)
  images = jnp.asarray(x.reshape(20, 2, 2, 2))

  np.testing.assert_array_equal(model.apply(params, images), x)
  dropped = np.asarray(model.apply(params, images, key=jax.random.key(1)))
  kept = dropped != 0
  assert 40 < kept.sum() < 120  # Half of 160 plus or minus six standard deviations.
  np.testing.assert_array_equal(dropped[kept], 2 * x[kept])
  np.testing.assert_array_equal(dropped, model.apply(params, images, key=jax.random.key(1)))
  assert np.any(dropped != model.apply(params, images, key=jax.random.key(2)))


class Scaled(nn.Module):
  """Says what it was told by the factor in front of its images."""

  @nn.compact
  def __call__(self, x, *, train=False):
    scale = self.param("scale", nn.initializers.constant(3.0), ())
    return x * scale * (10 if train else 1)


def test_train_argument_with_a_default():
  model = dd_jax.from_flax(Scaled(), (2,))
  params = model.init(jax.random.key(0))
  images = jnp.ones((1, 2))
  np.testing.assert_array_equal(model.apply(params, images), [[3, 3]])
  np.testing.assert_array_equal(model.apply(params, images, key=jax.random.key(0)), [[30, 30]])


@pytest.mark.parametrize("call", [
    lambda self, x, train=False: half(x, not train),
    lambda self, x, training=True: half(x, not training),
    lambda self, x, *, is_training: half(x, not is_training),
    lambda self, x, deterministic=True: half(x, deterministic),
    lambda self, x, deterministic, double=False: half(x, deterministic),
], ids=["train", "training", "is_training", "deterministic", "two flags"])
def test_every_name_of_the_mode_is_told(call):
  """Without a key the images as they are; over many keys the same in the mean."""
  model = dd_jax.from_flax(module_of(call), (8,))
  images = jnp.arange(1., 17).reshape(2, 8)
  np.testing.assert_array_equal(model.apply({}, images), images)
  dropped = jit(jax.vmap(lambda key: model.apply({}, images, key=key)))(
      jax.random.split(jax.random.key(0), 4000))
  factors = np.asarray(dropped) / np.asarray(images)
  assert set(np.unique(factors)) == {0, 2}  # Of standard deviation 1.
  np.testing.assert_allclose(factors.mean(0), 1, atol=5 / np.sqrt(4000))


def test_dropout_that_cannot_be_told_is_refused():
  with pytest.raises(ValueError, match=(
      r"module must be told that it trains by one of \['train', 'training', 'is_training', "
      r"'deterministic'\]; Own takes \['dropping'\] and leaves its dropout off")):
    dd_jax.from_flax(module_of(lambda self, x, dropping=False: half(x, not dropping)), (3,))


def test_dropout_below_a_module_that_cannot_tell_it_is_refused():
  def inner(self, x, train=False):
    return half(x, not train)

  below = type("Below", (nn.Module,), {"__call__": nn.compact(inner)})
  with pytest.raises(ValueError, match="Own takes none and leaves its dropout off"):
    dd_jax.from_flax(module_of(lambda self, x: below()(x)), (3,))


def test_dropout_that_is_always_on_is_refused():
  with pytest.raises(ValueError, match="module must be without noise where it gets no key; Own n"):
    dd_jax.from_flax(module_of(lambda self, x: half(x, False)), (3,))


@pytest.mark.parametrize("call", [
    lambda self, x, double=True: x * (2 if double else 1),
    lambda self, x, double=True: nn.Dropout(0., deterministic=double)(x) * 2,
    lambda self, x, double=True: nn.Dropout(0., deterministic=False)(x) * 2])
def test_flags_that_are_no_mode_keep_their_defaults(call):
  """And as nothing depends on a key, none is taken."""
  model = dd_jax.from_flax(module_of(call), (3,))
  assert arguments_of(model.apply) == ["params", "inputs"]
  np.testing.assert_array_equal(model.apply({}, jnp.ones((1, 3))), np.full((1, 3), 2))


def test_an_argument_without_a_default_is_refused():
  with pytest.raises(ValueError, match=(
      r"module must be called with images and one of \['train', .*'deterministic'\]; "
      r"Own also needs \['mode'\]")):
    dd_jax.from_flax(module_of(lambda self, x, mode: x), (3,))


class Plain(nn.Module):
  """Neither a mode nor noise."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(x)


def test_a_module_without_a_mode_takes_no_key():
  model = dd_jax.from_flax(Plain(), (3,))
  params = {"Dense_0": {"kernel": jnp.asarray([[1.0, 0], [0, 1], [2, 3]]),
                        "bias": jnp.asarray([0.0, 1])}}
  assert arguments_of(model.apply) == ["params", "inputs"]
  np.testing.assert_array_equal(model.apply(params, jnp.asarray([[1.0, 2, 3]])), [[7, 12]])


def test_noise_without_a_mode_takes_a_key():
  """Where there is a key alone; nested and below a transform of Flax too."""
  def noisy(self, x):
    if self.has_rng("dropout"):
      x = x + jax.random.normal(self.make_rng("dropout"), x.shape)
    return x

  inner = module_of(noisy)
  for module in (inner, module_of(lambda self, x: nn.remat(type(inner))()(x))):
    model = dd_jax.from_flax(module, (3,))
    assert arguments_of(model.apply) == ["params", "inputs", "key"]
    first, again, other = (model.apply({}, jnp.ones((1, 3)), key=jax.random.key(k))
                           for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)
    np.testing.assert_array_equal(model.apply({}, jnp.ones((1, 3))), np.ones((1, 3)))


def test_own_init_is_kept():
  """`init` of the model is that of the module: same key, same weights."""
  model, key = dd_jax.from_flax(Plain(), (3,)), jax.random.key(3)
  expected = Plain().init(key, jnp.zeros((1, 3)))["params"]
  jax.tree.map(np.testing.assert_array_equal, model.init(key), expected)


class Normed(nn.Module):
  """Keeps running statistics."""

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def test_running_statistics_are_refused():
  with pytest.raises(ValueError, match=r"nothing but its parameters; got \['batch_stats'\] of "
                                       r"Normed: use group or layer norm"):
    dd_jax.from_flax(Normed(), (3,))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("apply", [
    lambda params, inputs: inputs @ params["w"],
    lambda params, inputs, *, key=None: inputs @ params["w"]], ids=["without key", "with key"])
def test_pair_of_plain_functions(apply):
  """A linear softmax network of two plain functions descends as computed by hand."""
  model = dd_jax.Model(init=lambda key: {"w": jax.random.normal(key, (4, 3))}, apply=apply)
  inputs, step_sizes = normal(2, 5, 4), np.array([[0.5, 0.2], [0.1, 0.3]])
  labels = np.array([[0, 1, 2, 1, 0], [2, 2, 1, 0, 0]])
  params = model.init(jax.random.key(0))
  distilled = dd_jax.DistilledData(inputs, jnp.asarray(labels, jnp.int32), jnp.asarray(step_sizes))
  train = dd_jax.unroll(losses.classification(model.apply))
  actual, inner_losses = jit(train)(jax.random.key(1), params, distilled)

  w, expected_losses = np.asarray(params["w"]), []
  for step, step_size in enumerate(step_sizes.reshape(-1)):
    x, y = np.asarray(inputs)[step % 2], np.eye(3)[labels[step % 2]]
    exponentials = np.exp(x @ w)
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    expected_losses.append(-np.mean(np.sum(y * np.log(probabilities), axis=1)))
    w = w - step_size * x.T @ (probabilities - y) / 5
  assert_close((actual["w"], inner_losses), (w, np.array(expected_losses)))


def test_params_of_another_network_are_named():
  model = models.mlp(num_classes=3, image_shape=(2, 2, 1), hidden=(5,))
  params = model.init(jax.random.key(0))
  options = {"rule": "init_params must be weights of mlp", "where": "a.npz"}
  models.check_params(model, params, **options)
  params["Dense_0"]["bias"] = jnp.zeros(4)
  with pytest.raises(ValueError, match=r"^init_params must be weights of mlp with Dense_0/bias "
                                       r"\(5,\); in a.npz it is \(4,\)$"):
    models.check_params(model, params, **options)
  del params["Dense_0"]["bias"]
  with pytest.raises(ValueError, match="in a.npz it is absent$"):
    models.check_params(model, params, **options)


class NnxPlain(nnx.Module):
  """An NNX network of a user's own."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(4, 8, rngs=rngs)
    self.logits = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, images):
    return self.logits(jax.nn.relu(self.hidden(images.reshape(images.shape[0], -1))))


class NnxDropping(NnxPlain):
  """With dropout."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.dropout = nnx.Dropout(.5, rngs=rngs)

  def __call__(self, images):
    hidden = jax.nn.relu(self.hidden(images.reshape(images.shape[0], -1)))
    return self.logits(self.dropout(hidden))


class NnxTold(NnxDropping):
  """Overrides at every call what `train()` and `eval()` set."""

  def __call__(self, images, *, deterministic=True):
    hidden = jax.nn.relu(self.hidden(images.reshape(images.shape[0], -1)))
    return self.logits(self.dropout(hidden, deterministic=deterministic))


class NnxMode(NnxPlain):
  """A mode of its own without noise, which `train()` and `eval()` set."""

  def __init__(self, rngs):
    super().__init__(rngs)
    self.deterministic = True

  def __call__(self, images):
    return super().__call__(images) * (1 if self.deterministic else 10)


class NnxBatchNorm(nnx.Module):

  def __init__(self, rngs):
    self.norm = nnx.BatchNorm(4, rngs=rngs)


def test_an_nnx_module_is_a_model():
  """Its logits from the weights by hand; a key switches dropout on, and decides it."""
  plain, dropping = models.from_nnx(NnxPlain), models.from_nnx(NnxDropping)
  assert arguments_of(plain.apply) == ["params", "inputs"]
  params = plain.init(jax.random.key(0))
  images = normal(5, 2, 2, 1).astype(jnp.float32)
  hidden = jnp.maximum(images.reshape(5, 4) @ params["hidden"]["kernel"]
                       + params["hidden"]["bias"][None], 0)
  expected = hidden @ params["logits"]["kernel"] + params["logits"]["bias"][None]
  for model in (plain, dropping):
    np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-5, atol=1e-6)
  first, again, other = (dropping.apply(params, images, key=jax.random.key(k)) for k in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and (first != expected).any()


def test_an_nnx_module_is_told_its_mode():
  params, images = models.from_nnx(NnxPlain).init(jax.random.key(0)), jnp.ones((2, 2, 2, 1))
  dropping, told, own = (models.from_nnx(kind) for kind in (NnxDropping, NnxTold, NnxMode))
  for key in (None, jax.random.key(1)):
    np.testing.assert_array_equal(told.apply(params, images, key=key),
                                  dropping.apply(params, images, key=key))
  assert np.any(told.apply(params, images) != told.apply(params, images, key=key))
  np.testing.assert_array_equal(own.apply(params, images, key=key), 10 * own.apply(params, images))


def test_an_nnx_module_trains_in_the_inner_loop_and_gives_a_hypergradient():
  model = models.from_nnx(NnxDropping)
  init = dd_jax.random_init(model.init)
  loss = losses.classification(model.apply)
  learned = parametrization.paper(jnp.array([[0, 1, 2]]), (2, 2, 1), num_epochs=2, step_size=.7)
  outer_loss = dd_jax.make_outer_loss(learned.decode, init, dd_jax.unroll(loss), loss, num_inits=2)
  value_and_grad = jit(jax.value_and_grad(outer_loss))
  trainable = jit(learned.init)(jax.random.key(0))
  rest = (init.state, jax.random.key(2), normal(4, 2, 2, 1).astype(jnp.float32),
          jnp.array([0, 1, 2, 0]))

  def at(scale):
    return value_and_grad({**trainable, "inputs": trainable["inputs"] * scale}, *rest)[0]

  value, gradient = value_and_grad(trainable, *rest)
  exact = jnp.vdot(gradient["inputs"], trainable["inputs"])
  np.testing.assert_allclose(exact, (at(1.01) - at(.99)) / .02, rtol=2e-2)
  # Noise in every inner step: the same network without it ends elsewhere.
  still = jit(dd_jax.make_outer_loss(
      learned.decode, init, dd_jax.unroll(lambda *args: loss(*args)), loss, num_inits=2))
  assert abs(still(trainable, *rest) - value) > 1e-4


def test_an_nnx_module_with_statistics_is_refused():
  with pytest.raises(ValueError, match="must keep nothing but its parameters; got .*norm/mean"):
    models.from_nnx(NnxBatchNorm)
