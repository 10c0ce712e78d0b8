"""The outer step of a row of the bench on our side, to be timed beside PyTorch's."""

import functools
import time
from typing import NamedTuple

import numpy as np

from dd_jax.runs import machine

_NUM_EPOCHS = 3
_NUM_CLASSES = 10
_STEP_SIZE = .02


class Setting(NamedTuple):
  """What one row times; E = 3 and one image per class and step throughout."""
  network: str
  image_shape: tuple[int, int, int]
  init: str
  num_steps: int  # S
  num_inits: int  # N
  chunk_size: int
  memory: str = "plain"
  real_batch: int = 1024  # R
  convolution: str | None = None  # Of `dd_jax.models`; None: the fastest on the backend.


class JaxSide:
  """Our side of a row, on random inputs."""

  def __init__(self, setting: Setting, precision: str):
    # JAX and PyTorch are each imported in the process that needs them.
    import jax
    import jax.numpy as jnp
    import optax

    import dd_jax
    from dd_jax import losses
    from dd_jax import models
    from dd_jax import parametrization
    self._jax = jax
    self._setting = setting
    model = models.MODELS[setting.network](num_classes=_NUM_CLASSES,
                                           image_shape=setting.image_shape,
                                           convolution=setting.convolution)
    random = dd_jax.random_init(model.init, dd_jax.init_distributions.xavier_normal())
    self._theta_0 = jax.jit(random.sample, static_argnums=1)(jax.random.key(0),
                                                             setting.num_inits)
    init = (dd_jax.fixed_init(jax.tree.map(lambda leaf: leaf[0], self._theta_0))
            if setting.init == "fixed" else random)
    labels = parametrization.class_labels(setting.num_steps, _NUM_CLASSES, 1)
    learned = parametrization.paper(labels, setting.image_shape, num_epochs=_NUM_EPOCHS,
                                    step_size=_STEP_SIZE)
    self._trainable = learned.init(jax.random.key(1))
    self._real = (
        jax.random.normal(jax.random.key(2), (setting.real_batch, *setting.image_shape)),
        jax.random.randint(jax.random.key(3), (setting.real_batch,), 0, _NUM_CLASSES, jnp.int32))
    loss = losses.classification(model.apply)
    make_outer_loss = functools.partial(
        dd_jax.make_outer_loss, learned.decode, real_loss=loss,
        train=dd_jax.unroll(loss, memory=setting.memory), num_inits=setting.num_inits,
        chunk_size=setting.chunk_size,
        num_parallel=1 if jax.default_backend() == "cpu" else None)
    # For the comparison: networks that are given instead of drawn.
    self._precision = precision
    self._value_and_grad = dd_jax.value_and_hypergrad(
        make_outer_loss(init=dd_jax.init_distributions.given_init(self._theta_0)))

    optimizer = optax.adam(.01, b1=.5)
    loop = dd_jax.make_outer_loop(make_outer_loss(init=init), optimizer)
    state = loop.init(self._trainable)
    start = time.perf_counter()
    with jax.default_matmul_precision(precision):
      compiled = jax.jit(loop.step, donate_argnums=1).lower(
          jax.random.key(4), state, init.state, *self._real).compile()
    self._compile_seconds = time.perf_counter() - start
    self._temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
    forward = jax.jit(models.MODELS[setting.network](
        num_classes=_NUM_CLASSES, image_shape=setting.image_shape, convolution="lax").apply).lower(
            jax.tree.map(lambda leaf: leaf[0], self._theta_0), self._real[0][:1]).compile()
    self._forward_flops = forward.cost_analysis()["flops"]
    self._step, self._loop = compiled, loop
    self._state, self._init_state = state, init.state

  def inputs(self) -> dict:
    """What the other side needs, as numpy arrays."""
    return self._jax.tree.map(np.asarray, {
        "theta_0": self._theta_0, "trainable": self._trainable, "real": self._real})

  def hypergradient64(self) -> tuple[float, dict]:
    """Loss and hypergradient of the inputs in float64."""
    jax = self._jax
    jax.config.update("jax_enable_x64", True)
    found = self.hypergradient(np.float64)
    jax.config.update("jax_enable_x64", False)
    return found

  def hypergradient(self, dtype=np.float32) -> tuple[float, dict]:
    """The same in another type, with products of the side's precision."""
    jax = self._jax
    theta_0, trainable, images = jax.tree.map(
        lambda leaf: leaf.astype(dtype), (self._theta_0, self._trainable, self._real[0]))
    with jax.default_matmul_precision(self._precision):
      loss, gradient = jax.jit(self._value_and_grad)(
          trainable, theta_0, jax.random.key(0), images, self._real[1])
    return float(loss), jax.tree.map(np.asarray, gradient)

  def seconds_per_step(self, num_steps: int) -> float:
    """Of so many outer steps in one dispatch; compiled before."""
    import dd_jax
    jax = self._jax
    run = jax.jit(functools.partial(
        dd_jax.run_outer_steps, self._loop.step, batch_size=self._setting.real_batch,
        num_steps=num_steps))
    arguments = jax.random.key(6), self._loop.init(self._trainable), self._init_state, *self._real
    with jax.default_matmul_precision(self._precision):
      jax.block_until_ready(run(*arguments))
      start = time.perf_counter()
      jax.block_until_ready(run(*arguments))
    return (time.perf_counter() - start) / num_steps

  def step(self) -> float:
    """Seconds of one outer step."""
    jax = self._jax
    start = time.perf_counter()
    key = jax.random.fold_in(jax.random.key(5), int(self._state.step))
    self._state, info = self._step(key, self._state, self._init_state, *self._real)
    jax.block_until_ready((self._state, info))
    return time.perf_counter() - start

  def report(self) -> dict:
    """What is known of our side beside its seconds.

    The arithmetic is nominal: F of a forward pass, three F for a real image with its gradient, nine
    for a distilled one in an inner step and its reverse.
    """
    setting = self._setting
    passes = _NUM_EPOCHS * setting.num_steps * _NUM_CLASSES * 9 + setting.real_batch * 3
    return {"compile_seconds": self._compile_seconds, "temporary_bytes": self._temporary_bytes,
            "peak_bytes": machine.peak_bytes(),
            "gflop": self._forward_flops * setting.num_inits * passes / 1e9}
