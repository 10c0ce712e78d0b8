"""dd_jax.files.artifacts: files that come back bit for bit, and those of version 1."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import whitening
from dd_jax.files import archive
from dd_jax.files import artifacts
from tests.arrays import assert_identical

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
