"""dd_jax.files.artifacts: files that come back bit for bit, broken files, and image grids."""

import json
import os
import re
import stat

import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import artifacts

METADATA = {"network": "lenet", "normalisation": {"mean": [0.1307], "std": [0.3081]},
            "accuracy": 0.938, "classes": ["zéro", "one"], "fixed": True, "note": None}


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def hard():
  return dd_jax.DistilledData(normal(2, 3, 4, 4, 1), jnp.asarray([[0, 1, 2]] * 2, jnp.int32),
                              normal(5, 2, seed=1))


def soft():
  labels = jnp.asarray([[[0.25, 0.75], [1, 0], [0.5, 0.5]]] * 2, jnp.float32)
  return hard()._replace(labels=labels)


def weights():
  return {"Conv_0": {"kernel": normal(3, 3, 1, 2), "bias": jnp.zeros(2)},
          "Block": {"Inner": {"scale": normal(2, seed=1)}}, "temperature": jnp.float32(1.5),
          "count": jnp.asarray([3, 4], jnp.int32)}


def assert_identical(actual, expected):
  """The same nested structure, and every leaf the same to the bit."""
  if isinstance(expected, dict):
    assert set(actual) == set(expected)
    for name in expected:
      assert_identical(actual[name], expected[name])
  else:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("distilled, params, metadata", [
    (hard, None, None), (soft, None, METADATA), (hard, weights, METADATA),
])
def test_round_trip(tmp_path, distilled, params, metadata):
  path, params = tmp_path / "distilled.npz", params and params()
  artifacts.save(path, distilled(), init_params=params, metadata=metadata)
  loaded = artifacts.load(path)
  assert isinstance(loaded, dd_jax.Artifact)
  assert_identical(loaded.distilled._asdict(), distilled()._asdict())
  assert loaded.metadata == (metadata or {})
  if params is None:
    assert loaded.init_params is None
  else:
    assert_identical(loaded.init_params, params)
  assert [entry.name for entry in tmp_path.iterdir()] == ["distilled.npz"]


@pytest.mark.usefixtures("x64")
def test_round_trip_in_float64(tmp_path):
  distilled = dd_jax.DistilledData(*(jnp.asarray(x, dtype) for x, dtype in zip(
      hard(), ("float64", "int64", "float64"))))
  artifacts.save(tmp_path / "a.npz", distilled, init_params={"w": distilled.images})
  loaded = artifacts.load(tmp_path / "a.npz")
  assert_identical(loaded.distilled._asdict(), distilled._asdict())
  assert_identical(loaded.init_params, {"w": distilled.images})


def test_path_as_text_and_saving_again(tmp_path):
  path = str(tmp_path / "distilled.npz")
  artifacts.save(path, soft(), init_params=weights(), metadata=METADATA)
  first = artifacts.load(path)
  artifacts.save(path, hard(), init_params=first.init_params, metadata=first.metadata)
  second = artifacts.load(path)
  assert_identical(second.distilled._asdict(), hard()._asdict())
  assert_identical(second.init_params, weights())
  assert second.metadata == METADATA


def test_numpy_alone_reads_it(tmp_path):
  artifacts.save(tmp_path / "a.npz", hard(), init_params=weights(), metadata=METADATA)
  with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
    assert set(file) == {
        "images", "labels", "raw_step_sizes", "step_sizes", "metadata", "init/Conv_0/kernel",
        "init/Conv_0/bias", "init/Block/Inner/scale", "init/temperature", "init/count"}
    for name in ("images", "labels", "raw_step_sizes"):
      assert_identical(file[name], getattr(hard(), name))
    assert_identical(file["init/Conv_0/kernel"], weights()["Conv_0"]["kernel"])
    raw = file["raw_step_sizes"].astype(np.float64)
    np.testing.assert_allclose(file["step_sizes"], np.log1p(np.exp(raw)), rtol=1e-6)
    assert json.loads(str(file["metadata"])) == {
        "format_version": artifacts.FORMAT_VERSION, **METADATA}


def test_others_may_read_the_file(tmp_path):
  artifacts.save(tmp_path / "a.npz", hard())
  assert stat.S_IMODE(os.stat(tmp_path / "a.npz").st_mode) == 0o644


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
  start = raw.index(np.asarray(hard().images).tobytes())
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
  artifacts.save(path, hard()._replace(images=normal(2, 3, 28, 28, 1)))
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
    (lambda path: rewrite(path, labels=None, metadata=None), r"missing \['labels', 'metadata'\]"),
    (lambda path: rewrite(path, raw_step_sizes=None), r"missing \['raw_step_sizes'\]"),
    (lambda path: rewrite(path, images=np.zeros((2, 3, 4, 4), np.float32)),
     r"images must be finite floating point \[S, B, H, W, C\]; got float32 \[2, 3, 4, 4\]"),
    (lambda path: rewrite(path, images=np.full((2, 3, 4, 4, 1), np.nan)), "images .*nan"),
    (lambda path: rewrite(path, images=np.full((2, 3, 4, 4, 1), 1e300)), "images must fit float32"),
    (lambda path: rewrite(path, labels=np.array([[0, 1, 2], [0, 1, -1]])), "labels .* of -1..2"),
    (lambda path: rewrite(path, labels=np.zeros((2, 2), int)), r"labels .*B=3; got .*\[2, 2\]"),
    (lambda path: rewrite(path, labels=np.full((2, 3), 2**40)), "labels must fit int32"),
    (lambda path: rewrite(path, raw_step_sizes=np.zeros((5, 3))), r"raw_step_sizes .* with S=2"),
    (lambda path: rewrite(path, raw_step_sizes=np.zeros((5, 2))), "must be the softplus"),
    (lambda path: rewrite(path, step_sizes=None), r"missing \['step_sizes'\]"),
    (lambda path: rewrite(path, more=np.array("text")), "'more' as an array of numbers"),
    (lambda path: rewrite(path, **{"init/a": np.ones(2), "init/a/b": np.ones(2)}), "init/'a/b'"),
    (shrunk, "cannot be read: more bytes of images than its shape"),
    (metadata('{"format_version": 1e999}'), "metadata .*integer"),
    (metadata('{"format_version": 0}'), "metadata .*integer"),
    (metadata(10000 * "["), "metadata .*Recursion"),
    (metadata('{"format_version": 99}'),
     f"format version 99; this package reads up to {artifacts.FORMAT_VERSION}"),
    (metadata("{"), "metadata"),
    (metadata("[]"), "metadata"),
    (metadata("{}"), "metadata|format"),
    (metadata('{"format_version": "x"}'), "metadata|format"),
], ids=["empty", "text", "zip header", "folder", "tenth", "half", "nearly whole", "flipped bit",
        "compression", "npy", "pickled", "no images", "no labels", "no step sizes", "rank", "NaN",
        "beyond float32", "negative label", "batch", "beyond int32", "steps", "softplus",
        "no softplus", "text", "array in array", "shrunk shape", "infinite version", "version 0",
        "deep JSON", "newer", "not JSON", "JSON list", "no version", "odd version"])
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
    ({"init_params": [np.ones(2)]}, "init_params must be nested dicts of arrays; got .*list"),
    ({"init_params": {"w": object()}}, "init_params must be nested dicts of arrays"),
    ({"init_params": {"w": None}}, "init_params must be nested dicts of arrays"),
], ids=["object", "numpy scalar", "list", "weights in a list", "an object", "None"])
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
    ({"images": np.zeros((2, 3, 4))}, "distilled: images must be finite floating point"),
    ({"labels": np.zeros((2, 3))}, "distilled: labels must be classes"),
    ({"raw_step_sizes": np.full((5, 2), np.inf)}, "distilled: raw_step_sizes must be finite"),
    ({"images": np.zeros((2, 3, 4, 4, 1), np.longdouble)}, "images must be a numpy array of"),
])
def test_distilled_data_that_cannot_be_saved(tmp_path, change, text):
  with pytest.raises(ValueError, match=text):
    artifacts.save(tmp_path / "a.npz", hard()._replace(**change))
  assert not list(tmp_path.iterdir())


def test_pool_of_several_sizes(tmp_path):
  path = tmp_path / "pool.npz"
  with pytest.raises(ValueError, match=r"params must be arrays \[P, ...\] .*\(2,\), \(3,\)"):
    artifacts.save_pool(path, {"a": np.ones((2, 1)), "b": np.ones(3)}, {})
  np.savez(path, **{"params/a": np.ones(()), "metadata": '{"format_version": 1}'})
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))} must be arrays \[P, ...\]"):
    artifacts.load_pool(path)


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_image_grid(channels, gap):
  images = np.random.default_rng(0).random((2, 3, 4, 5, channels), np.float32)
  grid = artifacts.image_grid(images, gap=gap)
  assert grid.shape == (2 * 4 + 3 * gap, 3 * 5 + 4 * gap, 3)
  white = np.ones(grid.shape[:2], bool)
  for row in range(2):
    for column in range(3):
      y, x = gap + row * (4 + gap), gap + column * (5 + gap)
      white[y:y + 4, x:x + 5] = False
      for channel in range(3):
        np.testing.assert_array_equal(grid[y:y + 4, x:x + 5, channel],
                                      images[row, column, :, :, min(channel, channels - 1)])
  assert np.all(grid[white] == 1)
  assert white.sum() == white.size - 6 * 20


def test_image_grid_has_a_gap_of_one_pixel():
  np.testing.assert_array_equal(
      artifacts.image_grid(np.zeros((1, 2, 1, 1, 1)))[..., 0], [[1] * 5, [1, 0, 1, 0, 1], [1] * 5])


@pytest.mark.parametrize("channels", [2, 4])
def test_image_grid_channels(channels):
  with pytest.raises(ValueError, match=f"must have 1 or 3 channels to be shown; got {channels}"):
    artifacts.image_grid(np.zeros((1, 1, 2, 2, channels)))
