"""ImageNet weights of `models.alexnet` from a file that the user has.

The file is a checkpoint in the layout of torchvision's `alexnet`: for instance
its `alexnet-owt-7be5be79.pth`, or the same arrays by the same names in a
.safetensors or .npz file. Nothing is downloaded, and no pickle is trusted.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import extras
from dd_jax.datasets import npz
from dd_jax.files import torch_files
from dd_jax.models import Model
from dd_jax.types import Params

# Name in the checkpoint -> name in our parameters, from input to output.
_LAYERS = {
    "features.0": "Conv_0",
    "features.3": "Conv_1",
    "features.6": "Conv_2",
    "features.8": "Conv_3",
    "features.10": "Conv_4",
    "classifier.1": "Dense_0",
    "classifier.4": "Dense_1",
    "classifier.6": "Dense_2",
}
_LAST = "Dense_2"
_IMAGENET_CLASSES = 1000


def load(path: str | os.PathLike, model: Model) -> Params:
  """The weights of `model`, all but the last layer from a file.

  The last layer is new: its kernel is 0 and its bias 1, for any number of
  classes. The names and shapes of the checkpoint:

      features.0.weight     [64, 3, 11, 11]    features.0.bias     [64]
      features.3.weight     [192, 64, 5, 5]    features.3.bias     [192]
      features.6.weight     [384, 192, 3, 3]   features.6.bias     [384]
      features.8.weight     [256, 384, 3, 3]   features.8.bias     [256]
      features.10.weight    [256, 256, 3, 3]   features.10.bias    [256]
      classifier.1.weight   [4096, 9216]       classifier.1.bias   [4096]
      classifier.4.weight   [4096, 4096]       classifier.4.bias   [4096]
      classifier.6.weight   [1000, 4096]       classifier.6.bias   [1000]

  Args:
    path: ends in .safetensors (needs the package safetensors), .npz, or .pth
      (needs PyTorch, and runs none of the code that a pickle can hold).
    model: what `models.alexnet` returns.

  Returns:
    Parameters as `model.init` gives them.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: the package that reads it is not installed.
    ValueError: the file is damaged, its weights have other names or shapes or are
      not finite, or `model` is another network.
  """
  path = pathlib.Path(path)
  if path.suffix not in _READERS:
    raise ValueError(f"path must end in {', '.join(_READERS)}; got {path}")
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  try:
    stored = _READERS[path.suffix](path)
  except ImportError:
    raise
  except Exception as error:  # the readers meet a bad byte with nearly any exception
    raise ValueError(f"{path}: expected a {path.suffix} file of arrays; found "
                     f"{' '.join(f'{type(error).__name__}: {error}'.split())}") from error
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  if set(shapes) != set(_LAYERS.values()):
    raise ValueError(f"model must be models.alexnet; got one with the layers {sorted(shapes)}")
  _check(path, stored, shapes)

  # The first dense layer sees images of 6x6 pixels, channels first there and last here.
  first = stored["classifier.1.weight"]
  stored["classifier.1.weight"] = first.reshape(len(first), -1, 6, 6)
  params = {ours: {"kernel": np.moveaxis(stored[f"{theirs}.weight"], (0, 1), (-1, -2)),
                   "bias": stored[f"{theirs}.bias"]} for theirs, ours in _LAYERS.items()}
  params[_LAST] = {"kernel": np.zeros(shapes[_LAST]["kernel"].shape),
                   "bias": np.ones(shapes[_LAST]["bias"].shape)}
  return jax.tree.map(lambda leaf, like: jnp.asarray(leaf.reshape(like.shape), like.dtype),
                      params, dict(shapes))


def _check(path, stored, shapes):
  """Raises ValueError unless the arrays are finite, with the checkpoint's names and shapes."""
  expected = {}
  for theirs, ours in _LAYERS.items():
    *inputs, outputs = shapes[ours]["kernel"].shape
    outputs = _IMAGENET_CLASSES if ours == _LAST else outputs
    expected[f"{theirs}.weight"] = (outputs, *inputs[-1:], *inputs[:-1])
    expected[f"{theirs}.bias"] = (outputs,)
  wrong = [f"{name} is missing" for name in expected if name not in stored]
  wrong += [f"{name} is not one of them" for name in stored if name not in expected]
  wrong += [f"{name} is {stored[name].dtype} {list(stored[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items() if name in stored
            and (stored[name].shape != shape or stored[name].dtype.kind != "f")]
  with np.errstate(over="ignore"):  # Beyond float32 is infinite, and refused as such.
    wrong = wrong or [f"{name} holds NaN or infinity" for name in expected
                      if not np.isfinite(stored[name].astype(np.float32, copy=False)).all()]
  if wrong:
    raise ValueError(f"{path}: expected floating-point weights of AlexNet; "
                     f"{' '.join('; '.join(wrong).split())}")


def _read_safetensors(path):
  safetensors = extras.load("safetensors.numpy", "a .safetensors file needs safetensors", "export")
  return safetensors.load_file(path)


def _read_pth(path):
  return {name: tensor.detach().numpy() for name, tensor in torch_files.read(path).items()}


_READERS = {".safetensors": _read_safetensors, ".npz": npz.read, ".pth": _read_pth}
