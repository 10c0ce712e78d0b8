"""A problem small enough for float64 finite differences, shared by the tests of the loops."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import losses
from dd_jax import parametrization

# The usual compiler, where tests/conftest.py asks for a hastier one: for bits that must be equal.
USUAL_COMPILER = {"xla_backend_optimization_level": 3}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
  USUAL_COMPILER["xla_cpu_use_fusion_emitters"] = True

NUM_STEPS, NUM_EPOCHS, BATCH, NUM_CLASSES, IMAGE_SHAPE = 3, 2, 4, 3, (2, 2, 1)


def apply(params, images):
  """A two-layer network with a smooth activation: finite differences meet no kink."""
  hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["first"])
  return hidden @ params["second"] + params["bias"][None]


def init(key):
  first, second = jax.random.split(key)
  return {"first": jax.random.normal(first, (4, 5)), "second": jax.random.normal(second, (5, 3)),
          "bias": jnp.zeros(3)}


def trainable(seed=1, soft=False):
  """A trainable of S=3, E=2, B=4 and the function that decodes it; soft labels are learned."""
  images, labels, step_sizes = jax.random.split(jax.random.key(seed), 3)
  values = {"inputs": jax.random.normal(images, (NUM_STEPS, BATCH, *IMAGE_SHAPE)),
            "step_sizes": jax.random.normal(step_sizes, (NUM_EPOCHS, NUM_STEPS)) - 1.}
  if not soft:
    hard = jax.random.randint(labels, (NUM_STEPS, BATCH), 0, NUM_CLASSES)
    return values, _decode(hard)
  values["labels"] = jax.random.uniform(labels, (NUM_STEPS, BATCH, NUM_CLASSES))

  def decode(values):
    return _decode(values["labels"])(values)

  return values, decode


def _decode(labels):
  return parametrization.paper(labels, IMAGE_SHAPE, num_epochs=NUM_EPOCHS, step_size=1.,
                               dtype=float).decode


def real(num_images=11, seed=2):
  """Real images `[R, 2, 2, 1]` and labels `[R]`."""
  images, labels = jax.random.split(jax.random.key(seed))
  return (jax.random.normal(images, (num_images, *IMAGE_SHAPE)),
          jax.random.randint(labels, (num_images,), 0, NUM_CLASSES, jnp.int32))


def check_hypergradient(outer_loss, trainable, *rest, rtol):
  """Compares the gradient along a random direction in everything learned with a difference.

  Returns:
    The gradient.
  """
  gradient = jax.grad(outer_loss)(trainable, *rest)
  leaves, tree = jax.tree.flatten(trainable)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  direction = tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])

  def along(t):
    return outer_loss(jax.tree.map(lambda x, d: x + t * d, trainable, direction), *rest)

  exact = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
  np.testing.assert_allclose(exact, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=rtol)
  return gradient


def assert_close(actual, expected, tolerance):
  """Every leaf within a share of the largest entry of what is expected."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * np.abs(b).max()), actual, expected)


inner_loss = losses.classification(apply)
