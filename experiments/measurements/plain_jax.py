"""The outer step as one would write it in JAX by hand, to be timed beside the library's.

Flax's own layers, `jax.vmap` over the networks, `jax.lax.scan` over the inner steps, `jax.grad`
through it, and optax; nothing of dd_jax.
"""

import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

_LEARNING_RATE, _BETA1 = .01, .5


class LeNet(nn.Module):
  """Logits `[n, 10]` of images `[n, H, W, C]`, 28 or 32 pixels."""

  @nn.compact
  def __call__(self, x):
    padding = (32 - x.shape[1]) // 2
    x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
    x = nn.max_pool(nn.relu(nn.Conv(16, (5, 5), padding=0)(x)), (2, 2), (2, 2))
    x = nn.relu(nn.Dense(120)(x.reshape(x.shape[0], -1)))
    x = nn.relu(nn.Dense(84)(x))
    return nn.Dense(10)(x)


class AlexCifarNet(nn.Module):
  """Logits `[n, 10]` of images `[n, 32, 32, C]`."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(64, (5, 5), padding=2)(x))
    x = _local_response_norm(nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]))
    x = _local_response_norm(nn.relu(nn.Conv(64, (5, 5), padding=2)(x)))
    x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
    x = nn.relu(nn.Dense(384)(x.reshape(x.shape[0], -1)))
    x = nn.relu(nn.Dense(192)(x))
    return nn.Dense(10)(x)


def _local_response_norm(x, size=4, alpha=.001 / 9):
  padded = jnp.pad(jnp.square(x), [(0, 0)] * 3 + [(size // 2, size - size // 2 - 1)])
  total = sum(padded[..., i:i + x.shape[-1]] for i in range(size))
  return x / (1 + alpha / size * total) ** .75


class PlainSide:
  """The step by hand of a row of the bench, in a process of its own."""

  def __init__(self, setting: dict, inputs: dict, precision: str):
    self._setting, self._precision = setting, precision
    self._inputs = jax.tree.map(jnp.asarray, inputs)
    self._network = {"lenet": LeNet, "alexcifarnet": AlexCifarNet}[setting["network"]]()
    optimizer = optax.adam(_LEARNING_RATE, b1=_BETA1)

    def step(key, trainable, opt_state, theta_0, images, labels):
      if setting["init"] == "random":
        theta_0 = self._draw(key, theta_0)
      loss, gradient = jax.value_and_grad(self._outer_loss)(trainable, theta_0, images, labels)
      updates, opt_state = optimizer.update(gradient, opt_state)
      return optax.apply_updates(trainable, updates), opt_state, loss

    trainable = self._inputs["trainable"]
    self._state, self._num_steps = (trainable, optimizer.init(trainable)), 0
    start = time.perf_counter()
    with jax.default_matmul_precision(precision):
      self._step = jax.jit(step, donate_argnums=(1, 2)).lower(
          jax.random.key(0), *self._state, self._inputs["theta_0"],
          *self._inputs["real"]).compile()
    self._compile_seconds = time.perf_counter() - start
    self._state = jax.tree.map(jnp.copy, self._state)

  def hypergradient64(self) -> tuple[float, dict]:
    """Loss and hypergradient of the inputs in float64."""
    jax.config.update("jax_enable_x64", True)
    trainable, theta_0, images = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x), np.float64),
        (self._inputs["trainable"], self._inputs["theta_0"], self._inputs["real"][0]))
    with jax.default_matmul_precision(self._precision):
      loss, gradient = jax.jit(jax.value_and_grad(self._outer_loss))(
          trainable, theta_0, images, self._inputs["real"][1])
    jax.config.update("jax_enable_x64", False)
    return float(loss), jax.tree.map(np.asarray, gradient)

  def step(self) -> float:
    """Seconds of one outer step."""
    start = time.perf_counter()
    self._num_steps += 1
    *state, loss = self._step(jax.random.fold_in(jax.random.key(5), self._num_steps), *self._state,
                              self._inputs["theta_0"], *self._inputs["real"])
    jax.block_until_ready((state, loss))
    self._state = tuple(state)
    return time.perf_counter() - start

  def report(self) -> dict:
    """Seconds of compiling, and the compiler's temporary bytes."""
    return {"plain_compile_seconds": self._compile_seconds,
            "plain_temporary_bytes": self._step.memory_analysis().temp_size_in_bytes}

  def _draw(self, key, like):
    def xavier(key, leaf):
      if leaf.ndim < 3:  # A bias, behind the axis of the networks.
        return jnp.zeros_like(leaf)
      keys = jax.random.split(key, leaf.shape[0])
      return jax.vmap(lambda key: jax.nn.initializers.glorot_normal()(key, leaf.shape[1:]))(keys)

    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten(map(xavier, jax.random.split(key, len(leaves)), leaves))

  def _loss(self, params, images, labels):
    logits = self._network.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  def _outer_loss(self, trainable, theta_0, images, labels):
    step_sizes = jax.nn.softplus(trainable["step_sizes"])
    num_epochs, num_steps = step_sizes.shape

    def outer_loss_of_one(params):
      def inner_step(params, inputs):
        distilled, step_size = inputs
        gradient = jax.grad(self._loss)(params, distilled, jnp.arange(10))
        return jax.tree.map(lambda p, g: p - step_size * g, params, gradient), None

      all_inputs = jnp.tile(trainable["inputs"], (num_epochs, 1, 1, 1, 1))
      trained, _ = jax.lax.scan(inner_step, params, (all_inputs, step_sizes.reshape(-1)))
      return self._loss(trained, images, labels)

    return jax.vmap(outer_loss_of_one)(theta_0).mean()
