"""Averages files of one way of distillation, such as the ends of a run and of what continued it.

    python -m experiments.average --files=runs/A/distilled.npz,runs/B/distilled.npz --out=FILE.npz

Inputs and soft labels become their mean, step sizes their geometric mean; experiments.apply tests
the result.
"""

from collections.abc import Sequence
import os

from absl import flags

from dd_jax.runs import paths
from experiments import launcher

# What has to be one, besides what files that are merged must share.
_SAME = ("dataset", "data", "split_seed", "reading", "mean", "std", "whitening")


def average(artifacts: Sequence):
  """The artifact in the middle; it has no figures, as none was measured.

  Raises:
    ValueError: fewer than two, or files of other shapes, hard labels, weights, data or network.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  from dd_jax.files import merging
  if len(artifacts) < 2:
    raise ValueError(f"--files must be two or more; got {len(artifacts)}")
  first, *others = artifacts
  for number, other in enumerate(others, 1):
    alike = {
        "shapes": [jax.tree.map(jnp.shape, each.distilled) for each in (first, other)],
        "hard labels": [None if each.distilled.labels.ndim == 3 else
                        np.asarray(each.distilled.labels).tolist() for each in (first, other)],
        "weights of a fixed init": [jax.tree.map(lambda x: np.asarray(x).tobytes(),
                                                 each.init_params) for each in (first, other)],
        **{name: [each.metadata.get(name) for each in (first, other)]
           for name in (*merging.SAME, *_SAME)}}
    for name, (expected, found) in alike.items():
      if expected != found:
        raise ValueError(f"--files must agree in {name}; number {number} does not")

  for number, each in enumerate(artifacts):
    if not (np.asarray(each.distilled.step_sizes) > 0).all():
      raise ValueError("--files must have positive step sizes, whose geometric mean is taken; "
                       f"number {number} has not")

  def mean(*leaves):
    return sum(leaves[1:], leaves[0]) / len(leaves)

  distilled = [artifact.distilled for artifact in artifacts]
  middle = jax.tree.map(mean, *(each._replace(
      step_sizes=jnp.log(each.step_sizes),
      labels=jnp.asarray(each.labels, each.step_sizes.dtype)) for each in distilled))
  metadata = {name: value for name, value in first.metadata.items()
              if not name.endswith(("_mean", "_std")) and name not in merging.OF_ONE_RUN}
  return first._replace(
      distilled=middle._replace(step_sizes=jnp.exp(middle.step_sizes), labels=(
          middle.labels if first.distilled.labels.ndim == 3 else first.distilled.labels)),
      metadata={**metadata, "averaged": len(artifacts)})


def _run():
  from dd_jax.files import artifacts
  options = flags.FLAGS
  out = paths.output(options.out, "--out")
  if out.suffix != ".npz":
    raise ValueError(f"--out must end in .npz; got {options.out}")
  if any(os.path.realpath(out) == os.path.realpath(path) for path in options.files):
    raise ValueError(f"--out must be none of --files, which would be lost; got {options.out}")
  found = average([artifacts.load(paths.local(path, "--files")) for path in options.files])
  artifacts.save(out, found.distilled, init_params=found.init_params, whitening=found.whitening,
                 metadata=found.metadata)
  return {"out": str(out), "averaged": len(options.files)}


if __name__ == "__main__":
  # Here: other commands have an --out of their own.
  flags.DEFINE_list("files", None, "The distilled.npz of runs, with commas between.", required=True)
  flags.DEFINE_string("out", None, "The file to write.", required=True)
  launcher.run(_run)
