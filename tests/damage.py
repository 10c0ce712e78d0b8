"""Damage to files, and what a reader may make of it: for property-based tests.

A reader gives back what was written, or raises its documented error: one line that names the
file. Where a format carries checksums (gzip, bz2, npz, tfrecord, compressed MATLAB, PNG, PyTorch's
zip) nothing else is allowed. The others cannot notice every change of their bytes: what they
give then has the documented shape, type and range, and its values are those that the file holds.
No file runs code. Each example is a drawn file with a drawn damage.
"""

import io
import pathlib
import pickle
import struct
import zipfile

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

HUGE = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def examples(number):
  return hypothesis.settings(max_examples=number, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))


def damage_file(data, path, fields=()):
  """`damaged` content in a file; whether it is another than before."""
  whole = path.read_bytes()
  path.write_bytes(damaged(data, whole, fields))
  return path.read_bytes() != whole


def damaged(data, raw, fields=()):
  """`raw` after a drawn damage, or whole.

  Args:
    data: hypothesis's.
    raw: bytes.
    fields: `(offset, struct format)` of integers in a header, to be made huge.
  """
  kind = data.draw(st.sampled_from(
      ["whole", "cut", "flip", "digit", "delete", "insert", "repeat", "zeros", "random"]
      + 3 * ["field"] * bool(fields)), "damage")
  last = max(len(raw) - 1, 0)
  start = data.draw(st.integers(0, min(last, 300)) | st.integers(0, last), "at")  # Headers often.
  end = start + data.draw(st.integers(1, 40), "bytes")
  if kind == "cut":
    return raw[:start]
  if kind == "flip":
    return raw[:start] + bytes([raw[start] ^ 1 << data.draw(st.integers(0, 7))]) + raw[start + 1:]
  if kind == "digit":
    return raw[:start] + bytes([data.draw(st.sampled_from(b"0123456789"))]) + raw[start + 1:]
  if kind == "delete":
    return raw[:start] + raw[end:]
  if kind == "insert":
    return raw[:start] + data.draw(st.binary(min_size=1, max_size=40)) + raw[start:]
  if kind == "repeat":
    return raw[:end] + raw[start:]
  if kind == "zeros":
    return raw[:start] + bytes(len(raw[start:end])) + raw[end:]
  if kind == "random":
    return data.draw(st.binary(max_size=200))
  if kind == "field":
    offset, size = data.draw(st.sampled_from(fields))
    value = data.draw(st.sampled_from(HUGE)) % 256 ** struct.calcsize(size)
    return raw[:offset] + struct.pack(size, value) + raw[offset + struct.calcsize(size):]
  return raw


def outcome(read, *paths):
  """What `read(*paths)` gives, or None for a documented error."""
  try:
    return read(*paths)
  except (FileNotFoundError, ValueError) as error:
    assert type(error) in (FileNotFoundError, ValueError), repr(error)
    assert str(error).splitlines() == [str(error)], repr(error)
    assert any(str(path) in str(error) for path in paths), repr(error)
    return None


def assert_equal(actual, expected):
  """The same arrays, types included."""
  for a, b in zip(actual, expected, strict=True):
    assert type(a) is np.ndarray and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def write_npz(path, arrays, also=()):
  """As `np.savez`, with members `also`: `[(name, bytes)]`, names taken twice included."""
  with zipfile.ZipFile(path, "w") as archive:
    for name, array in arrays.items():
      buffer = io.BytesIO()
      np.lib.format.write_array(buffer, np.asarray(array))
      archive.writestr(f"{name}.npy", buffer.getvalue())
    for name, raw in also:
      archive.writestr(name, raw)


_TYPES = (np.uint8, np.int8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64,
          np.longdouble, np.complex64, np.bool_, ">f4", ">i4", "S3", "U3", "M8[s]", object,
          [("a", "f4"), ("b", "i4")])


def changed_array(data, array):
  """`array` with another type, shape, order or values."""
  kinds = ["type", "shape", "order", "value", "empty", "scalar"]
  kind = data.draw(st.sampled_from(kinds), "change")
  if kind == "type":
    kind = data.draw(st.sampled_from(_TYPES))
    return np.zeros(array.shape, kind) if isinstance(kind, list) else array.astype(kind)
  if kind == "shape":
    return data.draw(st.sampled_from([array[:-1], array[:, None], array[0], array.ravel(),
                                      array[None], np.concatenate([array, array])]))
  if kind == "order":
    return np.asfortranarray(array)
  if kind == "value":
    array = np.array(array)
    values = [-1, 2, 7, 2**31, 2**40, np.nan, np.inf, -np.inf, 1e300]
    value = data.draw(st.sampled_from(values))
    if array.dtype.kind in "iu":
      array = array.astype(np.int64)
      value = value if isinstance(value, int) else 3
    elif isinstance(value, float) and array.dtype == np.float32:
      array = array.astype(np.float64)
    array.flat[data.draw(st.integers(0, array.size - 1))] = value
    return array
  return array[:0] if kind == "empty" else np.array(array.flat[0])


def other_npz(data, path, arrays, others=None):
  """Writes the arrays after a drawn change: one that is other, absent, no array, or there twice.

  Args:
    data: hypothesis's.
    path: what to write.
    arrays: by name; one of them changes.
    others: more arrays, that stay.

  Returns:
    The arrays as written; None where the file is one that no reader may take.
  """
  arrays, others = dict(arrays), others or {}
  name = data.draw(st.sampled_from(sorted(arrays)), "array")
  kind = data.draw(st.sampled_from(4 * ["other"] + ["absent", "text", "twice"]), "member")
  changed = None
  if kind == "twice":
    buffer = io.BytesIO()
    np.save(buffer, np.zeros_like(arrays[name]))
    with pytest.warns(UserWarning, match="Duplicate name"):
      write_npz(path, arrays | others, [(f"{name}.npy", buffer.getvalue())])
  elif kind == "other":
    arrays[name] = changed_array(data, arrays[name])
    write_npz(path, arrays | others)
    changed = None if arrays[name].dtype.hasobject else arrays
  else:
    del arrays[name]
    write_npz(path, arrays | others,
              [(data.draw(st.sampled_from([name, f"{name}.npy"])), b"no array")] * (kind == "text"))
  return changed


# Hostile files


class Trap:
  """Creates a file when it is unpickled."""

  def __init__(self, marker):
    self.marker = marker

  def __reduce__(self):
    return pathlib.Path.touch, (self.marker,)


def pickles(trap):
  """`{kind: bytes}`: pickles bare and in the files that can hold them."""
  objects = io.BytesIO()
  np.save(objects, np.array([trap], object))
  in_zip, in_npz = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(in_zip, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({"features.0.weight": trap}, protocol=2))
    archive.writestr("archive/version", b"3\n")
  names = ("train_images", "train_labels", "test_images", "test_labels", "images", "labels",
           "raw_step_sizes", "step_sizes", "metadata", "params/w", "features.0.weight")
  np.savez(in_npz, **dict.fromkeys(names, np.array([trap], object)))
  return {f"protocol {i}": pickle.dumps(trap, protocol=i) for i in (0, 2, 4)} | {
      "npy": objects.getvalue(), "npz": in_npz.getvalue(), "PyTorch's zip": in_zip.getvalue()}
