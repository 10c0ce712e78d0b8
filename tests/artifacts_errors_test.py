"""dd_jax.files.artifacts: files that cannot be read, and what cannot be saved."""

import re

import numpy as np
import pytest

from dd_jax.datasets import host_memory
from dd_jax.datasets import npz
from dd_jax.files import archive
from dd_jax.files import artifacts
from tests.artifacts_test import METADATA
from tests.artifacts_test import hard
from tests.artifacts_test import normal
from tests.artifacts_test import soft
from tests.artifacts_test import weights


def rewrite(path, **changes):
  """A whole file with some arrays replaced; None leaves one out."""
  artifacts.save(path, hard())
  with np.load(path) as file:
    arrays = {**{name: file[name] for name in file}, **changes}
  np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def metadata(text):
  return lambda path: rewrite(path, metadata=np.array(text))


def truncated(share):
  def write(path):
    artifacts.save(path, hard(), init_params=weights())
    raw = path.read_bytes()
    path.write_bytes(raw[:int(share * len(raw))])
  return write


def flipped(path):
  artifacts.save(path, hard())
  raw = bytearray(path.read_bytes())
  start = raw.index(np.asarray(hard().inputs).tobytes())
  raw[start] ^= 1
  path.write_bytes(raw)


def foreign(path):
  """A local file header that asks for a compression nobody has."""
  artifacts.save(path, hard())
  raw = bytearray(path.read_bytes())
  directory = raw.index(b"PK\1\2")
  raw[8] = raw[directory + 10] = 99
  path.write_bytes(raw)


def shrunk(path):
  """A shape that leaves the last step out, before the checksum of the array."""
  artifacts.save(path, hard()._replace(inputs=normal(2, 3, 28, 28, 1)))
  raw = path.read_bytes()
  path.write_bytes(raw.replace(b"(2, 3, 28, 28, 1)", b"(1, 3, 28, 28, 1)"))


def lone_array(path):
  with open(path, "wb") as file:
    np.save(file, np.ones(3))


@pytest.mark.parametrize("write, text", [
    (lambda path: path.write_bytes(b""), "cannot be read"),
    (lambda path: path.write_bytes(b"not a zip file"), "cannot be read"),
    (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "cannot be read"),
    (lambda path: path.mkdir(), "cannot be read"),
    (truncated(0.1), "cannot be read"),
    (truncated(0.5), "cannot be read"),
    (truncated(0.99), "cannot be read"),
    (flipped, "cannot be read"),
    (foreign, "cannot be read"),
    (lone_array, r"distilled \.npz"),
    (lambda path: rewrite(path, images=np.array([None])), "cannot be read"),
    (lambda path: rewrite(path, images=None), r"missing \['images'\]"),
    (lambda path: rewrite(path, labels=None, step_sizes=None),
     r"missing \['labels', 'step_sizes'\]"),
    (lambda path: rewrite(path, metadata=None), r"missing \['metadata'\]"),
    (lambda path: rewrite(path, images=np.zeros((2, 3, 4, 4), np.float32)),
     r"images must be finite floating point \[S, B, H, W, C\]; got float32 \[2, 3, 4, 4\]"),
    (lambda path: rewrite(path, images=np.full((2, 3, 4, 4, 1), np.nan)), "images .*nan"),
    (lambda path: rewrite(path, images=np.full((2, 3, 4, 4, 1), 1e300)), "images must fit float32"),
    (lambda path: rewrite(path, labels=np.array([[0, 1, 2], [0, 1, -1]])), "labels .* of -1..2"),
    (lambda path: rewrite(path, labels=np.zeros((2, 2), int)),
     r"labels .*S, B = \[2, 3\]; got .*\[2, 2\]"),
    (metadata('{"format_version": 2, "num_classes": 2}'),
     r"labels must lie in 0\.\.1, as num_classes of the metadata says; got 2"),
    (lambda path: rewrite(path, labels=np.full((2, 3), 2**40)), "labels must fit int32"),
    (lambda path: rewrite(path, step_sizes=np.zeros((5, 3))), r"step_sizes .* with S = 2"),
    (lambda path: rewrite(path, step_sizes=np.full((5, 2), np.inf)), "step_sizes .* inf"),
    (lambda path: rewrite(path, inputs=np.ones((2, 3, 4))), "images or inputs; got both"),
    (lambda path: rewrite(path, images=None, **{
        "inputs/a": np.ones((2, 3)), "inputs/b": np.ones((2, 4))}), r"inputs\['b'\] must be"),
    (lambda path: rewrite(path, images=None, **{"inputs/{}": np.ones(0)}),
     "inputs must hold an array; got {}"),
    (lambda path: rewrite(path, more=np.array("text")), "'more' as an array of numbers"),
    (lambda path: rewrite(path, **{"init/a": np.ones(2), "init/a/b": np.ones(2)}),
     "'init/a/b' lies within another array"),
    (lambda path: rewrite(path, **{"init": np.ones(2), "init/a": np.ones(2)}), "'init/a' lies"),

    (shrunk, "cannot be read: more bytes of images than its shape"),
    (metadata('{"format_version": 1e999}'), "metadata .*integer"),
    (metadata('{"format_version": 0}'), "metadata .*integer"),
    (metadata(10000 * "["), "metadata .*Recursion"),
    (metadata('{"format_version": 99}'),
     f"format version 99; this package reads up to {archive.FORMAT_VERSION}"),
    (metadata("{"), "metadata"),
    (metadata("[]"), "metadata"),
    (metadata("{}"), "metadata|format"),
    (metadata('{"format_version": "x"}'), "metadata|format"),
], ids=["empty", "text", "zip header", "folder", "tenth", "half", "nearly whole", "flipped bit",
        "compression", "npy", "pickled", "no images", "no labels", "no metadata", "rank", "NaN",
        "beyond float32", "negative label", "batch", "unknown class", "beyond int32", "steps",
        "infinite", "both", "two batches",
        "no inputs", "text", "array in array", "array in tree", "shrunk shape",
        "infinite version", "version 0", "deep JSON", "newer", "not JSON", "JSON list",
        "no version", "odd version"])
def test_unreadable_files(tmp_path, write, text):
  """One line that begins with the path and says what is wrong."""
  path = tmp_path / "broken.npz"
  write(path)
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}[^\n]*({text})[^\n]*\Z"):
    artifacts.load(path)


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.npz"):
    artifacts.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("options, text", [
    ({"metadata": {"when": object()}}, "metadata must be JSON: .*object"),
    ({"metadata": {"accuracy": np.float32(0.5)}}, "metadata must be JSON: .*float32"),
    ({"metadata": ["a list"]}, "metadata must be"),
    ({"metadata": {"num_classes": 2}}, r"distilled: labels must lie in 0\.\.1, .*; got 2"),
    ({"init_params": {"w": object()}},
     "init_params must be dicts, lists and tuples of arrays of numbers; got object"),
    ({"init_params": {"w": None}},
     "init_params must be dicts, lists and tuples of arrays; got NoneType"),
], ids=["object", "numpy scalar", "list", "too few classes", "an object", "None"])
def test_what_cannot_be_saved(tmp_path, options, text):
  """The error names the argument; the file that was there stays, and nothing beside it."""
  path = tmp_path / "a.npz"
  artifacts.save(path, soft(), metadata=METADATA)
  before = path.read_bytes()
  with pytest.raises(ValueError, match=text):
    artifacts.save(path, hard(), **options)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change, text", [
    ({"inputs": np.zeros((2, 3, 4, 4, 1), int)}, "distilled: images must be finite floating point"),
    ({"inputs": np.full((2, 3, 4), np.nan)}, "distilled: inputs must be finite numbers"),
    ({"inputs": np.zeros(3)}, "distilled: inputs must be finite numbers"),
    ({"inputs": [np.zeros((2, 3)), np.zeros((2, 1))]}, r"distilled: inputs\[1\] must be finite"),
    ({"inputs": None}, "inputs must be dicts, lists and tuples of arrays; got NoneType"),
    ({"inputs": ()}, r"distilled: inputs must hold an array; got \(\)"),
    ({"labels": np.zeros((2, 3))}, "distilled: labels must be classes"),
    ({"step_sizes": np.full((5, 2), np.inf)}, "distilled: step_sizes must be finite"),
    ({"inputs": np.zeros((2, 3, 4, 4, 1), np.longdouble)}, "inputs must be .* of numbers; got"),
    ({"labels": np.array([["a"] * 3] * 2)}, "labels must be a numpy array of numbers; got <U1"),
])
def test_distilled_data_that_cannot_be_saved(tmp_path, change, text):
  with pytest.raises(ValueError, match=text):
    artifacts.save(tmp_path / "a.npz", hard()._replace(**change))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("stopped")])
def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch, error):
  path = tmp_path / "a.npz"
  artifacts.save(path, soft(), metadata=METADATA)
  before = path.read_bytes()

  def half_of_it(file, **arrays):
    file.write(b"PK half of it")
    raise error

  monkeypatch.setattr(np, "savez", half_of_it)
  with pytest.raises(type(error), match=str(error)):
    artifacts.save(path, hard())
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_failing_first_write_leaves_nothing(tmp_path, monkeypatch):
  def fails(file, **arrays):
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez", fails)
  with pytest.raises(OSError, match="disk full"):
    artifacts.save(tmp_path / "a.npz", hard())
  assert not list(tmp_path.iterdir())


def test_arrays_larger_than_memory_are_refused_before_they_are_read(tmp_path):
  """A few bytes of zeros, compressed, can claim any size."""
  path = tmp_path / "bomb.npz"
  np.savez_compressed(path, images=np.zeros(200_000, np.float32))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(host_memory, "free_bytes", lambda: 500_000)
    with pytest.raises(ValueError, match="arrays of 0.0008 GB, and 0.0005 GB are free"):
      artifacts.load(path)
    assert npz.read(path, ("labels",)) == {}  # What is not asked for does not count.


@pytest.mark.parametrize("name, value, text", [
    ("num_eval_inits", "5", "num_eval_inits of the metadata must be int; got '5'"),
    ("objective", None, "objective of the metadata must be dict; got None"),
    ("model", ["lenet"], "model of the metadata must be str or NoneType; got ['lenet']"),
    ("seed", 1.5, "seed of the metadata must be int; got 1.5"),
    ("mean", None, "mean of the metadata must be list; got None"),
])
def test_metadata_of_another_type(tmp_path, name, value, text):
  path = tmp_path / "a.npz"
  artifacts.save(path, hard(), metadata={name: value})
  with pytest.raises(ValueError, match=re.escape(f"{path}: {text}")):
    artifacts.load(path)
