"""Whether the hypergradient of a training can be followed: its metasmoothness.

A gradient says how the trained weights answer to an infinitely small change of the distilled data.
An outer step makes a finite one. Where training answers to two such changes after one another in
unlike ways, as it does on long or fast trajectories, the gradient is right and leads nowhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax.types import Array, Params, Train, wide


def metasmoothness(train: Train, decode: Callable[[Any], Any], key: Array, params: Params,
                   trainable: Any, direction: Any, size: Array | float) -> Array:
  """How far two changes of the trained weights agree in sign -> [], from -1 to 1.

  Three trainings of one network, at w, w + h v and w + 2 h v: with d_1 and d_2 the differences of
  their weights one after another, the mean of sign(d_1) sign(d_2) over all weights, each counted
  with its share of |d_1|. 1: every weight goes on in its direction; -1/2: the three trainings have
  nothing to do with one another, as their middle one counts in both differences. (Engstrom et al.,
  "Optimizing ML Training with Metagradient Descent", arXiv 2503.13751, section 3.)

  Args:
    train: the inner algorithm, as in `make_outer_loss`.
    decode: trainable -> DistilledData.
    key: of the training; the three share it.
    params: theta_0.
    trainable: w.
    direction: v, of the structure of `trainable`.
    size: h.

  Returns:
    NaN where a training is not finite, or h v changes nothing.
  """
  def trained(times):
    moved = jax.tree.map(lambda w, v: (w + times * size * v).astype(w.dtype), trainable, direction)
    weights, _ = train(key, params, decode(moved))
    return [leaf.astype(wide(leaf.dtype)) for leaf in jax.tree.leaves(weights)]

  at, once, twice = (trained(times) for times in range(3))
  finite = jnp.array(True)
  agreement = total = jnp.zeros((), jnp.result_type(*at))
  for a, b, c in zip(at, once, twice, strict=True):
    agreement += jnp.sum((b - a) * jnp.sign(c - b))
    total += jnp.sum(jnp.abs(b - a))
    finite &= jnp.isfinite(c).all()
  return jnp.where(finite, agreement / total, jnp.nan)


def random_direction(key: Array, trainable: Any) -> Any:
  """v of `metasmoothness`: a random sign for every number, all of the size that Adam moves them."""
  leaves, structure = jax.tree.flatten(trainable)
  return jax.tree.unflatten(structure, [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(
      jax.random.split(key, len(leaves)), leaves, strict=True)])
