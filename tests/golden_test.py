"""Hypergradients against values computed once, in float64, by an independent implementation.

`golden/NAME.npz` holds the results of the authors' release (PyTorch) for S=2, E=2, one image per
class per step, a fixed theta_0 and 16 real images, all drawn here again from numpy: the loss, the
logits at theta_0, the gradients by the images of either step (channels first) and by the raw step
sizes, and theta_T (AlexCifarNet: every 997th entry).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization

_GOLDEN = pathlib.Path(__file__).parent / "golden"
_IMAGE_SHAPES = {"lenet": (28, 28, 1), "alexcifarnet": (32, 32, 3)}
# Layer -> channels-first shape of its kernel, in the order of the stored weights.
_KERNELS = {
    "lenet": {"Conv_0": (6, 1, 5, 5), "Conv_1": (16, 6, 5, 5), "Dense_0": (120, 400),
              "Dense_1": (84, 120), "Dense_2": (10, 84)},
    "alexcifarnet": {"Conv_0": (64, 3, 5, 5), "Conv_1": (64, 64, 5, 5), "Dense_0": (384, 4096),
                     "Dense_1": (192, 384), "Dense_2": (10, 192)},
}


def _flax_kernel(layer, kernel, features_in):
  """A stored kernel as Flax holds it: HWIO, or [in, out] with inputs in H, W, C order."""
  if kernel.ndim == 4:
    return kernel.transpose(2, 3, 1, 0)
  if layer == "Dense_0":
    size = int((kernel.shape[1] // features_in) ** .5)
    return (kernel.reshape(-1, features_in, size, size).transpose(2, 3, 1, 0)
            .reshape(-1, kernel.shape[0]))
  return kernel.T


def _inputs(net):
  """The inputs of the stored results, in this library's layout, drawn in their order."""
  draw = np.random.RandomState(0)
  params, channels = {}, 0
  for layer, shape in _KERNELS[net].items():
    std = np.sqrt(2 / ((shape[0] + shape[1]) * np.prod(shape[2:])))
    kernel = std * draw.standard_normal(shape)
    bias = .05 * draw.standard_normal(shape[0])
    params[layer] = {"kernel": jnp.asarray(_flax_kernel(layer, kernel, channels)),
                     "bias": jnp.asarray(bias)}
    channels = shape[0] if len(shape) == 4 else channels
  height, width, channels = _IMAGE_SHAPES[net]
  images = np.stack([draw.standard_normal((10, channels, height, width)) for _ in range(2)])
  raw_step_sizes = np.log(np.expm1(.05 * (1 + .1 * np.arange(4)))).reshape(2, 2)
  real_images = draw.standard_normal((16, channels, height, width))
  real_labels = draw.randint(0, 10, 16)
  trainable = {"inputs": jnp.asarray(images.transpose(0, 1, 3, 4, 2)),
               "step_sizes": jnp.asarray(raw_step_sizes)}
  return (params, trainable, jnp.asarray(real_images.transpose(0, 2, 3, 1)),
          jnp.asarray(real_labels, jnp.int32))


def _decode(net):
  labels = parametrization.class_labels(2, 10, 1)
  return parametrization.paper(labels, _IMAGE_SHAPES[net], num_epochs=2, step_size=.02,
                               dtype=float).decode


def _relative_error(actual, expected):
  return np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)


def _theta_by_golden_order(net, params):
  """theta_T flattened as the stored one: channels-first kernels and biases, layer by layer."""
  parts, channels = [], 0
  for layer, shape in _KERNELS[net].items():
    kernel = np.asarray(params[layer]["kernel"])
    if len(shape) == 4:
      kernel, channels = kernel.transpose(3, 2, 0, 1), shape[0]
    elif layer == "Dense_0":
      size = int((shape[1] // channels) ** .5)
      kernel = kernel.reshape(size, size, channels, -1).transpose(3, 2, 0, 1)
    else:
      kernel = kernel.T
    parts += [kernel.ravel(), np.asarray(params[layer]["bias"])]
  return np.concatenate(parts)


@pytest.mark.parametrize("net, convolution, memory, gradient, chunk_size", [
    pytest.param("lenet", "lax", "plain", "reverse", None, marks=pytest.mark.slow),
    pytest.param("lenet", "patches", "remat", "reverse", None, marks=pytest.mark.slow),
    ("lenet", "fastest", "nested", "forward_over_reverse", 5),
    pytest.param("alexcifarnet", "fastest", "remat", "forward_over_reverse", None,
                 marks=pytest.mark.slow),
    pytest.param("alexcifarnet", "lax", "plain", "reverse", 6, marks=pytest.mark.slow),
])
def test_loss_and_hypergradient_equal_the_golden_values(x64, net, convolution, memory, gradient,
                                                        chunk_size):
  golden = np.load(_GOLDEN / f"{net}.npz")
  params, trainable, real_images, real_labels = _inputs(net)
  model = getattr(models, net)(num_classes=10, image_shape=_IMAGE_SHAPES[net],
                               convolution=convolution)
  init = dd_jax.fixed_init(params)
  loss = losses.classification(model.apply)
  outer_loss = dd_jax.make_outer_loss(
      _decode(net), init, dd_jax.unroll(loss, memory=memory, gradient=gradient), loss,
      num_inits=1, chunk_size=chunk_size)
  value, hypergradient = jax.jit(dd_jax.value_and_hypergrad(outer_loss))(
      trainable, init.state, jax.random.key(0), real_images, real_labels)

  expected = np.stack([golden["grad_data0"], golden["grad_data1"]]).transpose(0, 1, 3, 4, 2)
  assert value.dtype == jnp.float64
  np.testing.assert_allclose(value, golden["loss"], rtol=1e-12)
  assert _relative_error(hypergradient["inputs"], expected) < 1e-9
  assert _relative_error(hypergradient["step_sizes"].ravel(), golden["grad_raw_lrs"].ravel()) < 1e-9


@pytest.mark.parametrize("net", [
    "lenet", pytest.param("alexcifarnet", marks=pytest.mark.slow)])
def test_logits_and_final_weights_equal_the_golden_values(x64, net):
  golden = np.load(_GOLDEN / f"{net}.npz")
  params, trainable, real_images, _ = _inputs(net)
  model = getattr(models, net)(num_classes=10, image_shape=_IMAGE_SHAPES[net])
  decode = _decode(net)
  train = dd_jax.unroll(losses.classification(model.apply))
  final_params, _ = jax.jit(lambda params, trainable: train(None, params, decode(trainable)))(
      params, trainable)
  assert _relative_error(jax.jit(model.apply)(params, real_images), golden["logits0"]) < 1e-12
  stride = 997 if net == "alexcifarnet" else 1
  assert _relative_error(_theta_by_golden_order(net, final_params)[::stride],
                         golden["w_final"]) < 1e-12
