"""Windows: the hypergradient of a stretch of a long trajectory instead of the whole.

A window is `begin(key, inner_loss, params, distilled, **options) -> options of inner_trajectory`
with the weights under "params": the steps before it are taken without a gradient, so that memory
and time of the hypergradient depend on the window's length alone. The length is static and the
position is not: one compiled program serves all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_jax import inner_loop
from dd_jax.init_distributions import pool_rows
from dd_jax.types import Array, Params


def last_window(length: int) -> Callable:
  """The last `length` steps: the truncated hypergradient."""
  return _window(length, lambda key, last, losses: last)


def random_window(length: int) -> Callable:
  """A position drawn uniformly in every outer step.

  Feng, Vedantam and Kempe, "Embarrassingly Simple Dataset Distillation", 2023 (arXiv 2311.07025).
  """
  return _window(length, lambda key, last, losses: jax.random.randint(key, (), 0, last + 1))


def adaptive_window(length: int, temperature: float = 1.0) -> Callable:
  """A position drawn where training moves: by how much the inner loss changes within the window.

  The probability is proportional to the mean absolute change to the power of 1 / temperature: a
  high temperature is `random_window`, a low one takes the window of the largest change. The
  losses come from one more pass without a gradient.

  Raises:
    ValueError: a temperature that is not positive.
  """
  if not temperature > 0:
    raise ValueError(f"temperature must be positive; got {temperature}")

  def draw(key, last, losses):
    change = jnp.abs(jnp.diff(losses(), append=0.)).at[-1].set(0.)
    total = jnp.concatenate([jnp.zeros_like(change[:1]), jnp.cumsum(change)])
    moved = total[length:] - total[:last + 1]
    tiny = jnp.finfo(moved.dtype).tiny
    return jax.random.categorical(key, jnp.log(jnp.maximum(moved, tiny)) / temperature)

  return _window(length, draw)


WINDOWS: dict[str, Callable] = {
    "last": last_window, "random": random_window, "adaptive": adaptive_window}


def _window(length, draw_start):
  def begin(key, inner_loss, params, distilled, /, **options):  # The options may have a key too.
    total = distilled.raw_step_sizes.size
    inner_loop.check_length(length, total)

    def losses():
      return inner_loop.inner_trajectory(inner_loss, *jax.lax.stop_gradient((params, distilled)),
                                         memory="plain", **options)[1]

    start = draw_start(key, total - length, losses)
    state = inner_loop.advance(inner_loss, params, distilled, start, **options)
    return {"params": state.params, "opt_state": state.opt_state, "start": start,
            "length": length}

  return begin


class WarmPool(NamedTuple):
  """Networks on their way along the trajectory, kept across outer steps."""
  params: Params  # Each leaf [P, ...].
  opt_state: Any  # Each leaf [P, ...].
  position: Array  # [P] int32, inner steps taken.


class WarmStart(NamedTuple):
  """Windows that begin where those of earlier outer steps ended.

  `init` makes the pool, the `carry` of the outer state; `sample` and `window` are arguments of
  `make_outer_loss`, `carry_on` on decoded data is one of `make_outer_step`.
  """
  init: Callable  # (key, init_state, distilled) -> WarmPool
  sample: Callable  # (pool, key, num_inits, rows=None) -> WarmPool of [N, ...]
  window: Callable
  carry_on: Callable  # (key, pool, init_state, distilled) -> WarmPool


def warm_start(sample_new: Callable, inner_loss: Callable, *, size: int, length: int,
               num_inits: int, optimizer: Any = None) -> WarmStart:
  """Every outer step moves N networks of a pool on by one window, and learns from it.

  Unlike a window behind steps without a gradient its cost does not depend on T. A network that has
  no whole window left is replaced by a new one. As the distilled data change while a network is under
  way, its early steps are those of older data.

  Args:
    sample_new: `sample` of an init distribution.
    inner_loss: `(params, images, labels) -> []`.
    size: P, at least N.
    length: steps of a window.
    num_inits: N.
    optimizer: as in `inner_trajectory`.

  Raises:
    ValueError: a size below N.
  """
  if size < num_inits:
    raise ValueError(f"size must be at least num_inits={num_inits}; got {size}")

  def start(params, distilled):
    return inner_loop.advance(inner_loss, params, distilled, 0, optimizer=optimizer)

  def init(key, init_state, distilled):
    params = sample_new(init_state, key, size)
    return WarmPool(*jax.vmap(start, (0, None))(params, distilled), jnp.zeros(size, jnp.int32))

  def sample(pool, key, num_inits, rows=None):
    chosen = pool_rows(key, size, num_inits, rows)
    return jax.tree.map(lambda leaf: leaf[chosen], pool)

  def window(key, inner_loss, network, distilled, **options):
    inner_loop.check_length(length, distilled.raw_step_sizes.size)
    return {"params": network.params, "opt_state": network.opt_state, "start": network.position,
            "length": length}

  def carry_on(key, pool, init_state, distilled):
    rows_key, _, new_key = objective_keys(key)
    chosen = pool_rows(rows_key, size, num_inits)
    networks = jax.tree.map(lambda leaf: leaf[chosen], pool)

    def move(network, new):
      moved = inner_loop.advance(inner_loss, network.params, distilled, length,
                                 optimizer=optimizer, opt_state=network.opt_state,
                                 start=network.position)
      position = network.position + length
      ended = position + length > distilled.raw_step_sizes.size
      return jax.tree.map(lambda a, b: jnp.where(ended, a, b),
                          WarmPool(*start(new, distilled), jnp.zeros_like(position)),
                          WarmPool(*moved, position))

    moved = jax.vmap(move)(networks, sample_new(init_state, new_key, num_inits))
    return jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new), pool, moved)

  return WarmStart(init, sample, window, carry_on)


def objective_keys(key: Array) -> tuple[Array, Array, Array]:
  """The keys of one outer step: for the networks, for the inner losses, for the window."""
  return tuple(jax.random.split(key, 3))
