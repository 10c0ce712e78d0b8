"""dd_jax.baselines: every set by its values, the choices by their scores, k-NN by brute force."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import baselines
from dd_jax import parametrization

K, SHAPE = 3, (4, 3, 2)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(K, dtype=np.int32), [12, 13, 15]))
IMAGES = np.random.default_rng(1).standard_normal((40, *SHAPE), np.float32) + 3
LAYOUTS = [(1, 1), (2, 3), (4, 1), (1, 12)]  # S and k.
MAKERS = {"random_real": functools.partial(baselines.random_real, 0),
          "kmeans": functools.partial(baselines.kmeans, 0),
          "average_real": baselines.average_real,
          "optimized_real": functools.partial(baselines.optimized_real, 0, score=np.mean,
                                              num_sets=2)}


def make(maker, num_steps, images_per_class, images=IMAGES, labels=LABELS, num_classes=K):
  return maker(images, labels, num_classes=num_classes, num_steps=num_steps,
               images_per_class=images_per_class)


def class_labels(num_steps, images_per_class, num_classes=K):
  return np.asarray(parametrization.class_labels(num_steps, num_classes, images_per_class))


def by_class(images, images_per_class):
  """`[S, B, ...]` -> `[K, M, ...]` by a loop: what the labels of the layout promise."""
  labels = class_labels(len(images), images_per_class)
  return np.stack([images[labels == label] for label in range(K)])


def squared_distance(centres, labels):
  """Mean over real images of that to the closest centre of their class."""
  distances = [((image - centres[label]) ** 2).reshape(len(centres[label]), -1).sum(1).min()
               for image, label in zip(IMAGES, labels)]
  return np.mean(distances)


def raises(message, error=ValueError):
  return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("num_steps, images_per_class", LAYOUTS)
@pytest.mark.parametrize("name", ["random_real", "kmeans", "average_real"])
def test_every_set_has_the_layout_of_distilled_images(name, num_steps, images_per_class):
  images = make(MAKERS[name], num_steps, images_per_class)
  assert images.shape == (num_steps, K * images_per_class, *SHAPE)
  assert images.dtype == np.float32


@pytest.mark.parametrize("num_steps, images_per_class", LAYOUTS)
def test_random_real_images_are_of_their_class_and_never_twice(num_steps, images_per_class):
  images = make(MAKERS["random_real"], num_steps, images_per_class)
  labels = class_labels(num_steps, images_per_class)
  matches = (images[:, :, None] == IMAGES[None, None]).all((-3, -2, -1))  # [S, B, n]
  assert (matches.sum(-1) == 1).all()
  chosen = matches.argmax(-1)
  assert len(np.unique(chosen)) == chosen.size
  np.testing.assert_array_equal(LABELS[chosen], labels)


def test_random_real_draws_every_image_equally_often():
  counts = np.zeros(len(IMAGES))
  for seed in range(300):
    images = make(functools.partial(baselines.random_real, seed), 2, 2)
    counts += np.isin(IMAGES[:, 0, 0, 0], images[..., 0, 0, 0])
  expected = 300 * 4 / np.bincount(LABELS)[LABELS]  # 100, 92 and 80; their std is below 8.2.
  assert np.abs(counts - expected).max() < 35


@pytest.mark.parametrize("num_steps, images_per_class", LAYOUTS)
def test_average_real_repeats_the_class_means(num_steps, images_per_class):
  images = make(MAKERS["average_real"], num_steps, images_per_class)
  means = np.stack([IMAGES[LABELS == label].astype(np.float64).mean(0) for label in range(K)])
  expected = means[class_labels(num_steps, images_per_class)].astype(np.float32)
  np.testing.assert_array_equal(images, expected)


def test_one_centre_is_the_mean():
  np.testing.assert_allclose(make(MAKERS["kmeans"], 1, 1), make(MAKERS["average_real"], 1, 1),
                             rtol=1e-5)


def test_kmeans_recovers_clusters_that_lie_apart():
  rng = np.random.default_rng(2)
  centres = 50 * rng.permutation(K * 6)[:, None] + rng.standard_normal((K * 6, 24))
  points = np.float32(centres[:, None] + rng.standard_normal((K * 6, 5, 24)))  # 6 centres a class.
  expected = points.mean(1).reshape(K, 6, *SHAPE)
  order = rng.permutation(K * 6 * 5)
  images = points.reshape(-1, *SHAPE)[order]
  labels = np.repeat(np.arange(K), 30)[order]
  actual = by_class(make(MAKERS["kmeans"], 2, 3, images, labels), 3)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a[a[:, 0, 0, 0].argsort()], b[b[:, 0, 0, 0].argsort()], rtol=1e-5,
                               atol=1e-3)  # Float32 at a thousand; clusters are 50 apart.


def test_kmeans_goes_on_until_no_assignment_changes():
  """Every centre is the mean of the images closest to it."""
  images = np.random.default_rng(3).random((2000, 1, 2, 1), np.float32)
  labels = np.repeat(np.arange(2), 1000)
  made = make(MAKERS["kmeans"], 1, 8, images, labels, num_classes=2)
  for label in range(2):
    centres = made[0, 8 * label:8 * label + 8].reshape(8, 2)
    points = images[labels == label].reshape(-1, 2)
    closest = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    means = [points[closest == centre].mean(0) for centre in range(8)]
    np.testing.assert_allclose(centres, means, rtol=1e-5)


def test_kmeans_is_scikit_learn_s_and_its_centres_go_to_the_steps_in_order():
  from sklearn.cluster import KMeans
  images = make(functools.partial(baselines.kmeans, 7), 2, 3)
  for label in range(K):
    model = KMeans(6, init="k-means++", n_init=1, tol=0, random_state=7)
    centres = model.fit(IMAGES[LABELS == label].reshape(-1, 24)).cluster_centers_
    for step in range(2):
      np.testing.assert_array_equal(images[step, 3 * label:3 * label + 3].reshape(3, -1),
                                    centres[3 * step:3 * step + 3])


def test_kmeans_centres_are_closer_to_the_images_than_random_ones():
  for seed in range(3):
    distances = {name: squared_distance(by_class(make(functools.partial(
        getattr(baselines, name), seed), 2, 2), 2), LABELS) for name in ("kmeans", "random_real")}
    assert distances["kmeans"] < 0.9 * distances["random_real"]


@pytest.mark.parametrize("name", ["random_real", "kmeans", "optimized_real"])
def test_a_set_is_a_function_of_the_seed(name):
  def images(seed):
    options = {"score": np.mean, "num_sets": 2} if name == "optimized_real" else {}
    made = make(functools.partial(getattr(baselines, name), seed, **options), 2, 2)
    return made[0] if name == "optimized_real" else made

  np.testing.assert_array_equal(images(3), images(3))
  assert not np.array_equal(images(3), images(4))


@pytest.mark.parametrize("name", ["random_real", "kmeans", "average_real"])
def test_jax_arrays_give_the_same_set(name):
  actual = make(MAKERS[name], 2, 2, jnp.asarray(IMAGES), jnp.asarray(LABELS))
  np.testing.assert_array_equal(actual, make(MAKERS[name], 2, 2))


def optimize(score, num_sets=8, **options):
  """The kept sets, the scores, and the sets that were scored."""
  seen = []

  def recording(images):
    seen.append(images)
    return score(images)

  kept, scores = make(functools.partial(baselines.optimized_real, 5, score=recording,
                                        num_sets=num_sets, **options), 2, 2)
  return kept, scores, np.stack(seen)


def test_optimized_real_keeps_the_best_sets():
  (best,), scores, seen = optimize(np.mean)
  np.testing.assert_allclose(scores, [images.mean() for images in seen], rtol=1e-6)
  np.testing.assert_array_equal(best, seen[np.argmax(scores)])
  assert len(np.unique(scores)) == 8
  np.testing.assert_array_equal(seen[0], make(functools.partial(baselines.random_real, 5), 2, 2))

  kept, scores, seen = optimize(np.mean, num_best=3)
  np.testing.assert_array_equal(kept, seen[np.argsort(-scores)[:3]])


def test_optimized_real_never_keeps_a_set_that_diverged():
  highest = optimize(np.mean)[1].max()
  (best,), scores, _ = optimize(lambda x: np.nan if x.mean() > highest - 1e-6 else x.mean())
  assert np.isnan(scores).sum() == 1 and best.mean() == pytest.approx(np.nanmax(scores))
  with raises("num_sets must bring at least 2 of finite score; got scores [nan, nan, nan]"):
    optimize(lambda x: np.nan, num_sets=3, num_best=2)


def test_search_step_size():
  table = {0.01: 0.3, 0.1: np.nan, 0.5: 0.9, 0.6: 0.9, 1.0: np.inf, 2.0: -np.inf}
  step_size, scores = baselines.search_step_size(table.get, list(table))
  assert step_size == 0.5
  np.testing.assert_array_equal(scores, list(table.values()))
  negative = baselines.search_step_size(lambda step_size: -step_size, (3, 2, 4))
  assert negative[0] == 2


@pytest.mark.parametrize("step_size", [1e-4, 0.02, 1.5, 30.])
def test_with_step_size(step_size):
  images, labels = make(MAKERS["random_real"], 2, 3), class_labels(2, 3)
  distilled = baselines.with_step_size(images, labels, step_size=step_size, num_epochs=4)
  np.testing.assert_array_equal(distilled.inputs, images)
  np.testing.assert_array_equal(distilled.labels, labels)
  np.testing.assert_allclose(distilled.step_sizes, np.full((4, 2), step_size), rtol=1e-5)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(distilled)} == {"float32", "int32"}


def test_a_set_in_double_precision(x64):
  images = make(MAKERS["average_real"], 2, 3, IMAGES.astype(np.float64))
  distilled = baselines.with_step_size(images, class_labels(2, 3), step_size=0.02, num_epochs=1)
  assert distilled.inputs.dtype == distilled.step_sizes.dtype == np.float64
  np.testing.assert_allclose(distilled.step_sizes, np.full((1, 2), 0.02), rtol=1e-14)


def test_evaluate_takes_a_set_as_it_takes_distilled_data():
  """Class means of separable classes train a network; with labels moved by one it learns those."""
  model = dd_jax.models.mlp(num_classes=K, image_shape=SHAPE, hidden=(8,))
  images = IMAGES - 3 + 3 * np.eye(K, dtype=np.float32)[LABELS][:, None, :, None]
  distilled = baselines.with_step_size(
      make(MAKERS["average_real"], 2, 2, images), class_labels(2, 2), step_size=0.1, num_epochs=10)

  @jax.jit
  def accuracy(distilled, labels):
    return dd_jax.evaluate(
        jax.random.key(0), distilled, dd_jax.random_init(model.init),
        dd_jax.unroll(dd_jax.losses.classification(model.apply)), model.apply, images, labels,
        num_inits=3).after.accuracy

  assert np.min(accuracy(distilled, LABELS)) > 0.95
  moved = distilled._replace(labels=(distilled.labels + 1) % K)
  assert np.max(accuracy(moved, LABELS)) < 0.05
  assert np.min(accuracy(moved, (LABELS + 1) % K)) > 0.95


def neighbors_by_hand(images, labels, test_images, test_labels, num_neighbors):
  images, labels = images.reshape(-1, 24).astype(np.float64), labels.reshape(-1)
  hits = 0
  for image, label in zip(test_images.reshape(-1, 24), test_labels):
    nearest = np.argsort(((images - image) ** 2).sum(1))[:num_neighbors]
    hits += np.bincount(labels[nearest]).argmax() == label  # The lowest of equal votes.
  return hits / len(test_images)


@pytest.mark.parametrize("num_neighbors", [1, 2, 3, 4, 7, 12])
def test_nearest_neighbors(num_neighbors):
  images, labels = make(MAKERS["random_real"], 2, 2), class_labels(2, 2)
  shift = 0.5 * np.eye(K)[:, None, :, None]  # Else the accuracy would be chance's.
  images = np.float32(images + shift[labels])
  test_images = np.float32(IMAGES + shift[LABELS])
  actual = baselines.nearest_neighbors(images, labels, test_images, LABELS,
                                       num_neighbors=num_neighbors, num_classes=K)
  expected = neighbors_by_hand(images, labels, test_images, LABELS, num_neighbors)
  assert isinstance(actual, float) and actual == pytest.approx(expected, abs=1e-9)
  assert 0.3 <= expected < 1


ERRORS = {  # What is wrong with the arguments of make, and the message.
    "num_steps": ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
    "images_per_class": ({"images_per_class": 0}, "images_per_class must be at least 1; got 0"),
    "num_classes": ({"num_classes": 1}, "labels must lie in 0..0 (num_classes - 1); got 0..2"),
    "shape": ({"images": np.float32(0)}, "images must be [n, H, W, C] or arrays [n, ...], not "
              "empty, and labels [n]; got [] and [40]"),
    "number": ({"labels": LABELS[1:]}, "images must be [n, H, W, C] or arrays [n, ...], not "
               "empty, and labels [n]; got [40, 4, 3, 2] and [39]"),
    "empty": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must be [n, H, W, C] or "
              "arrays [n, ...], not empty, and labels [n]; got [0, 4, 3, 2] and [0]"),
    "pixels": ({"images": IMAGES.astype(np.uint8)},
               "images must be floating point, normalised; got uint8"),
    "soft": ({"labels": LABELS.astype(np.float32)}, "labels must be integers; got float32"),
    "range": ({"num_classes": 2}, "labels must lie in 0..1 (num_classes - 1); got 0..2"),
    "negative": ({"labels": LABELS - 1}, "labels must lie in 0..2 (num_classes - 1); got -1..1"),
    "absent": ({"num_classes": 4}, "images must hold at least 1 of every class; "
               "got 0 of class 3"),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_every_set(case, name):
  wrong, message = ERRORS[case]
  with raises(message):
    make(MAKERS[name], **{"num_steps": 1, "images_per_class": 1, **wrong})


@pytest.mark.parametrize("name", ["random_real", "kmeans", "optimized_real"])
def test_a_class_of_too_few_images(name):
  with raises("images must hold at least 14 of every class; got 12 of class 0"):
    make(MAKERS[name], 2, 7)


@pytest.mark.parametrize("name", ["random_real", "kmeans", "optimized_real"])
def test_seed_errors(name):
  options = {"score": np.mean, "num_sets": 1} if name == "optimized_real" else {}
  for seed in (-1, 2 ** 32):
    with raises(f"seed must lie in 0..4294967295; got {seed}"):
      make(functools.partial(getattr(baselines, name), seed, **options), 1, 1)


def test_errors_of_the_choices():
  for num_sets, num_best in ((0, 1), (3, 0), (3, 4)):
    with raises("num_sets must be at least num_best, and num_best at least 1; "
                f"got num_sets={num_sets}, num_best={num_best}"):
      optimize(np.mean, num_sets=num_sets, num_best=num_best)
  with raises("candidates must bring at least 1 of finite score; got scores []"):
    baselines.search_step_size(float, [])
  with raises("candidates must bring at least 1 of finite score; got scores [nan, nan]"):
    baselines.search_step_size(lambda step_size: np.nan, [0.1, 0.2])
  images, labels = make(MAKERS["random_real"], 1, 1), class_labels(1, 1)
  with raises("step_size must be positive; got 0"):
    baselines.with_step_size(images, labels, step_size=0, num_epochs=1)
  with raises("num_epochs must be at least 1; got 0"):
    baselines.with_step_size(images, labels, step_size=0.1, num_epochs=0)


@pytest.mark.parametrize("wrong, message", [
    ({"num_neighbors": 0}, "num_neighbors must lie in 1..40 (the images); got 0"),
    ({"num_neighbors": 41}, "num_neighbors must lie in 1..40 (the images); got 41"),
    ({"test_images": IMAGES[:, :3]},
     "test_images must have the shapes of images, (4, 3, 2); got (3, 3, 2)"),
    ({"test_labels": LABELS[1:]}, "test_images must be [n, H, W, C] or arrays [n, ...], not empty, "
     "and test_labels [n]; got [40, 4, 3, 2] and [39]"),
    ({"test_labels": LABELS + 1}, "test_labels must lie in 0..2 (num_classes - 1); got 1..3"),
    ({"labels": LABELS[None]}, "images must be [n, H, W, C] or arrays [n, ...], not empty, and "
               "labels [n]; "
     "got [40, 4, 3, 2] and [1, 40]"),
], ids=["none", "too many", "image shape", "number", "range", "axes"])
def test_errors_of_nearest_neighbors(wrong, message):
  with raises(message):
    baselines.nearest_neighbors(**{
        "images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS,
        "num_neighbors": 1, "num_classes": K, **wrong})


def test_without_scikit_learn(monkeypatch):
  message = 'k-means and k-NN come with scikit-learn: pip install "dd_jax[runs]"'
  for module in ("sklearn.cluster", "sklearn.neighbors"):
    monkeypatch.setitem(sys.modules, module, None)
  with raises(message, ImportError):
    make(MAKERS["kmeans"], 1, 1)
  with raises(message, ImportError):
    baselines.nearest_neighbors(IMAGES, LABELS, IMAGES, LABELS, num_neighbors=1, num_classes=K)
  make(MAKERS["random_real"], 1, 1)


def test_step_sizes_are_real_whatever_the_inputs_are():
  inputs = {"category": np.zeros((1, 2, 1), np.int32), "numbers": np.zeros((1, 2, 3), np.float16)}
  labels = np.zeros((1, 2), np.int32)
  for given, dtype in ((inputs, "float16"), (np.zeros((1, 2, 3), np.uint8), "float32")):
    found = baselines.with_step_size(given, labels, step_size=.02, num_epochs=2).step_sizes
    assert found.dtype == dtype
    np.testing.assert_allclose(found, .02, rtol=1e-3)
