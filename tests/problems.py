"""A problem small enough for float64 finite differences, shared by the tests of the loops."""

import jax
import jax.numpy as jnp

from dd_jax import losses
from dd_jax import parametrization

NUM_STEPS, NUM_EPOCHS, BATCH, NUM_CLASSES, IMAGE_SHAPE = 3, 2, 4, 3, (2, 2, 1)


def apply(params, images, *, key=None):
  """A two-layer network with a smooth activation: finite differences meet no kink."""
  del key
  hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["first"])
  return hidden @ params["second"] + params["bias"][None]


def init(key):
  first, second = jax.random.split(key)
  return {"first": jax.random.normal(first, (4, 5)), "second": jax.random.normal(second, (5, 3)),
          "bias": jnp.zeros(3)}


def trainable(seed=1, soft=False):
  """A trainable of S=3, E=2, B=4 and the function that decodes it; soft labels are learned."""
  images, labels, step_sizes = jax.random.split(jax.random.key(seed), 3)
  values = {"images": jax.random.normal(images, (NUM_STEPS, BATCH, *IMAGE_SHAPE)),
            "step_sizes": jax.random.normal(step_sizes, (NUM_EPOCHS, NUM_STEPS)) - 1.}
  if not soft:
    hard = jax.random.randint(labels, (NUM_STEPS, BATCH), 0, NUM_CLASSES)
    return values, _decode(hard)
  values["labels"] = jax.random.uniform(labels, (NUM_STEPS, BATCH, NUM_CLASSES))

  def decode(values):
    return _decode(values["labels"])(values)

  return values, decode


def _decode(labels):
  return parametrization.paper(labels, IMAGE_SHAPE, num_epochs=NUM_EPOCHS, step_size=1.).decode


def real(num_images=11, seed=2):
  """Real images `[R, 2, 2, 1]` and labels `[R]`."""
  images, labels = jax.random.split(jax.random.key(seed))
  return (jax.random.normal(images, (num_images, *IMAGE_SHAPE)),
          jax.random.randint(labels, (num_images,), 0, NUM_CLASSES, jnp.int32))


inner_loss = losses.classification(apply)
