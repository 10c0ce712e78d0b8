"""dd_jax.losses: cross-entropy against its formula, poisoned labels, and what errors say."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import losses
from tests.arrays import jit

HARD = np.array([2, 0, 0, 1])


def numbers():
  """Logits and soft labels [4, 3] in float64."""
  rng = np.random.default_rng(0)
  logits, soft = 3 * rng.standard_normal((4, 3)), rng.random((4, 3))
  return logits, soft / soft.sum(1, keepdims=True)


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_hard_labels(dtype):
  logits, _ = numbers()
  actual = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(HARD, dtype))
  np.testing.assert_allclose(actual, -log_softmax(logits)[range(4), HARD], rtol=1e-13)
  one_hot = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(np.eye(3)[HARD]))
  np.testing.assert_allclose(actual, one_hot, rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", [1, 2.5])
def test_soft_labels_of_any_scale(scale):
  logits, soft = numbers()
  actual = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(scale * soft))
  np.testing.assert_allclose(actual, -scale * np.sum(soft * log_softmax(logits), 1), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_gradient():
  """softmax - labels; in the labels themselves -log softmax."""
  logits, soft = numbers()
  softmax = np.exp(log_softmax(logits))

  def total(logits, labels):
    return losses.cross_entropy(logits, labels).sum()

  by_logits, by_labels = jax.grad(total, (0, 1))(jnp.asarray(logits), jnp.asarray(soft))
  np.testing.assert_allclose(by_logits, softmax - soft, rtol=1e-12, atol=1e-15)
  np.testing.assert_allclose(by_labels, -log_softmax(logits), rtol=1e-12)
  by_logits = jax.grad(total)(jnp.asarray(logits), jnp.asarray(HARD))
  np.testing.assert_allclose(by_logits, softmax - np.eye(3)[HARD], rtol=1e-12, atol=1e-15)


def test_large_logits_in_float32():
  logits = jnp.asarray([[1e4, 0, -1e4], [0, 0, 1e4]], jnp.float32)
  actual = losses.cross_entropy(logits, jnp.asarray([2, 2]))
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, [2e4, 0])


@pytest.mark.parametrize("label, expected", [
    (3, np.nan), (7, np.nan), (-1, np.log(1 + np.exp(-1) + np.exp(-2))), (-4, np.nan)])
def test_a_label_out_of_range_is_never_free(label, expected):
  def loss(logits):
    return losses.cross_entropy(logits, jnp.asarray([label])).sum()

  actual, gradient = jax.value_and_grad(loss)(jnp.asarray([[0., 1., 2.]]))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert np.isnan(gradient).all() == np.isnan(expected) == (not np.isfinite(gradient).all())


def test_a_class_of_logit_minus_infinity():
  """It has probability 0: the others are a softmax without it, and its own label costs inf."""
  logits = jnp.asarray([[0., 1., -np.inf]])

  def loss(logits, label):
    return losses.cross_entropy(logits, label[None]).sum()

  @jit
  def all_of(logits, label):
    return (*jax.value_and_grad(loss)(logits, label),
            jax.jacrev(jax.grad(loss))(logits, label)[0, :, 0])

  value, gradient, hessian = all_of(logits, jnp.asarray(0))
  assert value == pytest.approx(np.log(1 + np.e), rel=1e-6)
  assert all_of(logits, jnp.asarray(2))[0] == np.inf
  p = np.e / (1 + np.e)
  np.testing.assert_allclose(gradient, [[-p, p, 0]], rtol=1e-6)
  np.testing.assert_allclose(hessian, p * (1 - p) * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]]),
                             rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("soft", [False, True])
def test_second_derivatives(soft):
  """diag(softmax) - softmax softmax^T for labels that sum to 1."""
  logits, labels = numbers()
  labels = labels if soft else HARD
  p = np.exp(log_softmax(logits))
  hessians = jit(jax.vmap(jax.hessian(lambda logits, labels: losses.cross_entropy(
      logits[None], labels[None])[0])))(jnp.asarray(logits), jnp.asarray(labels))
  expected = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None]
  np.testing.assert_allclose(hessians, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision_logits_are_summed_in_float32(dtype, soft):
  """Zero logits cost log K each, which a half-precision mean of 4096 would miss."""
  logits = jnp.zeros((4096, 3), dtype)
  labels = jnp.full((4096, 3), 1 / 4, dtype) if soft else jnp.zeros(4096, jnp.int32)
  value, gradient = jit(jax.value_and_grad(losses.classification(lambda params, x: params)))(
      logits, None, labels)
  assert value.dtype == jnp.float32 and gradient.dtype == dtype
  assert value == pytest.approx((3 / 4 if soft else 1) * np.log(3), rel=1e-6)


@pytest.mark.parametrize("labels, got", [
    (jnp.zeros((3,), jnp.int32), r"int32 \[3\]"),
    (jnp.zeros((4, 1), jnp.int32), r"int32 \[4, 1\]"),
    (jnp.zeros((4, 3), jnp.int32), r"int32 \[4, 3\]"),
    (jnp.zeros((4,), jnp.float32), r"float32 \[4\]"),
    (jnp.zeros((4, 2), jnp.float32), r"float32 \[4, 2\]"),
    (jnp.zeros((4,), bool), r"bool \[4\]"),
])
def test_wrong_labels(labels, got):
  with pytest.raises(ValueError, match=r"labels must be integers \[4\] or floats \[4, 3\]; "
                                       f"got {got}"):
    losses.cross_entropy(jnp.zeros((4, 3)), labels)


def linear(params, images, *, key=None):
  """With a key, its logits are doubled."""
  return (images @ params) * (1 if key is None else 2)


@pytest.mark.usefixtures("x64")
def test_classification():
  logits, soft = numbers()
  loss = losses.classification(linear)
  for labels in (soft, np.eye(3)[HARD]):
    for key, factor in ((None, 1), (jax.random.key(0), 2)):
      np.testing.assert_allclose(
          loss(jnp.eye(3), jnp.asarray(logits), jnp.asarray(labels), key),
          -np.mean(np.sum(labels * log_softmax(factor * logits), 1)), rtol=1e-13)


def test_a_loss_takes_a_key_where_its_network_does():
  keyless = losses.classification(lambda params, inputs: inputs @ params)
  assert list(inspect.signature(keyless).parameters) == ["params", "inputs", "labels"]
  keyed = losses.classification(linear)
  assert list(inspect.signature(keyed).parameters) == ["params", "inputs", "labels", "key"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("attack, target, read_as", [
    (0, 1, [2, 1, 1, 1]), (2, 0, [0, 0, 0, 1]), (1, 2, [2, 0, 0, 2]),
])
def test_poisoning(attack, target, read_as):
  logits, _ = numbers()
  loss = losses.poisoning(linear, attack_class=attack, target_class=target, num_classes=3)
  expected = -np.mean(log_softmax(logits)[range(4), read_as])
  labels = jnp.asarray(HARD, jnp.int32)
  np.testing.assert_allclose(loss(jnp.eye(3), jnp.asarray(logits), labels), expected, rtol=1e-13)


def test_poisoning_needs_two_classes():
  with pytest.raises(ValueError, match="target_class must differ from attack_class; got 2"):
    losses.poisoning(linear, attack_class=2, target_class=2, num_classes=3)


@pytest.mark.parametrize("field", ["attack_class", "target_class"])
@pytest.mark.parametrize("value", [-1, 3])
def test_poisoning_of_a_class_that_is_not_there(field, value):
  with pytest.raises(ValueError, match=rf"{field} must lie in 0\.\.2; got {value}"):
    losses.poisoning(linear, **{"attack_class": 0, "target_class": 1, field: value},
                     num_classes=3)


def test_poisoning_reads_classes_alone():
  loss = losses.poisoning(linear, attack_class=1, target_class=0, num_classes=3)
  with pytest.raises(ValueError, match=r"labels must be classes, integers \[n\].*; got float32"):
    loss(None, jnp.zeros((2, 3)), jnp.eye(3)[:2])


def test_a_key_that_is_bound_stays():
  bound = functools.partial(linear, key=jax.random.key(0))
  loss = losses.classification(bound)
  assert list(inspect.signature(loss).parameters) == ["params", "inputs", "labels"]
  inputs, labels = jnp.asarray([[1., 0., 2.]]), jnp.asarray([1])
  np.testing.assert_array_equal(loss(jnp.eye(3), inputs, labels),
                                losses.cross_entropy(2 * inputs, labels)[0])


def test_targets_are_floats_of_the_shape_of_the_outputs_and_have_their_gradient():
  with pytest.raises(ValueError, match=r"targets must be floats \[n, D\], as the outputs \[4, 3\]"):
    losses.squared_error(jnp.ones((4, 3)), jnp.ones((4, 1)))
  with pytest.raises(ValueError, match=r"as the outputs \[4, 3\]; got int32"):
    losses.squared_error(jnp.ones((4, 3)), jnp.ones((4, 3), jnp.int32))
  with pytest.raises(ValueError, match=r"as the outputs \[4\]; got float32 \[4\]"):
    losses.squared_error(jnp.ones(4), jnp.zeros(4))  # Else summed over the batch.
  x, y = (np.random.default_rng(seed).normal(size=(5, size)).astype(np.float32)
          for seed, size in enumerate((3, 2)))
  w = np.ones((3, 2), np.float32)
  found = jax.grad(losses.regression(lambda w, x: x @ w))(w, x, y)
  np.testing.assert_allclose(found, x.T @ (x @ w - y) / 5, rtol=1e-5, atol=1e-6)
