"""Reading .npz files that may be damaged or hostile."""

import os

import numpy as np


def read(path: str | os.PathLike, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
  """The arrays of a .npz file, whole and in the byte order of this machine.

  `np.load` compares the checksum of an array when it comes to its end, which a damaged shape can
  move; takes the last of two arrays of one name; and gives bytes for what is no array.

  Args:
    path: a file of `np.savez`.
    names: which arrays to read, if they are there; all when None.

  Raises:
    FileNotFoundError: there is no such file.
    Exception: nearly any, for a file that is damaged or would have to be unpickled.
  """
  arrays = {}
  with np.load(path, allow_pickle=False) as file:
    if len(set(file.files)) < len(file.files):
      raise ValueError(f"an array twice in {sorted(file.files)}")
    for member in file.zip.namelist():
      name = member.removesuffix(".npy")
      if names is not None and name not in names:
        continue
      with file.zip.open(member) as stored:
        array = np.lib.format.read_array(stored, allow_pickle=False)
        if stored.read(1):
          raise ValueError(f"more bytes of {name} than its shape {array.shape} has")
      arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
  return arrays
