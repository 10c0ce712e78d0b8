""".npz files, read though they may be damaged or hostile."""

import os
from typing import Any

import numpy as np

from dd_jax.datasets import host_memory


def read(path: str | os.PathLike, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
  """The arrays of a .npz file, whole and in the byte order of this machine.

  `np.load` compares the checksum of an array when it comes to its end, which a damaged shape can
  move; takes the last of two arrays of one name; and gives bytes for what is no array.

  Args:
    path: a file of `np.savez`.
    names: which arrays to read, if they are there; all when None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: its arrays need more memory than is free.
    Exception: nearly any, for a file that is damaged or would have to be unpickled.
  """
  arrays = {}
  with np.load(path, allow_pickle=False) as file:
    if len(set(file.files)) < len(file.files):
      raise ValueError(f"an array twice in {sorted(file.files)}")
    wanted = file.files if names is None else names
    members = {name: member for member in file.zip.infolist()
               if (name := member.filename.removesuffix(".npy")) in wanted}
    needed, free = sum(member.file_size for member in members.values()), host_memory.free_bytes()
    if free is not None and needed > free:
      raise ValueError(f"arrays of {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")
    for name, member in members.items():
      with file.zip.open(member) as stored:
        array = np.lib.format.read_array(stored, allow_pickle=False)
        if stored.read(1):
          raise ValueError(f"more bytes of {name} than its shape {array.shape} has")
      arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
  return arrays


def numeric(value: Any, rule: str) -> np.ndarray:
  """`value` as an array of numbers that a file can hold and JAX can take.

  Args:
    value: an array of NumPy or JAX, or a number.
    rule: begins the message: "init_params must be arrays".

  Raises:
    ValueError: it is something else: npz would pickle objects and cannot hold bfloat16.
  """
  try:
    array = np.asarray(value)
  except TypeError as error:  # Typed keys of JAX.
    raise ValueError(f"{rule} of numbers; got {type(value).__name__}: {error}") from error
  if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
    raise ValueError(f"{rule} of numbers; got {array.dtype}")
  return array
