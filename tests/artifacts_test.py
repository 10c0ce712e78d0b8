"""dd_jax.files.artifacts: files that come back bit for bit, old files and broken ones."""

import json
import os
import re
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import whitening
from dd_jax.files import archive
from dd_jax.files import artifacts

METADATA = {"network": "lenet", "normalisation": {"mean": [0.1307], "std": [0.3081]},
            "accuracy": 0.938, "classes": ["zéro", "one"], "fixed": True, "note": None}


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def hard():
  return dd_jax.DistilledData(normal(2, 3, 4, 4, 1), jnp.asarray([[0, 1, 2]] * 2, jnp.int32),
                              jax.nn.softplus(normal(5, 2, seed=1)))


def soft():
  labels = jnp.asarray([[[0.25, 0.75], [1, 0], [0.5, 0.5]]] * 2, jnp.float32)
  return hard()._replace(labels=labels)


def weights():
  return {"Conv_0": {"kernel": normal(3, 3, 1, 2), "bias": jnp.zeros(2)},
          "Block": {"Inner": {"scale": normal(2, seed=1)}}, "temperature": jnp.float32(1.5),
          "count": jnp.asarray([3, 4], jnp.int32)}


# What networks of other libraries keep their weights in.
TREES = {
    "haiku": {"mlp/~/linear_0": {"w": normal(2, 2), "b": jnp.zeros(2)}, "mlp/~/linear_1": {}},
    "nnx.Sequential": {"layers": {0: {"kernel": normal(2, 2)}, 2: {"kernel": normal(2, 1)}}},
    "stax": [(normal(2, 2), jnp.zeros(2)), (), (normal(2, 1), jnp.zeros(1)), ()],
    "lists and tuples": {"layers": [[normal(2, 3)], (normal(2, 1), [], {})], "": (jnp.zeros(2),)},
    "one array": normal(2, 2),
    "odd keys": {"#3": normal(2), "[0]": {"(1)": {"{}": normal(2, 3)}}, "50 %2F": normal(2, 1),
                 "a\0b\\c\n": normal(2, 5), "é.npy": normal(2, 2), "{}": {-7: normal(2)}},
}


def assert_identical(actual, expected):
  """The same tree, and every leaf the same to the bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    a, e = np.asarray(a), np.asarray(e)
    assert (a.shape, a.dtype) == (e.shape, e.dtype)
    assert a.tobytes() == e.tobytes()


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


@pytest.mark.parametrize("name", TREES)
def test_weights_of_any_library_come_back(tmp_path, name):
  artifacts.save(tmp_path / "a.npz", hard()._replace(hyper=TREES[name]), init_params=TREES[name])
  loaded = artifacts.load(tmp_path / "a.npz")
  assert_identical(loaded.init_params, TREES[name])
  assert_identical(loaded.distilled.hyper, TREES[name])


@pytest.mark.parametrize("hyper", [(), {}, {"decay": jnp.float32(.5)}])
def test_hyper_parameters_come_back(tmp_path, hyper):
  artifacts.save(tmp_path / "a.npz", hard()._replace(hyper=hyper))
  assert_identical(artifacts.load(tmp_path / "a.npz").distilled.hyper, hyper)


@pytest.mark.parametrize("inputs, names", [
    (normal(2, 3, 5), {"inputs"}),
    (normal(2, 3), {"inputs"}),
    (normal(2, 3, 4, 4, 1), {"images"}),
    ({"image": normal(2, 3, 4, 4, 1), "tokens": jnp.ones((2, 3, 7), jnp.int32)},
     {"inputs/image", "inputs/tokens"}),
    ((normal(2, 3, 5), ()), {"inputs/(0)", "inputs/(1)/()"}),
])
def test_inputs_of_every_kind_come_back(tmp_path, inputs, names):
  distilled = hard()._replace(inputs=inputs, labels=normal(2, 3, 2))  # Targets of a regression.
  artifacts.save(tmp_path / "a.npz", distilled)
  with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
    assert set(file) == {*names, "labels", "step_sizes", "metadata"}
  assert_identical(artifacts.load(tmp_path / "a.npz").distilled, distilled)


def test_inputs_that_are_no_images():
  artifact = dd_jax.Artifact(hard()._replace(inputs={"row": normal(2, 3, 5)}), None,
                             {"mean": [0.], "std": [1.], "pixel_scale": 255})
  for use in (lambda: artifact.normalize(np.zeros((1, 4, 4, 1))), artifact.pixels,
              artifact.pictures, lambda: artifact.images):
    with pytest.raises(ValueError, match=r"\Ainputs must be images \[S, B, H, W, C\] for this; the "
                                         r"file has {'inputs/row': 'float32 \[2, 3, 5\]'}\Z"):
      use()


@pytest.mark.usefixtures("x64")
def test_round_trip_in_float64(tmp_path):
  distilled = dd_jax.DistilledData(*(jnp.asarray(x, dtype) for x, dtype in zip(
      hard(), ("float64", "int64", "float64"))))
  artifacts.save(tmp_path / "a.npz", distilled, init_params={"w": distilled.inputs})
  loaded = artifacts.load(tmp_path / "a.npz")
  assert_identical(loaded.distilled._asdict(), distilled._asdict())
  assert_identical(loaded.init_params, {"w": distilled.inputs})


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
        "images", "labels", "step_sizes", "metadata", "init/Conv_0/kernel",
        "init/Conv_0/bias", "init/Block/Inner/scale", "init/temperature", "init/count"}
    for name, expected in zip(("images", "labels", "step_sizes"), hard()):
      assert_identical(file[name], expected)
    assert_identical(file["init/Conv_0/kernel"], weights()["Conv_0"]["kernel"])
    assert json.loads(str(file["metadata"])) == {
        "format_version": archive.FORMAT_VERSION, **METADATA}


def version_1(path, **changes):
  """A file as version 1 wrote it, with some arrays replaced; None leaves one out."""
  raw = np.asarray(normal(5, 2, seed=1))
  arrays = {"images": hard().inputs, "labels": hard().labels, "raw_step_sizes": raw,
            "step_sizes": np.log1p(np.exp(raw)), "hyper/decay": np.float32(.5),
            "init/Conv_0/kernel": weights()["Conv_0"]["kernel"],
            "metadata": json.dumps({"format_version": 1, "trajectory": "implicit_trajectory",
                                    "inner_loss": "mean cross-entropy of images[s]", "seed": 3}),
            **changes}
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return arrays


def test_a_file_of_version_1(tmp_path):
  arrays = version_1(tmp_path / "old.npz")
  distilled, params, metadata, fitted = artifacts.load(tmp_path / "old.npz")
  assert_identical(distilled, dd_jax.DistilledData(
      hard().inputs, hard().labels, arrays["step_sizes"], {"decay": np.float32(.5)}))
  assert_identical(params, {"Conv_0": {"kernel": arrays["init/Conv_0/kernel"]}})
  assert metadata == {"inner_algorithm": "implicit", "inner_loss": "classification", "seed": 3}
  assert fitted is None
  artifacts.save(tmp_path / "new.npz", distilled, init_params=params, metadata=metadata)
  assert_identical(artifacts.load(tmp_path / "new.npz")[:2], (distilled, params))


@pytest.mark.parametrize("raw", [np.zeros((5, 2), np.float32), np.zeros((5, 3), np.float32),
                                 np.full((5, 2), np.nan, np.float32)])
def test_step_sizes_of_version_1_that_differ(tmp_path, raw):
  version_1(tmp_path / "old.npz", raw_step_sizes=raw)
  with pytest.raises(ValueError, match="old.npz: step_sizes must be the softplus of raw_step_si"):
    artifacts.load(tmp_path / "old.npz")


def test_a_whitening_that_does_not_fit(tmp_path):
  fitted = whitening.fit(np.asarray(normal(50, 4, 4, 1)))
  artifacts.save(tmp_path / "a.npz", hard(), whitening=fitted)
  assert_identical(artifacts.load(tmp_path / "a.npz").whitening, fitted)
  for distilled, other in ((hard(), fitted._replace(mean=np.zeros(3, np.float32))),
                           (hard(), fitted._replace(scales=-fitted.scales)),
                           (hard()._replace(inputs={"image": hard().inputs}), fitted)):
    with pytest.raises(ValueError, match="distilled must hold a whitening of its images, finite"):
      artifacts.save(tmp_path / "b.npz", distilled, whitening=other)


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
    (lambda path: rewrite(path, labels=np.zeros((2, 2), int)), r"labels .*S, B = \[2, 3\]; got .*\[2, 2\]"),
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
        "beyond float32", "negative label", "batch", "beyond int32", "steps", "infinite", "both",
        "two batches", "no inputs", "text", "array in array", "array in tree", "shrunk shape",
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
    ({"init_params": {"w": object()}},
     "init_params must be dicts, lists and tuples of arrays of numbers; got object"),
    ({"init_params": {"w": None}},
     "init_params must be dicts, lists and tuples of arrays; got NoneType"),
], ids=["object", "numpy scalar", "list", "an object", "None"])
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
