"""Reading PyTorch's files without running what a pickle can hold; torch is imported when needed."""

import os
import pathlib
import types
from typing import Any
import zipfile

from dd_jax import extras


def import_torch(suffix: str) -> types.ModuleType:
  """The module torch.

  Raises:
    ImportError: it is not installed, cannot be loaded, or is too old.
  """
  rule = f"a {suffix} file needs PyTorch 2.6 or newer"
  torch = extras.load("torch", rule, "export")
  # Before 2.6 a crafted file could run code in spite of weights_only (CVE-2025-32434).
  if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
    raise ImportError(f"{rule}; got {torch.__version__}")
  return torch


def read(path: str | os.PathLike) -> Any:
  """What `torch.save` wrote: tensors, on the CPU, in lists, tuples and dicts.

  Raises:
    ImportError: as of `import_torch`.
    Exception: nearly any, for a file that is damaged or holds code.
  """
  path = pathlib.Path(path)
  torch = import_torch(path.suffix)
  if zipfile.is_zipfile(path):  # PyTorch leaves the checksums unread.
    with zipfile.ZipFile(path) as archive:
      if damaged := archive.testzip():
        raise ValueError(f"another checksum of {damaged}")
  return torch.load(path, map_location="cpu", weights_only=True)
