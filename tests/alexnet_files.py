"""Checkpoints of AlexNet in torchvision's layout, in every file format that is read."""

import math

import numpy as np
import pytest
from safetensors import numpy as safetensors


def checkpoint(width, seed=0):
  """Random weights by torchvision's names; AlexNet has width 64."""
  c1, c2, c3, c4, hidden = width, 3 * width, 6 * width, 4 * width, 64 * width
  shapes = {"features.0": (c1, 3, 11, 11), "features.3": (c2, c1, 5, 5),
            "features.6": (c3, c2, 3, 3), "features.8": (c4, c3, 3, 3),
            "features.10": (c4, c4, 3, 3), "classifier.1": (hidden, c4 * 6 * 6),
            "classifier.4": (hidden, hidden), "classifier.6": (1000, hidden)}
  rng = np.random.default_rng(seed)
  weights = {}
  for name, shape in shapes.items():
    weight = rng.standard_normal(shape, np.float32)
    weights[f"{name}.weight"] = weight * np.float32(math.sqrt(2 / math.prod(shape[1:])))
    weights[f"{name}.bias"] = rng.standard_normal(shape[:1], np.float32)
  return weights


def write(path, weights):
  if path.suffix == ".npz":
    np.savez(path, **weights)
  elif path.suffix == ".safetensors":
    safetensors.save_file(weights, path)
  else:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(weight) for name, weight in weights.items()}, path)
  return path
