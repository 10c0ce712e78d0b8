"""The outer step of every network and memory mode lowers for every kind of device."""

import functools

import jax
from jax import export
import jax.numpy as jnp
import optax
import pytest

import dd_jax
from dd_jax import inner_loop
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from dd_jax import step_sizes

_SHAPES = {"lenet": (28, 28, 1), "alexcifarnet": (32, 32, 3), "alexnet": (224, 224, 3),
           "convnet": (32, 32, 3), "resnet18": (32, 32, 3), "vit": (32, 32, 3), "mlp": (28, 28, 1),
           "linear": (12,), "text_convolution": {"embedded": (6, 5), "mask": (6,)}}


@pytest.mark.parametrize("memory", [
    "nested", *(pytest.param(memory, marks=pytest.mark.slow)
                for memory in inner_loop.MEMORY_MODES if memory != "nested")])
@pytest.mark.parametrize("name", [
    name if name == "mlp" else pytest.param(name, marks=pytest.mark.slow)
    for name in models.MODELS])
def test_an_outer_step_lowers_for_cpu_cuda_and_tpu(name, memory, optax_promotion):
  # What networks take on an accelerator; the CPU's own convolution runs in the other tests.
  convolution = {} if name in ("mlp", "vit", "linear", "text_convolution") else {
      "convolution": "lax"}
  model = models.MODELS[name](num_classes=10, image_shape=_SHAPES[name], **convolution)
  init, loss = dd_jax.random_init(model.init), losses.classification(model.apply)
  labels = parametrization.class_labels(2, 10, 1)
  learned = parametrization.join(
      parametrization.inputs(_SHAPES[name], 2, 10), parametrization.fixed_labels(labels),
      step_sizes.learned(1, 2, .02))
  train = dd_jax.unroll(loss, memory=memory, gradient=(
      "forward_over_reverse" if memory == "nested" else "reverse"))
  loop = dd_jax.make_outer_loop(
      dd_jax.make_outer_loss(learned.decode, init, train, loss, num_inits=2), optax.adam(0.01))
  run = jax.jit(functools.partial(dd_jax.run_outer_steps, loop.step, jax.random.key(1),
                                  batch_size=4, num_steps=2))
  state = jax.eval_shape(lambda: loop.init(learned.init(jax.random.key(0))))
  exported = export.export(run, platforms=("cpu", "cuda", "tpu"))(
      state, init.state, jax.tree.map(
          lambda shape: jax.ShapeDtypeStruct((8, *shape), jnp.float32), _SHAPES[name],
          is_leaf=lambda shape: isinstance(shape, tuple)), jax.ShapeDtypeStruct((8,), jnp.int32))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  shapes = [leaf.shape for leaf in jax.tree.leaves(state.trainable["inputs"])]
  assert {*shapes} <= {aval.shape for aval in exported.out_avals}
