"""What distilled data must beat: real images at the same budget, and k-NN.

A budget of S steps and k images per class and step is M = S * k images per
class. Every set is laid out as distilled images are, `[S, B, H, W, C]` with
B = K * k and the labels of `parametrization.class_labels`: step s holds images
s * k to (s + 1) * k - 1 of each class. `with_step_size` makes distilled data of
it. Sets and step sizes are to be chosen on training data.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from dd_jax import extras
from dd_jax.parametrization import class_labels
from dd_jax.step_sizes import check_positive
from dd_jax.types import Array, DistilledData


def random_real(seed: int, images: Array, labels: Array, *, num_classes: int, num_steps: int,
                images_per_class: int) -> np.ndarray:
  """M different real images of each class, drawn at random.

  Args:
    seed: the set is a function of it.
    images, labels: real `[n, H, W, C]` in normalised space, and `[n]`.
    num_classes: K.
    num_steps: S.
    images_per_class: k, in each step.

  Returns:
    `[S, B, H, W, C]`.

  Raises:
    ValueError: an argument that does not fit, or a class of fewer than M images.
  """
  rng = _generator(seed)
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  return arrays[_draw(rng, members, num_steps, images_per_class)]


def random_places(seed: int, labels: Array, *, num_classes: int, num_steps: int,
                  images_per_class: int) -> np.ndarray:
  """Where the images of `random_real` are among all: indices `[S, B]`.

  Args:
    seed, labels, num_classes, num_steps, images_per_class: as in `random_real`.

  Raises:
    ValueError: as there.
  """
  rng = _generator(seed)
  class_labels(num_steps, num_classes, images_per_class)
  members = _members(np.asarray(labels), num_classes, num_steps, images_per_class)
  return _draw(rng, members, num_steps, images_per_class)


def optimized_real(seed: int, images: Array, labels: Array, *, num_classes: int, num_steps: int,
                   images_per_class: int, score: Callable, num_sets: int, num_best: int = 1
                   ) -> tuple[np.ndarray, np.ndarray]:
  """The best of many `random_real` sets.

  Args:
    seed, images, labels, num_classes, num_steps, images_per_class: as in `random_real`.
    score: `(images [S, B, H, W, C]) -> float`, the higher the better: for instance the mean
      accuracy on training images of networks trained on the set. Not finite: the set is refused.
    num_sets: sets that are drawn and scored.
    num_best: sets that are kept.

  Returns:
    The kept sets `[num_best, S, B, H, W, C]`, best first, and the score of every set drawn
    `[num_sets]`.
  """
  if not num_sets >= num_best >= 1:
    raise ValueError(f"num_sets must be at least num_best, and num_best at least 1; "
                     f"got num_sets={num_sets}, num_best={num_best}")
  rng = _generator(seed)
  arrays, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  drawn = np.stack([_draw(rng, members, num_steps, images_per_class) for _ in range(num_sets)])
  scores = np.array([float(score(arrays[chosen])) for chosen in drawn])
  return arrays[drawn[_best(scores, num_best, "num_sets")]], scores


def average_real(images: Array, labels: Array, *, num_classes: int, num_steps: int,
                 images_per_class: int) -> np.ndarray:
  """The mean image of each class, M times -> `[S, B, H, W, C]`; arguments as in `random_real`.

  Raises:
    ValueError: an argument that does not fit, or a class without an image.
  """
  images, members = _by_class(images, labels, num_classes, num_steps, images_per_class, needed=1)
  means = np.stack([images[chosen].mean(0, dtype=np.float64) for chosen in members])
  return _lay_out(np.repeat(means.astype(images.dtype)[:, None], num_steps * images_per_class, 1),
                  num_steps)


def kmeans(seed: int, images: Array, labels: Array, *, num_classes: int, num_steps: int,
           images_per_class: int) -> np.ndarray:
  """M k-means centres of each class -> `[S, B, H, W, C]`; arguments as in `random_real`.

  One k-means++ start per class, then Lloyd's iterations until no assignment
  changes, 300 at most. For M = 1 the centre is the mean.
  """
  cluster = _scikit_learn("cluster")
  _generator(seed)  # Refuses a seed by its name.
  images, members = _by_class(images, labels, num_classes, num_steps, images_per_class)
  centres = [
      cluster.KMeans(num_steps * images_per_class, n_init=1, tol=0, random_state=seed)
      .fit(images[chosen].reshape(len(chosen), -1)).cluster_centers_ for chosen in members]
  return _lay_out(np.stack(centres).reshape(num_classes, -1, *images.shape[1:]), num_steps)


def with_step_size(images: Array, labels: Array, *, step_size: float, num_epochs: int
                   ) -> DistilledData:
  """Distilled data of a set, with one step size for all E * S inner steps.

  Args:
    images: `[S, B, H, W, C]`.
    labels: those of `parametrization.class_labels`, or what poisoning makes of them.
    step_size: positive.
    num_epochs: E.
  """
  if num_epochs < 1:
    raise ValueError(f"num_epochs must be at least 1; got {num_epochs}")
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  check_positive(step_size)
  return DistilledData(images, labels,
                       jnp.full((num_epochs, images.shape[0]), step_size, images.dtype))


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


def nearest_neighbors(images: Array, labels: Array, test_images: Array, test_labels: Array, *,
                      num_neighbors: int, num_classes: int) -> float:
  """Accuracy of k-nearest neighbours by distance between pixels: a fraction of the test images.

  Args:
    images, labels: the neighbours: `[..., H, W, C]` in normalised space and `[...]`, such as a
      whole set `[S, B, H, W, C]` and `[S, B]`.
    test_images, test_labels: `[n, H, W, C]` in normalised space, and `[n]`.
    num_neighbors: how many vote; of equal votes the lowest class wins.
    num_classes: K.
  """
  neighbors = _scikit_learn("neighbors")
  images, labels = _labelled(images, labels, num_classes)
  test_images, test_labels = _labelled(test_images, test_labels, num_classes, "test_")
  if test_images.shape[1:] != images.shape[1:]:
    raise ValueError(f"test_images must have the image shape of images, {images.shape[1:]}; "
                     f"got {test_images.shape[1:]}")
  if not 1 <= num_neighbors <= len(images):
    raise ValueError(f"num_neighbors must lie in 1..{len(images)} (the images); "
                     f"got {num_neighbors}")
  model = neighbors.KNeighborsClassifier(num_neighbors, algorithm="brute")
  model.fit(images.reshape(len(images), -1), labels)
  return float(model.score(test_images.reshape(len(test_images), -1), test_labels))


def _labelled(images, labels, num_classes, prefix=""):
  """`[..., H, W, C]` and `[...]` -> numpy `[n, H, W, C]` and `[n]`, checked."""
  images, labels = np.asarray(images), np.asarray(labels)
  if images.ndim < 4 or not images.size or labels.shape != images.shape[:-3]:
    raise ValueError(f"{prefix}images must be [n, H, W, C], not empty, and {prefix}labels [n]; "
                     f"got {list(images.shape)} and {list(labels.shape)}")
  if not np.issubdtype(images.dtype, np.floating):
    raise ValueError(f"{prefix}images must be floating point, normalised; got {images.dtype}")
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{prefix}labels must be integers; got {labels.dtype}")
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"{prefix}labels must lie in 0..{num_classes - 1} (num_classes - 1); "
                     f"got {labels.min()}..{labels.max()}")
  return images.reshape(-1, *images.shape[-3:]), labels.reshape(-1)


def _by_class(images, labels, num_classes, num_steps, images_per_class, needed=None):
  """The images as numpy, and the indices of each class: at least M, or `needed`, of them."""
  class_labels(num_steps, num_classes, images_per_class)  # Refuses counts that make no layout.
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
