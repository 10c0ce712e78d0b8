"""dd_jax.files.imagenet_weights: PyTorch's own logits, every file format, every mistake."""

import functools
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import imagenet_weights
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from tests.alexnet_files import checkpoint
from tests.alexnet_files import write
from tests.one_line import raises

_SUFFIXES = [".npz", ".safetensors", ".pth"]


@functools.cache
def alexnet(width=1, num_classes=7, channels=3):
  return models.alexnet(num_classes=num_classes, image_shape=(224, 224, channels), width=width)


def torch_alexnet(torch, width):
  """The layers of AlexNet as torchvision numbers them."""
  nn = torch.nn
  features = nn.Sequential(
      nn.Conv2d(3, width, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
      nn.Conv2d(width, 3 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
      nn.Conv2d(3 * width, 6 * width, 3, padding=1), nn.ReLU(),
      nn.Conv2d(6 * width, 4 * width, 3, padding=1), nn.ReLU(),
      nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
  classifier = nn.Sequential(
      nn.Dropout(), nn.Linear(4 * width * 36, 64 * width), nn.ReLU(),
      nn.Dropout(), nn.Linear(64 * width, 64 * width), nn.ReLU(), nn.Linear(64 * width, 1000))
  net = nn.Sequential()
  net.add_module("features", features)
  net.add_module("flatten", nn.Flatten())
  net.add_module("classifier", classifier)
  return net.eval()


@pytest.mark.parametrize("width", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_logits_are_those_of_pytorch_s_own_layers(tmp_path, width):
  torch = pytest.importorskip("torch")
  weights = checkpoint(width)
  net = torch_alexnet(torch, width)
  net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
  images = np.random.default_rng(1).standard_normal((2, 224, 224, 3), np.float32)
  with torch.no_grad():
    expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

  model = alexnet(width, num_classes=1000)
  params = imagenet_weights.load(write(tmp_path / "alexnet.npz", weights), model)
  apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
  np.testing.assert_array_equal(apply(params, images), np.ones((2, 1000)))  # The new last layer.
  params["Dense_2"] = {"kernel": weights["classifier.6.weight"].T,
                       "bias": weights["classifier.6.bias"]}
  actual = apply(params, images)
  assert np.linalg.norm(actual - expected) <= 1e-4 * np.linalg.norm(expected)
  assert expected.std() > .1  # The images reach the logits.


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_every_format_gives_the_same_parameters(tmp_path, suffix):
  weights, model = checkpoint(1), alexnet()
  params = imagenet_weights.load(write(tmp_path / f"alexnet{suffix}", weights), model)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  assert all(leaf.shape == like.shape and leaf.dtype == like.dtype for leaf, like in zip(
      jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True))
  for i, number in enumerate((0, 3, 6, 8, 10)):
    np.testing.assert_array_equal(np.einsum("hwio->oihw", params[f"Conv_{i}"]["kernel"]),
                                  weights[f"features.{number}.weight"])
    np.testing.assert_array_equal(params[f"Conv_{i}"]["bias"], weights[f"features.{number}.bias"])
  rows, columns, channels = np.indices((6, 6, 4)).reshape(3, -1)
  np.testing.assert_array_equal(
      params["Dense_0"]["kernel"],
      weights["classifier.1.weight"].reshape(64, 4, 6, 6)[:, channels, rows, columns].T)
  np.testing.assert_array_equal(params["Dense_1"]["kernel"], weights["classifier.4.weight"].T)
  for i, number in enumerate((1, 4)):
    np.testing.assert_array_equal(params[f"Dense_{i}"]["bias"],
                                  weights[f"classifier.{number}.bias"])
  np.testing.assert_array_equal(params["Dense_2"]["kernel"], np.zeros((64, 7)))
  np.testing.assert_array_equal(params["Dense_2"]["bias"], np.ones(7))


def test_half_precision_is_widened(tmp_path):
  weights = {name: value.astype(np.float16) for name, value in checkpoint(1).items()}
  params = imagenet_weights.load(write(tmp_path / "half.npz", weights), alexnet())
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(params["Conv_2"]["bias"], weights["features.6.bias"])


def test_they_are_a_fixed_init(tmp_path):
  model = alexnet()
  params = imagenet_weights.load(write(tmp_path / "alexnet.npz", checkpoint(1)), model)
  init = dd_jax.fixed_init(params)
  drawn = init.sample(jax.random.key(0), 1)
  assert drawn["Dense_0"]["kernel"].shape == (1, 144, 64)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_hypergradient_through_them_against_a_finite_difference(tmp_path):
  """Three inner steps from a last layer of zeros, along the hypergradient, in float64."""
  model, labels = alexnet(num_classes=3), jnp.array([[0, 1, 2]], jnp.int32)
  params = imagenet_weights.load(write(tmp_path / "alexnet.npz", checkpoint(1)), model)
  init = dd_jax.fixed_init(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params))
  loss = losses.classification(model.apply)
  outer_loss = jax.jit(jax.value_and_grad(dd_jax.make_outer_loss(
      parametrization.paper(labels, (224, 224, 3), num_epochs=3, step_size=.01,
                            dtype=jnp.float64).decode,
      init, dd_jax.unroll(loss), loss, num_inits=1)))
  keys = jax.random.split(jax.random.key(0), 3)
  trainable = {"inputs": jax.random.normal(keys[0], (1, 3, 224, 224, 3), jnp.float64),
               "step_sizes": jnp.full((3, 1), -4.6, jnp.float64)}
  real = (jax.random.normal(keys[1], (2, 224, 224, 3), jnp.float64),
          jnp.array([0, 1], jnp.int32))
  _, gradient = outer_loss(trainable, init.state, keys[2], *real)
  norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))

  def at(distance):
    moved = jax.tree.map(lambda leaf, slope: leaf + slope * (distance / norm), trainable, gradient)
    return outer_loss(moved, init.state, keys[2], *real)[0]

  assert norm > 1e-3
  np.testing.assert_allclose((at(1e-4) - at(-1e-4)) / 2e-4, norm, rtol=1e-6)


def changed(**changes):
  """The checkpoint with weights replaced, or left out where None."""
  weights = checkpoint(1) | {name.replace("__", "."): value for name, value in changes.items()}
  return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize("weights, text", [
    (changed(features__8__bias=None), "features.8.bias is missing"),
    (changed(classifier__6__weight=None, classifier__6__bias=None),
     "classifier.6.weight is missing; classifier.6.bias is missing"),
    (changed(features__1__weight=np.zeros(3, np.float32)), "features.1.weight is not one of them"),
    (changed(features__0__weight=np.zeros((1, 3, 7, 7), np.float32)),
     "features.0.weight is float32 [1, 3, 7, 7] instead of [1, 3, 11, 11]"),
    (changed(classifier__1__weight=np.zeros((144, 64), np.float32)),
     "classifier.1.weight is float32 [144, 64] instead of [64, 144]"),
    (changed(classifier__6__bias=np.zeros(20, np.float32)),
     "classifier.6.bias is float32 [20] instead of [1000]"),
    (changed(features__3__bias=np.zeros(3, int)),
     "features.3.bias is int64 [3] instead of [3]"),
    (changed(features__3__bias=np.array([1, np.nan, 0])), "features.3.bias holds NaN or infinity"),
    (changed(features__3__bias=np.array([1, 1e300, 0])), "features.3.bias holds NaN or infinity"),
    ({}, "expected floating-point weights of AlexNet; features.0.weight is missing; "),
])
def test_other_weights_are_refused(tmp_path, weights, text):
  path = write(tmp_path / "alexnet.npz", weights)
  with raises(ValueError, text) as error:
    imagenet_weights.load(path, alexnet())
  assert str(error.value).startswith(f"{path}: ")


def test_weights_of_another_width_or_number_of_channels_are_refused(tmp_path):
  path = write(tmp_path / "alexnet.npz", checkpoint(1))
  with raises(ValueError, "features.0.weight is float32 [1, 3, 11, 11] instead of [2, 3, 11, 11]"):
    imagenet_weights.load(path, alexnet(2))
  with raises(ValueError, "features.0.weight is float32 [1, 3, 11, 11] instead of [1, 1, 11, 11]"):
    imagenet_weights.load(path, alexnet(channels=1))


def test_another_network_is_refused(tmp_path):
  with raises(ValueError, "model must be models.alexnet; got one with the layers ['Conv_0', "):
    imagenet_weights.load(write(tmp_path / "alexnet.npz", checkpoint(1)),
                          models.lenet(num_classes=10, image_shape=(28, 28, 1)))


def test_other_suffixes_and_missing_files(tmp_path):
  with raises(ValueError, f"path must end in .safetensors, .npz, .pth; got {tmp_path}/alexnet.pkl"):
    imagenet_weights.load(tmp_path / "alexnet.pkl", alexnet())
  with raises(FileNotFoundError, f"{tmp_path}/alexnet.npz: no such file"):
    imagenet_weights.load(str(tmp_path / "alexnet.npz"), alexnet())


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_checksums_are_compared(tmp_path, suffix):
  weights = checkpoint(1)
  path = write(tmp_path / f"alexnet{suffix}", weights)
  raw = bytearray(path.read_bytes())
  raw[raw.index(weights["features.8.bias"].tobytes())] ^= 1
  path.write_bytes(raw)
  with raises(ValueError, f"{path}: expected a {suffix} file of arrays; found "):
    imagenet_weights.load(path, alexnet())


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_damaged_files(tmp_path, suffix):
  path = write(tmp_path / f"alexnet{suffix}", checkpoint(1))
  whole = path.read_bytes()
  for raw in (whole[:len(whole) // 2], whole[:5], b"", b"<html>" * 10):
    path.write_bytes(raw)
    with raises(ValueError, f"{path}: expected a {suffix} file of arrays; found "):
      imagenet_weights.load(path, alexnet())


class Trap:

  def __reduce__(self):
    return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
  """Neither an array of objects, nor a bare pickle, nor PyTorch's file around one."""
  path = write(tmp_path / "alexnet.npz", {"features.0.weight": np.array([Trap()], object)})
  with raises(ValueError, "allow_pickle="):
    imagenet_weights.load(path, alexnet())
  for suffix in (".npz", ".safetensors"):
    path = tmp_path / f"pickle{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    with raises(ValueError, f"{path}: expected a {suffix} file of arrays; found "):
      imagenet_weights.load(path, alexnet())

  torch = pytest.importorskip("torch")
  torch.save({"features.0.weight": Trap()}, tmp_path / "zip.pth")
  (tmp_path / "bare.pth").write_bytes(pickle.dumps({"features.0.weight": Trap()}, protocol=2))
  for path in (tmp_path / "zip.pth", tmp_path / "bare.pth"):
    with raises(ValueError, f"{path}: expected a .pth file of arrays; found "):
      imagenet_weights.load(path, alexnet())


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2]])
def test_a_pth_file_of_something_else(tmp_path, content):
  torch = pytest.importorskip("torch")
  torch.save(content, tmp_path / "alexnet.pth")
  with raises(ValueError, "expected a .pth file of arrays; found AttributeError"):
    imagenet_weights.load(tmp_path / "alexnet.pth", alexnet())


@pytest.mark.parametrize("suffix, module, stand_in, text", [
    (".safetensors", "safetensors", None,
     'a .safetensors file needs safetensors: pip install "dd_jax[export]"'),
    (".pth", "torch", None, 'a .pth file needs PyTorch 2.6 or newer: pip install "dd_jax[export]"'),
    (".pth", "torch", types.SimpleNamespace(__version__="2.5.1+cpu"),
     "a .pth file needs PyTorch 2.6 or newer; got 2.5.1+cpu"),
])
def test_a_reader_that_is_not_installed(tmp_path, monkeypatch, suffix, module, stand_in, text):
  (tmp_path / f"alexnet{suffix}").touch()
  monkeypatch.setitem(sys.modules, module, stand_in)
  with raises(ImportError, text):
    imagenet_weights.load(tmp_path / f"alexnet{suffix}", alexnet())
