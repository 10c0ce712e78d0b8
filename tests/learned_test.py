"""From a config to what is learned: its outer optimizer, and the real images that it begins at."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from dd_jax import truncation
from experiments import problem
from experiments.names import learned
from experiments.names import loaded
from tests.launches import smoke

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_each_kind_of_what_is_learned_has_its_learning_rate():
  """Adam's first update is minus the rate, whatever the gradient."""
  outer = smoke(**{"outer.learning_rate": .3, "outer.label_learning_rate": .02,
                   "outer.step_size_learning_rate": .001, "outer.clip_norm": None,
                   "outer.weight_decay": 0.}).outer
  trainable = {name: jnp.zeros(2) for name in ("inputs", "labels", "step_sizes", "hyper")}
  optimizer = learned.make_optimizer(outer, trainable)
  gradient = jax.tree.map(lambda x: x + .5, trainable)
  updates, _ = optimizer.update(gradient, optimizer.init(trainable), trainable)
  for name, rate in {"inputs": .3, "labels": .02, "step_sizes": .001, "hyper": .001}.items():
    np.testing.assert_allclose(updates[name], -rate, rtol=1e-3)


@pytest.mark.parametrize("schedule, expected", [
    ("halving", {0: 1, 39: 1, 40: .5, 79: .5, 80: .25}),
    ("cosine", {0: 1, 50: .5, 100: 0}), ("squared_cosine", {0: 1, 50: .25, 100: 0})])
def test_the_rate_falls_as_its_schedule_says(schedule, expected):
  rate = learned.make_schedule("outer", ConfigDict(
      {"schedule": schedule, "num_steps": 100, "halve_every": 40}), 1.)
  for step, value in expected.items():
    np.testing.assert_allclose(rate(step), value, atol=1e-6)


def test_a_window_begins_where_the_config_says():
  for name, start in (("random", truncation.random_start), ("last", truncation.last_start)):
    built = problem.make_problem(smoke(**{"window.start": name, "window.length": 2}))
    assert built.outer_train.start is start


@pytest.mark.parametrize("updates, num_real", [
    ({"distill.start": "real"}, 20), ({"distill.images": "perturbed"}, 20),
    ({"distill.real_per_class": 1}, 10)], ids=["start", "perturbed", "beside"])
def test_real_images_are_training_images_of_their_labels_each_once(updates, num_real):
  config = smoke(**{"distill.images_per_class": 2, **updates})
  data = loaded.load_data(config)
  part = learned.make_parametrization(config, data)
  distilled = part.decode(part.init(jax.random.key(0)))
  train = np.asarray(data.preparation.apply(data.preparation.state, data.train[0]))
  known = {image.round(3).tobytes(): int(label) for image, label in zip(train, data.train[1])}
  images = np.asarray(distilled.inputs[0])[-num_real:]
  labels = np.asarray(distilled.labels[0])[-num_real:]
  assert [known.get(image.round(3).tobytes()) for image in images] == labels.tolist()
  assert len({image.tobytes() for image in images}) == num_real


@pytest.mark.parametrize("range_of", [(0., 1.), (0., 255.)], ids=["uint8", "floats"])
def test_a_perturbed_image_stays_within_epsilon_and_the_range_of_pixels(range_of):
  config = smoke(**{"distill.images": "perturbed", "distill.epsilon": .1})
  data = loaded.load_data(config)
  pixels = data.pixels._replace(range=range_of)
  width, std, mean = range_of[1] - range_of[0], np.asarray(pixels.std), np.asarray(pixels.mean)
  if width > 1:
    pixels = pixels._replace(mean=255 * mean, std=255 * std)
    std, mean = 255 * std, 255 * mean
  part = learned.make_parametrization(config, data._replace(pixels=pixels))
  start = part.init(jax.random.key(0))
  real = np.asarray(part.decode(start).inputs) * std + mean
  for sign in (1e3, -1e3):
    pushed = {**start, "inputs": jax.tree.map(lambda x, sign=sign: x + sign, start["inputs"])}
    moved = np.asarray(part.decode(pushed).inputs) * std + mean
    assert np.abs(moved - real).max() == pytest.approx(.1 * width, rel=1e-4)
    assert range_of[0] - 1e-3 <= moved.min() and moved.max() <= range_of[1] + 1e-3
