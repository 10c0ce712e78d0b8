"""Windows: the hypergradient of a stretch of a long trajectory instead of the whole.

The steps before a window are taken without a gradient, so that memory and time of the hypergradient
depend on the window's length alone. The length is static and the position is not: one compiled
program serves all.

Where a window begins is `start(key, last, losses) -> []`, with `last` the largest beginning and
`losses()` the inner losses `[T]` of one more pass without a gradient.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_jax.init_distributions import InitDistribution, pool_tokens
from dd_jax.inner_loop import InnerState, Unroll, check_stretch
from dd_jax.leaves import is_floating
from dd_jax.types import Array, DistilledData, Params, Train, check_distilled


def last_start(key: Array, last: int, losses: Callable[[], Array]) -> Array | int:
  """The last steps: the truncated hypergradient; arguments as in `dd_jax.truncation`."""
  del key, losses
  return last


def random_start(key: Array, last: int, losses: Callable[[], Array]) -> Array:
  """Drawn uniformly in every outer step; arguments as in `dd_jax.truncation`.

  Feng, Vedantam and Kempe, "Embarrassingly Simple Dataset Distillation", 2023 (arXiv 2311.07025).
  """
  del losses
  return jax.random.randint(key, (), 0, last + 1)


def adaptive_start(temperature: float = 1.0) -> Callable:
  """Drawn where training moves: by how much the inner loss changes within the window.

  The probability is proportional to the mean absolute change to the power of 1 / temperature: a
  high temperature is `random_start`, a low one takes the window of the largest change.

  Raises:
    ValueError: a temperature that is not positive.
  """
  if not temperature > 0:
    raise ValueError(f"temperature must be positive; got {temperature}")

  def start(key, last, losses):
    change = jnp.abs(jnp.diff(losses(), append=0.)).at[-1].set(0.)
    total = jnp.concatenate([jnp.zeros_like(change[:1]), jnp.cumsum(change)])
    length = change.size - last
    moved = total[length:] - total[:last + 1]
    tiny = jnp.finfo(moved.dtype).tiny
    return jax.random.categorical(key, jnp.log(jnp.maximum(moved, tiny)) / temperature)

  return start


def window(train: Unroll, *, start: Callable = random_start, length: int) -> "Window":
  """Trains to the end of a window, and is differentiated through the window alone.

  Args:
    train: of `inner_loop.unroll`.
    start: where the window begins: `last_start`, `random_start`, one of `adaptive_start`, or a
      function of this form.
    length: steps of the window; static.

  Returns:
    `train(key, params, distilled) -> (weights after the window, loss before its steps [length])`.
    In `make_outer_loss` all networks of an outer step share the key of `start`.

  Raises:
    ValueError: when called, a length beyond 1..T, or a `train` that is not unrolled.
  """
  _check_unrolled(train)
  return Window(train, start, length)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """What `window` makes."""
  unrolled: Unroll
  start: Callable
  length: int
  start_key: Array | None = None  # Shared by the networks of an outer step; None: the network's.

  def __call__(self, key: Array, params: Params, distilled: DistilledData) -> tuple[Params, Array]:
    check_distilled(distilled)
    total = distilled.step_sizes.size
    check_stretch(0, self.length, total)

    def losses():
      plain = dataclasses.replace(self.unrolled, memory="plain", gradient="reverse")
      return plain(key, *jax.lax.stop_gradient((params, distilled)))[1]

    start = self.start(
        jax.random.fold_in(key, total) if self.start_key is None else self.start_key,
        total - self.length, losses)
    if not isinstance(start, int):  # It may be traced, and no error can tell.
      start = jnp.clip(start, 0, total - self.length)
    first = self.unrolled.begin(params, distilled)
    moved = self.unrolled.advance(key, first, distilled, 0, start)
    begun = moved._replace(opt_state=_with_gradient_of(first.opt_state, moved.opt_state))
    state, losses_there = self.unrolled.stretch(key, begun, distilled, start, self.length)
    return state.params, losses_there

  def in_step(self, key: Array) -> "Window":
    """The same, its position drawn with the key of an outer step."""
    return dataclasses.replace(self, start_key=key)

  def check(self, params: Params, hyper: Any = ()) -> None:
    """As of `Unroll`."""
    self.unrolled.check(params, hyper)


def _with_gradient_of(first, moved):
  """`moved`, where hyper-parameters that an optimizer keeps have the gradient of `first`."""
  def of_leaf(first, moved):
    if not is_floating(moved):
      return moved
    none = jnp.where(jnp.isfinite(first), first - jax.lax.stop_gradient(first), 0)
    return moved + none.astype(moved.dtype)

  return jax.tree.map(of_leaf, first, moved)


class WarmPool(NamedTuple):
  """Networks on their way along the trajectory, kept across outer steps."""
  params: Params  # Each leaf [P, ...].
  opt_state: Any  # Each leaf [P, ...].
  position: Array  # [P] int32, inner steps taken.


class WarmStart(NamedTuple):
  """Windows that begin where those of earlier outer steps ended.

  `begin` makes the pool, the `carry` of the outer state; `init` and `train` are arguments of
  `make_outer_loss`, `carry_on` on decoded data is one of `make_outer_loop`.
  """
  begin: Callable  # (key, init_state, distilled) -> WarmPool
  init: InitDistribution  # Of a pool, given later: networks that are WarmPools of one.
  train: Train
  carry_on: Callable  # (key, pool, init_state, distilled) -> WarmPool


def warm_start(init: InitDistribution, train: Unroll, *, size: int, length: int, num_inits: int
               ) -> WarmStart:
  """Every outer step moves N networks of a pool on by one window, and learns from it.

  Unlike a window behind steps without a gradient its cost does not depend on T. A network that has
  no whole window left is replaced by a new one. As the distilled data change while a network is
  under way, its early steps are those of older data.

  Args:
    init: where new networks come from.
    train: of `inner_loop.unroll`.
    size: P, at least N.
    length: steps of a window.
    num_inits: N.

  Raises:
    ValueError: a size below N, or a `train` that is not unrolled; in the outer loss, another N, or
      a loop without its carry.
  """
  _check_unrolled(train)
  if size < num_inits:
    raise ValueError(f"size must be at least num_inits={num_inits}; got {size}")

  def begin(key, init_state, distilled):
    def start(token):
      params = init.make(init_state, token)
      return WarmPool(*train.begin(params, distilled), jnp.zeros((), jnp.int32))

    return jax.vmap(start)(init.draw(init_state, key, size))

  def draw(pool, key, number):
    if not isinstance(pool, WarmPool):
      raise ValueError("carry must be the pool of a warm start: loop.init(trainable, begin(...)) "
                       f"of a loop with its carry_on; got {type(pool).__name__}")
    if number != num_inits:
      raise ValueError(f"num_inits must be {num_inits}, as of the warm start; got {number}")
    return pool_tokens(key, size, num_inits)

  def make(pool, token):
    return jax.tree.map(lambda leaf: leaf[token], pool)

  def train_window(key, network, distilled):
    train.check(network.params, distilled.hyper)
    state, losses = train.stretch(key, InnerState(network.params, network.opt_state), distilled,
                                  network.position, length)
    return state.params, losses

  def carry_on(key, pool, init_state, distilled):
    draw_key, train_key, new_key = objective_keys(key)
    check_stretch(0, length, distilled.step_sizes.size)
    chosen = draw(pool, draw_key, num_inits)

    def move(place, row, new_token):
      network = make(pool, place)
      moved = train.advance(jax.random.fold_in(train_key, row),
                            InnerState(network.params, network.opt_state), distilled,
                            network.position, length)
      position = network.position + length
      ended = position + length > distilled.step_sizes.size
      new = WarmPool(*train.begin(init.make(init_state, new_token), distilled),
                     jnp.zeros_like(position))
      return jax.tree.map(lambda a, b: jnp.where(ended, a, b), new, WarmPool(*moved, position))

    moved = jax.vmap(move)(chosen, jnp.arange(num_inits),
                           init.draw(init_state, new_key, num_inits))
    return jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new), pool, moved)

  return WarmStart(begin, InitDistribution((), draw, make), train_window, carry_on)


def _check_unrolled(train):
  if not isinstance(train, Unroll):
    raise ValueError(f"train must be one of inner_loop.unroll to have windows; got {train!r}")


def objective_keys(key: Array) -> tuple[Array, Array, Array]:
  """The keys of one outer step: to draw the networks, to train them, to place the window."""
  return tuple(jax.random.split(key, 3))
