"""The outer loss and its hypergradient: finite differences, pieces, means, precision, errors."""

import collections
import contextlib
import functools
import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import batch_independence
from dd_jax import losses
from dd_jax import parallel
from dd_jax import parametrization
from dd_jax import step_sizes
from dd_jax import truncation
from tests import problems

_RANDOM = dd_jax.random_init(problems.init)


def _outer_loss(decode, num_inits=1, real_loss=problems.inner_loss, memory="remat",
                gradient="reverse", **options):
  return dd_jax.make_outer_loss(
      decode, _RANDOM, dd_jax.unroll(problems.inner_loss, memory=memory, gradient=gradient),
      real_loss, num_inits=num_inits, **options)


@pytest.mark.parametrize("options", [
    pytest.param(dict(memory="plain"), marks=pytest.mark.slow),
    dict(memory="remat", chunk_size=4),
    dict(memory="nested", gradient="forward_over_reverse"),
], ids=lambda options: "-".join(map(str, options.values())))
def test_hypergradient_equals_finite_differences_under_jit_and_vmap(x64, options):
  """Along random directions in all of inputs, soft labels and step sizes; N=3 under vmap."""
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


@pytest.mark.parametrize("options", [
    pytest.param({}, marks=pytest.mark.slow),
    dict(num_parallel=1, chunk_size=4, gradient="forward_over_reverse")], ids=str)
def test_inputs_may_be_a_dict_of_arrays(x64, options):
  """An image and a row of a table for each example, distilled and real."""
  learned = parametrization.join(
      parametrization.parts({"image": parametrization.pixels((3, 4, *problems.IMAGE_SHAPE)),
                             "table": parametrization.pixels((3, 4, 2))}),
      parametrization.fixed_labels(jnp.arange(12).reshape(3, 4) % 3),
      step_sizes.learned(2, 3, .3), dtype=float)

  def apply(params, inputs):
    return problems.apply(params["net"], inputs["image"]) + inputs["table"] @ params["table"]

  def init(key):
    net, table = jax.random.split(key)
    return {"net": problems.init(net), "table": jax.random.normal(table, (2, 3))}

  images, labels = problems.real()
  real = {"image": images, "table": jax.random.normal(jax.random.key(8), (11, 2))}, labels
  loss = losses.classification(apply)
  options = {"gradient": "reverse", **options}
  train = dd_jax.unroll(loss, gradient=options.pop("gradient"))
  outer_loss = jax.jit(dd_jax.make_outer_loss(
      learned.decode, dd_jax.random_init(init), train, loss, num_inits=2, **options))
  gradient = problems.check_hypergradient(
      outer_loss, learned.init(jax.random.key(0)), (), jax.random.key(5), *real, rtol=1e-6)
  assert gradient["inputs"].keys() == {"image", "table"}
  assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_real_loss_may_return_something_beside(x64):
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real()

  def with_auxiliary(params, inputs, labels):
    return problems.inner_loss(params, inputs, labels), problems.apply(params, inputs)

  actual, expected = (
      jax.jit(dd_jax.value_and_hypergrad(_outer_loss(decode, real_loss=loss, **options)))(
          *arguments) for loss, options in (
              (with_auxiliary, dict(chunk_size=4)), (problems.inner_loss, dict())))
  problems.assert_close(actual, expected, 1e-12)


def test_outer_loss_is_the_mean_over_the_sampled_inits(x64):
  """Each with the key of its row."""
  trainable, decode = problems.trainable()
  key, real = jax.random.key(7), problems.real()

  def noisy(params, inputs, labels, key):
    return problems.inner_loss(params, inputs + jax.random.normal(key, inputs.shape), labels)

  train = jax.jit(dd_jax.unroll(noisy))
  draw_key, train_key, _ = truncation.objective_keys(key)
  params = _RANDOM.sample(draw_key, 4)
  one_by_one = []
  for n in range(4):
    final, _ = train(jax.random.fold_in(train_key, n),
                     jax.tree.map(lambda leaf, n=n: leaf[n], params), decode(trainable))
    one_by_one.append(problems.inner_loss(final, *real))
  for num_parallel in (None, 1, 3, 9):
    outer_loss = dd_jax.make_outer_loss(decode, _RANDOM, train, problems.inner_loss, num_inits=4,
                                        num_parallel=num_parallel)
    actual = jax.jit(outer_loss)(trainable, (), key, *real)
    np.testing.assert_allclose(actual, np.mean(one_by_one), rtol=1e-12)


@pytest.mark.parametrize("memory, gradient", [
    ("remat", "forward_over_reverse"), (2, "reverse"), (3, "forward_over_reverse")], ids=str)
def test_what_an_inner_loss_closes_over_gets_its_gradient(x64, memory, gradient):
  """As in plain reverse mode: a learned number, an index, and the gradient within jit or of it."""
  trainable, decode = problems.trainable()

  def make(**modes):
    def outer_loss(trainable, scale, shift, key):
      def inner_loss(params, inputs, labels):
        return scale * problems.inner_loss(params, jnp.roll(inputs, shift, 0), labels)

      return dd_jax.make_outer_loss(decode, _RANDOM, dd_jax.unroll(inner_loss, **modes),
                                    problems.inner_loss, num_inits=2)(
                                        trainable, (), key, *problems.real())
    return outer_loss

  at = trainable, jnp.asarray(1.3), jnp.asarray(1), jax.random.key(0)
  expected = jax.grad(make(memory="plain"), (0, 1))(*at)
  outer_loss = make(memory=memory, gradient=gradient)
  assert abs(expected[1]) > 1e-3
  for transformed in (jax.jit(jax.grad(outer_loss, (0, 1))), jax.grad(jax.jit(outer_loss), (0, 1))):
    problems.assert_close(transformed(*at), expected, 1e-10)


@pytest.mark.parametrize("options", [dict(num_parallel=1), dict(chunk_size=3)], ids=str)
def test_a_loss_in_pieces_that_closes_over_a_learned_value_is_explained(options):
  trainable, decode = problems.trainable()

  def outer_loss(trainable, init_state, key, inputs, labels):
    def loss(params, inputs, labels):
      return trainable["step_sizes"][0, 0] * problems.inner_loss(params, inputs, labels)

    return dd_jax.make_outer_loss(decode, _RANDOM, dd_jax.unroll(loss), loss, num_inits=2,
                                  **options)(trainable, init_state, key, inputs, labels)

  with pytest.raises(ValueError, match="must take everything that receives a gradient as an arg"):
    dd_jax.value_and_hypergrad(outer_loss)(trainable, (), jax.random.key(0), *problems.real())


@pytest.mark.parametrize("options, message", [
    (dict(num_inits=0), "num_inits must be at least 1; got 0"),
    (dict(chunk_size=0), "chunk_size must be at least 1; got 0"),
    (dict(num_parallel=0), "num_parallel must be at least 1; got 0"),
])
def test_bad_options_are_named(options, message):
  _, decode = problems.trainable()
  with pytest.raises(ValueError, match=message):
    _outer_loss(decode, **options)


@pytest.mark.parametrize("precision, expected", [
    ("highest", "Precision.HIGHEST"), ("high", "Precision.HIGH"), (None, None)])
def test_the_callers_precision_reaches_every_product_of_trajectory_and_gradient(
    precision, expected):
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode, 2, gradient="forward_over_reverse", chunk_size=4)
  with jax.default_matmul_precision(precision):
    program = str(jax.make_jaxpr(dd_jax.value_and_hypergrad(outer_loss))(
        trainable, (), jax.random.key(0), *problems.real()))
  products = program.count("dot_general[")
  assert products > 10
  found = collections.Counter(re.findall(r"precision=\((\S+), (\S+)\)", program))
  assert found == ({(expected, expected): products} if expected else {})


# All that changes how the same is computed: (memory, gradient) of the inner loop, and the pieces.
_PIECES = {
    "one network": (("plain", "reverse"), dict(num_parallel=1)),
    "one image": (("remat", "reverse"), dict(chunk_size=1)),
    "rests": (("nested", "reverse"), dict(num_parallel=2, chunk_size=3)),
    "larger than all": (("plain", "forward_over_reverse"), dict(num_parallel=3, chunk_size=20)),
}


def _soft_loss(params, images, labels):
  """Of real labels that are floats, so that they can be differentiated too."""
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(problems.apply(params, images)) * labels, -1))


def _everything(mode=("plain", "reverse"), **options):
  """A loss of distilled data, a pool of weights, real images and soft real labels, and where."""
  trainable, decode = problems.trainable(soft=True)
  init = dd_jax.pretrained_init(_RANDOM.sample(jax.random.key(3), 5))
  images, _ = problems.real()
  labels = jax.random.uniform(jax.random.key(4), (11, problems.NUM_CLASSES))
  memory, gradient = mode
  loss = dd_jax.make_outer_loss(
      decode, init, dd_jax.unroll(problems.inner_loss, memory=memory, gradient=gradient),
      _soft_loss, num_inits=5, **options)
  return (lambda moved: loss(moved[0], moved[1], jax.random.key(0), *moved[2:]),
          (trainable, init.state, images, labels))


@functools.cache
def _in_one_piece(of_derivatives):
  outer_loss, moved = _everything()
  return jax.jit(of_derivatives(outer_loss))(moved)


@pytest.mark.parametrize("name", [
    "one network", "rests", pytest.param("one image", marks=pytest.mark.slow),
    pytest.param("larger than all", marks=pytest.mark.slow)])
def test_pieces_change_no_derivative_of_anything(x64, name):
  """By distilled data, initial weights, real images and real labels; together, and one alone."""
  mode, options = _PIECES[name]
  outer_loss, moved = _everything(mode, **options)
  expected = _in_one_piece(jax.value_and_grad)
  assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(expected))
  problems.assert_close(jax.jit(jax.value_and_grad(outer_loss))(moved), expected, 1e-12)
  place = list(_PIECES).index(name)
  alone = jax.jit(jax.grad(lambda x: outer_loss((*moved[:place], x, *moved[place + 1:]))))(
      moved[place])
  problems.assert_close(alone, expected[1][place], 1e-12)


def _second(outer):
  """A Hessian-vector product, by the mode that `outer` differentiates the gradient in."""
  def of_loss(loss):
    def derivatives(moved):
      direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), moved)
      return outer(jax.grad(loss), moved, direction)

    return derivatives

  return of_loss


_SECOND = {"forward": _second(lambda grad, at, d: jax.jvp(grad, (at,), (d,))[1]),
           "reverse": _second(lambda grad, at, d: jax.vjp(grad, at)[1](d)[0])}


@pytest.mark.slow
@pytest.mark.parametrize("outer", _SECOND)
def test_pieces_leave_second_derivatives(x64, outer):
  outer_loss, moved = _everything(num_parallel=2, chunk_size=3)
  problems.assert_close(jax.jit(_SECOND[outer](outer_loss))(moved),
                        _in_one_piece(_SECOND["forward"]), 1e-11)


@pytest.mark.parametrize("mode, options", [
    (("remat", "forward_over_reverse"), {}), (("plain", "reverse"), {"chunk_size": 3}),
    (("plain", "reverse"), {"num_parallel": 1})])
def test_forward_mode_that_cannot_be_had_is_refused_in_one_line(mode, options):
  loss, moved = _everything(mode, **options)
  with pytest.raises(TypeError, match="^can.t apply forward-mode .* to a custom_vjp function"):
    jax.jvp(loss, (moved,), (moved,))


def test_pmap_refuses_derivatives_that_it_would_get_wrong():
  trainable, decode = problems.trainable()
  outer_loss = _outer_loss(decode, 2, split=parallel.Split(parallel.over_pmap))

  def by_images(trainable, state, images, labels):
    return jax.grad(lambda x: outer_loss(trainable, state, jax.random.key(0), x, labels))(images)

  with pytest.raises(ValueError, match="under pmap the loss must be differentiated by the "
                                       "distilled data alone; got initial weights or real exam"):
    parallel.pmap(by_images)(trainable, (), *problems.real())


def _of_the_batch(params, images, labels):
  """A network that normalises with the statistics of its batch."""
  hidden = images.reshape(images.shape[0], -1) @ params["first"]
  hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0) + 1e-5)[None]
  return losses.cross_entropy(jnp.tanh(hidden) @ params["second"], labels).mean()


def _summed(params, images, labels):
  return images.shape[0] * problems.inner_loss(params, images, labels)


def _weighted(params, images, labels):
  """The weighted mean of PyTorch's CrossEntropyLoss(weight=)."""
  weights = jnp.array([1., 2., 5.])[labels]
  values = losses.cross_entropy(problems.apply(params, images), labels)
  return jnp.sum(weights * values) / jnp.sum(weights)


@pytest.mark.parametrize("loss", [_of_the_batch, _summed, _weighted])
def test_a_real_loss_that_is_no_mean_stays_in_one_piece(loss):
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real()

  def value(**options):
    return jax.jit(_outer_loss(decode, 2, loss, **options))(*arguments)

  np.testing.assert_allclose(value(num_parallel=1), value(), rtol=1e-5)
  with pytest.raises(ValueError, match="real_loss must be a mean over examples for chunk_size; got "
                                       "one whose value for two examples"):
    value(chunk_size=4)
  mesh = parallel.make_mesh(1, jax.devices()[:1])
  over_examples = functools.partial(parallel.over_mesh, mesh=mesh, axis=parallel.EXAMPLES)
  with pytest.raises(ValueError, match="for real images shared by devices; got"):
    value(split=parallel.Split(None, over_examples))


def test_a_batch_of_one_chunk_stays_in_one_piece():
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real(11)
  values = [_outer_loss(decode, 1, _of_the_batch, **options)(*arguments)
            for options in ({}, {"chunk_size": 11}, {"chunk_size": 20})]
  np.testing.assert_allclose(values[1:], values[0], rtol=1e-5)


def test_a_real_loss_may_close_over_what_is_traced():
  """Weights of classes, say, that are an argument of the program around it: nothing is tried."""
  trainable, decode = problems.trainable()
  arguments = trainable, (), jax.random.key(0), *problems.real(11)

  def value(weight, **options):
    def weighted(params, images, labels):
      return weight * problems.inner_loss(params, images, labels)
    return _outer_loss(decode, 1, weighted, **options)(*arguments)

  np.testing.assert_allclose(jax.jit(functools.partial(value, chunk_size=4))(2.), value(2.),
                             rtol=1e-5)


def test_statistics_of_a_batch_of_integers_are_found():
  """Pixels that the network scales itself, and tokens."""
  params = problems.init(jax.random.key(0))
  images = jnp.zeros((8, *problems.IMAGE_SHAPE), jnp.uint8)
  for loss, differs in ((_of_the_batch, True), (problems.inner_loss, False)):
    def of_pixels(params, images, labels, loss=loss):
      return loss(params, images / 255, labels)

    with contextlib.nullcontext() if not differs else pytest.raises(
        ValueError, match="real_loss must be a mean over examples for chunk_size"):
      batch_independence.check_mean(of_pixels, params, images, jnp.zeros(8, int),
                                    cut_by="chunk_size")


def test_a_loss_is_tried_once_as_long_as_it_lives_and_not_kept_alive():
  tried = []

  class Unhashable:
    __hash__ = None

    def __call__(self, params, inputs, labels):
      return loss(params, inputs, labels)

  def loss(params, inputs, labels):
    tried.append(inputs.shape[0])
    return problems.inner_loss(params, inputs, labels)

  args = (problems.init(jax.random.key(0)), jnp.zeros((8, *problems.IMAGE_SHAPE)),
          jnp.zeros(8, int))
  batch_independence.check_mean(loss, *args, cut_by="chunk_size")
  number = len(tried)
  batch_independence.check_mean(loss, *args, cut_by="chunk_size")
  assert set(tried) == {1, 2} and len(tried) == number
  batch_independence.check_mean(Unhashable(), *args, cut_by="chunk_size")
  assert len(tried) > number
  kept = weakref.ref(loss)
  del loss, Unhashable
  gc.collect()
  assert kept() is None


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
