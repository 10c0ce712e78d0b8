"""Readers of distilled data, pools and weights against damaged and hostile files; see `damage`."""

import functools
import pickle

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import artifacts
from dd_jax.files import exports
from dd_jax.files import imagenet_weights
from dd_jax.files import pools
from dd_jax.files import trees
from tests import alexnet_files
from tests import damage
from tests.arrays import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


# distilled.npz and pools


def distilled(data):
  num_steps, batch, epochs = (data.draw(st.integers(1, 2)) for _ in range(3))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  size = data.draw(st.sampled_from([2, 40]))  # zipfile reads on by 4096 bytes.
  images = rng.standard_normal((num_steps, batch, size, size, 1), np.float32)
  labels = (rng.integers(0, 10, (num_steps, batch), np.int32) if data.draw(st.booleans())
            else rng.random((num_steps, batch, 3), np.float32))
  return dd_jax.DistilledData(images, labels, rng.random((epochs, num_steps), np.float32))


_METADATA = st.dictionaries(st.text(max_size=3).filter(lambda name: name != "format_version"),
                            st.none() | st.integers() | st.text(max_size=3), max_size=2)


def weights(data, *leading):
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  layer = {"kernel": rng.standard_normal((*leading, 2, 2), np.float32),
           "bias": rng.standard_normal((*leading, 2), np.float32)}
  return data.draw(st.sampled_from([
      {"Conv_0": layer}, {"mlp/~/linear_0": layer}, {"layers": {0: layer}}, [(layer,), ()]]))


@damage.examples(250)
@hypothesis.given(st.data(), _METADATA)
def test_distilled(folder, data, metadata):
  saved, path = distilled(data), folder / "distilled.npz"
  params = weights(data) if data.draw(st.booleans()) else None
  artifacts.save(path, saved, init_params=params, metadata=metadata)
  changed = damage.damage_file(data, path)
  found = damage.outcome(artifacts.load, path)
  assert changed or found is not None
  if found:
    assert_identical((found.distilled, found.init_params), (saved, params))
    assert found.metadata == metadata


_TEXTS = ["", "{", "[]", "{}", "null", '{"format_version": 1e999}', '{"format_version": null}',
          '{"format_version": Infinity}', '{"format_version": 0}', '{"format_version": 1.5}',
          '{"format_version": true}', '{"format_version": "1"}', '{"format_version": 99}',
          '{"format_version": ' + "9" * 5000 + "}", 10000 * "[", '{"format_version": 1, "a": ']


def changed_file(data, path):
  """Other arrays or metadata in the file at `path`."""
  with np.load(path) as file:
    arrays = dict(file)
  if data.draw(st.sampled_from([False, False, True]), "metadata"):
    text = data.draw(st.sampled_from(_TEXTS) | st.text(max_size=5) | st.just(
        np.array([0x110000, 65], np.uint32).view("U2").reshape(())), "text")
    return damage.write_npz(path, arrays | {"metadata": np.asarray(text)})
  more = data.draw(st.sampled_from([
      "", "init/Conv_0", "init/Conv_0/kernel/more", "init/()", "params", "params/Conv_0",
      "params/[0]", "params/[3]", "inputs", "hyper/[0]", "hyper/#", "raw_step_sizes",
      "whitening/mean"]))
  if more:
    return damage.write_npz(path, arrays | {more: np.zeros(2, np.float32)})
  metadata = {"metadata": arrays.pop("metadata")}
  damage.other_npz(data, path, arrays, metadata if data.draw(st.integers(0, 9)) else {})


@damage.examples(200)
@hypothesis.given(st.data())
@pytest.mark.slow
def test_distilled_of_other_arrays(folder, data):
  saved, path = distilled(data), folder / "distilled.npz"
  artifacts.save(path, saved, init_params=weights(data) if data.draw(st.booleans()) else None)
  if data.draw(st.booleans(), "version 1"):
    with np.load(path) as file:
      arrays = dict(file)
    raw = np.log(np.expm1(arrays["step_sizes"].astype(np.float64))).astype(np.float32)
    damage.write_npz(path, arrays | {"raw_step_sizes": raw, "metadata": '{"format_version": 1}'})
  changed_file(data, path)
  found = damage.outcome(artifacts.load, path)
  if found is None:
    return
  (images, labels, step_sizes, hyper), params, metadata, whitening = found
  assert whitening is None
  with np.load(path) as file:
    for name, array in (("images", images), ("labels", labels), ("step_sizes", step_sizes)):
      np.testing.assert_allclose(array, file[name], rtol=1e-6)
    assert (hyper == ()) == (not any(name.startswith("hyper/") for name in file))
  assert images.ndim == 5 and images.size and jnp.isfinite(images).all()
  assert step_sizes.ndim == 2 and step_sizes.size and jnp.isfinite(step_sizes).all()
  assert step_sizes.shape[1] == len(images)
  assert labels.shape[:2] == images.shape[:2] and labels.size
  if jnp.issubdtype(labels.dtype, jnp.integer):
    assert labels.ndim == 2 and (labels >= 0).all()
  else:
    assert labels.ndim == 3 and jnp.isfinite(labels).all()
  assert isinstance(metadata, dict)
  assert params is None or all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@damage.examples(150)
@hypothesis.given(st.data(), _METADATA)
def test_pool(folder, data, metadata):
  params, path = weights(data, data.draw(st.integers(1, 3))), folder / "pool.npz"
  pools.save(path, params, metadata)
  changed = damage.damage_file(data, path)
  found = damage.outcome(pools.load, path)
  assert changed or found is not None
  if found:
    assert_identical(found.params, params)
    assert found.metadata == metadata


@damage.examples(100)
@hypothesis.given(st.data())
def test_pool_of_other_arrays(folder, data):
  path = folder / "pool.npz"
  pools.save(path, weights(data, 2), {})
  changed_file(data, path)
  found = damage.outcome(pools.load, path)
  if found:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(found.params)}
    assert len(sizes) == 1 and min(sizes) > 0
    assert all(leaf.dtype.kind in "fiub" for leaf in jax.tree.leaves(found.params))


@damage.examples(300)
@hypothesis.given(st.lists(st.lists(st.text("[](){}#%-01aF", max_size=4), max_size=3), max_size=4))
def test_drawn_names(names):
  """They are those of one tree, or of none."""
  arrays = {"/".join(["init", *parts]): np.float32(i) for i, parts in enumerate(names)}
  found = damage.outcome(lambda path: trees.unflatten(arrays, "init", path), "a.npz")
  if found is not None:
    again = trees.flatten(found, "init", "init_params")
    assert sorted(map(float, again.values())) == sorted(arrays.values())
    assert_identical(trees.unflatten(again, "init", "a.npz"), found)


@damage.examples(150)
@hypothesis.given(st.data(), _METADATA)
def test_safetensors(folder, data, metadata):
  """No checksums: what comes back is whole distilled data, or what was written."""
  saved, path = distilled(data), folder / "distilled.safetensors"
  exports.save(path, dd_jax.Artifact(saved, weights(data), metadata), "safetensors")
  changed = damage.damage_file(data, path, [(0, "<Q")])
  found = damage.outcome(lambda path: exports.load(path, "safetensors"), path)
  assert changed or found is not None
  if found:
    assert found.images.ndim == 5 and np.isfinite(found.images).all()
    assert isinstance(found.metadata, dict)
    # A file with all it needs is saved again.
    artifacts.save(folder / "again.npz", found.distilled, init_params=found.init_params,
                   metadata=found.metadata)


# AlexNet's weights


@functools.cache
def small_alexnet():
  """Its `init` gives shapes alone, so that thousands of files are read in time."""
  model = dd_jax.models.alexnet(num_classes=2, image_shape=(224, 224, 3), width=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model._replace(init=lambda key: shapes)


@pytest.fixture(scope="module", params=[".npz", ".safetensors", ".pth"])
def alexnet(request, tmp_path_factory):
  """Gives the path of a checkpoint, its bytes, its arrays, a model, and its parameters."""
  path = tmp_path_factory.mktemp("alexnet") / f"alexnet{request.param}"
  arrays, model = alexnet_files.checkpoint(1), small_alexnet()
  alexnet_files.write(path, arrays)
  params, raw = imagenet_weights.load(path, model), path.read_bytes()
  return lambda: (path, raw, arrays, model, params)  # Hypothesis prints a function in one line.


@damage.examples(150)
@hypothesis.given(st.data())
def test_alexnet(alexnet, data):
  path, whole, _, model, params = alexnet()
  start, end = data.draw(st.sampled_from([(0, 2000), (-2000, len(whole)), (0, len(whole))]), "part")
  start %= len(whole)
  damaged = damage.damaged(data, whole[start:end], [(0, "<Q")] * (not start))
  raw = whole[:start] + damaged + whole[end:]
  path.write_bytes(raw)
  found = damage.outcome(lambda path: imagenet_weights.load(path, model), path)
  if found and (path.suffix != ".safetensors" or raw == whole):
    assert_identical(found, params)
  elif found:  # No checksums: finite weights of the same shapes, as the file has them.
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert np.asarray(found["Conv_0"]["bias"]).tobytes() in raw
    assert np.asarray(found["Dense_1"]["kernel"]).T.tobytes() in raw


@damage.examples(60)
@hypothesis.given(st.data())
def test_alexnet_of_other_arrays(alexnet, data):
  path, _, arrays, model, params = alexnet()
  arrays, name = dict(arrays), data.draw(st.sampled_from(sorted(arrays)))
  arrays[name] = damage.changed_array(data, arrays[name])
  try:
    alexnet_files.write(path, {key: np.ascontiguousarray(array) for key, array in arrays.items()})
  except Exception:  # Not every format can hold every type.
    hypothesis.reject()
  found = damage.outcome(lambda path: imagenet_weights.load(path, model), path)
  if found:
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert all(a.shape == b.shape and a.dtype == b.dtype
               for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True))


# Hostile files


_PICKLE_READERS = {
    "distilled.npz": artifacts.load,
    "pool.npz": pools.load,
    "a.pt": lambda path: exports.load(path, "tensors"),
    "a.pth": lambda path: exports.load(path, "steps"),
    **{f"alexnet{suffix}": lambda path: imagenet_weights.load(path, small_alexnet())
       for suffix in (".npz", ".safetensors", ".pth")},
}


@pytest.mark.parametrize("name", _PICKLE_READERS)
def test_no_file_runs_code(tmp_path, name):
  if name.endswith((".pt", ".pth")):
    pytest.importorskip("torch")
  path, marker = tmp_path / name, tmp_path / "marker"
  for kind, raw in damage.pickles(damage.Trap(marker)).items():
    path.write_bytes(raw)
    assert damage.outcome(_PICKLE_READERS[name], path) is None, kind
    assert not marker.exists(), kind
  pickle.loads(damage.pickles(damage.Trap(marker))["protocol 4"])
  assert marker.exists()  # The trap is one.
