"""dd_jax.files.reuse: training on a file is the training of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import augmentation
from dd_jax import losses
from dd_jax import models
from dd_jax import optimizers
from dd_jax.files import artifacts
from dd_jax.files import reuse

_SHAPE = (4, 4, 1)
_OPTIONS = {"hidden": [5]}
_METADATA = {"model": "mlp", "model_options": _OPTIONS, "num_classes": 3,
             "mean": [.25], "std": [.5], "pixel_scale": 255}
_MODEL = models.mlp(num_classes=3, image_shape=_SHAPE, **_OPTIONS)
_LOSS = losses.classification(_MODEL.apply)


def _artifact(params=None, hyper=(), **metadata):
  images, raw = (jax.random.normal(jax.random.key(seed), shape)
                 for seed, shape in ((0, (2, 3, *_SHAPE)), (1, (5, 2))))
  labels = jnp.asarray([[0, 1, 2]] * 2, jnp.int32)
  return dd_jax.Artifact(dd_jax.DistilledData(images, labels, jax.nn.softplus(raw), hyper), params,
                         {**_METADATA, **metadata})


def _params(seed=2):
  return _MODEL.init(jax.random.key(seed))


def _trained(loss, distilled, optimizer=None, key=None):
  """By the inner algorithm of the library."""
  return dd_jax.unroll(loss, optimizer, memory="plain")(key, _params(), distilled)[0]


def _assert_close(actual, expected, rtol=1e-5):
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol, 1e-6), actual, expected)


def test_one_step_of_a_linear_model_in_closed_form():
  """Logits x W from W = 0: the probabilities are uniform, and the step is exact."""
  artifact = _artifact()
  distilled = artifact.distilled._replace(
      inputs=artifact.distilled.inputs[:1], labels=artifact.distilled.labels[:1],
      step_sizes=artifact.distilled.step_sizes[:1, :1])

  def apply(params, images):
    return images.reshape(len(images), -1) @ params

  trained = dd_jax.train_on(artifact._replace(distilled=distilled), jnp.zeros((16, 3)), apply)
  inputs = np.asarray(distilled.inputs).reshape(3, 16)
  step = float(distilled.step_sizes[0, 0])
  np.testing.assert_allclose(trained, step * inputs.T @ (np.eye(3) - 1 / 3) / 3, rtol=1e-5,
                             atol=1e-6)


@pytest.mark.parametrize("name, hyper, algorithm", [
    ("gradient_descent", (), "unroll"),
    ("gradient_descent", {"weight_decay": .1}, "implicit"),
    ("momentum", {"decay": .7}, "unroll"),
    ("nesterov", {"decay": .7}, "unroll"),
    ("adam", {"b1": .8, "b2": .99}, "unroll"),
])
def test_it_takes_the_steps_of_the_inner_algorithm(optax_promotion, name, hyper, algorithm):
  artifact = _artifact(hyper=jax.tree.map(jnp.float32, hyper), inner_optimizer=name,
                       inner_augmentation=None, inner_algorithm=algorithm)
  expected = _trained(_LOSS, artifact.distilled, optimizers.INNER_OPTIMIZERS[name])
  _assert_close(dd_jax.train_on(artifact, _params()), expected)


def test_stored_weights_are_taken_where_none_are_given():
  artifact = _artifact(params=_params())
  _assert_close(dd_jax.train_on(artifact), _trained(_LOSS, artifact.distilled))


def test_data_for_a_ridge_regression_solve_a_last_layer():
  """The head is that of the normal equations, on the features of the weights as they are."""
  artifact = _artifact(inner_algorithm="ridge", num_features=4, regularization=.1)
  model = dd_jax.network(artifact)
  params = model.init(jax.random.key(2))
  trained = dd_jax.train_on(artifact, params)
  _assert_close(trained["features"], params["features"])
  features = models.mlp(num_classes=4, image_shape=_SHAPE, **_OPTIONS)
  x = np.asarray(features.apply(params["features"], artifact.distilled.inputs.reshape(6, *_SHAPE)))
  y = np.eye(3)[np.asarray(artifact.distilled.labels).reshape(-1)] - 1 / 3
  expected = np.linalg.solve(x.T @ x + 6 * .1 * np.eye(4), x.T @ y)
  np.testing.assert_allclose(trained["head"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("siamese", [False, True])
def test_augmentation_takes_the_key(siamese):
  artifact = _artifact(inner_augmentation="flip,shift", inner_siamese=siamese)
  loss = augmentation.augmented(_LOSS, augmentation.compose("flip,shift", siamese=siamese))
  expected = _trained(loss, artifact.distilled, key=jax.random.key(7))
  _assert_close(dd_jax.train_on(artifact, _params(), key=jax.random.key(7)), expected)


@pytest.mark.slow
def test_it_composes_with_jit_and_vmap():
  artifact = _artifact()
  networks = jax.vmap(_MODEL.init)(jax.random.split(jax.random.key(3), 3))
  together = jax.jit(jax.vmap(lambda params: dd_jax.train_on(artifact, params)))(networks)
  for row in range(3):
    one = dd_jax.train_on(artifact, jax.tree.map(lambda leaf: leaf[row], networks))
    _assert_close(jax.tree.map(lambda leaf: leaf[row], together), one)


@pytest.mark.slow
def test_evaluate_on_is_train_on_of_every_network():
  artifact = _artifact()
  images = jax.random.normal(jax.random.key(4), (20, *_SHAPE))
  labels = jax.random.randint(jax.random.key(5), (20,), 0, 3)
  pool = jax.vmap(_MODEL.init)(jax.random.split(jax.random.key(3), 2))
  result = reuse.evaluate_on(jax.random.key(0), artifact, dd_jax.pretrained_init(pool), None,
                             images, labels, num_inits=2)
  expected = [np.mean(np.argmax(_MODEL.apply(dd_jax.train_on(artifact, jax.tree.map(
      lambda leaf: leaf[row], pool)), images), -1) == labels) for row in range(2)]
  np.testing.assert_allclose(sorted(result.after.accuracy), sorted(expected), atol=1e-6)


@pytest.mark.parametrize("metadata, arguments, message", [
    ({"init": {"name": "random"}}, {"params": None}, "params must be given: .* init is 'random'"),
    ({}, {"params": None}, r"params must be given: .*dd_jax.network\(artifact\).init\(key\)"),
    ({"inner_augmentation": "flip", "inner_siamese": False}, {},
     "key must be given where .*inner_augmentation='flip', got key=None"),
    ({}, {"key": 0}, "key must be given where .* got key=0"),
    ({"inner_augmentation": "flip"}, {"key": 0}, "metadata must hold 'inner_siamese'"),
    ({"inner_algorithm": "matching"}, {},
     r"inner_algorithm of the metadata must be one of \['unroll', .*; got 'matching'"),
    ({"inner_algorithm": "ridge"}, {}, "metadata must hold 'num_features'"),
    ({"inner_loss": "hinge"}, {}, "inner_loss .* 'regression'. to train .*; got 'hinge'"),
    ({"inner_optimizer": "lion"}, {}, "inner_optimizer .*; got 'lion'"),
    ({"inner_optimizer": "adam"}, {}, "must hold hyper/b1 of .* adam"),
    ({"precision": "half"}, {}, "precision .*; got 'half'"),
    ({}, {"params": {"Dense_0": {"kernel": np.zeros((16, 5))}}},
     r"params must be weights of mlp with Dense_0/bias \(5,\); in params it is absent"),
    ({"model": "perceptron"}, {}, "model .*; got 'perceptron'"),
    ({"model": "lenet", "model_options": {}}, {},
     r"model_options .* lenet for inputs \(4, 4, 1\); got {} \(image_shape of lenet must be"),
    ({"model_options": {"heads": 2}}, {}, "got {'heads': 2} .*unexpected"),
    ({"model_options": None}, {}, "model_options .*got None"),
])
def test_what_cannot_be_trained_is_named(metadata, arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    dd_jax.train_on(_artifact(**metadata), **{"params": _params(), **arguments})
  assert "\n" not in str(error.value)


def test_a_file_without_options_of_its_network_says_so(tmp_path):
  whole = _artifact()
  metadata = {name: value for name, value in whole.metadata.items() if name != "model_options"}
  artifacts.save(tmp_path / "a.npz", whole.distilled, init_params=_params(), metadata=metadata)
  artifact = artifacts.load(tmp_path / "a.npz")
  with pytest.raises(ValueError, match="metadata must hold 'model_options'; the file has"):
    dd_jax.network(artifact)
  _assert_close(dd_jax.train_on(artifact, apply=_MODEL.apply), dd_jax.train_on(whole, _params()))


# What is the user's own


def test_an_own_network_is_handed_over():
  artifact = _artifact(model="my.networks:wide", model_options={})
  for refused in (lambda: dd_jax.train_on(artifact, _params()), lambda: dd_jax.network(artifact)):
    with pytest.raises(ValueError, match=r"\Aapply must be given: the network of the file is "
                       "'my.networks:wide', .* never causes an import; .*experiments.apply "
                       r"--network=my.networks:wide\Z"):
      refused()
  expected = dd_jax.train_on(_artifact(), _params())
  _assert_close(dd_jax.train_on(artifact, _params(), _MODEL.apply), expected)
  assert dd_jax.network(artifact, lambda num_outputs: _MODEL) == _MODEL


def _squared(params, inputs, labels):
  return jnp.mean((_MODEL.apply(params, inputs) - jax.nn.one_hot(labels, 3)) ** 2)


@pytest.mark.parametrize("augment", [None, "flip"])
def test_an_own_inner_loss_is_handed_over(augment):
  """The library's augmentation is put around it."""
  artifact = _artifact(inner_loss="my.losses:squared", inner_augmentation=augment,
                       inner_siamese=False)
  key = augment and jax.random.key(7)
  with pytest.raises(ValueError, match=r"\Aloss must be given: the inner_loss of the file is "
                     r"'my.losses:squared', .* never causes an import; import it .*\Z"):
    dd_jax.train_on(artifact, _params(), key=key)
  loss = augmentation.augmented(_squared, augmentation.compose("flip")) if augment else _squared
  _assert_close(dd_jax.train_on(artifact, _params(), loss=_squared, key=key),
                _trained(loss, artifact.distilled, key=key))


def test_an_own_augmentation_is_a_part_of_the_loss():
  artifact = _artifact(inner_augmentation="my.changes:noise")
  with pytest.raises(ValueError, match="loss must be given: the inner_augmentation of the file is "
                                       "'my.changes:noise'"):
    dd_jax.train_on(artifact, _params())
  loss = augmentation.augmented(
      _LOSS, lambda key, images: images + jax.random.normal(key, images.shape))
  found = dd_jax.train_on(artifact, _params(), loss=loss, key=jax.random.key(7))
  _assert_close(found, _trained(loss, artifact.distilled, key=jax.random.key(7)))


def test_an_own_loss_is_that_of_the_evaluation():
  artifact = _artifact(inner_loss="my.losses:squared")
  real = jax.random.normal(jax.random.key(4), (20, *_SHAPE)), jnp.zeros(20, jnp.int32)
  result = reuse.evaluate_on(
      jax.random.key(0), artifact, dd_jax.fixed_init(_params()), _MODEL.apply, *real,
      num_inits=1, loss=_squared, plan=dd_jax.Plan(num_parallel=1))
  logits = _MODEL.apply(_trained(_squared, artifact.distilled), real[0])
  np.testing.assert_allclose(result.after.loss, [np.mean(losses.cross_entropy(logits, real[1]))],
                             rtol=1e-5)


def test_dropout_takes_the_key():
  def apply(params, inputs, *, key=None):
    kept = 1. if key is None else jax.random.bernoulli(key, .5, inputs.shape).astype(inputs.dtype)
    return _MODEL.apply(params, inputs * kept)

  artifact = _artifact()
  with pytest.raises(ValueError, match="key must be given where the inner loss takes one, .* drop"):
    dd_jax.train_on(artifact, _params(), apply)
  found = dd_jax.train_on(artifact, _params(), apply, key=jax.random.key(7))
  _assert_close(found, _trained(losses.classification(apply), artifact.distilled,
                                key=jax.random.key(7)))


def test_weights_and_inputs_of_any_tree():
  """A network of the stax kind, on a dict of inputs."""
  def apply(params, inputs):
    (w, b), _ = params
    return inputs["a"] @ w + inputs["b"] * b[None]

  keys = jax.random.split(jax.random.key(0), 3)
  inputs = {"a": jax.random.normal(keys[0], (2, 3, 4)), "b": jax.random.normal(keys[1], (2, 3, 1))}
  artifact = _artifact()
  artifact = artifact._replace(distilled=artifact.distilled._replace(inputs=inputs))
  params = [(jax.random.normal(keys[2], (4, 3)), jnp.ones(3)), ()]
  expected, _ = dd_jax.unroll(losses.classification(apply))(None, params, artifact.distilled)
  _assert_close(dd_jax.train_on(artifact, params, apply), expected)
  with pytest.raises(ValueError, match=r"must be those of mlp for inputs {'a': \(4,\), 'b'"):
    dd_jax.train_on(artifact, params)


@pytest.mark.parametrize("weights, scale, std", [
    ("xavier_normal", 2., 2 * (2 / (16 + 5)) ** .5), ("normal", .1, .1),
    ("kaiming_fan_in", None, (2 / 16) ** .5)])
def test_the_init_distribution_of_the_run(weights, scale, std):
  artifact = _artifact(init={"name": "random", "weights": weights, "scale": scale})
  init = reuse.init_distribution(artifact, dd_jax.network(artifact))
  drawn = init.sample(jax.random.key(0), 300)["Dense_0"]["kernel"]
  np.testing.assert_allclose(drawn.std(), std, rtol=.05)


def test_an_init_that_is_not_in_the_file():
  for init in ({"name": "pretrained"}, {"name": "random"}, "mine", {
      "name": "random", "weights": "he", "scale": None}):
    with pytest.raises(ValueError, match="init must be given: that of the file cannot be drawn"):
      reuse.init_distribution(_artifact(init=init), _MODEL)
