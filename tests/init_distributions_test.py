"""dd_jax.init_distributions: the statistics of every draw, and drawing from pools."""

import functools
import math
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import init_distributions as inits
from dd_jax import models
from tests.arrays import jit

DENSE, CONV = (150, 200), (5, 5, 16, 40)


def fans(shape):
  positions = math.prod(shape[:-2])
  return positions * shape[-2], positions * shape[-1]


def template(key):
  """Weights no initialiser draws: 7 in the matrices, 0.5 in the vectors."""
  del key
  return {"dense": {"kernel": jnp.full(DENSE, 7.0), "bias": jnp.full(DENSE[-1:], 0.5)},
          "conv": {"kernel": jnp.full(CONV, 7.0), "bias": jnp.full(CONV[-1:], 0.5)}}


def pool_of(size):
  """Network number i holds nothing but i."""
  numbers = jnp.arange(size, dtype=jnp.float32)
  return {"w": jnp.tile(numbers[:, None, None], (1, 2, 3)), "b": numbers[:, None]}


@functools.cache
def sampler(name, arguments):
  distribution = inits.random_init(template, inits.WEIGHT_INITS[name](*arguments))
  assert distribution.state == ()
  return jit(lambda key: distribution.sample(key, 3))


def draw(name, arguments=(), seed=0):
  """Three networks; each initialiser is compiled once for all tests."""
  return jax.tree.map(np.asarray, sampler(name, arguments)(jax.random.key(seed)))


NORMALS = {  # Factory of the initialiser, its arguments, std as a function of the fans.
    "xavier_normal": ("xavier_normal", (), lambda i, o: math.sqrt(2 / (i + o))),
    "xavier_normal gain": ("xavier_normal", (1.5,), lambda i, o: 1.5 * math.sqrt(2 / (i + o))),
    "kaiming_fan_in": ("kaiming_fan_in", (), lambda i, o: math.sqrt(2 / i)),
    "kaiming_fan_in slope": ("kaiming_fan_in", (1,), lambda i, o: math.sqrt(1 / i)),
    "kaiming_fan_out": ("kaiming_fan_out", (), lambda i, o: math.sqrt(2 / o)),
    "kaiming_fan_out slope": ("kaiming_fan_out", (2,), lambda i, o: math.sqrt(0.4 / o)),
    "normal": ("normal", (), lambda i, o: 0.01),
    "normal std": ("normal", (0.3,), lambda i, o: 0.3),
}


def test_every_name_is_tested():
  tested = {name for name, _, _ in NORMALS.values()} | {"xavier_uniform", "orthogonal", "own"}
  assert tested == set(inits.WEIGHT_INITS)


@pytest.mark.parametrize("case", NORMALS)
def test_normal(case):
  """Mean, std and both tails, each within five standard errors of the sample."""
  name, arguments, expected_std = NORMALS[case]
  params = draw(name, arguments)
  for kernel in (params["dense"]["kernel"], params["conv"]["kernel"]):
    std, n = expected_std(*fans(kernel.shape[1:])), kernel.size
    assert kernel.dtype == np.float32
    assert abs(kernel.mean()) < 5 * std / math.sqrt(n)
    assert abs(kernel.std() / std - 1) < 5 / math.sqrt(2 * n)
    tails = math.erfc(math.sqrt(2))  # 4.55 % lie beyond two std: nothing is truncated.
    share = np.mean(np.abs(kernel) > 2 * std)
    assert abs(share - tails) < 5 * math.sqrt(tails * (1 - tails) / n)
    assert np.abs(kernel).max() > 3 * std


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_xavier_uniform(gain):
  params = draw("xavier_uniform", () if gain == 1 else (gain,))
  for kernel in (params["dense"]["kernel"], params["conv"]["kernel"]):
    bound, n = gain * math.sqrt(6 / sum(fans(kernel.shape[1:]))), kernel.size
    # The largest of n draws falls short of the bound by a share e with chance (1 - e)^n.
    assert (1 - 30 / n) * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
    assert abs(kernel.mean()) < 5 * bound / math.sqrt(3 * n)
    # Kurtosis 9/5: the squares have variance 4/45 bound^4.
    assert abs(np.mean((kernel / bound) ** 2) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


def assert_orthogonal(kernel, gain):
  """Q^T Q = gain^2 I over all inputs of each output; Q Q^T where the outputs are more."""
  q = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
  q = q if q.shape[0] >= q.shape[1] else q.T
  np.testing.assert_allclose(q.T @ q, gain ** 2 * np.eye(q.shape[1]), atol=1e-5 * gain ** 2)


def test_orthogonal():
  params = draw("orthogonal")
  for kernel in (*params["conv"]["kernel"], *params["dense"]["kernel"]):
    assert_orthogonal(kernel, 1)


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (4, 60)])
def test_orthogonal_gain(shape):
  distribution = inits.random_init(lambda key: {"w": jnp.zeros(shape)},
                                   inits.WEIGHT_INITS["orthogonal"](2.0))
  for kernel in jit(lambda key: distribution.sample(key, 2))(jax.random.key(0))["w"]:
    assert_orthogonal(kernel, 2)


@pytest.mark.parametrize("shape", [
    (300, 20), (20, 300), (120, 84), (84, 120), (256, 256), (5, 5, 6, 16), (1, 1), (1, 7)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_orthonormal_to_the_precision_of_the_type(x64, shape, dtype, tolerance):
  for seed in range(3):
    q = np.asarray(jit(functools.partial(inits.orthogonal(), shape=shape, dtype=dtype))(
        jax.random.key(seed)))
    assert q.shape == shape and q.dtype == dtype
    q = q.astype(np.float64).reshape(-1, shape[-1])
    q = q if q.shape[0] >= q.shape[1] else q.T
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=tolerance)


def test_orthogonal_is_the_polar_factor_of_the_gaussian_matrix(x64):
  for shape in ((40, 40), (60, 30)):
    key = jax.random.key(5)
    u, _, v = np.linalg.svd(jax.random.normal(key, shape, jnp.float64), full_matrices=False)
    np.testing.assert_allclose(inits.orthogonal(3.)(key, shape, jnp.float64), 3 * u @ v,
                               atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
  key = jax.random.key(0)
  half, single = (inits.orthogonal()(key, (30, 12), t) for t in (dtype, jnp.float32))
  assert half.dtype == dtype
  np.testing.assert_array_equal(half, single.astype(dtype))


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_orthogonal_matrices_are_haar_distributed(shape):
  """Moments of entries, and of entries after a fixed rotation, within five standard errors."""
  count, n = 20_000, max(shape)
  q = jax.jit(jax.vmap(lambda key: inits.orthogonal()(key, shape)))(
      jax.random.split(jax.random.key(0), count))
  q = np.asarray(q, np.float64)
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(shape[0], shape[0])))[0]
  for entries in (q, rotation @ q):
    for power, expected in ((1, 0), (2, 1 / n), (3, 0), (4, 3 / (n * (n + 2)))):
      values = entries ** power
      error = values.std(0) / math.sqrt(count)
      assert np.all(np.abs(values.mean(0) - expected) < 5 * error), power
  if shape[0] == shape[1]:  # Both parts of O(n), with equal chance; E tr(Q)^2 = 1.
    assert abs(np.mean(np.linalg.det(q) > 0) - .5) < 5 * .5 / math.sqrt(count)
    squares = np.trace(q, axis1=1, axis2=2) ** 2
    assert abs(squares.mean() - 1) < 5 * squares.std() / math.sqrt(count)


def test_orthogonal_wants_two_axes():
  with pytest.raises(ValueError, match=r"^shape must have at least two axes; got \(3,\)$"):
    inits.orthogonal()(jax.random.key(0), (3,))


@pytest.mark.parametrize("name", inits.WEIGHT_INITS)
def test_no_draw_calls_lapack(name):
  """Batched factorisations of one program can wait for each other's threads for ever."""
  distribution = inits.random_init(template, inits.WEIGHT_INITS[name]())
  text = jax.jit(lambda key: distribution.sample(key, 3)).lower(jax.random.key(0)).as_text()
  assert "lapack" not in text and "custom_call" not in text.replace("@Sharding", "")


@pytest.mark.slow
def test_a_thousand_draws_of_orthogonal_lenets_end():
  program = """
import jax
from dd_jax import init_distributions as inits, models
model = models.lenet(num_classes=10, image_shape=(28, 28, 1))
init = inits.random_init(model.init, inits.orthogonal())
draw = jax.jit(lambda key: init.sample(key, 4))
for seed in range(1000):
  jax.block_until_ready(draw(jax.random.key(seed)))
"""
  subprocess.run([sys.executable, "-c", program], check=True, timeout=300,
                 cwd=pathlib.Path(__file__).parents[1])


@pytest.mark.parametrize("name", sorted(inits.WEIGHT_INITS.keys() - {"own"}))
def test_networks_and_keys(name):
  params, again, other = draw(name), draw(name), draw(name, seed=1)
  shapes = jax.tree.map(lambda leaf: (3, *leaf.shape), jax.eval_shape(template, None))
  assert jax.tree.map(np.shape, params) == shapes
  jax.tree.map(np.testing.assert_array_equal, again, params)
  for layer in ("dense", "conv"):
    kernels, bias = params[layer]["kernel"], params[layer]["bias"]
    assert all(np.any(kernels[i] != kernels[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(np.any(kernels[i] != other[layer]["kernel"][i]) for i in range(3))
    np.testing.assert_array_equal(bias, np.full(bias.shape, 0.5))  # What the model gave.


def test_own_weights_are_those_of_the_network():
  init = inits.random_init(lambda key: {"w": jax.random.normal(key, (3, 3)), "b": jnp.ones(3)},
                           inits.WEIGHT_INITS["own"]())
  found = init.sample(jax.random.key(0), 3)
  (drawn,) = jax.tree.leaves(jax.vmap(lambda token: jax.random.normal(
      jax.random.split(token)[0], (3, 3)))(init.draw((), jax.random.key(0), 3)))
  np.testing.assert_array_equal(found["w"], drawn)
  np.testing.assert_array_equal(found["b"], np.ones((3, 3)))


def test_leaves_of_one_shape_differ():
  distribution = inits.random_init(lambda key: [{"w": jnp.zeros((3, 3))}] * 2,
                                   inits.xavier_normal())
  first, second = jit(lambda: distribution.sample(jax.random.key(0), 1))()
  assert np.all(first["w"] != second["w"])


def test_kernels_alone_are_redrawn():
  """Not the positions of a transformer, which have three axes."""
  model = models.vit(num_classes=3, image_shape=(8, 12, 1), width=16, depth=1, heads=2)
  constant = lambda key, shape, dtype: jnp.full(shape, 7, dtype)
  key = jax.random.key(0)
  redraws = inits.is_kernel, lambda path, leaf: path == "Dense_0/kernel"
  params, own = jit(lambda: [inits.random_init(model.init, constant, redraw=redraw).sample(key, 2)
                             for redraw in redraws])()
  assert .01 < params["positions"].std() < .03
  np.testing.assert_array_equal(params["positions"], own["positions"])
  for name, layer in params.items():
    if name.startswith("Dense"):
      assert np.all(layer["kernel"] == 7) and np.all(layer["bias"] == 0)
      assert np.all(own[name]["kernel"] == 7) == (name == "Dense_0")


def test_draws_do_not_depend_on_what_else_is_redrawn():
  """Every leaf has its key, so that a network's kernels stay what they were."""
  def sample(redraw):
    init = inits.random_init(template, jax.nn.initializers.normal(), redraw=redraw)
    return jit(lambda: init.sample(jax.random.key(0), 1))()

  some, every = sample(inits.is_kernel), sample(lambda path, leaf: True)
  for layer in some:
    np.testing.assert_array_equal(some[layer]["kernel"], every[layer]["kernel"])
    assert np.all(every[layer]["bias"] != .5)


@pytest.mark.parametrize("params", [
    {"weights": jnp.zeros((3, 3)), "b": jnp.zeros(3)},
    {"table": jnp.zeros((1, 2)), "w": jnp.zeros(2)}])
def test_nothing_to_redraw(params):
  message = f"redraw must choose a leaf for weight_init to draw; got none of {sorted(params)}"
  with pytest.raises(ValueError, match=re.escape(message)):
    inits.random_init(lambda key: params, inits.xavier_normal()).sample(jax.random.key(0), 1)


def test_biases_of_a_network_are_zero():
  model = models.mlp(num_classes=3, image_shape=(2, 2, 1), hidden=(5,))
  distribution = inits.random_init(model.init, inits.xavier_normal())
  params = jit(lambda key: distribution.sample(key, 2))(jax.random.key(0))
  for name, shape in (("Dense_0", (2, 5)), ("Dense_1", (2, 3))):
    np.testing.assert_array_equal(params[name]["bias"], np.zeros(shape))
    assert np.all(params[name]["kernel"] != 0)


def test_without_weight_init_the_model_draws():
  def init(key):
    return {"w": 5 + jax.random.uniform(key, (100, 2)), "b": jnp.full((3,), 0.25)}

  params = jit(lambda: inits.random_init(init).sample(jax.random.key(0), 4))()
  w = np.asarray(params["w"])
  assert w.shape == (4, 100, 2) and np.all((5 <= w) & (w <= 6))
  assert abs(w.mean() - 5.5) < 5 / math.sqrt(12 * w.size)
  assert len(np.unique(w[:, 0, 0])) == 4
  np.testing.assert_array_equal(params["b"], np.full((4, 3), 0.25))


def test_fixed_init():
  params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
  distribution = inits.fixed_init(params)
  for seed in (0, 1):
    drawn = distribution.sample(jax.random.key(seed), 1)
    assert jax.tree.map(np.shape, drawn) == {"w": (1, 2, 3), "b": (1, 3)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), drawn, params)


def test_near_init():
  """Relative noise of the given deviation, fresh for each network and leaf; zeros stay."""
  params = {"w": jnp.full((40, 50), 3.), "b": jnp.zeros(3), "v": jnp.full((40, 50), -2.)}
  distribution = inits.near_init(params, .1)
  drawn = jax.jit(lambda key: distribution.sample(key, 4))(jax.random.key(0))
  noise = np.stack([drawn["w"] / 3 - 1, drawn["v"] / -2 - 1])
  assert abs(noise.mean()) < 5 * .1 / math.sqrt(noise.size)
  assert abs(noise.std() - .1) < 5 * .1 / math.sqrt(2 * noise.size)
  assert np.abs(np.corrcoef(noise.reshape(8, -1)) - np.eye(8)).max() < 5 / math.sqrt(2000)
  np.testing.assert_array_equal(drawn["b"], np.zeros((4, 3)))
  with pytest.raises(ValueError, match="noise must be positive; got 0.0"):
    inits.near_init(params, 0.)
  with pytest.raises(ValueError, match="noise must be at least 0.00098 for weights of bfloat16; "
                     "got 1e-05"):
    inits.near_init({"w": jnp.ones(3, jnp.bfloat16)}, 1e-5)


def test_a_pool_of_numpy_arrays_as_it_is_read():
  pool = {"w": np.arange(12.).reshape(4, 3)}
  drawn = inits.pretrained_init(pool).sample(jax.random.key(0), 4)["w"]
  np.testing.assert_array_equal(drawn[np.argsort(drawn[:, 0])], pool["w"])


def test_pool_without_replacement():
  """4,000 draws of 2 out of 5: distinct, and each network equally likely in either place."""
  distribution = inits.pretrained_init(pool_of(5))
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.jit(jax.vmap(lambda key: distribution.sample(key, 2)))(keys)
  chosen = np.asarray(drawn["b"])[..., 0].astype(int)
  np.testing.assert_array_equal(
      drawn["w"], np.broadcast_to(chosen[..., None, None], (4000, 2, 2, 3)))
  assert np.all(chosen[:, 0] != chosen[:, 1])
  counts = np.zeros((5, 5))
  np.add.at(counts, tuple(chosen.T), 1)
  assert np.all(np.diag(counts) == 0)
  # Each of the 20 ordered pairs has chance 1/20: five standard deviations of its count.
  off_diagonal = counts[~np.eye(5, dtype=bool)]
  assert np.all(np.abs(off_diagonal - 200) < 5 * math.sqrt(4000 * 0.05 * 0.95))


def test_whole_pool():
  distribution = inits.pretrained_init(pool_of(6))
  drawn = distribution.sample(jax.random.key(0), 6)
  np.testing.assert_array_equal(np.sort(drawn["b"][:, 0]), np.arange(6))


@pytest.mark.parametrize("size", [0, 5])
def test_a_pool_has_no_more_networks_than_it_has(size):
  with pytest.raises(ValueError, match=rf"size must lie in 1\.\.4 \(the pool\); got {size}"):
    inits.pretrained_init(pool_of(4), size=size)


def test_a_padded_pool_draws_from_its_networks_alone():
  """The same draws as of the pool without what pads it."""
  padded = inits.pretrained_init(pool_of(8), size=5)
  for seed in range(5):
    drawn = padded.sample(jax.random.key(seed), 5)
    jax.tree.map(np.testing.assert_array_equal, drawn,
                 inits.pretrained_init(pool_of(5)).sample(jax.random.key(seed), 5))


def test_given_networks_come_in_their_order():
  """In every draw, and as arguments: one program serves all."""
  distribution = inits.given_init(pool_of(3))
  for seed in (0, 1):
    jax.tree.map(np.testing.assert_array_equal, distribution.sample(jax.random.key(seed), 3),
                 pool_of(3))
  make = jax.jit(distribution.make)
  for shift in (0, 10):
    shifted = jax.tree.map(lambda leaf, shift=shift: leaf + shift, pool_of(3))
    for place in range(3):
      jax.tree.map(lambda a, b, place=place: np.testing.assert_array_equal(a, b[place]),
                   make(shifted, jnp.asarray(place)), shifted)
  assert make._cache_size() == 1


@pytest.mark.parametrize("distribution, num_inits", [
    (inits.random_init(lambda key: {"w": jnp.zeros((2, 3)), "b": jax.random.normal(key, (3,))},
                       inits.xavier_normal()), 5),
    (inits.fixed_init(pool_of(1)), 1),
    (inits.pretrained_init(pool_of(7)), 5),
    (inits.given_init(pool_of(5)), 5)], ids=["random", "fixed", "pretrained", "given"])
def test_tokens_say_which_networks(distribution, num_inits):
  """`sample` is `make` of every token of `draw`; chunks of tokens give the same networks."""
  state, make = distribution.state, jax.vmap(distribution.make, (None, 0))

  @jit
  def drawn(state, key):
    tokens = distribution.draw(state, key, num_inits)
    chunks = [make(state, tokens[part]) for part in (slice(0, 2), slice(2, 5)) if len(tokens[part])]
    return (tokens, jax.lax.map(lambda token: distribution.make(state, token), tokens),
            jax.tree.map(lambda *x: jnp.concatenate(x), *chunks))

  tokens, one_by_one, chunked = drawn(state, jax.random.key(3))
  assert tokens.shape == (num_inits,)
  assert jax.random.key_data(tokens).nbytes <= 8 * num_inits if jnp.issubdtype(
      tokens.dtype, jax.dtypes.prng_key) else tokens.dtype == jnp.int32
  sampled = jit(lambda key: distribution.sample(key, num_inits))(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, one_by_one, sampled)
  jax.tree.map(np.testing.assert_array_equal, chunked, sampled)


def test_pool_is_an_argument():
  """One compiled draw serves every pool: the networks come from the state, not from a closure."""
  distribution = inits.pretrained_init(pool_of(5))
  sample = jax.jit(lambda state, key: distribution._replace(state=state).sample(key, 3))
  key = jax.random.key(7)
  first = sample(distribution.state, key)
  jax.tree.map(np.testing.assert_array_equal, first, distribution.sample(key, 3))
  second = sample(jax.tree.map(lambda leaf: leaf + 100, pool_of(5)), key)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 100), second, first)
  assert sample._cache_size() == 1


@pytest.mark.parametrize("distribution, num_inits, text", [
    (inits.random_init(template), 0, "num_inits must be at least 1; got 0"),
    (inits.fixed_init({"w": jnp.ones(2)}), 2, "num_inits must be 1 for a fixed init; got 2"),
    (inits.fixed_init({"w": jnp.ones(2)}), 0, "num_inits must be 1 for a fixed init; got 0"),
    (inits.pretrained_init({"w": jnp.ones((3, 2))}), 4,
     "num_inits must be at most the pool's 3 networks; got 4"),
    (inits.pretrained_init({"w": jnp.ones((3, 2))}), 0, "num_inits must be at least 1; got 0"),
    (inits.pretrained_init({"w": jnp.ones((3, 2))}, size=2), 3,
     "num_inits must be at most the pool's 2 networks; got 3"),
    (inits.given_init({"w": jnp.ones((3, 2))}), 2, "num_inits must be the 3 given networks; got 2"),
])
def test_num_inits_errors(distribution, num_inits, text):
  with pytest.raises(ValueError, match=text):
    distribution.sample(jax.random.key(0), num_inits)


@pytest.mark.parametrize("pool, got", [
    ({"w": jnp.ones((3, 2)), "b": jnp.ones((4,))}, r"shapes \[\(4,\), \(3, 2\)\]"),
    ({"w": jnp.ones((3, 2)), "temperature": jnp.ones(())}, r"shapes \[\(\), \(3, 2\)\]"),
    ({}, r"shapes \[\]"),
], ids=["sizes differ", "a leaf without axes", "no leaves"])
def test_pool_errors(pool, got):
  with pytest.raises(ValueError, match=r"pool must have one leading axis \[P, \.\.\.\] on every "
                                       rf"leaf; got {got}"):
    inits.pretrained_init(pool)
