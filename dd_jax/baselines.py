"""What distilled data must beat: real examples at the same budget, k-NN, and trees on tables.

A budget of S steps and k examples per class and step is M = S * k examples per class. Every set is
laid out as distilled inputs are, `[S, B, ...]` with B = K * k and the labels of
`parametrization.class_labels`: step s holds examples s * k to (s + 1) * k - 1 of each class. Inputs
are images `[n, H, W, C]` in normalised space, or any pytree of arrays `[n, ...]`; targets instead
of classes are one more array of them, of a single class. `with_step_size` makes distilled data of a
set. Sets and step sizes are to be chosen on training data.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import extras
from dd_jax.parametrization import class_labels
from dd_jax.step_sizes import check_positive
from dd_jax.types import Array, DistilledData, check_at_least


def random_real(seed: int, images: Any, labels: Array, *, num_classes: int, num_steps: int,
                images_per_class: int) -> Any:
  """M different real examples of each class, drawn at random.

  Args:
    seed: the set is a function of it.
    images, labels: real inputs `[n, ...]`, and `[n]`.
    num_classes: K.
    num_steps: S.
    images_per_class: k, in each step.

  Returns:
    `[S, B, ...]`.

  Raises:
    ValueError: an argument that does not fit, or a class of fewer than M examples.
  """
  rng = _generator(seed)
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  return _take(arrays, _draw(rng, members, num_steps, images_per_class))


def optimized_real(seed: int, images: Any, labels: Array, *, num_classes: int, num_steps: int,
                   images_per_class: int, score: Callable, num_sets: int, num_best: int = 1
                   ) -> tuple[list[Any], np.ndarray]:
  """The best of many `random_real` sets.

  Args:
    seed, images, labels, num_classes, num_steps, images_per_class: as in `random_real`.
    score: `(inputs [S, B, ...]) -> float`, the higher the better: for instance the mean
      accuracy on training images of networks trained on the set. Not finite: the set is refused.
    num_sets: sets that are drawn and scored.
    num_best: sets that are kept.

  Returns:
    The kept sets, `num_best` of `[S, B, ...]`, best first, and the score of every set drawn
    `[num_sets]`.
  """
  if not num_sets >= num_best >= 1:
    raise ValueError(f"num_sets must be at least num_best, and num_best at least 1; "
                     f"got num_sets={num_sets}, num_best={num_best}")
  rng = _generator(seed)
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  drawn = np.stack([_draw(rng, members, num_steps, images_per_class) for _ in range(num_sets)])
  scores = np.array([float(score(_take(arrays, chosen))) for chosen in drawn])
  return [_take(arrays, chosen) for chosen in drawn[_best(scores, num_best, "num_sets")]], scores


def average_real(images: Any, labels: Array, *, num_classes: int, num_steps: int,
                 images_per_class: int) -> Any:
  """The mean example of each class, M times -> `[S, B, ...]`; arguments as in `random_real`.

  Raises:
    ValueError: an argument that does not fit, or a class without an image.
  """
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class, needed=1)

  def mean(array):
    means = np.stack([array[chosen].mean(0, dtype=np.float64) for chosen in members])
    return _lay_out(np.repeat(means.astype(array.dtype)[:, None], num_steps * images_per_class, 1),
                    num_steps)

  return jax.tree.map(mean, arrays)


def kmeans(seed: int, images: Any, labels: Array, *, num_classes: int, num_steps: int,
           images_per_class: int) -> Any:
  """M k-means centres of each class -> `[S, B, ...]`; arguments as in `random_real`.

  One k-means++ start per class, then Lloyd's iterations until no assignment
  changes, 300 at most. For M = 1 the centre is the mean.
  """
  cluster = _scikit_learn("cluster")
  _generator(seed)  # Refuses a seed by its name.
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  rows = _rows(arrays, len(np.asarray(labels)))
  centres = [
      cluster.KMeans(num_steps * images_per_class, n_init=1, tol=0, random_state=seed)
      .fit(rows[chosen]).cluster_centers_ for chosen in members]
  return _from_rows(_lay_out(np.stack(centres), num_steps), arrays)


def with_step_size(images: Any, labels: Array, *, step_size: float, num_epochs: int
                   ) -> DistilledData:
  """Distilled data of a set, with one step size for all E * S inner steps.

  Args:
    images: `[S, B, ...]`.
    labels: those of `parametrization.class_labels`, what poisoning makes of them, or targets.
    step_size: positive.
    num_epochs: E.
  """
  check_at_least(1, num_epochs=num_epochs)
  images, labels = jax.tree.map(jnp.asarray, (images, labels))
  check_positive(step_size)
  floating = [leaf.dtype for leaf in jax.tree.leaves(images)
              if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return DistilledData(images, labels, jnp.full(
      (num_epochs, labels.shape[0]), step_size, jnp.result_type(*floating) if floating else float))


def search_step_size(score: Callable, candidates: Sequence[float]) -> tuple[float, np.ndarray]:
  """The step size of the best score.

  Args:
    score: `(step_size) -> float`, the higher the better: for instance the mean accuracy on
      training images of networks trained with it. Not finite: the step size is refused.
    candidates: step sizes; of equal scores the first wins.

  Returns:
    The best step size, and the score of every candidate.
  """
  scores = np.array([float(score(step_size)) for step_size in candidates])
  return candidates[_best(scores, 1, "candidates")[0]], scores


def nearest_neighbors(images: Any, labels: Array, test_images: Any, test_labels: Array, *,
                      num_neighbors: int, num_classes: int) -> float:
  """Accuracy of k-nearest neighbours by distance between inputs: a fraction of the test examples.

  Args:
    images, labels: the neighbours: inputs `[..., ...]` and labels `[...]`, such as a whole set
      `[S, B, H, W, C]` and `[S, B]`.
    test_images, test_labels: inputs `[n, ...]`, and `[n]`.
    num_neighbors: how many vote; of equal votes the lowest class wins.
    num_classes: K.
  """
  neighbors = _scikit_learn("neighbors")
  images, labels = _labelled(images, labels, num_classes)
  test_images, test_labels = _labelled(test_images, test_labels, num_classes, "test_")
  expected, found = (jax.tree.map(lambda x: x.shape[1:], tree) for tree in (images, test_images))
  if found != expected:
    raise ValueError(f"test_images must have the shapes of images, {expected}; got {found}")
  if not 1 <= num_neighbors <= len(labels):
    raise ValueError(f"num_neighbors must lie in 1..{len(labels)} (the images); "
                     f"got {num_neighbors}")
  model = neighbors.KNeighborsClassifier(num_neighbors, algorithm="brute")
  model.fit(_rows(images, len(labels)), labels)
  return float(model.score(_rows(test_images, len(test_labels)), test_labels))


def boosted_trees(rows: Array, labels: Array, test_rows: Array) -> np.ndarray:
  """What gradient-boosted trees, the usual reference on tables, say of test rows.

  Args:
    rows, labels: `[n, D]`, and classes `[n]` or targets `[n, T]`.
    test_rows: `[m, D]`.

  Returns:
    Classes `[m]` or targets `[m, T]`.
  """
  ensemble, labels = _scikit_learn("ensemble"), np.asarray(labels)

  def of(make, labels):
    if len({*labels.tolist()}) == 1:  # Which scikit-learn refuses.
      return np.full(len(test_rows), labels[0])
    return make(random_state=0, early_stopping=False, min_samples_leaf=min(
        20, max(1, len(rows) // 10))).fit(rows, labels).predict(test_rows)

  if labels.ndim == 1:
    return of(ensemble.HistGradientBoostingClassifier, labels)
  return np.stack([of(ensemble.HistGradientBoostingRegressor, target) for target in labels.T], -1)


def _labelled(images, labels, num_classes, prefix=""):
  """Inputs `[..., ...]` and labels `[...]` -> numpy `[n, ...]` and `[n]`, checked."""
  images, labels = jax.tree.map(np.asarray, images), np.asarray(labels)
  for array in jax.tree.leaves(images):
    if not array.size or not labels.ndim or array.shape[:labels.ndim] != labels.shape:
      raise ValueError(f"{prefix}images must be [n, H, W, C] or arrays [n, ...], not empty, and "
                       f"{prefix}labels [n]; got {list(array.shape)} and {list(labels.shape)}")
    if not np.issubdtype(array.dtype, np.floating):
      raise ValueError(f"{prefix}images must be floating point, normalised; got {array.dtype}")
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{prefix}labels must be integers; got {labels.dtype}")
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"{prefix}labels must lie in 0..{num_classes - 1} (num_classes - 1); "
                     f"got {labels.min()}..{labels.max()}")
  return (jax.tree.map(lambda x: x.reshape(-1, *x.shape[labels.ndim:]), images),
          labels.reshape(-1))


def _take(arrays, places):
  return jax.tree.map(lambda x: x[places], arrays)


def _rows(arrays, number):
  """A pytree of `[n, ...]` as one array `[n, D]`."""
  return np.concatenate([x.reshape(number, -1) for x in jax.tree.leaves(arrays)], 1)


def _from_rows(rows, like):
  """`[S, B, D]` as a pytree of the shapes `[n, ...]` of `like`."""
  leaves, tree = jax.tree.flatten(like)
  edges = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
  return jax.tree.unflatten(tree, [part.reshape(*rows.shape[:2], *leaf.shape[1:]).astype(leaf.dtype)
                                   for part, leaf in zip(np.split(rows, edges, -1), leaves)])


def _by_class(images, labels, num_classes, num_steps, images_per_class, needed=None):
  """The inputs as numpy, and the indices of each class: at least M, or `needed`, of them."""
  # One class is that of targets.
  class_labels(num_steps, max(num_classes, 2), images_per_class)
  images, labels = _labelled(images, labels, num_classes)
  return images, _members(labels, num_classes, num_steps, images_per_class, needed)


def _members(labels, num_classes, num_steps, images_per_class, needed=None):
  needed = needed or num_steps * images_per_class
  members = [np.flatnonzero(labels == label) for label in range(num_classes)]
  for label, chosen in enumerate(members):
    if len(chosen) < needed:
      raise ValueError(f"images must hold at least {needed} of every class; "
                       f"got {len(chosen)} of class {label}")
  return members


def _draw(rng, members, num_steps, images_per_class):
  """Indices `[S, B]` of a random set without repetition."""
  size = num_steps * images_per_class
  return _lay_out(np.stack([rng.choice(m, size, replace=False) for m in members]), num_steps)


def _lay_out(of_class, num_steps):
  """`[K, M, ...]` -> `[S, B, ...]`."""
  num_classes, _, *shape = of_class.shape
  steps = of_class.reshape(num_classes, num_steps, -1, *shape)
  return steps.swapaxes(0, 1).reshape(num_steps, -1, *shape)


def _best(scores, count, argument):
  """Indices of the highest finite scores, best first."""
  finite = np.isfinite(scores)
  if finite.sum() < count:
    raise ValueError(f"{argument} must bring at least {count} of finite score; "
                     f"got scores {scores.tolist()}")
  return np.argsort(np.where(finite, -scores, np.inf), kind="stable")[:count]


def _generator(seed):
  if not 0 <= seed < 2 ** 32:
    raise ValueError(f"seed must lie in 0..{2 ** 32 - 1}; got {seed}")
  return np.random.default_rng(seed)


def _scikit_learn(module):
  return extras.load(f"sklearn.{module}", "k-means and k-NN come with scikit-learn", "runs")
