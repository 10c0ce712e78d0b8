"""The networks of dd_jax.models written out once more, for the values of their logits."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def convolve(x, layer, padding, stride=1):
  out = lax.conv_general_dilated(x, layer["kernel"], (stride, stride), [(padding, padding)] * 2,
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))
  return out + layer["bias"][None, None, None] if "bias" in layer else out


def max_pool(x, size, padding):
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return lax.reduce_window(x, -np.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), sides)


def dense(x, layer):
  return x @ layer["kernel"] + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def normalized(x, axes, layer):
  x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
  scale, bias = (layer[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("scale", "bias"))
  return x * scale + bias


def response_norm(x):
  """x / (1 + (alpha / 4) * sum over channels c-2..c+1 of x^2)^0.75, alpha = 0.001 / 9."""
  squares = jnp.pad(x ** 2, ((0, 0), (0, 0), (0, 0), (2, 1)))
  total = sum(squares[..., i:i + x.shape[-1]] for i in range(4))
  return x / (1 + 0.001 / 9 / 4 * total) ** 0.75


def head(x, params):
  x = x.reshape(x.shape[0], -1)
  x = jax.nn.relu(dense(x, params["Dense_0"]))
  x = jax.nn.relu(dense(x, params["Dense_1"]))
  return dense(x, params["Dense_2"])


def lenet(params, images):
  padding = 2 if images.shape[1] == 28 else 0
  x = max_pool(jax.nn.relu(convolve(images, params["Conv_0"], padding)), 2, 0)
  x = max_pool(jax.nn.relu(convolve(x, params["Conv_1"], 0)), 2, 0)
  return head(x, params)


def alexcifarnet(params, images):
  x = response_norm(max_pool(jax.nn.relu(convolve(images, params["Conv_0"], 2)), 3, 1))
  x = max_pool(response_norm(jax.nn.relu(convolve(x, params["Conv_1"], 2))), 3, 1)
  return head(x, params)


def alexnet(params, images):
  x = max_pool(jax.nn.relu(convolve(images, params["Conv_0"], 2, stride=4)), 3, 0)
  x = max_pool(jax.nn.relu(convolve(x, params["Conv_1"], 2)), 3, 0)
  x = jax.nn.relu(convolve(x, params["Conv_2"], 1))
  x = jax.nn.relu(convolve(x, params["Conv_3"], 1))
  return head(max_pool(jax.nn.relu(convolve(x, params["Conv_4"], 1)), 3, 0), params)


def convnet(params, images):
  x = images
  for block in range(2):
    x = convolve(x, params[f"Conv_{block}"], 3 if x.shape[1] == 28 else 1)
    x = jax.nn.relu(normalized(x, (1, 2), params[f"Norm_{block}"]))
    x = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
  return dense(x.reshape(x.shape[0], -1), params["Dense_0"])


def resnet(params, images):
  """Convolutions, each with its norm over an image, shortcuts and strides."""
  layers = iter(params[f"Conv_{index}"] for index in range(20))
  norms = iter(params[f"Norm_{index}"] for index in range(20))

  def norm(x):
    return normalized(x, (1, 2, 3), next(norms))

  x = jax.nn.relu(norm(convolve(images, next(layers), 1)))
  for features, stride in ((2, 1), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1)):
    y = convolve(x, next(layers), 1, stride)
    y = convolve(jax.nn.relu(norm(y)), next(layers), 1)
    if x.shape[-1] != features:
      x = norm(convolve(x, next(layers), 0, stride))  # Named before the norm of y.
    x = jax.nn.relu(x + norm(y))
  return dense(x.mean((1, 2)), params["Dense_0"])


def vit(params, images):
  """A loop over heads."""
  def of_one(image):
    patches = jnp.stack([image[2 * r:2 * r + 2, 2 * c:2 * c + 2].ravel()
                         for r in (0, 1) for c in (0, 1)])
    x = dense(patches, params["Dense_0"]) + params["positions"][0]
    qkv = dense(normalized(x, -1, params["LayerNorm_0"]), params["Dense_1"])
    mixed = []
    for head in (slice(0, 2), slice(2, 4)):
      q, k, v = qkv[:, :4][:, head], qkv[:, 4:8][:, head], qkv[:, 8:][:, head]
      weights = jnp.exp(q @ k.T / np.sqrt(2))
      mixed.append(weights @ v / weights.sum(1, keepdims=True))
    x = x + dense(jnp.concatenate(mixed, 1), params["Dense_2"])
    hidden = jax.nn.gelu(dense(normalized(x, -1, params["LayerNorm_1"]), params["Dense_3"]))
    x = normalized(x + dense(hidden, params["Dense_4"]), -1, params["LayerNorm_2"])
    return dense(x.mean(0)[None], params["Dense_5"])[0]

  return jax.vmap(of_one)(images[..., 0])


def mlp(params, images):
  x = images.reshape(images.shape[0], -1)
  return dense(jax.nn.relu(dense(x, params["Dense_0"])), params["Dense_1"])
