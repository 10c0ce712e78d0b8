"""p(theta_0): where the weights come from that the distilled data must train.

An `InitDistribution` is a state and two pure functions: `draw` says which networks, by tokens of a
few bytes, `make` builds the weights of one. Whoever trains the networks maps, chunks and shards the
tokens, so that memory does not grow with N. The state is a pytree of arrays and travels as an
argument through every jitted function: weights and pools are never folded into a program.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax.nn import initializers
import jax.numpy as jnp

from dd_jax.types import Array, Params, check_at_least, wide


class InitDistribution(NamedTuple):
  """Where networks come from."""
  state: Any  # A pytree of arrays: weights, a pool, or nothing.
  draw: Callable[..., Array]  # (state, key, n) -> tokens [n]: keys, or places in a pool.
  make: Callable[[Any, Array], Params]  # (state, token) -> the weights of one network.

  def sample(self, key: Array, num_inits: int) -> Params:
    """The weights of N networks at once, each leaf `[N, ...]`."""
    return jax.vmap(self.make, (None, 0))(self.state, self.draw(self.state, key, num_inits))


def xavier_normal(gain: float = 1.0) -> initializers.Initializer:
  """Normal, not truncated, of std gain * sqrt(2 / (fan_in + fan_out))."""
  return initializers.variance_scaling(gain ** 2, "fan_avg", "normal")


def xavier_uniform(gain: float = 1.0) -> initializers.Initializer:
  """Uniform in +- gain * sqrt(6 / (fan_in + fan_out))."""
  return initializers.variance_scaling(gain ** 2, "fan_avg", "uniform")


def kaiming_fan_in(slope: float = 0.0) -> initializers.Initializer:
  """Normal, not truncated, of std sqrt(2 / (1 + slope^2) / fan_in)."""
  return initializers.variance_scaling(2 / (1 + slope ** 2), "fan_in", "normal")


def kaiming_fan_out(slope: float = 0.0) -> initializers.Initializer:
  """Normal, not truncated, of std sqrt(2 / (1 + slope^2) / fan_out)."""
  return initializers.variance_scaling(2 / (1 + slope ** 2), "fan_out", "normal")


def orthogonal(scale: float = 1.0) -> initializers.Initializer:
  """`scale` times orthonormal columns over all inputs of each output; rows where those are fewer.

  The polar factor of a Gaussian matrix, Haar distributed as the QR factor of `jax.nn.initializers`,
  by a Newton-Schulz iteration: of matrix products alone, because two batched QR factorisations of
  one program wait for each other for ever in XLA's CPU pool of two threads.
  Chen and Chow, "A stable scaling of Newton-Schulz", 2014.

  Raises (when drawing):
    ValueError: a shape of fewer than two axes.
  """
  def draw(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    if len(shape) < 2:
      raise ValueError(f"shape must have at least two axes; got {tuple(shape)}")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    short, long = sorted((rows, columns))
    x = jax.random.normal(key, (long, short), wide(dtype))
    x = x / jnp.linalg.norm(x)

    def step(x, factor):
      y = factor * x
      gram = jnp.matmul(y.T, y, precision="highest")
      return 1.5 * y - .5 * jnp.matmul(y, gram, precision="highest"), None

    x, _ = jax.lax.scan(step, x, jnp.array(_newton_schulz_factors(short, long), x.dtype))
    return (scale * (x if rows == long else x.T)).reshape(shape).astype(dtype)

  return draw


def _newton_schulz_factors(short, long):
  """Factors before each step until every singular value is 1 to double precision.

  They follow a lower bound of the singular values relative to the Frobenius norm; it fails with
  chance 1e-10 (Chen and Dongarra, "Condition numbers of Gaussian random matrices", 2005).
  """
  excess = long - short + 1
  condition = long * max(1, 6.5 * 1e10 ** (1 / excess) / excess)
  bound, factors = 1 / (condition * math.sqrt(short)), []
  while not factors or bound < 1 - 1e-8:
    assumed = max(bound, .1)  # Of less, the largest values would be sent to almost 0.
    factors.append(math.sqrt(3 / (1 + assumed + assumed ** 2)))
    bound = factors[-1] * bound * (3 - (factors[-1] * bound) ** 2) / 2
  return [*factors, 1.]  # The last step squares what is missing: 1e-8 becomes 1e-16.


WEIGHT_INITS: dict[str, Callable] = {
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "kaiming_fan_in": kaiming_fan_in,
    "kaiming_fan_out": kaiming_fan_out,
    "orthogonal": orthogonal,
    "normal": initializers.normal,
    "own": lambda: None,  # What the network's own `init` gives.
}


def is_kernel(path: str, leaf: Array) -> bool:
  """Whether a leaf, such as "Dense_0/kernel", is a matrix that inputs are multiplied by.

  By its own name, `kernel` (Flax) or `w` (Haiku, plain functions), and two axes or more:
  positions, embeddings, biases and scales are none.
  """
  return path.split("/")[-1] in ("kernel", "w") and leaf.ndim > 1


def random_init(init: Callable[[Array], Params], weight_init: Callable | None = None, *,
                redraw: Callable[[str, Array], bool] = is_kernel) -> InitDistribution:
  """Fresh random weights on every draw (section 3.2); the state is empty.

  Args:
    init: `init(key) -> params` of the network.
    weight_init: `weight_init(key, shape, dtype) -> array` draws the kernels,
      inputs before outputs; the other leaves (biases, scales, positions) keep
      what `init` gives. None: `init` alone.
    redraw: `redraw(path, leaf) -> bool` says which leaves are drawn by
      `weight_init`; `path` joins the names that lead to the leaf by "/".

  Raises:
    ValueError: by `make`, where `weight_init` is given and no leaf is to be redrawn.
  """
  def make(state, key):
    del state
    init_key, weight_key = jax.random.split(key)
    params = init(init_key)
    if weight_init is None:
      return params
    named, tree = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    leaves = [leaf for _, leaf in named]
    chosen = [redraw(path, leaf) for path, leaf in zip(paths, leaves)]
    if not any(chosen):
      raise ValueError(f"redraw must choose a leaf for weight_init to draw; got none of {paths}")
    keys = jax.random.split(weight_key, len(leaves))
    return tree.unflatten([weight_init(k, leaf.shape, leaf.dtype) if new else leaf
                           for k, leaf, new in zip(keys, leaves, chosen)])

  return InitDistribution((), _draw_keys, make)


def fixed_init(params: Params) -> InitDistribution:
  """The one network `params`, kept for training and for testing (section 3.2).

  More than one draw would repeat the same network, so `num_inits` must be 1.
  """
  def draw(state, key, num_inits):
    del state, key
    if num_inits != 1:
      raise ValueError(f"num_inits must be 1 for a fixed init; got {num_inits}")
    return jnp.zeros(1, jnp.int32)

  return InitDistribution(params, draw, lambda state, token: state)


def near_init(params: Params, noise: float) -> InitDistribution:
  """The network `params` with every weight times 1 + noise * N(0, 1), fresh in every draw.

  To distil for one network, which is then tested by `fixed_init`. Images that saw the network
  alone come to lie where a ReLU or a max-pooling changes sides, since there the hypergradient
  changes its sign; the last bit of a weight, as two kinds of CPU round it, then says which way the
  steps go, and moves the accuracy by up to two points; after a noise of 1e-5 by less than 0.1.
  Weights of zero stay zero.

  Raises:
    ValueError: a noise that is not positive, or that rounds away in the type of the weights, or
      integers among them.
  """
  if not noise > 0:
    raise ValueError(f"noise must be positive; got {noise}")
  for leaf in jax.tree.leaves(params):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(f"params must be floating point for noise; got {jnp.result_type(leaf)}")
    least = float(jnp.finfo(jnp.result_type(leaf)).eps) / 8  # Of which few draws change a weight.
    if noise < least:
      raise ValueError(f"noise must be at least {least:.2g} for weights of "
                       f"{jnp.result_type(leaf)}; got {noise}")

  def make(state, key):
    leaves, tree = jax.tree.flatten(state)
    return tree.unflatten([leaf * (1 + noise * jax.random.normal(k, leaf.shape, leaf.dtype))
                           for k, leaf in zip(jax.random.split(key, len(leaves)), leaves)])

  return InitDistribution(params, _draw_keys, make)


def pretrained_init(pool: Params, *, size: int | None = None) -> InitDistribution:
  """Draws without replacement from a pool of trained networks (section 3.5).

  Args:
    pool: weights of P networks, each leaf `[P, ...]`.
    size: networks to draw from, the first of the pool; the rest is padding. None: P.

  Raises:
    ValueError: a pool whose leaves are not `[P, ...]`, or a size that is not in 1..P.
  """
  whole = pool_size(pool)
  size = whole if size is None else size
  if not 1 <= size <= whole:
    raise ValueError(f"size must lie in 1..{whole} (the pool); got {size}")
  return InitDistribution(pool, lambda state, key, num_inits: pool_tokens(key, size, num_inits),
                          _at)


def given_init(networks: Params) -> InitDistribution:
  """Exactly these networks, each leaf `[N, ...]`, in their order, in every draw of N."""
  size = pool_size(networks)

  def draw(state, key, num_inits):
    del state, key
    if num_inits != size:
      raise ValueError(f"num_inits must be the {size} given networks; got {num_inits}")
    return jnp.arange(size)

  return InitDistribution(networks, draw, _at)


def is_pool(init: InitDistribution) -> bool:
  """Whether the state is a pool, whose networks may lie on different devices."""
  return init.make is _at


def pool_size(pool: Params) -> int:
  """The number of networks P; ValueError unless every leaf is `[P, ...]`."""
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(pool)]
  if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
    raise ValueError(f"pool must have one leading axis [P, ...] on every leaf; got shapes {shapes}")
  return shapes[0][0]


def pool_tokens(key: Array, size: int, num_inits: int) -> Array:
  """The places `[N]` in a pool that a draw takes, without replacement.

  Args:
    key: consumed by the draw.
    size: networks of the pool.
    num_inits: N.

  Raises:
    ValueError: N below 1 or above the size of the pool.
  """
  check_at_least(1, num_inits=num_inits)
  if num_inits > size:
    raise ValueError(f"num_inits must be at most the pool's {size} networks; got {num_inits}")
  return jax.random.permutation(key, size)[:num_inits]


def _at(pool, place):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf)[place], pool)  # Of numpy too, as read.


def _draw_keys(state, key, num_inits):
  del state
  check_at_least(1, num_inits=num_inits)
  return jax.random.split(key, num_inits)
