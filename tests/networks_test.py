"""The networks of dd_jax.models: counts of parameters, logits and gradients by hand, errors."""

import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from tests import networks_by_hand
from tests.arrays import assert_close
from tests.arrays import jit
from tests.arrays import normal

SHAPES = {"lenet": (28, 28, 1), "alexcifarnet": (32, 32, 3), "alexnet": (224, 224, 3),
          "convnet": (32, 32, 3), "resnet18": (32, 32, 3), "vit": (32, 32, 3), "mlp": (3, 2, 1),
          "linear": (3, 2, 1)}
SMALL = {"convnet": {"width": 4, "depth": 1}, "resnet18": {"width": 2},
         "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2}}
RESNET, VIT = (pytest.param(name, marks=pytest.mark.slow)  # They compile for a minute.
               for name in ("resnet18", "vit"))


@functools.cache
def shapes_of(model):
  return jax.eval_shape(model.init, jax.random.key(0))


def random_params(model, seed=0):
  """Weights of the shapes of `init` in float64; no leaf, bias or scale, is a constant."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)
                               / math.sqrt(math.prod(leaf.shape[:-1]))), shapes_of(model))


@functools.cache
def make(name, num_classes=10, **options):
  """With lax's convolution, the quickest to trace."""
  if name not in ("vit", "mlp", "linear"):
    options = {"convolution": "lax", **options}
  return models.MODELS[name](num_classes=num_classes, **options)


def count(name, image_shape, **options):
  model = make(name, image_shape=image_shape, **options)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)))


# Of the vision transformer's blocks: two norms, attention and MLP.
_BLOCK = 2 * 256 + 128 * 384 + 384 + 128 * 128 + 128 + 128 * 512 + 512 + 512 * 128 + 128


@pytest.mark.parametrize("name, options, expected", [
    ("lenet", {"image_shape": (28, 28, 1)}, 61_706),
    # 32 pixels: no padding, so the same but for 3 x 5 x 5 inputs of conv 1: + 6 * 2 * 25.
    ("lenet", {"image_shape": (32, 32, 3)}, 61_706 + 300),
    # 8 classes fewer in the last layer: 84 weights and a bias each.
    ("lenet", {"num_classes": 2, "image_shape": (28, 28, 1)}, 61_706 - 8 * 85),
    ("alexcifarnet", {"image_shape": (32, 32, 3)}, 1_756_426),
    ("alexnet", {"num_classes": 1000, "image_shape": (224, 224, 3)}, 57_003_840 + 4097 * 1000),
    ("alexnet", {"num_classes": 20, "image_shape": (224, 224, 3), "dropout": .5},
     57_003_840 + 4097 * 20),
    # Widths 1, 3, 6, 4, 4 and 64, 64.
    ("alexnet", {"num_classes": 5, "image_shape": (224, 224, 1), "width": 1},
     (121 + 1) + (25 + 1) * 3 + (27 + 1) * 6 + (54 + 1) * 4 + (36 + 1) * 4
     + (4 * 36 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 5),
    # conv 3 -> 128, twice conv 128 -> 128, with biases; scale and bias of 3 norms; 2048 -> 10.
    ("convnet", {"image_shape": (32, 32, 3)},
     (9 * 3 + 1) * 128 + 2 * (9 * 128 + 1) * 128 + 3 * 2 * 128 + (128 * 4 * 4 + 1) * 10),
    # 28 pixels become 32 in the first block: 8 x 8 after two halvings.
    ("convnet", {"num_classes": 5, "image_shape": (28, 28, 1), "width": 6, "depth": 2},
     (9 + 1) * 6 + (9 * 6 + 1) * 6 + 2 * 2 * 6 + (6 * 8 * 8 + 1) * 5),
    pytest.param("resnet18", {"image_shape": (32, 32, 3)}, 11_173_962, marks=pytest.mark.slow),
    ("resnet18", {"image_shape": (28, 28, 1), "norm": "none"}, 11_173_962 - 2 * 9 * 64 - 2 * 4800),
    # Patches, positions, 6 blocks, last norm and layer.
    ("vit", {"image_shape": (32, 32, 3)}, 49 * 128 + 64 * 128 + 6 * _BLOCK + 256 + 1290),
    ("mlp", {"image_shape": (28, 28, 1)},
     (784 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 10),
    ("mlp", {"num_classes": 3, "image_shape": (5,), "hidden": ()}, (5 + 1) * 3),
    ("mlp", {"num_classes": 3, "image_shape": (2, 3, 1), "hidden": (7,)},
     (6 + 1) * 7 + (7 + 1) * 3),
])
def test_number_of_parameters(name, options, expected):
  assert count(name, **options) == expected


@pytest.mark.slow
def test_images_need_not_be_square():
  """The same parameters but for what follows from the number of pixels."""
  assert count("resnet18", (20, 28, 1)) == count("resnet18", (32, 32, 1))
  assert (count("vit", (20, 28, 1), depth=1) ==
          count("vit", (28, 28, 1), depth=1) - (49 - 35) * 128)
  dense = lambda rows, columns: rows * columns * 128 * 10
  square, flat, wide = (count("convnet", (height, width, 1))
                        for height, width in ((28, 28), (20, 28), (28, 33)))
  assert square - flat == dense(4, 4) - dense(2, 3)  # 28x28 alone are padded to 32x32.
  assert square - wide == dense(4, 4) - dense(3, 4)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("num_classes, num_images", [(2, 7), (10, 1)])
def test_shape_and_dtype_of_logits(name, num_classes, num_images):
  model = make(name, num_classes=num_classes, image_shape=SHAPES[name])
  images = jax.ShapeDtypeStruct((num_images, *SHAPES[name]), jnp.float32)
  logits = jax.eval_shape(model.apply, shapes_of(model), images)
  assert (logits.shape, logits.dtype) == ((num_images, num_classes), jnp.float32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, image_shape, options, reference", [
    ("lenet", (28, 28, 1), {}, networks_by_hand.lenet),
    ("lenet", (32, 32, 3), {"convolution": "tiled"}, networks_by_hand.lenet),
    pytest.param("alexcifarnet", (32, 32, 3), {}, networks_by_hand.alexcifarnet,
                 marks=pytest.mark.slow),
    pytest.param("alexnet", (224, 224, 3), {"width": 1, "dropout": .5, "convolution": "lax"},
                 networks_by_hand.alexnet, marks=pytest.mark.slow),
    ("convnet", (28, 28, 1), {"width": 4, "depth": 2}, networks_by_hand.convnet),
    ("convnet", (8, 8, 3), {"width": 4, "depth": 2}, networks_by_hand.convnet),
    pytest.param("resnet18", (16, 16, 1), {"width": 2, "norm": "layer", "convolution": "lax"},
                 networks_by_hand.resnet, marks=pytest.mark.slow),
    ("vit", (4, 4, 1), {"patch": 2, "width": 4, "depth": 1, "heads": 2}, networks_by_hand.vit),
    ("mlp", (3, 2, 1), {"hidden": (5,)}, networks_by_hand.mlp),
])
def test_logits_and_gradients(name, image_shape, options, reference):
  """In float64, with ReLU before the pooling as in the paper."""
  model = models.MODELS[name](num_classes=3, image_shape=image_shape, **options)
  params, images = random_params(model), normal(2, *image_shape)

  def all_of(apply):
    def squares(params, images):
      logits = apply(params, images)
      return jnp.sum(jnp.square(logits)), logits
    return jit(jax.grad(squares, (0, 1), has_aux=True))(params, images)

  (gradients, logits), expected = all_of(model.apply), all_of(reference)
  assert logits.dtype == jnp.float64
  for a, b in zip(jax.tree.leaves((gradients, logits)), jax.tree.leaves(expected), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert jnp.linalg.norm(a - b) <= 1e-11 * jnp.linalg.norm(b) + 1e-12  # Beside an exact zero.


def test_dropout_of_alexnet_needs_a_key():
  """Both hidden layers drop half of their inputs, and only while training."""
  plain, dropping = (models.alexnet(num_classes=4, image_shape=(224, 224, 3), width=1,
                                    convolution="lax", dropout=rate) for rate in (0., .5))
  params = random_params(plain)
  images = normal(2, 224, 224, 3).astype(jnp.float32)
  with_key = jit(lambda params, images, key: dropping.apply(params, images, key=key))
  first, again, other = (with_key(params, images, jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  expected = jit(plain.apply)(params, images)
  assert (first != other).all() and (first != expected).all()
  for model, key in ((dropping, None), (plain, jax.random.key(1))):
    np.testing.assert_array_equal(
        jit(functools.partial(model.apply, key=key))(params, images), expected)
  layers = jit(functools.partial(_dropped, dropping))(params, images, jax.random.key(1))
  assert [before.shape for before, _ in layers] == [(2, 4 * 6 * 6), (2, 64)]
  for before, after in layers:
    kept = np.asarray(after != 0)
    np.testing.assert_array_equal(after[kept], 2 * before[kept])
    assert .3 < kept[np.asarray(before != 0)].mean() < .7  # Of 60 numbers: three deviations.


def _dropped(model, params, images, key):
  """What every dropout of a network gets and gives."""
  layers = []

  def record(layer, args, options, context):
    after = layer(*args, **options)
    if isinstance(context.module, nn.Dropout):
      layers.append((args[0], after))
    return after

  with nn.intercept_methods(record):
    model.apply(params, images, key=key)
  return layers


@pytest.mark.parametrize("name", ["convnet", "vit", RESNET])
def test_images_and_their_transposes(name):
  """Of transposed images and kernels the logits are the same; gradients are finite."""
  options = {"convnet": {"norm": "group", "depth": 2}}.get(name, {})
  tall, wide = (make(name, num_classes=3, image_shape=shape, **{**SMALL[name], **options})
                for shape in ((8, 12, 1), (12, 8, 1)))
  params = jax.tree.map(lambda leaf: .5 + leaf.astype(jnp.float32), random_params(tall))
  images = normal(2, 8, 12, 1).astype(jnp.float32)

  @jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    logits = tall.apply(params, images)
    return logits.sum(), logits

  gradients, logits = gradient(params)
  flipped = jit(wide.apply)(_transposed(name, params), images.swapaxes(1, 2))
  np.testing.assert_allclose(logits, flipped, rtol=1e-4, atol=1e-4)
  assert np.ptp(logits) > .01
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def _transposed(name, params):
  """The parameters for images whose rows and columns have changed places."""
  params = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, params)
  first = params["Dense_0"]["kernel"]
  features = first.shape[-1]
  if name == "convnet":
    first = first.reshape(2, 3, -1, features).swapaxes(0, 1)
  if name == "vit":
    patch = SMALL["vit"]["patch"]
    first = first.reshape(patch, patch, -1, features).swapaxes(0, 1)
    positions = params["positions"].reshape(1, 8 // patch, 12 // patch, -1).swapaxes(1, 2)
    params["positions"] = positions.reshape(params["positions"].shape)
  return {**params, "Dense_0": {**params["Dense_0"], "kernel": first.reshape(-1, features)}}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["convnet", VIT, RESNET])
def test_hypergradient_against_finite_differences(name):
  """Two inner steps; float64 accuracy shows that nothing falls back to float32.

  Images of one colour, whose variances are exactly zero, give a finite one.
  """
  # The last stage of a ResNet needs more than one pixel to have a variance.
  shape = (16, 16, 1) if name == "resnet18" else (8, 8, 1)
  model = models.MODELS[name](num_classes=2, image_shape=shape, **SMALL[name])
  learned = parametrization.paper(jnp.array([[0, 1]]), shape, num_epochs=2, step_size=.01,
                                  dtype=float)
  init = dd_jax.fixed_init(jax.tree.map(
      lambda leaf: leaf.astype(float), jit(model.init)(jax.random.key(4))))
  loss = losses.classification(model.apply)
  value_and_grad = jit(jax.value_and_grad(dd_jax.make_outer_loss(
      learned.decode, init, dd_jax.unroll(loss, memory="plain"), loss, num_inits=1)))
  real = normal(3, *shape), jnp.array([0, 1, 1])
  trainable, rest = jit(learned.init)(jax.random.key(0)), (init.state, jax.random.key(1), *real)
  _, gradient = value_and_grad(trainable, *rest)
  direction = normal(*trainable["inputs"].shape, seed=1)

  def along(t):
    return value_and_grad({**trainable, "inputs": trainable["inputs"] + t * direction}, *rest)[0]

  # Small enough to meet no kink of the many ReLU.
  numeric = (along(1e-8) - along(-1e-8)) / 2e-8
  np.testing.assert_allclose(jnp.vdot(gradient["inputs"], direction), numeric, rtol=1e-5,
                             atol=1e-9)
  assert abs(numeric) > 1e-6
  one_colour = {**trainable, "inputs": jnp.zeros_like(trainable["inputs"])}
  _, gradient = value_and_grad(one_colour, *rest[:2], jnp.ones_like(real[0]), real[1])
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name, options, text", [
    ("lenet", {"image_shape": (27, 27, 1)},
     r"image_shape of lenet must be 28x28 or 32x32 pixels; got \(27, 27, 1\)"),
    ("lenet", {"image_shape": (28, 32, 1)},
     r"image_shape of lenet must be 28x28 or 32x32 pixels; got \(28, 32, 1\)"),
    ("lenet", {"image_shape": (28, 28)}, r"image_shape must be \(H, W, C\); got \(28, 28\)"),
    ("alexcifarnet", {"image_shape": (28, 28, 3)},
     r"image_shape of alexcifarnet must be 32x32 pixels; got \(28, 28, 3\)"),
    ("alexcifarnet", {"image_shape": (1, 32, 32, 3)}, r"must be \(H, W, C\); got \(1, 32, 32, 3\)"),
    ("alexnet", {"image_shape": (227, 227, 3)},
     r"image_shape of alexnet must be 224x224 pixels; got \(227, 227, 3\)"),
    ("alexnet", {"dropout": 1.}, r"dropout must lie in \[0, 1\); got 1.0"),
    ("alexnet", {"dropout": -.1}, r"dropout must lie in \[0, 1\); got -0.1"),
    ("alexnet", {"width": 0}, "width must be at least 1; got 0"),
    ("convnet", {"image_shape": (7, 32, 3)},
     r"depth must be at most log2 of the image size \(7, 32\); got 3"),
    ("convnet", {"width": 0}, "width must be at least 1; got 0"),
    ("convnet", {"depth": 0}, "depth must be at least 1; got 0"),
    ("convnet", {"image_shape": (7, 7, 1)},
     r"depth must be at most log2 of the image size \(7, 7\); got 3"),
    ("convnet", {"depth": 6}, r"depth must be at most log2 of the image size \(32, 32\); got 6"),
    ("resnet18", {"image_shape": (8, 8, 1), "norm": "instance"},
     r"norm must not be 'instance' for images of up to 8x8 in resnet18.*; got \(8, 8, 1\)"),
    *((name, {"norm": "lrn"},
       r"norm must be one of \['instance', 'group', 'layer', 'batch', 'none'\]; got 'lrn'")
      for name in ("convnet", "resnet18")),
    ("resnet18", {"width": 0}, "width must be at least 1; got 0"),
    ("resnet18", {"image_shape": (32, 16)}, r"image_shape must be \(H, W, C\); got \(32, 16\)"),
    ("vit", {"patch": 5}, r"patch=5 must divide H and W; got \(32, 32, \d\)"),
    ("vit", {"image_shape": (20, 30, 1)}, r"patch=4 must divide H and W; got \(20, 30, 1\)"),
    ("vit", {"heads": 3}, "heads=3 must divide width; got 128"),
    ("vit", {"depth": 0}, "depth must be at least 1; got 0"),
    *((name, {"convolution": "fft"}, r"convolution must be one of .*'patches'.*; got 'fft'")
      for name in SHAPES if name not in ("vit", "mlp", "linear")),
    *((name, {"num_classes": 0}, "num_classes must be at least 1; got 0") for name in SHAPES),
])
def test_errors(name, options, text):
  with pytest.raises(ValueError, match=text):
    models.MODELS[name](**{"num_classes": 10, "image_shape": SHAPES[name], **options})


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "text_convolution"])
def test_texts_are_refused_by_networks_of_arrays(name):
  with pytest.raises(ValueError, match=f"image_shape of {name} must be that of one array; got "):
    models.MODELS[name](num_classes=3, image_shape={"embedded": (4, 5), "mask": (4,)})


def test_every_network_is_tested():
  assert models.MODELS.keys() == {*SHAPES, "text_convolution"}


def test_a_text_convolution_is_that_of_its_definition(x64):
  """Three words at a time, ReLU, the mean over the words of a sentence."""
  model = models.text_convolution(num_classes=3, image_shape={"embedded": (5, 4), "mask": (5,)},
                                  width=6)
  params = random_params(model)
  words = np.random.default_rng(1).standard_normal((2, 5, 4))
  mask = np.array([[1., 1, 1, 0, 0], [1, 1, 1, 1, 1]])
  found = model.apply(params, {"embedded": words, "mask": mask})
  kernel, bias = (np.asarray(params["Dense_0"][name]) for name in ("kernel", "bias"))
  for row, length in enumerate((3, 5)):
    padded = np.concatenate([np.zeros((1, 4)), words[row, :length], np.zeros((1, 4))])
    hidden = [np.maximum(padded[i:i + 3].reshape(-1) @ kernel + bias, 0) for i in range(length)]
    expected = np.mean(hidden, 0) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(found[row], expected, rtol=1e-9)
  # What lies behind the last word changes nothing; no word at all is no NaN.
  other = words.copy()
  other[0, 3:] = 7
  np.testing.assert_array_equal(model.apply(params, {"embedded": other, "mask": mask}), found)
  assert np.isfinite(model.apply(params, {"embedded": words, "mask": 0 * mask})).all()


def test_padding_behind_a_sentence_changes_nothing(x64):
  """Nor do the values that biases put there, between two convolutions."""
  long, short = (models.text_convolution(num_classes=3, width=6, depth=2, image_shape={
      "embedded": (length, 4), "mask": (length,)}) for length in (5, 3))
  params = random_params(long)
  words, mask = normal(2, 5, 4), jnp.ones((2, 5)).at[:, 3:].set(0)
  assert_close(long.apply(params, {"embedded": words, "mask": mask}),
               short.apply(params, {"embedded": words[:, :3], "mask": mask[:, :3]}))


@pytest.mark.parametrize("shape", [(5, 4), {"embedded": (5, 4)}])
def test_a_text_convolution_takes_words_and_their_mask(shape):
  with pytest.raises(ValueError, match="image_shape of text_convolution must be {'embedded': "):
    models.text_convolution(num_classes=3, image_shape=shape)
