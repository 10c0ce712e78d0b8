"""Runs on files of one's own: names of classes reach every file, and apply reads the same again."""

import json
import shutil

import numpy as np
from PIL import Image
import pytest

import dd_jax
from dd_jax import datasets
from dd_jax import runs
from dd_jax.files import artifacts
from dd_jax.runs import report
from experiments import problem
from experiments.names import applied
from tests import small_runs
from tests.dataset_files import random_bytes
from tests.dataset_files import write_picture
from tests.launches import smoke

NAMES = ("ape", "bee", "<cow>")

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder of pictures of several sizes, some of them grey, in one split."""
  path = tmp_path_factory.mktemp("pictures") / "animals"
  for place in range(60):
    picture = random_bytes((9 + place % 4, 12, 3)[:2 if place % 5 == 1 else 3], place)
    write_picture(path / NAMES[place % 3] / f"{place:02}.png", picture)
  return path


@pytest.fixture(scope="module")
def workdir(quick_runs, tmp_path_factory, folder):
  config = smoke(**{"data.name": str(folder), "data.image_shape": (8, 8, 3), "data.resize": "crop",
                    "data.test_fraction": .3, "data.num_validation": 9, "seed": 4,
                    "outer.batch_size": 16})
  return problem.distill(config, tmp_path_factory.mktemp("runs") / "animals").workdir


def test_names_and_reading_are_in_the_file(workdir, folder):
  artifact = artifacts.load(workdir / "distilled.npz")
  assert artifact.class_names == tuple(sorted(NAMES))
  assert artifact.images.shape[2:] == (8, 8, 3)
  assert artifact.metadata["dataset"] == str(folder) and artifact.metadata["num_test"] == 18
  assert artifact.metadata["reading"] == {
      "image_shape": [8, 8, 3], "resize": "crop", "label": "label", "test_fraction": .3,
      "in_files": False}


def test_names_are_in_the_report_of_hard_and_of_soft_labels(workdir, tmp_path):
  page = (workdir / "report.html").read_text()
  for name in ("ape", "bee", "&lt;cow&gt;"):
    assert f'alt="distilled image of class {name}"><figcaption>{name}</figcaption>' in page
    assert f'<th scope="col">{name}</th>' in page and f'<th scope="row">{name}</th>' in page
  assert "<cow>" not in page
  run = report.read_run(workdir)
  soft = np.full((1, 3, 3), .25, np.float32) + np.eye(3, dtype=np.float32)
  report.write(tmp_path / "soft.html", [run._replace(artifact=run.artifact._replace(
      distilled=run.artifact.distilled._replace(labels=soft)))], {})
  assert "soft label, largest: ape (1.25), &lt;cow&gt; (0.25), bee (0.25)" in (
      (tmp_path / "soft.html").read_text())


def test_apply_reads_the_same_test_split(workdir, folder, tmp_path):
  result = json.loads((workdir / "result.json").read_text())
  found = applied.apply(workdir / "distilled.npz")
  assert found["num_test"] == 18
  for name in ("accuracy_mean", "accuracy_before_mean"):
    np.testing.assert_allclose(found[name], result[name], atol=1e-6)
  moved = tmp_path / "animals"
  shutil.copytree(folder, moved)
  for path in sorted(moved.glob("ape/*"))[1:]:  # Another folder of this name, with another split.
    path.unlink()
  with pytest.raises(ValueError, match=rf"{moved}: .* found 1 of 'ape'"):
    applied.apply(workdir / "distilled.npz", data_dir=str(tmp_path))
  assert applied.apply(workdir / "distilled.npz", data_dir=str(tmp_path / "none")) == found


@pytest.mark.parametrize("reading", [3, {"more": 1}, [1]])
def test_a_reading_that_is_none_is_one_line(workdir, tmp_path, reading):
  artifact = artifacts.load(workdir / "distilled.npz")
  artifacts.save(tmp_path / "a.npz", artifact.distilled, init_params=artifact.init_params,
                 metadata={**artifact.metadata, "reading": reading})
  with pytest.raises(ValueError, match=r"\Areading of the metadata must hold .* alone; got [^\n]*"):
    applied.apply(tmp_path / "a.npz")


@pytest.mark.parametrize("field, value, message", [
    ("data.resize", "fit", "resize must be one of border, crop, stretch; got 'fit'"),
    ("data.test_fraction", 1.5, r"test_fraction must lie in \(0, 1\); got 1.5"),
    ("data.image_shape", (8, 8, 2), "image_shape must have 1 or 3 channels"),
    ("data.image_shape", None, "set data.image_shape and data.resize"),
    ("data.resize", "border", r"less an even border; found \(9, 12\)"),
])
def test_fields_of_the_config_that_do_not_fit(folder, tmp_path, field, value, message):
  config = {"data.name": str(folder), "data.image_shape": (8, 8, 3), "data.resize": "crop"}
  with pytest.raises(ValueError, match=message):
    problem.distill(smoke(**{**config, field: value}), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_space_of_16_bits_is_in_the_file(tmp_path):
  for place in range(36):
    path = tmp_path / "scans" / f"{place % 3}" / f"{place:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_bytes((4, 4), place).astype(np.uint16) * 16).save(path)
  dataset = datasets.load(tmp_path / "scans")
  assert dataset.train_images.dtype == np.uint16
  data = runs.from_dataset(dataset, num_validation=6)
  metadata = json.loads(json.dumps(small_runs.problem(data).metadata))
  assert metadata["pixel_scale"] == 65535 and metadata["class_names"] == ["0", "1", "2"]
  images, labels = runs.examples_at(data, data.test, np.arange(6))
  artifact = dd_jax.Artifact(dd_jax.DistilledData(images[None], labels[None], np.ones((1, 1))),
                             None, metadata)
  assert artifact.pixel_range == dataset.pixel_range
  np.testing.assert_allclose(artifact.normalize(dataset.test_images), images, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(artifact.pixels()[0] * 65535, dataset.test_images, atol=.1)


def _write_npz(path, images, labels):
  size = len(images) * 5 // 6
  np.savez(path, train_images=images[:size], train_labels=labels[:size], test_images=images[size:],
           test_labels=labels[size:])
  return path


def _rectangular(root):
  return _write_npz(root / "wide.npz", random_bytes((60, 5, 12, 3)), np.arange(60) % 3)


def _of_16_bits(root):
  for place in range(60):
    path = root / "scans" / f"{place % 3}" / f"{place:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_bytes((6, 6), place).astype(np.uint16) * 16).save(path)
  return root / "scans"


def _of_200_classes(root):
  return _write_npz(root / "many.npz", random_bytes((1200, 4, 4, 1)), np.arange(1200) % 200)


def _of_uneven_classes(root):
  labels = (np.arange(240) % 20 == 0).astype(int)  # One in twenty.
  return _write_npz(root / "uneven.npz", random_bytes((240, 4, 4, 1)), labels)


@pytest.mark.parametrize("write, num_classes, shape", [
    pytest.param(_rectangular, 3, (5, 12, 3), marks=pytest.mark.slow),
    pytest.param(_of_16_bits, 3, (6, 6, 1), marks=pytest.mark.slow),
    (_of_200_classes, 200, (4, 4, 1)), (_of_uneven_classes, 2, (4, 4, 1))])
def test_sets_of_unusual_shapes_types_and_classes_run_to_the_end(tmp_path, write, num_classes,
                                                                 shape):
  config = smoke(**{"data.name": str(write(tmp_path)), "data.num_validation": max(9, num_classes),
                    "data.test_fraction": .3, "outer.batch_size": 16, "outer.num_steps": 2})
  result = problem.distill(config, tmp_path / "run")
  assert result.artifact.images.shape[1:] == (num_classes, *shape)
  assert (tmp_path / "run/report.html").stat().st_size > 1000
  confusion = np.load(tmp_path / "run/evaluation.npz")["after_confusion"]
  assert confusion.shape == (1, num_classes, num_classes)
  assert confusion.sum() == result.artifact.metadata["num_test"]
