"""ResNet-18, the vision transformer and the norms: logits by hand, counts, hypergradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization

_SMALL = {
    "convnet": {"width": 4, "depth": 1}, "resnet18": {"width": 2},
    "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2}}
_RESNET = pytest.mark.slow  # Compiles for a minute.


def _random(model, seed=0):
  """Every parameter random, scales and biases too."""
  leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  draw = np.random.default_rng(seed)
  return tree.unflatten([jnp.asarray(draw.normal(.5, .5, leaf.shape)) for leaf in leaves])


def _count(name, image_shape, **options):
  model = models.MODELS[name](num_classes=10, image_shape=image_shape, **options)
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


@pytest.mark.slow
def test_parameter_counts():
  assert _count("resnet18", (32, 32, 3)) == 11_173_962
  assert _count("resnet18", (28, 28, 1), norm="none") == 11_173_962 - 2 * 9 * 64 - 2 * 4800
  # Patches, positions, 6 blocks of two norms, attention and MLP, last norm and layer.
  block = 2 * 256 + 128 * 384 + 384 + 128 * 128 + 128 + 128 * 512 + 512 + 512 * 128 + 128
  assert _count("vit", (32, 32, 3)) == 49 * 128 + 64 * 128 + 6 * block + 256 + 1290


def test_images_need_not_be_square():
  """The same parameters but for what follows from the number of pixels."""
  assert _count("resnet18", (20, 28, 1)) == _count("resnet18", (32, 32, 1))
  assert _count("vit", (20, 28, 1)) == _count("vit", (28, 28, 1)) - (49 - 35) * 128
  dense = lambda rows, columns: rows * columns * 128 * 10
  square, flat, wide = (_count("convnet", (height, width, 1))
                        for height, width in ((28, 28), (20, 28), (28, 33)))
  assert square - flat == dense(4, 4) - dense(2, 3)  # 28x28 alone are padded to 32x32.
  assert square - wide == dense(4, 4) - dense(3, 4)


@pytest.mark.parametrize("name", ["convnet", "vit", pytest.param("resnet18", marks=_RESNET)])
def test_images_and_their_transposes(name):
  """Of transposed images and kernels the logits are the same; gradients are finite."""
  options = {"convnet": {"norm": "group", "depth": 2}}.get(name, {})
  make = lambda *shape: models.MODELS[name](num_classes=3, image_shape=shape,
                                            **{**_SMALL[name], **options})
  tall, wide = make(8, 12, 1), make(12, 8, 1)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / 10, _random(tall))
  images = jax.random.normal(jax.random.key(0), (2, 8, 12, 1))
  logits = jax.jit(tall.apply)(params, images)
  flipped = jax.jit(wide.apply)(_transposed(name, params), images.swapaxes(1, 2))
  np.testing.assert_allclose(logits, flipped, rtol=1e-4, atol=1e-4)
  gradient = jax.jit(jax.grad(lambda params: tall.apply(params, images).sum()))(params)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def _transposed(name, params):
  """The parameters for images whose rows and columns have changed places."""
  params = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, params)
  first = params["Dense_0"]["kernel"]
  features = first.shape[-1]
  if name == "convnet":
    first = first.reshape(2, 3, -1, features).swapaxes(0, 1)
  if name == "vit":
    patch = _SMALL["vit"]["patch"]
    first = first.reshape(patch, patch, -1, features).swapaxes(0, 1)
    positions = params["positions"].reshape(1, 8 // patch, 12 // patch, -1).swapaxes(1, 2)
    params["positions"] = positions.reshape(params["positions"].shape)
  return {**params, "Dense_0": {**params["Dense_0"], "kernel": first.reshape(-1, features)}}


def _normalized(x, axes, params):
  shape = (1,) * (x.ndim - 1) + (-1,)
  x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
  return x, np.asarray(params["scale"]).reshape(shape), np.asarray(params["bias"]).reshape(shape)


@pytest.mark.parametrize("norm, axes", [
    ("instance", (1, 2)), ("batch", (0, 1, 2)), ("layer", (1, 2, 3))])
def test_every_norm_takes_its_axes(x64, norm, axes):
  """A ConvNet of one block with a kernel that copies its input."""
  model = models.convnet(num_classes=2, image_shape=(4, 4, 4), width=4, depth=1, norm=norm,
                         convolution="lax")
  params = _random(model)
  copy = np.zeros((3, 3, 4, 4))
  copy[1, 1] = np.eye(4)
  params["Conv_0"] = {"kernel": jnp.asarray(copy), "bias": jnp.zeros(4)}
  images = np.random.default_rng(1).standard_normal((3, 4, 4, 4))
  x, scale, bias = _normalized(images, axes, params["_Norm_0"])
  x = np.maximum(x * scale + bias, 0)
  x = x.reshape(3, 2, 2, 2, 2, 4).mean((2, 4)).reshape(3, -1)
  expected = x @ np.asarray(params["Dense_0"]["kernel"]) + np.asarray(params["Dense_0"]["bias"])
  np.testing.assert_allclose(model.apply(params, jnp.asarray(images)), expected, rtol=1e-10)


@pytest.mark.parametrize("width", [4, 64])
def test_groups_of_features(width):
  """4 features make two groups of two, 64 make 32."""
  model = models.convnet(num_classes=2, image_shape=(4, 4, 1), width=width, depth=1, norm="group")
  params, images = _random(model), np.random.default_rng(1).standard_normal((2, 4, 4, 1))
  swapped = jax.tree.map(lambda leaf: leaf, params)
  kernel = np.array(params["Conv_0"]["kernel"], np.float32)
  kernel[..., 1] *= 5  # Changes the statistics of features 0 and 1 alone.
  swapped["Conv_0"] = {**params["Conv_0"], "kernel": jnp.asarray(kernel)}
  for p in (params, swapped):
    p["Dense_0"] = {"kernel": jnp.zeros((4 * width, 2)).at[2::width, 0].set(1.)
                               .at[::width, 1].set(1.), "bias": jnp.zeros(2)}
  params, swapped = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, swapped))
  before, after = (model.apply(p, jnp.asarray(images, jnp.float32)) for p in (params, swapped))
  np.testing.assert_allclose(before[:, 0], after[:, 0], rtol=1e-5)
  assert (jnp.abs(before[:, 1] - after[:, 1]) > 1e-3).all()


def _conv(x, kernel, stride):
  kernel = jnp.asarray(kernel)
  padding = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2,
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_resnet_by_hand(x64):
  """Norms switched off: the convolutions, the shortcuts and the strides."""
  model = models.resnet18(num_classes=3, image_shape=(8, 8, 1), width=2, norm="none")
  params = _random(model)
  kernels = iter(params[f"Conv_{index}"]["kernel"] for index in range(20))
  images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 1)))
  x = jax.nn.relu(_conv(images, next(kernels), 1))
  for features, stride in ((2, 1), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1)):
    y = _conv(x, next(kernels), stride)
    y = _conv(jax.nn.relu(y), next(kernels), 1)
    if x.shape[-1] != features:
      x = _conv(x, next(kernels), stride)
    x = jax.nn.relu(x + y)
  assert x.shape == (2, 1, 1, 16)
  expected = x[:, 0, 0] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
  np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-9)


def test_attention_mixes_the_patches_by_their_similarity(x64):
  """Against a loop over images, heads and patches."""
  model = models.vit(num_classes=3, image_shape=(4, 4, 1), patch=2, width=4, depth=1, heads=2)
  params = jax.tree.map(np.asarray, _random(model))
  dense = lambda x, layer: x @ params[layer]["kernel"] + params[layer]["bias"]

  def norm(x, layer):
    x, scale, bias = _normalized(x, (-1,), params[layer])
    return x * scale + bias

  image = np.random.default_rng(1).standard_normal((4, 4))
  patches = np.stack([image[2 * r:2 * r + 2, 2 * c:2 * c + 2].ravel()
                      for r in (0, 1) for c in (0, 1)])
  x = dense(patches, "Dense_0") + params["positions"][0]
  qkv = dense(norm(x, "_LayerNorm_0"), "Dense_1")
  mixed = np.zeros((4, 4))
  for head in (slice(0, 2), slice(2, 4)):
    q, k, v = qkv[:, :4][:, head], qkv[:, 4:8][:, head], qkv[:, 8:][:, head]
    for i in range(4):
      weights = np.exp(k @ q[i] / np.sqrt(2))
      mixed[i, head] = weights @ v / weights.sum()
  x = x + dense(mixed, "Dense_2")
  hidden = np.asarray(jax.nn.gelu(jnp.asarray(dense(norm(x, "_LayerNorm_1"), "Dense_3"))))
  x = norm(x + dense(hidden, "Dense_4"), "_LayerNorm_2").mean(0)
  np.testing.assert_allclose(model.apply(params, jnp.asarray(image[None, :, :, None]))[0],
                             dense(x, "Dense_5"), rtol=1e-9)


@pytest.mark.parametrize("name, options", [
    ("vit", {}), pytest.param("resnet18", {}, marks=_RESNET),
    *(("convnet", {"norm": norm}) for norm in ("instance", "batch", "layer")),
], ids=str)
def test_hypergradient_against_finite_differences(x64, name, options):
  """Two inner steps; float64 accuracy shows that nothing falls back to float32."""
  # The last stage of a ResNet needs more than one pixel to have a variance.
  shape = (16, 16, 1) if name == "resnet18" else (8, 8, 1)
  model = models.MODELS[name](num_classes=2, image_shape=shape, **_SMALL[name], **options)
  labels = jnp.array([[0, 1]])
  learned = parametrization.paper(labels, shape, num_epochs=2, step_size=.01, dtype=float)
  init = dd_jax.random_init(lambda key: jax.tree.map(
      lambda leaf: leaf.astype(float), model.init(key)))
  loss = losses.classification(model.apply)
  outer_loss = jax.jit(dd_jax.make_outer_loss(learned.decode, init.sample, loss, loss,
                                              num_inits=1, memory="plain"))
  real = jax.random.normal(jax.random.key(2), (3, *shape)), jnp.array([0, 1, 1])
  trainable, rest = learned.init(jax.random.key(0)), ((), jax.random.key(1), *real)
  gradient = jax.jit(jax.grad(outer_loss))(trainable, *rest)
  direction = jax.random.normal(jax.random.key(3), trainable["images"].shape)

  def along(t):
    return outer_loss({**trainable, "images": trainable["images"] + t * direction}, *rest)

  # Small enough to meet no kink of the many ReLU.
  numeric = (along(1e-8) - along(-1e-8)) / 2e-8
  np.testing.assert_allclose(jnp.vdot(gradient["images"], direction), numeric, rtol=1e-5,
                             atol=1e-9)
  assert abs(numeric) > 1e-6


@pytest.mark.parametrize("name", [
    "convnet", "vit", pytest.param("resnet18", marks=_RESNET)])
def test_images_of_one_colour_give_a_finite_hypergradient(name):
  """Variances of exactly zero."""
  model = models.MODELS[name](num_classes=2, image_shape=(8, 8, 1), **_SMALL[name])
  loss = losses.classification(model.apply)
  params = model.init(jax.random.key(0))

  def outer(images):
    gradient = jax.grad(loss)(params, images, jnp.array([0, 1]))
    moved = jax.tree.map(lambda p, g: p - .1 * g, params, gradient)
    return loss(moved, jnp.ones((2, 8, 8, 1)), jnp.array([1, 0]))

  assert jnp.isfinite(jax.jit(jax.grad(outer))(jnp.zeros((2, 8, 8, 1)))).all()
