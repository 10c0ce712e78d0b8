"""Numeric arrays from MATLAB 5 files, the format of the official SVHN.

scipy reads them too, but some damaged files end its process with a segmentation fault.
Source: MathWorks, "MAT-File Format", chapter "Level 5 MAT-File Format".
"""

import math
import struct
import zlib

import numpy as np

_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_STORED_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", _INT32: "i4", _UINT32: "u4", 7: "f4", 9: "f8",
                 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8",
            15: "u8"}
_COMPLEX = 0x800
_MOST_BYTES = 2**31  # decompressed: a hostile variable can grow a thousand times


def read(raw):
  """`{name: array}` of the variables that are real numbers in the content of a file.

  Raises:
    ValueError: the file is truncated, corrupt or of another version.
    zlib.error: a compressed variable is corrupt.
  """
  raw = memoryview(raw)
  order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(bytes(raw[124:128]))
  if order is None:
    raise ValueError("no header of version 5")
  arrays = {}
  for kind, content in _elements(raw[128:], order):
    if kind == _COMPRESSED:
      ((kind, content),) = _elements(memoryview(_decompressed(content)), order)
    if kind != _MATRIX:
      raise ValueError(f"an element of type {kind} in place of a variable")
    name, array = _variable(content, order)
    if name in arrays:
      raise ValueError(f"the variable {name} twice")
    if array is not None:
      arrays[name] = array
  return arrays


def _decompressed(content):
  stream = zlib.decompressobj()
  raw = stream.decompress(content, _MOST_BYTES)
  if not stream.eof:
    raise ValueError(f"a variable cut short, or of more than {_MOST_BYTES} bytes")
  return raw


def _elements(buffer, order):
  """Yields `(type, content)` of the elements that follow one another."""
  start = 0
  while start < len(buffer):
    if len(buffer) - start < 8:
      raise ValueError(f"{len(buffer) - start} bytes in place of a tag of 8")
    kind, size = struct.unpack_from(f"{order}II", buffer, start)
    begin, most = start + 8, len(buffer) - start - 8
    following = begin + size if kind == _COMPRESSED else begin + size + -size % 8
    if kind >> 16:  # Up to 4 bytes of content lie in the tag itself.
      kind, size, begin, most, following = kind & 0xFFFF, kind >> 16, start + 4, 4, start + 8
    if size > most:
      raise ValueError(f"an element of {size} bytes where {most} are left")
    yield kind, buffer[begin:begin + size]
    start = following


def _variable(content, order):
  """`(name, array)`; the array of anything but real numbers is None."""
  elements = list(_elements(content, order))
  flags = _numbers(*elements[0], order) if elements else ()
  if len(flags) != 2 or flags.dtype.kind != "u":
    raise ValueError("a variable without flags")
  number_class = int(flags[0]) & 0xFF
  if number_class not in _CLASSES or flags[0] & _COMPLEX:
    return None, None
  if len(elements) != 4:
    raise ValueError(f"a variable of {len(elements)} elements in place of 4")
  shape = tuple(_numbers(*elements[1], order).tolist())
  values, dtype = _numbers(*elements[3], order), np.dtype(_CLASSES[number_class])
  if not np.can_cast(values.dtype, dtype) or min(shape, default=0) < 0:
    raise ValueError(f"a variable of {dtype} {list(shape)} stored as {values.dtype}")
  if len(values) != math.prod(shape):
    raise ValueError(f"{len(values)} numbers for the shape {list(shape)}")
  return bytes(elements[2][1]).decode("ascii"), values.astype(dtype, copy=False).reshape(
      shape, order="F")


def _numbers(kind, content, order):
  if kind not in _STORED_TYPES:
    raise ValueError(f"numbers of type {kind}")
  return np.frombuffer(content, order + _STORED_TYPES[kind])
