"""dd_jax.models: parameter counts, forward passes in the paper's order, and users' own networks."""

import functools
import math

from flax import linen as nn
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization

# These programs run once: unoptimized, they compile in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SHAPES = {"lenet": (28, 28, 1), "alexcifarnet": (32, 32, 3), "alexnet": (224, 224, 3),
          "convnet": (32, 32, 3), "resnet18": (32, 32, 3), "vit": (32, 32, 3), "mlp": (3, 2, 1)}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def assert_close(actual, expected, tolerance=1e-12):
  """Relative L2 distance of every leaf (1e-12 beside an exact zero), same shape and dtype."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12


def random_params(model, seed=0):
  """Weights of the shapes of `init` in float64; no leaf, bias or scale, is a constant."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
      lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)
                               / math.sqrt(math.prod(leaf.shape[:-1]))), shapes)


@pytest.mark.parametrize("name, options, expected", [
    ("lenet", {"num_classes": 10, "image_shape": (28, 28, 1)}, 61_706),
    # 32 pixels: no padding, so the same but for 3 x 5 x 5 inputs of conv 1: + 6 * 2 * 25.
    ("lenet", {"num_classes": 10, "image_shape": (32, 32, 3)}, 61_706 + 300),
    # 8 classes fewer in the last layer: 84 weights and a bias each.
    ("lenet", {"num_classes": 2, "image_shape": (28, 28, 1)}, 61_706 - 8 * 85),
    ("alexcifarnet", {"num_classes": 10, "image_shape": (32, 32, 3)}, 1_756_426),
    ("alexnet", {"num_classes": 1000, "image_shape": (224, 224, 3)}, 57_003_840 + 4097 * 1000),
    ("alexnet", {"num_classes": 20, "image_shape": (224, 224, 3), "dropout": .5},
     57_003_840 + 4097 * 20),
    # Widths 1, 3, 6, 4, 4 and 64, 64.
    ("alexnet", {"num_classes": 5, "image_shape": (224, 224, 1), "width": 1},
     (121 + 1) + (25 + 1) * 3 + (27 + 1) * 6 + (54 + 1) * 4 + (36 + 1) * 4
     + (4 * 36 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 5),
    # conv 3 -> 128, twice conv 128 -> 128, with biases; scale and bias of 3 norms; 2048 -> 10.
    ("convnet", {"num_classes": 10, "image_shape": (32, 32, 3)},
     (9 * 3 + 1) * 128 + 2 * (9 * 128 + 1) * 128 + 3 * 2 * 128 + (128 * 4 * 4 + 1) * 10),
    # 28 pixels become 32 in the first block: 8 x 8 after two halvings.
    ("convnet", {"num_classes": 5, "image_shape": (28, 28, 1), "width": 6, "depth": 2},
     (9 + 1) * 6 + (9 * 6 + 1) * 6 + 2 * 2 * 6 + (6 * 8 * 8 + 1) * 5),
    ("mlp", {"num_classes": 10, "image_shape": (28, 28, 1)},
     (784 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 10),
    ("mlp", {"num_classes": 3, "image_shape": (5,), "hidden": ()}, (5 + 1) * 3),
    ("mlp", {"num_classes": 3, "image_shape": (2, 3, 1), "hidden": (7,)},
     (6 + 1) * 7 + (7 + 1) * 3),
])
def test_number_of_parameters(name, options, expected):
  params = jax.eval_shape(models.MODELS[name](**options).init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("num_images", [1, 7])
def test_shape_and_dtype_of_logits(name, num_classes, num_images):
  model = models.MODELS[name](num_classes=num_classes, image_shape=SHAPES[name])
  images = jax.ShapeDtypeStruct((num_images, *SHAPES[name]), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0))
  logits = jax.eval_shape(model.apply, params, images)
  assert (logits.shape, logits.dtype) == ((num_images, num_classes), jnp.float32)


def convolve(x, layer, padding, stride=1):
  out = lax.conv_general_dilated(x, layer["kernel"], (stride, stride), [(padding, padding)] * 2,
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))
  return out + layer["bias"][None, None, None]


def max_pool(x, size, padding):
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return lax.reduce_window(x, -np.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), sides)


def dense(x, layer):
  return x @ layer["kernel"] + layer["bias"][None]


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


def lenet_of_the_paper(params, images):
  padding = 2 if images.shape[1] == 28 else 0
  x = max_pool(jax.nn.relu(convolve(images, params["Conv_0"], padding)), 2, 0)
  x = max_pool(jax.nn.relu(convolve(x, params["Conv_1"], 0)), 2, 0)
  return head(x, params)


def alexcifarnet_of_the_paper(params, images):
  x = response_norm(max_pool(jax.nn.relu(convolve(images, params["Conv_0"], 2)), 3, 1))
  x = max_pool(response_norm(jax.nn.relu(convolve(x, params["Conv_1"], 2))), 3, 1)
  return head(x, params)


def alexnet_of_imagenet(params, images):
  x = max_pool(jax.nn.relu(convolve(images, params["Conv_0"], 2, stride=4)), 3, 0)
  x = max_pool(jax.nn.relu(convolve(x, params["Conv_1"], 2)), 3, 0)
  x = jax.nn.relu(convolve(x, params["Conv_2"], 1))
  x = jax.nn.relu(convolve(x, params["Conv_3"], 1))
  return head(max_pool(jax.nn.relu(convolve(x, params["Conv_4"], 1)), 3, 0), params)


def convnet_of_later_work(params, images):
  x = images
  for block in range(2):
    x = convolve(x, params[f"Conv_{block}"], 3 if x.shape[1] == 28 else 1)
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    norm = jax.tree.map(lambda leaf: leaf[None, None, None], params[f"_Norm_{block}"])
    x = jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"])
    x = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
  return dense(x.reshape(x.shape[0], -1), params["Dense_0"])


def mlp_of_two_layers(params, images):
  x = images.reshape(images.shape[0], -1)
  return dense(jax.nn.relu(dense(x, params["Dense_0"])), params["Dense_1"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, image_shape, options, reference", [
    ("lenet", (28, 28, 1), {}, lenet_of_the_paper),
    ("lenet", (32, 32, 3), {"convolution": "tiled"}, lenet_of_the_paper),
    ("lenet", (28, 28, 1), {"convolution": "lax"}, lenet_of_the_paper),
    ("alexcifarnet", (32, 32, 3), {}, alexcifarnet_of_the_paper),
    ("alexnet", (224, 224, 3), {"width": 1, "dropout": .5, "convolution": "lax"},
     alexnet_of_imagenet),
    ("convnet", (28, 28, 1), {"width": 4, "depth": 2}, convnet_of_later_work),
    ("convnet", (8, 8, 3), {"width": 4, "depth": 2}, convnet_of_later_work),
    ("mlp", (3, 2, 1), {"hidden": (5,)}, mlp_of_two_layers),
])
def test_logits_and_gradients(name, image_shape, options, reference):
  """In float64, with ReLU before the pooling as in the paper."""
  model = models.MODELS[name](num_classes=3, image_shape=image_shape, **options)
  params, images = random_params(model), jnp.asarray(normal(2, *image_shape))

  def all_of(apply):
    def squares(params, images):
      logits = apply(params, images)
      return jnp.sum(jnp.square(logits)), logits
    return jit(jax.grad(squares, (0, 1), has_aux=True))(params, images)

  gradients, logits = all_of(model.apply)
  assert logits.dtype == jnp.float64
  expected_gradients, expected_logits = all_of(reference)
  assert_close(logits, expected_logits)
  assert_close(gradients, expected_gradients, tolerance=1e-11)


class Dropping(nn.Module):
  """Drops half of the inputs while training."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(8)(nn.Dropout(0.5, deterministic=not train)(x))


def test_key_means_training():
  model = dd_jax.from_flax(Dropping(), (2, 2, 2))
  params = {"Dense_0": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  x = np.random.default_rng(0).integers(1, 9, (20, 8)).astype(np.float32)
  images = jnp.asarray(x.reshape(20, 2, 2, 2))

  np.testing.assert_array_equal(model.apply(params, images), x)
  dropped = np.asarray(model.apply(params, images, key=jax.random.key(1)))
  kept = dropped != 0
  assert 40 < kept.sum() < 120  # Half of 160 plus or minus six standard deviations.
  np.testing.assert_array_equal(dropped[kept], 2 * x[kept])
  np.testing.assert_array_equal(dropped, model.apply(params, images, key=jax.random.key(1)))
  assert np.any(dropped != model.apply(params, images, key=jax.random.key(2)))


def test_dropout_of_alexnet_needs_a_key():
  """Both hidden layers drop half of their inputs, and only while training."""
  plain, dropping = (models.alexnet(num_classes=4, image_shape=(224, 224, 3), width=1,
                                    convolution="lax", dropout=rate) for rate in (0., .5))
  params = random_params(plain)
  images = jnp.asarray(normal(2, 224, 224, 3), jnp.float32)
  with_key = jit(lambda params, images, key: dropping.apply(params, images, key=key))
  first, again, other = (with_key(params, images, jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  expected = jit(plain.apply)(params, images)
  assert (first != other).all() and (first != expected).all()
  for model, key in ((dropping, None), (plain, jax.random.key(1))):
    np.testing.assert_array_equal(
        jit(functools.partial(model.apply, key=key))(params, images), expected)


class Scaled(nn.Module):
  """Says what it was told by the factor in front of its images."""

  @nn.compact
  def __call__(self, x, *, train=False):
    scale = self.param("scale", nn.initializers.constant(3.0), ())
    return x * scale * (10 if train else 1)


def test_train_argument_with_a_default():
  model = dd_jax.from_flax(Scaled(), (2,))
  params = model.init(jax.random.key(0))
  images = jnp.ones((1, 2))
  np.testing.assert_array_equal(model.apply(params, images), [[3, 3]])
  np.testing.assert_array_equal(model.apply(params, images, key=jax.random.key(0)), [[30, 30]])


def module_of(call):
  """A linen module with this `__call__`."""
  return type("Own", (nn.Module,), {"__call__": nn.compact(call)})()


def half(x, deterministic):
  return nn.Dropout(.5, deterministic=deterministic)(x)


@pytest.mark.parametrize("call", [
    lambda self, x, train=False: half(x, not train),
    lambda self, x, training=True: half(x, not training),
    lambda self, x, *, is_training: half(x, not is_training),
    lambda self, x, deterministic=True: half(x, deterministic),
    lambda self, x, deterministic, double=False: half(x, deterministic),
], ids=["train", "training", "is_training", "deterministic", "two flags"])
def test_every_name_of_the_mode_is_told(call):
  """Without a key the images as they are; over many keys the same in the mean."""
  model = dd_jax.from_flax(module_of(call), (8,))
  images = jnp.arange(1., 17).reshape(2, 8)
  np.testing.assert_array_equal(model.apply({}, images), images)
  dropped = jax.vmap(lambda key: model.apply({}, images, key=key))(
      jax.random.split(jax.random.key(0), 4000))
  factors = np.asarray(dropped) / np.asarray(images)
  assert set(np.unique(factors)) == {0, 2}  # Of standard deviation 1.
  np.testing.assert_allclose(factors.mean(0), 1, atol=5 / np.sqrt(4000))


def test_dropout_that_cannot_be_told_is_refused():
  with pytest.raises(ValueError, match=(
      r"module must be told that it trains by one of \['train', 'training', 'is_training', "
      r"'deterministic'\]; Own takes \['dropping'\] and leaves its dropout off")):
    dd_jax.from_flax(module_of(lambda self, x, dropping=False: half(x, not dropping)), (3,))


@pytest.mark.parametrize("call", [
    lambda self, x, double=True: x * (2 if double else 1),
    lambda self, x, double=True: nn.Dropout(0., deterministic=double)(x) * 2,
    lambda self, x, double=True: nn.Dropout(0., deterministic=False)(x) * 2])
def test_flags_that_are_no_mode_keep_their_defaults(call):
  model = dd_jax.from_flax(module_of(call), (3,))
  for key in (None, jax.random.key(0)):
    np.testing.assert_array_equal(model.apply({}, jnp.ones((1, 3)), key=key), np.full((1, 3), 2))


def test_an_argument_without_a_default_is_refused():
  with pytest.raises(ValueError, match=(
      r"module must be called with images and one of \['train', .*'deterministic'\]; "
      r"Own also needs \['mode'\]")):
    dd_jax.from_flax(module_of(lambda self, x, mode: x), (3,))


class Plain(nn.Module):
  """No `train` argument."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(x)


def test_module_without_train_argument_ignores_the_key():
  model = dd_jax.from_flax(Plain(), (3,))
  params = {"Dense_0": {"kernel": jnp.asarray([[1.0, 0], [0, 1], [2, 3]]),
                        "bias": jnp.asarray([0.0, 1])}}
  for key in (None, jax.random.key(0)):
    np.testing.assert_array_equal(model.apply(params, jnp.asarray([[1.0, 2, 3]]), key=key),
                                  [[7, 12]])


def test_own_init_is_kept():
  """`init` of the model is that of the module: same key, same weights."""
  model, key = dd_jax.from_flax(Plain(), (3,)), jax.random.key(3)
  expected = Plain().init(key, jnp.zeros((1, 3)))["params"]
  jax.tree.map(np.testing.assert_array_equal, model.init(key), expected)


class Normed(nn.Module):
  """Keeps running statistics."""

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def test_running_statistics_are_refused():
  with pytest.raises(ValueError, match=r"nothing but its parameters; got \['batch_stats'\] of "
                                       r"Normed: use group or layer norm"):
    dd_jax.from_flax(Normed(), (3,))


@pytest.mark.usefixtures("x64")
def test_pair_of_plain_functions():
  """A linear softmax network of two plain functions descends as computed by hand."""
  model = dd_jax.Model(init=lambda key: {"w": jax.random.normal(key, (4, 3))},
                       apply=lambda params, images, *, key=None: images @ params["w"])
  images, step_sizes = normal(2, 5, 4), np.array([[0.5, 0.2], [0.1, 0.3]])
  labels = np.array([[0, 1, 2, 1, 0], [2, 2, 1, 0, 0]])
  params = model.init(jax.random.key(0))
  distilled = dd_jax.DistilledData(jnp.asarray(images), jnp.asarray(labels, jnp.int32),
                                   jnp.asarray(np.log(np.expm1(step_sizes))))

  actual, losses = dd_jax.inner_trajectory(dd_jax.losses.classification(model.apply), params,
                                           distilled)

  w, expected_losses = np.asarray(params["w"]), []
  for step, step_size in enumerate(step_sizes.reshape(-1)):
    x, y = images[step % 2], np.eye(3)[labels[step % 2]]
    exponentials = np.exp(x @ w)
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    expected_losses.append(-np.mean(np.sum(y * np.log(probabilities), axis=1)))
    w = w - step_size * x.T @ (probabilities - y) / 5
  assert_close((actual["w"], losses), (w, np.array(expected_losses)))


@pytest.mark.parametrize("name, options, text", [
    ("lenet", {"image_shape": (27, 27, 1)},
     r"image_shape of lenet must be 28x28 or 32x32 pixels; got \(27, 27, 1\)"),
    ("lenet", {"image_shape": (28, 32, 1)},
     r"image_shape of lenet must be 28x28 or 32x32 pixels; got \(28, 32, 1\)"),
    ("lenet", {"image_shape": (28, 28)}, r"image_shape must be \(H, W, C\); got \(28, 28\)"),
    ("lenet", {"convolution": "fft"}, r"convolution must be one of .*'patches'.*; got 'fft'"),
    ("alexcifarnet", {"image_shape": (28, 28, 3)},
     r"image_shape of alexcifarnet must be 32x32 pixels; got \(28, 28, 3\)"),
    ("alexcifarnet", {"image_shape": (1, 32, 32, 3)}, r"must be \(H, W, C\); got \(1, 32, 32, 3\)"),
    ("alexcifarnet", {"convolution": "fft"}, r"convolution must be one of .*; got 'fft'"),
    ("alexnet", {"image_shape": (227, 227, 3)},
     r"image_shape of alexnet must be 224x224 pixels; got \(227, 227, 3\)"),
    ("alexnet", {"dropout": 1.}, r"dropout must lie in \[0, 1\); got 1.0"),
    ("alexnet", {"dropout": -.1}, r"dropout must lie in \[0, 1\); got -0.1"),
    ("alexnet", {"width": 0}, "width must be at least 1; got 0"),
    ("alexnet", {"convolution": "fft"}, r"convolution must be one of .*; got 'fft'"),
    ("convnet", {"image_shape": (7, 32, 3)},
     r"depth must be at most log2 of the image size \(7, 32\); got 3"),
    ("convnet", {"width": 0}, "width must be at least 1; got 0"),
    ("convnet", {"depth": 0}, "depth must be at least 1; got 0"),
    ("convnet", {"image_shape": (7, 7, 1)},
     r"depth must be at most log2 of the image size \(7, 7\); got 3"),
    ("convnet", {"depth": 6}, r"depth must be at most log2 of the image size \(32, 32\); got 6"),
    ("convnet", {"convolution": "fft"}, r"convolution must be one of .*; got 'fft'"),
    ("convnet", {"norm": "lrn"},
     r"norm must be one of \['instance', 'group', 'layer', 'batch', 'none'\]; got 'lrn'"),
    ("resnet18", {"width": 0}, "width must be at least 1; got 0"),
    ("resnet18", {"image_shape": (32, 16)}, r"image_shape must be \(H, W, C\); got \(32, 16\)"),
    ("vit", {"patch": 5}, r"patch=5 must divide H and W; got \(32, 32, \d\)"),
    ("vit", {"image_shape": (20, 30, 1)}, r"patch=4 must divide H and W; got \(20, 30, 1\)"),
    ("vit", {"heads": 3}, "heads=3 must divide width; got 128"),
    ("vit", {"depth": 0}, "depth must be at least 1; got 0"),
    *((name, {"num_classes": 1}, "num_classes must be at least 2; got 1") for name in SHAPES),
])
def test_errors(name, options, text):
  with pytest.raises(ValueError, match=text):
    models.MODELS[name](**{"num_classes": 10, "image_shape": SHAPES[name], **options})


class _NnxNet(nnx.Module):
  """An NNX network of a user's own, with dropout."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(4, 8, rngs=rngs)
    self.dropout = nnx.Dropout(.5, rngs=rngs)
    self.logits = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, images):
    hidden = jax.nn.relu(self.hidden(images.reshape(images.shape[0], -1)))
    return self.logits(self.dropout(hidden))


class _NnxTold(_NnxNet):
  """Overrides at every call what `train()` and `eval()` set."""

  def __call__(self, images, *, deterministic=True):
    hidden = jax.nn.relu(self.hidden(images.reshape(images.shape[0], -1)))
    return self.logits(self.dropout(hidden, deterministic=deterministic))


def test_an_nnx_module_is_told_its_mode():
  plain, told = models.from_nnx(_NnxNet), models.from_nnx(_NnxTold)
  params, images = plain.init(jax.random.key(0)), jnp.ones((2, 2, 2, 1))
  for key in (None, jax.random.key(1)):
    np.testing.assert_array_equal(told.apply(params, images, key=key),
                                  plain.apply(params, images, key=key))
  assert np.any(told.apply(params, images) != told.apply(params, images, key=key))


class _NnxBatchNorm(nnx.Module):

  def __init__(self, rngs):
    self.norm = nnx.BatchNorm(4, rngs=rngs)


def test_an_nnx_module_is_a_model():
  """Its logits from the weights by hand; a key switches dropout on, and decides it."""
  model = models.from_nnx(_NnxNet)
  params = model.init(jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (5, 2, 2, 1))
  hidden = jnp.maximum(images.reshape(5, 4) @ params["hidden"]["kernel"]
                       + params["hidden"]["bias"][None], 0)
  expected = hidden @ params["logits"]["kernel"] + params["logits"]["bias"][None]
  np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-5, atol=1e-6)
  first, again, other = (model.apply(params, images, key=jax.random.key(k)) for k in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and (first != expected).any()


def test_an_nnx_module_trains_in_the_inner_loop_and_gives_a_hypergradient():
  model = models.from_nnx(_NnxNet)
  init = dd_jax.random_init(model.init)
  loss = losses.classification(model.apply)
  decode = parametrization.paper(jnp.array([[0, 1, 2]]), (2, 2, 1), num_epochs=2,
                                 step_size=.1).decode
  outer_loss = dd_jax.make_outer_loss(decode, init.sample, loss, loss, num_inits=2)
  trainable = {"images": jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 1)),
               "step_sizes": jnp.zeros((2, 1))}
  real = jax.random.normal(jax.random.key(1), (4, 2, 2, 1)), jnp.array([0, 1, 2, 0])
  def at(scale):
    moved = {**trainable, "images": trainable["images"] * scale}
    return outer_loss(moved, init.state, jax.random.key(2), *real)
  gradient = jax.grad(outer_loss)(trainable, init.state, jax.random.key(2), *real)
  exact = jnp.vdot(gradient["images"], trainable["images"])
  np.testing.assert_allclose(exact, (at(1.01) - at(.99)) / .02, rtol=2e-2)


def test_an_nnx_module_with_statistics_is_refused():
  with pytest.raises(ValueError, match="must keep nothing but its parameters; got .*norm/mean"):
    models.from_nnx(_NnxBatchNorm)
