"""One file of several: of parts of the classes, or of several owners of data."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax.files.artifacts import Artifact
from dd_jax.types import DistilledData

# What has to be one and the same, for a network to be trained on all of it together.
SAME = ("num_classes", "image_shape", "pixel_scale", "class_names", "model", "model_options",
        "objective", "precision", "inner_algorithm", "inner_optimizer", "inner_loss",
        "inner_augmentation", "inner_siamese", "num_features", "regularization", "targets")
# What the run of one file says of itself, which holds for no other.
OF_ONE_RUN = ("num_train", "num_eval_inits", "learned_bytes", "outer_steps", "selection",
              "readable")


def merge(artifacts: Sequence[Artifact]) -> Artifact:
  """Puts the examples of several files side by side in every step.

  Step sizes become their mean. Every step follows the mean gradient over all examples; of files of
  as many examples and equal step sizes it is the mean of their own, as in federated averaging.
  Images are brought to the first file's normalisation. The result is used as it is, or is a start
  for `distill.start`; it has no accuracy, for none has been measured.

  Args:
    artifacts: what `artifacts.load` returns, two or more: of classes numbered alike, of as many
      steps S and epochs E, of one network and inner algorithm. Batches B may differ.

  Returns:
    An artifact `[S, B_1 + B_2 + ..., ...]`; labels are `[S, B, K]` if those of any file are.

  Raises:
    ValueError: fewer than two, or what does not go together; it names the field. Of tables and
      texts, data or splits that differ: one file's numbers would not mean what another's do.
  """
  if len(artifacts) < 2:
    raise ValueError(f"artifacts must be two or more; got {len(artifacts)}")
  first, *others = artifacts
  for number, other in enumerate(others, 1):
    _check(number, first, other)
  distilled = [artifact.distilled for artifact in artifacts]
  labels = [_scores(part.labels, artifact) if any(part.labels.ndim == 3 for part in distilled)
            else part.labels for part, artifact in zip(distilled, artifacts)]
  if len({part.shape[2:] for part in labels}) > 1:
    raise ValueError("artifacts must agree in the length of soft labels and num_classes; got "
                     f"{[*dict.fromkeys(part.shape[-1] for part in labels)]}")
  inputs = [_as_normalized_by(first, artifact) for artifact in artifacts]
  return Artifact(
      DistilledData(jax.tree.map(_side_by_side, *inputs), _side_by_side(*labels),
                    jnp.stack([part.step_sizes for part in distilled]).mean(0),
                    first.distilled.hyper),
      first.init_params, _metadata(artifacts), first.whitening)


def _side_by_side(*parts):
  return jnp.concatenate(parts, axis=1)


def _check(number: int, first: Artifact, other: Artifact) -> None:
  """Raises ValueError where the two cannot be trained on together."""
  def require(name, expected, found, equal):
    if not equal:
      raise ValueError(f"artifacts must agree in {name}: {expected} in the first; "
                       f"got {found} in number {number}")

  for name in SAME:
    expected, found = first.metadata.get(name), other.metadata.get(name)
    require(name, expected, found, expected == found)
  if "mean" not in first.metadata:  # What tables and texts are coded by follows from their data.
    for name in ("data", "split_seed", "reading"):
      expected, found = first.metadata.get(name), other.metadata.get(name)
      require(name, expected, found, expected == found)
  expected, found = (jax.tree.map(lambda x: list(x.shape[2:]), each.distilled.inputs)
                     for each in (first, other))
  require("the shape of an example", expected, found, expected == found)
  expected, found = (list(each.distilled.labels.shape[2:]) for each in (first, other))
  require("the length of soft labels", expected, found,
          expected == found or [] in (expected, found))
  expected, found = (list(each.distilled.step_sizes.shape) for each in (first, other))
  require("[E, S]", expected, found, expected == found)
  for name, parts in (("hyper", (first.distilled.hyper, other.distilled.hyper)),
                      ("weights of a fixed init", (first.init_params, other.init_params)),
                      ("whitening", (first.whitening, other.whitening))):
    require(name, "those", "others", _equal(*parts))


def _equal(a: Any, b: Any) -> bool:
  leaves, others = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
  return len(leaves) == len(others) and all(
      path == other_path and np.array_equal(leaf, other)
      for (path, leaf), (other_path, other) in zip(leaves, others))


def _as_normalized_by(first, artifact):
  """The inputs, images in the first file's normalised space."""
  same = all(artifact.metadata.get(name) == first.metadata.get(name) for name in ("mean", "std"))
  if same:
    return artifact.distilled.inputs
  if first.whitening is not None:
    raise ValueError("artifacts must agree in mean and std where images are whitened; "
                     f"got {first.field('mean')} and {artifact.field('mean')}")
  mean, std = (np.asarray(artifact.field(name)) for name in ("mean", "std"))
  pixels = artifact.images.astype(np.float64) * std + mean
  return jnp.asarray((pixels - first.field("mean")) / first.field("std"), artifact.images.dtype)


def _scores(labels, artifact):
  """Labels `[S, B, K]`."""
  return labels if labels.ndim == 3 else jax.nn.one_hot(labels, artifact.field("num_classes"))


def _metadata(artifacts):
  """What all files say alike, and the normalisation of the first."""
  first = artifacts[0].metadata
  known = {name: value for name, value in first.items()
           if all(name in each.metadata and each.metadata[name] == value for each in artifacts)}
  kept = {name: first[name] for name in ("mean", "std", "pixel_range") if name in first}
  return {**{name: value for name, value in known.items()
             if not name.endswith(("_mean", "_std")) and name not in OF_ONE_RUN},
          **kept, "merged": len(artifacts)}
