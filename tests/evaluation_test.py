"""dd_jax.evaluation: the metrics against numpy, and networks trained one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import evaluation
from dd_jax.runs import accuracies
from tests import arrays
from tests.arrays import jit

K, SHAPE = 3, (2, 2, 1)


def normal(*shape, seed=0):
  return arrays.normal(*shape, seed=seed).astype(jnp.float32)


MODEL = dd_jax.models.mlp(num_classes=K, image_shape=SHAPE, hidden=(4,))
INIT = dd_jax.random_init(MODEL.init, dd_jax.init_distributions.xavier_normal())
INNER_LOSS = dd_jax.losses.classification(MODEL.apply)
TRAIN = dd_jax.unroll(INNER_LOSS)
IMAGES, LABELS = normal(7, *SHAPE), jnp.asarray([2, 0, 1, 1, 2, 0, 2])
DISTILLED = dd_jax.DistilledData(normal(2, 3, *SHAPE, seed=1), jnp.asarray([[0, 1, 2]] * 2),
                                 jnp.abs(normal(2, 2, seed=2)))


def metrics_by_numpy(logits, labels):
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  confusion = np.zeros((K, K))
  np.add.at(confusion, (labels, logits.argmax(1)), 1)
  return (-log_probs[range(len(labels)), labels].mean(), (logits.argmax(1) == labels).mean(),
          confusion)


def linear(params, images):
  return images.reshape(images.shape[0], -1) @ params


@pytest.mark.parametrize("batch_size", [1, 3, 6, 7, 100])
def test_measure(batch_size):
  params = normal(4, K, seed=3)
  actual = evaluation.measure(linear, params, IMAGES, LABELS, batch_size=batch_size)
  expected = metrics_by_numpy(linear(params, IMAGES), LABELS)
  assert [x.shape for x in actual] == [(), (), (K, K)]
  np.testing.assert_allclose(actual.loss, expected[0], rtol=1e-5)
  np.testing.assert_allclose(actual.accuracy, expected[1], rtol=1e-6)
  np.testing.assert_array_equal(actual.confusion, expected[2])
  assert not np.array_equal(expected[2], expected[2].T)  # Else it would not tell rows by columns.


@pytest.mark.parametrize("batch_size", [2, 5])
def test_measure_of_targets(x64, batch_size):
  """Two targets: the loss sums over them, R2 is their mean, an error is in the units of its own."""
  draw = np.random.default_rng(0)
  inputs, targets, kernel = (draw.normal(size=shape) for shape in ((5, 3), (5, 2), (3, 2)))
  targets = targets + 1
  found = evaluation.measure(lambda params, x: x @ params, *map(jnp.asarray, (
      kernel, inputs, targets)), batch_size=batch_size)
  errors = ((inputs @ kernel - targets) ** 2).mean(0)
  np.testing.assert_allclose(found.loss, .5 * errors.sum(), rtol=1e-12)
  np.testing.assert_allclose(found.r2, (1 - errors / targets.var(0)).mean(), rtol=1e-10)
  np.testing.assert_allclose(found.rmse, errors ** .5, rtol=1e-12)
  shown = accuracies.targets(np.array([2., 3.])).of(jax.tree.map(lambda x: np.asarray(x)[None],
                                                                 found))
  np.testing.assert_allclose(shown["r2"], [found.r2])
  np.testing.assert_allclose(shown["rmse"], [(errors ** .5 * [2, 3]).mean()])


def test_measure_compiles_to_few_batches():
  """A long set is a loop, not a program as long as the set."""
  def length(num_images):
    images, labels = jnp.zeros((num_images, *SHAPE)), jnp.zeros(num_images, jnp.int32)
    return len(jax.make_jaxpr(lambda params: evaluation.measure(
        linear, params, images, labels, batch_size=2))(jnp.zeros((4, K))).eqns)

  assert length(100) == length(4)


def test_batch_size_error():
  with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
    evaluation.measure(linear, normal(4, K), IMAGES, LABELS, batch_size=0)


@pytest.fixture(autouse=True, scope="module")
def full_precision():
  """An accelerator's short products would not compare with numpy's."""
  with jax.default_matmul_precision("highest"):
    yield


@functools.cache
def compiled(init, train, num_inits, plan):
  """Compiled as a whole: part by part would take longer."""
  @jit
  def of_state(key, state):
    return dd_jax.evaluate(key, DISTILLED, dd_jax.InitDistribution(state, *init), train,
                           MODEL.apply, IMAGES, LABELS, num_inits=num_inits, plan=plan)
  return of_state


def evaluate(init=INIT, seed=0, num_inits=5, train=TRAIN, **plan):
  return compiled(init[1:], train, num_inits, dd_jax.Plan(**plan))(jax.random.key(seed), init.state)


@pytest.fixture(scope="module")
def result():
  return evaluate()


def assert_same(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
    np.testing.assert_allclose(a.accuracy, b.accuracy, rtol=1e-6)
    np.testing.assert_array_equal(a.confusion, b.confusion)


@functools.cache
def networks(num_inits):
  """Those that `INIT` draws with key 0."""
  return jit(lambda key: INIT.sample(key, num_inits))(jax.random.key(0))


@functools.cache
def given(num_inits):
  """The same, without the time to compile their draw."""
  return dd_jax.init_distributions.given_init(networks(num_inits))


def by_hand(params, train=TRAIN):
  """Metrics of each network of `params` [N, ...] before and after training it alone."""
  @jit
  def logits(params):
    trained, _ = train(jax.random.key(9), params, DISTILLED)
    return MODEL.apply(params, IMAGES), MODEL.apply(trained, IMAGES)

  rows = []
  for i in range(jax.tree.leaves(params)[0].shape[0]):
    both = logits(jax.tree.map(lambda leaf: np.asarray(leaf)[i], params))
    rows.append([metrics_by_numpy(side, LABELS) for side in both])
  return [evaluation.Metrics(*(np.stack(x) for x in zip(*side))) for side in zip(*rows)]


def test_evaluate_trains_every_network(result):
  for metrics in result:
    assert [x.shape for x in metrics] == [(5,), (5,), (5, K, K)]
  assert_same(result, by_hand(networks(5)))
  assert np.all(result.before.loss != result.after.loss)
  assert len(np.unique(result.after.loss)) == 5  # Five different networks.


def test_evaluate_with_an_optimizer(result):
  train = dd_jax.unroll(INNER_LOSS, optax.sgd(1., momentum=.9))
  actual = evaluate(given(2), num_inits=2, train=train)
  assert_same(actual, by_hand(networks(2), train))
  assert np.all(actual.after.loss != result.after.loss[:2])


def test_evaluate_fixed_and_given_networks_and_a_pool():
  pool = networks(2)
  expected = by_hand(pool)
  one = dd_jax.fixed_init(jax.tree.map(lambda leaf: leaf[1], pool))
  assert_same(evaluate(one, num_inits=1), jax.tree.map(lambda x: x[1:2], expected))
  assert_same(evaluate(given(2), num_inits=2), expected)
  actual = evaluate(dd_jax.pretrained_init(pool), num_inits=2)

  def in_order(metrics):
    return jax.tree.map(lambda x: x[np.argsort(metrics.loss)], metrics)

  assert_same(map(in_order, actual), map(in_order, expected))


@pytest.mark.parametrize("init, plan", [
    ("random", {"num_parallel": 2}), ("given", {"num_parallel": 1, "batch_size": 7}),
    ("given", {"num_parallel": 5, "batch_size": 3})], ids=str)
def test_evaluate_does_not_depend_on_the_layout(result, init, plan):
  assert_same(evaluate(INIT if init == "random" else given(5), **plan), result)


def test_evaluate_shares_the_networks_out(result):
  """`spread` gets a function of tokens and rows, here in two parts."""
  def spread(function):
    def mapped(networks):
      parts = [function(jax.tree.map(lambda x: x[part], networks))
               for part in (slice(0, 3), slice(3, 5))]
      return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return mapped

  assert_same(evaluate(given(5), spread=spread), result)


def test_num_parallel_error():
  with pytest.raises(ValueError, match="num_parallel must be at least 1; got 0"):
    evaluate(num_parallel=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_networks():
  """One at a time 256 networks of 100 kB take what 4 take; tokens and metrics are small."""
  model = dd_jax.models.mlp(num_classes=K, image_shape=(8, 8, 1), hidden=(384,))
  init = dd_jax.random_init(model.init)
  inputs, labels = jnp.zeros((12, 8, 8, 1)), jnp.arange(12) % K
  distilled = dd_jax.DistilledData(jnp.zeros((1, K, 8, 8, 1)), jnp.arange(K)[None],
                                   jnp.full((2, 1), .1))
  train = dd_jax.unroll(dd_jax.losses.classification(model.apply))

  def temporary(num_inits):
    return jax.jit(functools.partial(
        dd_jax.evaluate, init=init, train=train, apply=model.apply, num_inits=num_inits,
        plan=dd_jax.Plan(num_parallel=1))).lower(
            jax.random.key(0), distilled, inputs=inputs, labels=labels
        ).compile().memory_analysis().temp_size_in_bytes

  few, many = temporary(4), temporary(256)
  assert few > 100_000  # The weights of one network at least.
  assert many < 1.2 * few


def test_evaluate_depends_on_the_key_alone(result):
  jax.tree.map(np.testing.assert_array_equal, evaluate(), result)
  assert np.all(evaluate(seed=1).before.loss != result.before.loss)


def test_confusion_adds_up(result):
  """Rows count the true classes, the diagonal the hits."""
  for metrics in result:
    np.testing.assert_array_equal(metrics.confusion.sum(2), [[2, 2, 3]] * 5)
    np.testing.assert_allclose(np.trace(metrics.confusion, axis1=1, axis2=2) / 7, metrics.accuracy,
                               rtol=1e-6)


def test_poisoning_metrics():
  confusion = np.random.default_rng(0).integers(1, 9, (2, 4, 4))
  success, others = dd_jax.poisoning_metrics(jnp.asarray(confusion, jnp.float32), attack_class=2,
                                             target_class=0)
  for network, counts in enumerate(confusion):
    np.testing.assert_allclose(success[network], counts[2, 0] / counts[2].sum(), rtol=1e-6)
    right = counts[0, 0] + counts[1, 1] + counts[3, 3]
    np.testing.assert_allclose(others[network], right / counts[[0, 1, 3]].sum(), rtol=1e-6)


def test_keys_of_the_inner_loss_belong_to_network_and_step():
  """Noise on the distilled images: every network and every step draws its own."""
  def noisy(params, images, labels, key):
    return INNER_LOSS(params, images + jax.random.normal(key, images.shape), labels)

  train = dd_jax.unroll(noisy)
  result = evaluate(given(2), num_inits=2, train=train)
  train_key = jax.random.fold_in(jax.random.key(0), 2 ** 32 - 1)
  params = networks(2)
  trained = jit(lambda key, params: train(key, params, DISTILLED)[0])
  for row in range(2):
    own = trained(jax.random.fold_in(train_key, row), jax.tree.map(lambda leaf: leaf[row], params))
    np.testing.assert_allclose(result.after.loss[row], INNER_LOSS(own, IMAGES, LABELS), rtol=1e-5)


def test_minibatches_are_ordinary_training_of_each_network():
  """By hand: epochs in orders of the network's own, without the step sizes of the data."""
  def noisy(params, images, labels, key):
    return INNER_LOSS(params, images + jax.random.normal(key, images.shape), labels)

  actual = evaluate(given(2), num_inits=2, num_parallel=1, train=dd_jax.minibatches(
      noisy, optax.sgd(.05, momentum=.9), num_epochs=3, batch_size=4))
  images, labels = DISTILLED.inputs.reshape(6, *SHAPE), DISTILLED.labels.reshape(6)

  @jit
  def step(params, momentum, batch, key):
    gradient = jax.grad(noisy)(params, images[batch], labels[batch], key)
    momentum = jax.tree.map(lambda m, g: .9 * m + g, momentum, gradient)
    return jax.tree.map(lambda p, m: p - .05 * m, params, momentum), momentum

  for row in range(2):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2 ** 32 - 1), row)
    order_key, loss_key = jax.random.split(key)
    params = jax.tree.map(lambda leaf: leaf[row], networks(2))
    momentum = jax.tree.map(jnp.zeros_like, params)
    for epoch in range(3):
      # Two of six examples are left out.
      batch = jax.random.permutation(jax.random.fold_in(order_key, epoch), 6)[:4]
      step_key = jax.random.split(jax.random.fold_in(loss_key, epoch), 1)[0]
      params, momentum = step(params, momentum, batch, step_key)
    expected = metrics_by_numpy(MODEL.apply(params, IMAGES), LABELS)
    np.testing.assert_allclose(actual.after.loss[row], expected[0], rtol=1e-4)
    np.testing.assert_array_equal(actual.after.confusion[row], expected[2])
  assert_same([actual.before], [evaluate(given(2), num_inits=2).before])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_counts_do_not_depend_on_the_type_of_the_network(dtype):
  """The same decisions in every type: 3,000 images are 3,000, and 70,000 losses do not overflow."""
  num_images = 3000
  logits = jnp.asarray(np.random.default_rng(0).integers(-8, 9, (num_images, K)), dtype)
  labels = jnp.where(jnp.arange(num_images) % 10 < 9, jnp.argmax(logits, -1), 0)
  result = evaluation.measure(lambda params, images: images[:, :, 0, 0].astype(dtype), (),
                              logits[:, :, None, None], labels, batch_size=500)
  expected = metrics_by_numpy(np.asarray(logits, np.float64), labels)
  assert jnp.issubdtype(result.confusion.dtype, jnp.integer) and result.loss.dtype == jnp.float32
  assert float(result.accuracy) == np.float32(expected[1])
  np.testing.assert_array_equal(result.confusion, expected[2])
  np.testing.assert_allclose(result.loss, expected[0], rtol=1e-5)
  large = evaluation.measure(lambda params, images: jnp.zeros((images.shape[0], K), dtype), (),
                             jnp.zeros((70000, 1, 1, 1)), jnp.zeros(70000, jnp.int32),
                             batch_size=500)
  assert float(large.accuracy) == 1.
  np.testing.assert_allclose(large.loss, np.log(K), rtol=1e-5)


def test_a_network_that_looks_at_its_batch_gets_all_images_at_once():
  def centred(params, images):
    return linear(params, images - images.mean(0, keepdims=True))

  params = normal(4, K)
  whole = evaluation.measure(centred, params, IMAGES, LABELS, batch_size=100)
  np.testing.assert_allclose(whole.loss, metrics_by_numpy(centred(params, IMAGES), LABELS)[0],
                             rtol=1e-5)
  with pytest.raises(ValueError, match="batch_size must be at least the 7 examples for a network "
                                       "whose logits depend on the rest of the batch .* got 3"):
    evaluation.measure(centred, params, IMAGES, LABELS, batch_size=3)


@pytest.mark.parametrize("label", [K, -1])
def test_a_class_that_the_network_does_not_have(label):
  wrong = LABELS.at[1].set(label)
  with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.2, the classes .* got .*{label}"):
    evaluation.measure(linear, normal(4, K), IMAGES, wrong, batch_size=3)
  with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
    dd_jax.evaluate(jax.random.key(0), DISTILLED, INIT, TRAIN, MODEL.apply, IMAGES, wrong,
                    num_inits=2)


def test_poisoning_metrics_of_a_class_that_is_not_there():
  with pytest.raises(ValueError, match=r"target_class must lie in 0\.\.1; got 5"):
    dd_jax.poisoning_metrics(jnp.ones((1, 2, 2)), attack_class=0, target_class=5)


def test_a_network_may_close_over_what_is_traced_or_take_positive_numbers_alone():
  """Where nothing can be tried, batches are cut as asked for."""
  inputs, labels = 1. + jnp.arange(8.)[:, None], jnp.zeros(8, int)

  @jax.jit
  def measured(backbone):
    return dd_jax.evaluation.measure(lambda p, x: (x @ backbone) @ p, jnp.ones((2, 2)), inputs,
                                     labels, batch_size=4).loss

  np.testing.assert_allclose(
      measured(jnp.ones((1, 2))), np.log(2.), rtol=1e-6)
  logarithm = dd_jax.evaluation.measure(lambda p, x: jnp.log(x) @ p, jnp.ones((1, 2)), inputs,
                                        labels, batch_size=4)
  np.testing.assert_allclose(logarithm.loss, np.log(2.), rtol=1e-6)
