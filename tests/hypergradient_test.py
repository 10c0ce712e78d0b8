"""The outer loss and its hypergradient: finite differences, chunks, means, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import parallel
from dd_jax import truncation
from tests import problems

_RANDOM = dd_jax.random_init(problems.init)


def _outer_loss(decode, num_inits=1, **options):
  return dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss, problems.inner_loss,
                                num_inits=num_inits, **options)


@pytest.mark.parametrize("options", [
    dict(memory="plain"),
    dict(memory="remat", chunk_size=4),
    dict(memory="nested", gradient="forward_over_reverse"),
], ids=lambda options: "-".join(map(str, options.values())))
def test_hypergradient_equals_finite_differences_under_jit_and_vmap(x64, options):
  """Along random directions in all of images, soft labels and step sizes; N=3 under vmap."""
  trainable, decode = problems.trainable(soft=True)
  key, real = jax.random.key(5), problems.real()
  outer_loss = jax.jit(_outer_loss(decode, num_inits=3, **options))
  _, gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(trainable, (), key, *real)
  for seed in range(4):
    keys = jax.random.split(jax.random.key(seed), 3)
    direction = {name: jax.random.normal(k, trainable[name].shape)
                 for k, name in zip(keys, trainable)}
    def along(t):
      moved = jax.tree.map(lambda x, d: x + t * d, trainable, direction)
      return outer_loss(moved, (), key, *real)
    step = 1e-5
    numeric = (along(step) - along(-step)) / (2 * step)
    exact = sum(jnp.vdot(gradient[name], direction[name]) for name in trainable)
    assert abs(numeric) > 1e-3
    np.testing.assert_allclose(exact, numeric, rtol=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 4, 20])
def test_chunks_of_any_size_change_nothing(x64, chunk_size):
  """11 real images: a last partial chunk counts by its share."""
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real(11)
  whole = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 2)))(*arguments)
  chunked = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 2, chunk_size=chunk_size)))(
      *arguments)
  for actual, expected in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole)):
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)
  np.testing.assert_allclose(_outer_loss(decode, 2, chunk_size=chunk_size)(*arguments), whole[0],
                             rtol=1e-12)


@pytest.mark.parametrize("num_parallel", [1, 2, 9])
def test_blocks_of_networks_change_nothing(x64, num_parallel):
  """5 networks: a last partial block counts by its share; with chunks of the real images inside."""
  trainable, decode = problems.trainable(soft=True)
  arguments = trainable, (), jax.random.key(0), *problems.real(11)
  together = jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, 5)))(*arguments)
  blocks = _outer_loss(decode, 5, num_parallel=num_parallel, chunk_size=4)
  in_blocks = jax.jit(dd_jax.value_and_hypergrad(blocks))(*arguments)
  for actual, expected in zip(jax.tree.leaves(in_blocks), jax.tree.leaves(together)):
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)
  np.testing.assert_allclose(jax.jit(blocks)(*arguments), together[0], rtol=1e-12)


def test_outer_loss_is_the_mean_over_the_sampled_inits(x64):
  trainable, decode = problems.trainable()
  key, real = jax.random.key(7), problems.real()
  params = _RANDOM.sample((), truncation.objective_keys(key)[0], 4)
  one_by_one = []
  for n in range(4):
    final, _ = dd_jax.inner_trajectory(
        problems.inner_loss, jax.tree.map(lambda leaf: leaf[n], params), decode(trainable))
    one_by_one.append(problems.inner_loss(final, *real))
  actual = _outer_loss(decode, num_inits=4)(trainable, (), key, *real)
  np.testing.assert_allclose(actual, np.mean(one_by_one), rtol=1e-12)


def test_an_inner_loss_that_closes_over_a_learned_value_is_explained():
  trainable, decode = problems.trainable()

  def outer_loss(trainable, init_state, key, images, labels):
    def inner_loss(params, images, labels):
      return trainable["step_sizes"][0, 0] * problems.inner_loss(params, images, labels)
    loss = dd_jax.make_outer_loss(
        decode, _RANDOM.sample, inner_loss, problems.inner_loss, num_inits=1,
        gradient="forward_over_reverse")
    return loss(trainable, init_state, key, images, labels)

  with pytest.raises(ValueError, match="inner_loss must take everything that receives a gradient"):
    dd_jax.value_and_hypergrad(outer_loss)(trainable, (), jax.random.key(0), *problems.real())


@pytest.mark.parametrize("options, message", [
    (dict(num_inits=0), "num_inits must be at least 1; got 0"),
    (dict(num_inits=1, chunk_size=0), "chunk_size must be at least 1; got 0"),
])
def test_bad_options_are_named(options, message):
  _, decode = problems.trainable()
  with pytest.raises(ValueError, match=message):
    _outer_loss(decode, **options)


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_precision_reaches_every_product_of_trajectory_and_gradient(precision):
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode, 2, memory="remat", gradient="forward_over_reverse",
                           chunk_size=4)
  gradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss, precision=precision))
  text = gradient.lower(trainable, (), jax.random.key(0), *problems.real()).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  assert len(products) > 10
  assert all(f"precision = [{precision.upper()}, {precision.upper()}]" in line
             for line in products)


def test_an_unknown_precision_lists_the_choices():
  with pytest.raises(ValueError, match=r"precision must be one of \['highest', 'high', "
                                       r"'default'\]; got 'tf32'"):
    dd_jax.value_and_hypergrad(lambda trainable: 0., precision="tf32")


_PIECES = [dict(num_parallel=1), dict(num_parallel=2), dict(chunk_size=4), dict(chunk_size=20),
           dict(num_parallel=2, chunk_size=3, memory="nested"),
           dict(num_parallel=3, chunk_size=5, memory="plain", gradient="forward_over_reverse")]


def _soft_loss(params, images, labels):
  """Of real labels that are floats, so that they can be differentiated too."""
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(problems.apply(params, images)) * labels, -1))


def _everything(num_networks=5):
  """Distilled data, a pool of weights, real images and soft real labels: all can be moved."""
  trainable, decode = problems.trainable(soft=True)
  pool = _RANDOM.sample((), jax.random.key(3), num_networks)
  images, _ = problems.real()
  labels = jax.random.uniform(jax.random.key(4), (11, problems.NUM_CLASSES))
  sample = dd_jax.pretrained_init(pool).sample

  def outer_loss(**options):
    loss = dd_jax.make_outer_loss(decode, sample, problems.inner_loss, _soft_loss, num_inits=5,
                                  **options)
    return lambda moved: loss(moved[0], moved[1], jax.random.key(0), *moved[2:])

  return outer_loss, (trainable, pool, images, labels)


@pytest.mark.parametrize("options", _PIECES, ids=str)
def test_pieces_change_no_derivative_of_anything(x64, options):
  """By distilled data, initial weights, real images and real labels; together, and one alone."""
  outer_loss, moved = _everything()
  expected = jax.jit(jax.grad(outer_loss()))(moved)
  assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected))
  actual = jax.jit(jax.grad(outer_loss(**options)))(moved)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-12 * np.abs(b).max()), actual, expected)
  place = 1 + _PIECES.index(options) % 3
  alone = jax.jit(jax.grad(lambda x: outer_loss(**options)(
      (*moved[:place], x, *moved[place + 1:]))))(moved[place])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-12 * np.abs(b).max()), alone, expected[place])


@pytest.mark.parametrize("options", _PIECES[:-1], ids=str)
def test_pieces_leave_forward_mode_and_second_derivatives(x64, options):
  outer_loss, moved = _everything()
  direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), moved)

  def derivatives(loss):
    _, along = jax.jvp(loss, (moved,), (direction,))
    _, curvature = jax.jvp(jax.grad(loss), (moved,), (direction,))
    return along, curvature

  actual = jax.jit(lambda: derivatives(outer_loss(**options)))()
  expected = jax.jit(lambda: derivatives(outer_loss()))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-11 * np.abs(b).max()), actual, expected)


def test_forward_mode_of_forward_over_reverse_is_refused_in_one_line():
  outer_loss, moved = _everything()
  loss = outer_loss(gradient="forward_over_reverse")
  with pytest.raises(TypeError, match="^can.t apply forward-mode .* to a custom_vjp function"):
    jax.jvp(loss, (moved,), (moved,))


def test_pmap_refuses_derivatives_that_it_would_get_wrong():
  trainable, decode = problems.trainable()
  init = parallel.pmap_init(_RANDOM)
  outer_loss = dd_jax.make_outer_loss(decode, init.sample, problems.inner_loss, problems.inner_loss,
                                      num_inits=2, split_inits=parallel.over_pmap)

  def by_images(trainable, state, images, labels):
    return jax.grad(lambda x: outer_loss(trainable, state, jax.random.key(0), x, labels))(images)

  with pytest.raises(ValueError, match="under pmap the loss must be differentiated by the "
                                       "distilled data alone; got initial weights or real images"):
    parallel.pmap(by_images)(trainable, init.state, *problems.real())


def _of_the_batch(params, images, labels):
  """A network that normalises with the statistics of its batch."""
  hidden = images.reshape(images.shape[0], -1) @ params["first"]
  hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0) + 1e-5)[None]
  return losses.cross_entropy(jnp.tanh(hidden) @ params["second"], labels).mean()


@pytest.mark.parametrize("loss", [
    _of_the_batch, lambda *arguments: problems.real()[0].shape[0] * 0. + _summed(*arguments)])
def test_a_real_loss_that_is_no_mean_stays_in_one_piece(loss):
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real()

  def value(**options):
    return dd_jax.make_outer_loss(decode, _RANDOM.sample, problems.inner_loss, loss, num_inits=2,
                                  **options)(*arguments)

  np.testing.assert_allclose(value(num_parallel=1), value(), rtol=1e-5)
  with pytest.raises(ValueError, match="real_loss must be a mean over examples for chunk_size; got "
                                       "one whose value for two examples"):
    value(chunk_size=4)
  mesh = parallel.make_mesh(1, jax.devices()[:1])
  with pytest.raises(ValueError, match="for real images shared by devices; got"):
    value(split_images=functools.partial(parallel.over_mesh, mesh=mesh, axis=parallel.IMAGES))


def _summed(params, images, labels):
  return images.shape[0] * problems.inner_loss(params, images, labels)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_chunks_are_summed_wider_than_half_precision(dtype):
  """256 chunks whose mean a running sum in the loss's own type would miss by per cents."""
  values = jnp.linspace(.5, 1.5, 256, dtype=dtype)
  mean = parallel.in_chunks(lambda variable, x: variable * x[0], 1)
  value, gradient = jax.value_and_grad(mean)(jnp.ones((), dtype), values)
  expected = np.asarray(values, np.float64).mean()
  assert value.dtype == gradient.dtype == dtype
  np.testing.assert_allclose([float(value), float(gradient)], expected,
                             rtol=float(jnp.finfo(dtype).eps))
