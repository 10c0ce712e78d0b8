"""dd_jax.files.reuse: training on a file is the training of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import reuse
from dd_jax.files import artifacts
from dd_jax import augmentation
from dd_jax import optimizers
from dd_jax import losses
from dd_jax import models
from dd_jax import whitening

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
  return dd_jax.Artifact(dd_jax.DistilledData(images, labels, raw, hyper), params,
                         {**_METADATA, **metadata})


def _params(seed=2):
  return _MODEL.init(jax.random.key(seed))


def _assert_close(actual, expected, rtol=1e-5):
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol, 1e-6), actual, expected)


def test_one_step_of_a_linear_model_in_closed_form():
  """Logits x W from W = 0: the probabilities are uniform, and the step is exact."""
  artifact = _artifact()
  distilled = artifact.distilled._replace(
      images=artifact.distilled.images[:1], labels=artifact.distilled.labels[:1],
      raw_step_sizes=artifact.distilled.raw_step_sizes[:1, :1])

  def apply(params, images, *, key=None):
    del key
    return images.reshape(len(images), -1) @ params

  trained = dd_jax.train_on(artifact._replace(distilled=distilled), jnp.zeros((16, 3)), apply)
  inputs = np.asarray(distilled.images).reshape(3, 16)
  step = float(np.log1p(np.exp(distilled.raw_step_sizes[0, 0])))
  np.testing.assert_allclose(trained, step * inputs.T @ (np.eye(3) - 1 / 3) / 3, rtol=1e-5,
                             atol=1e-6)


@pytest.mark.parametrize("name, hyper, trajectory", [
    ("gradient_descent", (), "inner_trajectory"),
    ("gradient_descent", {"weight_decay": .1}, "implicit_trajectory"),
    ("momentum", {"decay": .7}, "inner_trajectory"),
    ("nesterov", {"decay": .7}, "inner_trajectory"),
    ("adam", {"b1": .8, "b2": .99}, "inner_trajectory"),
])
def test_it_takes_the_steps_of_the_inner_trajectory(optax_promotion, name, hyper, trajectory):
  artifact = _artifact(hyper=jax.tree.map(jnp.float32, hyper), inner_optimizer=name,
                       inner_augmentation=None, trajectory=trajectory)
  optimizer = optimizers.INNER_OPTIMIZERS[name](artifact.distilled.hyper)
  expected, _ = dd_jax.inner_trajectory(_LOSS, _params(), artifact.distilled, optimizer=optimizer)
  _assert_close(dd_jax.train_on(artifact, _params()), expected)
  _assert_close(dd_jax.train_on(artifact._replace(init_params=_params())), expected)


def test_data_for_a_ridge_regression_solve_a_last_layer():
  """The head is that of the normal equations, on the features of the weights as they are."""
  artifact = _artifact(trajectory="ridge_trajectory", num_features=4, regularization=.1)
  model = dd_jax.network(artifact)
  params = model.init(jax.random.key(2))
  trained = dd_jax.train_on(artifact, params)
  _assert_close(trained["features"], params["features"])
  features = models.mlp(num_classes=4, image_shape=_SHAPE, **_OPTIONS)
  x = np.asarray(features.apply(params["features"], artifact.distilled.images.reshape(6, *_SHAPE)))
  y = np.eye(3)[np.asarray(artifact.distilled.labels).reshape(-1)] - 1 / 3
  expected = np.linalg.solve(x.T @ x + 6 * .1 * np.eye(4), x.T @ y)
  np.testing.assert_allclose(trained["head"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("siamese", [False, True])
def test_augmentation_takes_the_key(siamese):
  artifact = _artifact(inner_augmentation="flip,shift", inner_siamese=siamese)
  loss = augmentation.augmented(_LOSS, augmentation.compose("flip,shift", siamese=siamese))
  expected, _ = dd_jax.inner_trajectory(loss, _params(), artifact.distilled, key=jax.random.key(7))
  _assert_close(dd_jax.train_on(artifact, _params(), key=jax.random.key(7)), expected)


def test_it_composes_with_jit_and_vmap():
  artifact = _artifact()
  networks = jax.vmap(_MODEL.init)(jax.random.split(jax.random.key(3), 3))
  together = jax.jit(jax.vmap(lambda params: dd_jax.train_on(artifact, params)))(networks)
  for row in range(3):
    one = dd_jax.train_on(artifact, jax.tree.map(lambda leaf: leaf[row], networks))
    _assert_close(jax.tree.map(lambda leaf: leaf[row], together), one)


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
    ({"trajectory": "matching"}, {},
     r"trajectory of the metadata must be one of \['inner_trajectory', .*; got 'matching'"),
    ({"trajectory": "ridge_trajectory"}, {}, "metadata must hold 'num_features'"),
    ({"inner_loss": "hinge"}, {}, "inner_loss .*; got 'hinge'"),
    ({"inner_optimizer": "lion"}, {}, "inner_optimizer .*; got 'lion'"),
    ({"inner_optimizer": "adam"}, {}, "must hold hyper/b1 of .* adam"),
    ({"precision": "half"}, {}, "precision .*; got 'half'"),
    ({}, {"params": {"Dense_0": {"kernel": np.zeros((16, 5))}}},
     r"params must be weights of mlp with Dense_0/bias \(5,\); in params it is absent"),
    ({"model": "perceptron"}, {}, "model .*; got 'perceptron'"),
    ({"model": "lenet", "model_options": {}}, {},
     r"model_options .* lenet for images \(4, 4, 1\); got {} \(image_shape of lenet must be"),
    ({"model_options": {"heads": 2}}, {}, "got {'heads': 2} .*unexpected"),
    ({"model_options": None}, {}, "model_options .*got None"),
])
def test_what_cannot_be_trained_is_named(metadata, arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    dd_jax.train_on(_artifact(**metadata), **{"params": _params(), **arguments})
  assert "\n" not in str(error.value)


def test_an_old_file_loads_and_says_what_it_lacks(tmp_path):
  """Of the first version: no options of the network."""
  old = _artifact()
  metadata = {name: value for name, value in old.metadata.items() if name != "model_options"}
  artifacts.save(tmp_path / "old.npz", old.distilled, init_params=_params(), metadata=metadata)
  artifact = artifacts.load(tmp_path / "old.npz")
  with pytest.raises(ValueError, match="metadata must hold 'model_options'; the file has"):
    dd_jax.network(artifact)
  _assert_close(dd_jax.train_on(artifact, apply=_MODEL.apply), dd_jax.train_on(old, _params()))


@pytest.mark.parametrize("weights, scale, std", [
    ("xavier_normal", 2., 2 * (2 / (16 + 5)) ** .5), ("normal", .1, .1),
    ("kaiming_fan_in", None, (2 / 16) ** .5)])
def test_the_init_distribution_of_the_run(weights, scale, std):
  artifact = _artifact(init={"name": "random", "weights": weights, "scale": scale})
  init = reuse.init_distribution(artifact, dd_jax.network(artifact))
  drawn = init.sample(init.state, jax.random.key(0), 300)["Dense_0"]["kernel"]
  np.testing.assert_allclose(drawn.std(), std, rtol=.05)


def test_an_init_that_is_not_in_the_file():
  for init in ({"name": "pretrained"}, {"name": "random"}, "mine", {
      "name": "random", "weights": "he", "scale": None}):
    with pytest.raises(ValueError, match="init must be given: that of the file cannot be drawn"):
      reuse.init_distribution(_artifact(init=init), _MODEL)


# The space of the images




def test_normalize_is_the_space_of_the_distilled_images():
  pixels = np.random.default_rng(0).integers(0, 256, (50, *_SHAPE), np.uint8)
  expected = (pixels / 255 - .25) / .5
  artifact = _artifact()
  for images in (pixels, pixels / 255, np.float32(pixels / 255)):
    normal = artifact.normalize(images)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, expected, atol=1e-6)
  fitted = whitening.fit(np.float32(expected), regularization=1e-6)
  white = artifact._replace(whitening=fitted).normalize(pixels).reshape(50, -1)
  np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(16), atol=1e-3)


@pytest.mark.parametrize("whitened", [False, True])
def test_pixels_are_the_inverse_of_normalize(whitened):
  pixels = np.random.default_rng(0).random((6, *_SHAPE), np.float32)
  artifact = _artifact()
  if whitened:
    artifact = artifact._replace(whitening=whitening.fit(artifact.normalize(pixels)))
  images = jnp.asarray(artifact.normalize(pixels).reshape(2, 3, *_SHAPE))
  artifact = artifact._replace(distilled=artifact.distilled._replace(images=images))
  np.testing.assert_allclose(artifact.pixels(), pixels.reshape(2, 3, *_SHAPE), atol=1e-5)


def test_pixels_are_clipped_unless_asked_not_to_be():
  artifact = _artifact()
  images = .25 + .5 * np.asarray(artifact.distilled.images)
  assert images.min() < 0 and images.max() > 1
  np.testing.assert_allclose(artifact.pixels(clip=False), images, atol=1e-6)
  np.testing.assert_allclose(artifact.pixels(), np.clip(images, 0, 1), atol=1e-6)


def test_pixels_keep_to_the_range_of_the_file():
  """Black and white are its ends; a file without one, as of an older version, has 0..1."""
  artifact = _artifact(mean=[100.], std=[200.], pixel_scale=1, pixel_range=[0, 255])
  images = 100 + 200 * np.asarray(artifact.distilled.images)
  assert images.min() < 0 and images.max() > 255
  np.testing.assert_allclose(artifact.pixels(), np.clip(images, 0, 255), rtol=1e-5)
  np.testing.assert_allclose(artifact.pictures(), np.clip(images / 255, 0, 1), atol=1e-6)
  old = _artifact()
  assert old.pixel_range == (0, 1)
  np.testing.assert_array_equal(old.pictures(), old.pixels())


@pytest.mark.parametrize("found", [None, 3, [1], [2, 1], [0, float("nan")], ["a", "b"], [0, 1, 2]])
def test_a_range_that_is_none(found):
  with pytest.raises(ValueError, match="pixel_range of the metadata must be two finite numbers, "
                                       "the lower first; got"):
    _artifact(pixel_range=found).pictures()


def test_normalize_takes_time_stamps():
  stamps = 1.7e9 + np.arange(32.).reshape(2, *_SHAPE)
  artifact = _artifact(mean=[1.7e9 + 16], std=[2.], pixel_scale=1)
  np.testing.assert_array_equal(artifact.normalize(stamps).reshape(-1), (np.arange(32) - 16) / 2)
  with pytest.raises(ValueError, match="images must be finite float32 once normalised; got inf"):
    artifact.normalize(np.full((1, *_SHAPE), 1e300))


@pytest.mark.parametrize("images, metadata, message", [
    (np.zeros((2, 4, 4), np.uint8), {}, r"images must be .* = \(4, 4, 1\); got \[2, 4, 4\]"),
    (np.zeros((2, 4, 4, 1), np.int64), {}, "images must be uint8 or floating point.*; got int64"),
    (np.full((2, 4, 4, 1), 255.), {}, r"images must lie in 0\.\.1 .*; got 255\.0\.\.255\.0"),
    (np.zeros((2, 4, 4, 1), np.uint8), {"pixel_scale": 1}, "must be floating point.*; got uint8"),
])
def test_images_that_are_not_the_dataset_s(images, metadata, message):
  with pytest.raises(ValueError, match=message):
    _artifact(**metadata).normalize(images)


def test_a_file_without_its_normalisation():
  artifact = _artifact()._replace(metadata={})
  with pytest.raises(ValueError, match="metadata must hold 'pixel_scale'; the file has"):
    artifact.normalize(np.zeros((2, *_SHAPE), np.uint8))
  with pytest.raises(ValueError, match="metadata must hold 'std'|metadata must hold 'mean'"):
    artifact.pixels()
