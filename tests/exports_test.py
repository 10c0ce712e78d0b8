"""dd_jax.files.exports: what goes out comes back, and reads as other projects read it."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import whitening
from dd_jax.files import archive
from dd_jax.files import artifacts
from dd_jax.files import exports
from tests.artifacts_test import TREES
from tests.arrays import assert_identical
from tests.artifacts_test import normal

_ROOT = pathlib.Path(__file__).parent.parent
_PATHS = {"safetensors": "a.safetensors", "tensors": "a.pt", "steps": "a.pth", "png": "folder",
          "dd_ranking": "ranking"}


def make_artifact(channels=1, soft=False, full=True):
  """With S=2, B=3, E=4; where `full`, with all that a file can hold."""
  images = normal(2, 3, 4, 5, channels)
  labels = normal(2, 3, 3, seed=3) if soft else jnp.asarray([[0, 1, 2], [2, 1, 0]], jnp.int32)
  metadata = {"mean": [.25] * channels, "std": [.5] * channels, "pixel_scale": 255, "note": "é",
              "seed": 3, "init": {"name": "fixed", "scale": None}}
  step_sizes = jax.nn.softplus(normal(4, 2, seed=1))
  if not full:
    return dd_jax.Artifact(dd_jax.DistilledData(images, labels, step_sizes), None, metadata)
  distilled = dd_jax.DistilledData(images, labels, step_sizes, {"decay": jnp.float32(.875)})
  params = {"Conv_0": {"kernel": normal(3, 3, 1, 2), "bias": jnp.zeros(2)}, "scale": jnp.float32(2)}
  fitted = whitening.fit(np.asarray(normal(50, 4, 5, channels, seed=2)))
  return dd_jax.Artifact(distilled, params, metadata, fitted)


def export(tmp_path, format, artifact):
  pytest.importorskip({"safetensors": "safetensors", "png": "PIL"}.get(format, "torch"))
  path = tmp_path / _PATHS[format]
  exports.save(path, artifact, format)
  return path


def _assert_same(actual, expected):
  assert_identical(actual.distilled._asdict(), expected.distilled._asdict())
  assert actual.metadata == expected.metadata
  assert_identical((actual.init_params, actual.whitening),
                   (expected.init_params, expected.whitening))


@pytest.mark.parametrize("format", ["safetensors", "tensors"])
@pytest.mark.parametrize("options", [
    {}, {"soft": True, "channels": 3}, {"full": False}, {"full": False, "soft": True}])
def test_everything_comes_back_to_the_bit(tmp_path, format, options):
  artifact = make_artifact(**options)
  path = export(tmp_path, format, artifact)
  _assert_same(exports.load(path, format), artifact)
  assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", ["safetensors", "tensors"])
@pytest.mark.parametrize("name", TREES)
def test_weights_of_any_library_come_back(tmp_path, format, name):
  artifact = make_artifact(full=False)._replace(init_params=TREES[name])
  path = export(tmp_path, format, artifact)
  _assert_same(exports.load(path, format), artifact)


@pytest.mark.parametrize("inputs, formats", [
    (normal(2, 3, 5), ("safetensors", "tensors", "steps", "dd_ranking")),
    (normal(2, 3, 4, 5), ("safetensors", "tensors", "steps", "dd_ranking")),
    ({"image": normal(2, 3, 4, 4, 1), "row": normal(2, 3, 5)}, ("safetensors",))])
def test_other_inputs_than_images(tmp_path, inputs, formats):
  artifact = make_artifact(soft=True, full=False)
  artifact = artifact._replace(distilled=artifact.distilled._replace(inputs=inputs))
  for format in formats:
    path = export(tmp_path, format, artifact)
    _assert_same(exports.load(path, format, metadata=artifact.metadata), artifact)
  for format in exports.FORMATS.keys() - formats:
    with pytest.raises(ValueError, match=r"\Ainputs must be (images|one array) .*inputs"):
      exports.save(tmp_path / f"other{exports.FORMATS[format].suffix}", artifact, format)


def arrays_of_version_1(artifact):
  """What every format of version 1 was made of."""
  arrays = {name: np.asarray(array) for name, array in artifacts.to_arrays(artifact).items()}
  raw = np.log(np.expm1(arrays["step_sizes"]))
  fields = {**artifact.metadata, "trajectory": "inner_trajectory", "format_version": 1}
  return {**arrays, "raw_step_sizes": raw}, fields


def assert_renewed(found, artifact):
  assert found.metadata == {**artifact.metadata, "inner_algorithm": "unroll"}
  assert_identical((found.distilled, found.init_params), (artifact.distilled, artifact.init_params))


def test_safetensors_of_version_1(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  artifact = make_artifact()
  arrays, fields = arrays_of_version_1(artifact)
  safetensors.save_file({name: np.asarray(array, order="C") for name, array in arrays.items()},
                        tmp_path / "a.safetensors",
                        {name: json.dumps(value) for name, value in fields.items()})
  assert_renewed(exports.load(tmp_path / "a.safetensors", "safetensors"), artifact)


def test_tensors_of_version_1(tmp_path):
  torch = pytest.importorskip("torch")
  artifact = make_artifact(3)
  arrays, fields = arrays_of_version_1(artifact)
  images, labels = arrays.pop("images"), arrays.pop("labels")
  torch.save({
      "data": [[torch.tensor(np.moveaxis(images.reshape(-1, 4, 5, 3), -1, 1).copy()),
                torch.tensor(labels.reshape(-1).astype(np.int64))]],
      "metadata": json.dumps(fields),
      **{name: torch.tensor(array) for name, array in arrays.items()}}, tmp_path / "a.pt")
  assert_renewed(exports.load(tmp_path / "a.pt", "tensors"), artifact)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_steps_come_back_with_their_order(tmp_path, soft, channels):
  artifact = make_artifact(channels, soft, full=False)
  path = export(tmp_path, "steps", artifact)
  back = exports.load(path, "steps", metadata=artifact.metadata)
  assert back.metadata == artifact.metadata
  assert_identical(back.distilled, artifact.distilled)
  artifacts.save(tmp_path / "again.npz", back.distilled, metadata=back.metadata)
  assert_identical(artifacts.load(tmp_path / "again.npz").distilled.inputs, back.distilled.inputs)


def test_steps_are_of_gradient_descent_alone(tmp_path):
  artifact = make_artifact(3, full=False)
  for fields in ({"inner_optimizer": "momentum"}, {"inner_algorithm": "ridge"}):
    changed = artifact._replace(metadata={**artifact.metadata, **fields})
    with pytest.raises(ValueError, match="the format steps must be of data for plain gradient des"):
      exports.save(tmp_path / "a.pth", changed, "steps")


def test_steps_are_what_the_authors_release_saves(tmp_path):
  """T = E S tuples of tensors, channels first; training goes through them one by one."""
  torch = pytest.importorskip("torch")
  artifact = make_artifact(3, full=False)
  distilled = artifact.distilled
  steps = torch.load(export(tmp_path, "steps", artifact), weights_only=True)
  assert len(steps) == 8
  for t, (images, labels, step_size) in enumerate(steps):
    e, s = divmod(t, 2)
    assert images.shape == (3, 3, 4, 5) and labels.dtype == torch.int64 and step_size.shape == (1,)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), distilled.inputs[s])
    np.testing.assert_array_equal(labels, distilled.labels[s])
    np.testing.assert_array_equal(step_size[0], distilled.step_sizes[e, s])


@pytest.mark.parametrize("identical, shape", [(False, (1, 6)), (True, (6, 1))])
def test_steps_of_other_projects(tmp_path, identical, shape):
  """Six steps of their own, or one minibatch six times."""
  torch = pytest.importorskip("torch")
  images = torch.randn(6, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
  steps = [(images[0 if identical else t], torch.tensor([0, 1]), torch.tensor([.1 * (t + 1)]))
           for t in range(6)]
  torch.save(steps, tmp_path / "results.pth")
  distilled = exports.load(tmp_path / "results.pth", "steps").distilled
  assert distilled.step_sizes.shape == shape
  np.testing.assert_allclose(distilled.step_sizes.reshape(-1), .1 * np.arange(1, 7), rtol=1e-6)
  for s in range(shape[1]):
    np.testing.assert_array_equal(distilled.inputs[s], images[s].permute(0, 2, 3, 1))


def test_tensors_are_a_set_of_images_and_labels(tmp_path):
  torch = pytest.importorskip("torch")
  artifact = make_artifact(3)
  content = torch.load(export(tmp_path, "tensors", artifact), weights_only=True)
  ((images, labels),) = content["data"]
  assert images.shape == (6, 3, 4, 5) and labels.dtype == torch.int64
  np.testing.assert_array_equal(images.permute(0, 2, 3, 1),
                                artifact.distilled.inputs.reshape(6, 4, 5, 3))
  np.testing.assert_array_equal(labels, artifact.distilled.labels.reshape(-1))


def test_safetensors_metadata_are_json_texts(tmp_path):
  safetensors = pytest.importorskip("safetensors")
  with safetensors.safe_open(export(tmp_path, "safetensors", make_artifact()), "numpy") as file:
    metadata = file.metadata()
    assert set(file.keys()) >= {"images", "labels", "step_sizes", "hyper/decay", "whitening/mean",
                                "init/Conv_0/kernel"}
  assert metadata["format_version"] == str(archive.FORMAT_VERSION)
  assert json.loads(metadata["init"]) == {"name": "fixed", "scale": None}


@pytest.mark.parametrize("soft", [False, True])
def test_dd_ranking_finds_class_after_class(tmp_path, soft):
  torch = pytest.importorskip("torch")
  artifact = make_artifact(3, soft=soft, full=False)
  path = export(tmp_path, "dd_ranking", artifact)
  images, labels, rate = (torch.load(path / f"{name}.pt", weights_only=True)
                          for name in ("images", "labels", "lr"))
  flat = np.moveaxis(np.asarray(artifact.distilled.inputs), -1, -3).reshape(6, 3, 4, 5)
  known = np.asarray(artifact.distilled.labels).reshape(6, *artifact.distilled.labels.shape[2:])
  order = np.argsort(known.argmax(-1) if soft else known, kind="stable")
  np.testing.assert_array_equal(images, flat[order])
  np.testing.assert_array_equal(labels, known[order])
  assert labels.dtype == (torch.float32 if soft else torch.int64) and rate.shape == ()
  np.testing.assert_allclose(rate, artifact.distilled.step_sizes.mean(), rtol=1e-6)
  _assert_same(exports.load(path, "dd_ranking"), artifact)
  _assert_same(exports.load_any(path), artifact)


@pytest.mark.parametrize("format", ["safetensors", "tensors", "png"])
def test_the_format_is_told_by_the_path(tmp_path, format):
  artifact = make_artifact(full=False)
  path = export(tmp_path, format, artifact)
  _assert_same(exports.load_any(path), exports.load(path, format))
  artifacts.save(tmp_path / "b.npz", artifact.distilled, metadata=artifact.metadata)
  assert_identical(exports.load_any(tmp_path / "b.npz").distilled, artifact.distilled)


# Errors


@pytest.mark.parametrize("path, format, message", [
    ("a.npz", "npz", r"format must be one of \['dd_ranking', 'png', 'safetensors', 'steps', "
                     r"'tensors'\]; got 'npz'"),
    ("a.pt", "steps", "path must end in .pth for the format steps; got .*a.pt"),
    ("a.npz", "safetensors", "path must end in .safetensors .*; got .*a.npz"),
    (".", "png", "path must be a new or an empty folder"),
])
def test_where_it_cannot_be_written(tmp_path, path, format, message):
  (tmp_path / "mine").touch()
  with pytest.raises(ValueError, match=message):
    exports.save(tmp_path / path, make_artifact(), format)
  assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_metadata_that_are_given_count_the_classes_too(tmp_path):
  path = export(tmp_path, "safetensors", make_artifact(full=False))
  with pytest.raises(ValueError, match="labels must lie in 0..0, as num_classes of the metadata"):
    exports.load(path, "safetensors", {"num_classes": 1})


def test_what_a_format_cannot_hold(tmp_path):
  with pytest.raises(ValueError, match="1 or 3 channels for the format png; got 2"):
    exports.save(tmp_path / "folder", make_artifact(2, full=False), "png")
  with pytest.raises(ValueError, match="metadata must hold 'mean'"):
    exports.save(tmp_path / "folder", make_artifact(full=False)._replace(metadata={}), "png")
  with pytest.raises(ValueError, match="must be of data for plain gradient descent"):
    exports.save(tmp_path / "a.pth", make_artifact(), "steps")
  with pytest.raises(OSError, match="nowhere"):
    exports.save(tmp_path / "nowhere/folder", make_artifact(), "png")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["safetensors", "tensors", "png"])
def test_a_newer_version(tmp_path, format, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(archive, "FORMAT_VERSION", 99)
    path = export(tmp_path, format, make_artifact())
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))} has format version 99; .*newer"):
    exports.load(path, format)


@pytest.mark.parametrize("format", sorted(_PATHS))
def test_a_missing_or_damaged_file(tmp_path, format):
  pytest.importorskip({"png": "PIL", "safetensors": "safetensors"}.get(format, "torch"))
  path = tmp_path / _PATHS[format]
  with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
    exports.load(path, format)
  path.write_bytes(b"no such thing")
  message = rf"\A{re.escape(str(path))} must be .*cannot be read"
  with pytest.raises(ValueError, match=message) as error:
    exports.load(path, format)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("content, format, message", [
    (lambda torch: {"data": [[torch.zeros(2, 1, 3, 3), torch.tensor([0, 1])]]}, "tensors",
     r"missing \['step_sizes', 'metadata'\]: files of other projects hold no step sizes"),
    (lambda torch: [], "steps", "must hold a list of"),
    (lambda torch: {"w": torch.zeros(2)}, "steps", "must hold a list of .*got dict"),
    (lambda torch: [(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), torch.tensor([1., 2.]))],
     "steps", r"one step size for each inner step; got \[1, 2\]"),
    (lambda torch: [(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]), torch.tensor([torch.nan]))],
     "steps", "step_sizes must be finite"),
    (lambda torch: [(torch.full((2, 1, 3, 3), torch.nan), torch.tensor([0, 1]),
                     torch.tensor([1.]))], "steps", "images must be finite"),
])
def test_torch_files_that_lack_something(tmp_path, content, format, message):
  torch = pytest.importorskip("torch")
  path = tmp_path / _PATHS[format]
  torch.save(content(torch), path)
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}.*{message}"):
    exports.load(path, format)


def test_a_pickle_runs_nothing(tmp_path):
  torch = pytest.importorskip("torch")

  class Trap:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "sprung",)

  for name, format in (("a.pt", "tensors"), ("a.pth", "steps")):
    torch.save([Trap()], tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
      exports.load(tmp_path / name, format)
  assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("format, module", [("safetensors", "safetensors"), ("tensors", "torch"),
                                            ("steps", "torch")])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, format, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=r'pip install "dd_jax\[export\]"'):
    exports.save(tmp_path / _PATHS[format], make_artifact(full=False), format)
  assert not list(tmp_path.iterdir())


# The command


def _command(*arguments):
  return subprocess.run([sys.executable, "-m", "experiments.export", *arguments], cwd=_ROOT,
                        capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_writes_the_format(tmp_path):
  artifact = make_artifact()._replace(whitening=None)
  artifacts.save(tmp_path / "a.npz", artifact.distilled, init_params=artifact.init_params,
                 metadata=artifact.metadata)
  out = tmp_path / "out"
  process = _command(f"--distilled={tmp_path / 'a.npz'}", "--to=png", f"--out={out}")
  assert process.returncode == 0, process.stderr
  assert json.loads(process.stdout) == {"out": str(out), "format": "png", "num_distilled_images": 6}
  assert exports.load(out, "png").metadata == artifact.metadata
  again = _command(f"--distilled={tmp_path / 'a.npz'}", "--to=png", f"--out={out}")
  assert again.returncode == 1 and again.stdout == ""
  assert re.match(r"error: path must be a new or an empty folder[^\n]*\n\Z", again.stderr)


def test_the_command_lists_the_formats():
  process = _command("--distilled=a.npz", "--to=zip", "--out=b")
  assert process.returncode == 1 and len(process.stderr.splitlines()) == 1
  for format in exports.FORMATS:
    assert format in process.stderr
