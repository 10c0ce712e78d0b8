"""dd_jax.runs as a library: own arrays, an NNX network and an own outer loss, in a directory."""

import json
import os
import shutil
import signal
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import datasets
from dd_jax import models
from dd_jax import runs
from dd_jax.runs import comparison
from dd_jax.runs import loop
from dd_jax.runs import transfer
from dd_jax.runs.problem import told_apart
from tests import small_runs

_SETTINGS = runs.Settings(log_every=2, validate_every=2, checkpoint_every=8)

pytestmark = pytest.mark.usefixtures("quick_runs")


class _Net(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(36, 16, rngs=rngs)
    self.dropout = nnx.Dropout(.2, rngs=rngs)
    self.last = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, images):
    return self.last(self.dropout(nnx.relu(self.hidden(images.reshape(len(images), -1)))))


def _arrays():
  """Images whose bright row is their class."""
  random = np.random.default_rng(0)
  arrays = []
  for size in (120, 60):
    labels = np.arange(size) % 3
    images = random.normal(size=(size, 6, 6, 1))
    images[np.arange(size), labels] += 3
    arrays += [images, labels]
  return arrays


def _make_problem(*, weight=1., init="fixed", arrays=None):
  model = dd_jax.from_nnx(lambda rngs: _Net(rngs))

  def outer_loss(params, images, labels):
    return weight * jnp.mean(dd_jax.losses.cross_entropy(model.apply(params, images), labels))

  return model, runs.make_problem(
      datasets.from_arrays(*(arrays or _arrays())), model, init=init, num_epochs=2,
      real_loss=outer_loss)


@pytest.fixture(scope="module")
def finished(quick_runs, tmp_path_factory):
  """A run of twelve steps, its network and its problem."""
  model, problem = _make_problem()
  return model, problem, runs.distill(problem, tmp_path_factory.mktemp("run"), num_steps=12,
                                      settings=_SETTINGS)


def test_a_run_gives_what_lies_in_its_directory(finished):
  model, problem, result = finished
  assert result.figures == json.loads((result.workdir / "result.json").read_text())
  loaded = dd_jax.files.artifacts.load(result.workdir / "distilled.npz")
  jax.tree.map(np.testing.assert_array_equal, result.artifact[:2], loaded[:2])
  assert result.artifact.metadata == loaded.metadata
  assert loaded.distilled.inputs.shape == (1, 3, 6, 6, 1)
  losses = [json.loads(line)["loss"]
            for line in (result.workdir / "metrics.jsonl").read_text().splitlines()]
  assert len(losses) == 6 and losses[-1] < losses[0]
  # The file trains the network to the accuracy that is reported.
  _, _, images, labels = _arrays()
  params = dd_jax.train_on(loaded, apply=model.apply, key=jax.random.key(0))
  accuracy = np.mean(np.argmax(model.apply(params, loaded.normalize(images)), -1) == labels)
  assert abs(accuracy - result.figures["accuracy_mean"]) < .1  # Of other dropout.


def test_a_library_s_network_is_known_to_its_file(tmp_path):
  problem = runs.make_problem(datasets.from_arrays(*_arrays()), models.mlp, num_epochs=2)
  result = runs.distill(problem, tmp_path, num_steps=2, settings=_SETTINGS)
  images, labels = runs.prepared(problem.data, problem.data.test)
  params = dd_jax.train_on(result.artifact)
  logits = dd_jax.network(result.artifact).apply(params, images)
  np.testing.assert_allclose(np.mean(np.argmax(logits, -1) == labels),
                             result.figures["accuracy_mean"], atol=1e-6)


def test_a_finished_run_is_returned(finished):
  _, problem, result = finished
  before = {path: path.stat().st_mtime_ns for path in result.workdir.rglob("*")
            if path.is_file() and not path.name.startswith(".")}
  again = runs.distill(problem, result.workdir, num_steps=12, settings=_SETTINGS)
  assert again.figures == result.figures
  jax.tree.map(np.testing.assert_array_equal, again.artifact[:2], result.artifact[:2])
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_interrupted_run_goes_on_to_the_same_data(finished, tmp_path, monkeypatch):
  _, problem, expected = finished

  class Bar(loop.tqdm):
    def update(self, n=1):
      super().update(n)
      if self.n == 4:
        os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "tqdm", Bar)
    with pytest.raises(runs.Interrupted, match="stopped at outer step 6; the same comm"):
      runs.distill(problem, tmp_path, num_steps=12, settings=_SETTINGS)
  assert not (tmp_path / "result.json").exists()
  result = runs.distill(problem, tmp_path, num_steps=12, settings=_SETTINGS)
  jax.tree.map(np.testing.assert_array_equal, result.artifact[:2], expected.artifact[:2])
  assert result.figures["accuracy_mean"] == expected.figures["accuracy_mean"]


def test_another_run_or_other_data_are_refused(finished):
  _, problem, result = finished
  for changed, options, message in (
      (problem, {"seed": 1}, "seed is 0 there and 1 here"),
      (problem._replace(batch_size=8), {}, r"batch_size is \d+ there and 8 here"),
      (_make_problem(init="random")[1], {}, "problem.init.name is 'fixed' there and 'random' here"),
      (_make_problem(arrays=[array[::-1] for array in _arrays()])[1], {},
       "workdir must be empty or of the same data; .*: train_images is ")):
    with pytest.raises(ValueError, match=message):
      runs.distill(changed, result.workdir, num_steps=12, settings=_SETTINGS, **options)


def test_a_config_of_one_s_own_tells_seeds_and_steps_apart_too(tmp_path):
  problem, note = small_runs.problem(), {"note": "mine"}
  first = runs.distill(problem, tmp_path, num_steps=2, settings=small_runs.SETTINGS, config=note)
  assert first.figures["config"] == {"note": "mine", "seed": 0, "outer": {"num_steps": 2}}
  with pytest.raises(ValueError, match="seed is 0 there and 7 here"):
    runs.distill(problem, tmp_path, num_steps=4, seed=7, settings=small_runs.SETTINGS, config=note)
  more = runs.distill(problem, tmp_path, num_steps=4, settings=small_runs.SETTINGS, config=note)
  assert more.figures["outer_steps"] == 4


def test_other_problems_are_told_apart():
  data = runs.from_dataset(datasets.from_arrays(*_arrays()), num_validation=12)
  problem = runs.make_problem(data, models.mlp)
  others = [runs.make_problem(data, models.mlp, **options) for options in (
      {"images_per_class": 2}, {"num_steps": 2}, {"num_epochs": 2}, {"init": "random"})]
  found = [told_apart(other) for other in (problem, *others,
                                           problem._replace(num_test_inits=7))]
  assert all(found.index(other) == place for place, other in enumerate(found))


@pytest.mark.parametrize("command", ["baselines", "transfer"])
def test_a_comparison_of_something_else_is_not_taken_for_it(finished, tmp_path, monkeypatch,
                                                            command):
  """A directory that holds one is of its problem, its file and its training alone."""
  _, problem, result = finished
  dataset = datasets.from_arrays(*_arrays())

  def compare(problem, artifact, num_epochs):
    if command == "baselines":
      return runs.compare_baselines(problem, tmp_path)
    return transfer.compare_networks(
        artifact, dataset, {"mlp": models.mlp(num_classes=3, image_shape=(6, 6, 1))}, tmp_path,
        training=transfer.Training(optax.sgd, (num_epochs,), num_inits=1))

  monkeypatch.setattr(comparison._Comparison, "measure", lambda *_: ({}, 0.))
  first = compare(problem, result.artifact, 1)
  assert compare(problem, result.artifact, 1) == first
  moved = result.artifact._replace(distilled=result.artifact.distilled._replace(
      inputs=result.artifact.distilled.inputs + 1))
  other_problem = problem._replace(metadata={**problem.metadata, "model": "another"})
  others = ([(other_problem, None, 1)] if command == "baselines" else
            [(None, moved, 1), (None, result.artifact, 2)])
  for other in others:
    with pytest.raises(ValueError, match="workdir must be empty or of the same config; in .* is"):
      compare(*other)


def test_the_validation_images_of_a_file_are_those_that_its_run_set_aside(tmp_path):
  """The split's seed is not that of the run."""
  dataset = datasets.from_arrays(*_arrays())
  problem = runs.make_problem(dataset, models.mlp, seed=4)
  artifact = runs.distill(problem, tmp_path, num_steps=2, seed=5, settings=_SETTINGS).artifact
  _, images, labels = transfer._split(dataset, artifact.metadata)
  np.testing.assert_array_equal(labels, problem.data.validation[1])
  np.testing.assert_allclose(artifact.normalize(images), runs.prepared(
      problem.data, problem.data.validation)[0], rtol=1e-5, atol=1e-6)


def test_the_epochs_of_a_comparison_are_chosen_on_validation_images(finished, tmp_path,
                                                                    monkeypatch):
  """Networks whose accuracies are the numbers of images that they are tried on."""
  monkeypatch.setattr(transfer, "_make_evaluate", lambda *_: lambda key, distilled, *splits: [
      jnp.full(2, len(labels) / 1000) for _, labels in splits])
  artifact = finished[2].artifact
  rows = transfer.compare_networks(
      artifact, datasets.from_arrays(*_arrays()),
      {"mlp": models.mlp(num_classes=3, image_shape=(6, 6, 1))}, tmp_path,
      training=transfer.Training(optax.sgd, (1,), num_inits=2))["rows"]
  num_validation = artifact.metadata["num_validation"]
  assert num_validation != 60
  for row in rows:
    assert row["validation_accuracy_mean"] == pytest.approx(num_validation / 1000)
    assert row["accuracy_mean"] == pytest.approx(60 / 1000)


@pytest.mark.parametrize("settings, message", [
    ({"validate_every": 3}, "validate_every must be a multiple of log_every=2; got 3"),
    ({"log_every": 0}, "log_every must be positive; got 0"),
    ({"selection": "last"}, r"selection must be one of \['best', 'final'\]; got 'last'"),
])
def test_a_setting_that_does_not_fit_is_named(finished, tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    runs.distill(finished[1], tmp_path / "run", num_steps=2,
                 settings=_SETTINGS._replace(**settings))
  assert not (tmp_path / "run").exists()


class _Weights(NamedTuple):
  """A container that no file holds."""
  w: jax.Array


@pytest.mark.parametrize("num_outputs, changes, message", [
    (3, {}, "init_params must be dicts, lists and tuples"),
    (2, {"keeps_network": False}, "model must have an output for each of the 3 classes; got 2"),
    (3, {"keeps_network": False, "metadata": {"own": np.mean}}, "metadata must be JSON")])
def test_what_the_file_cannot_hold_is_refused_before_the_first_step(tmp_path, num_outputs, changes,
                                                                     message):
  model = models.Model(lambda key: _Weights(jax.random.normal(key, (36, num_outputs))),
                       lambda params, images: images.reshape(len(images), -1) @ params.w)
  problem = runs.make_problem(datasets.from_arrays(*_arrays()), model)._replace(**changes)
  with pytest.raises(ValueError, match=message):
    runs.distill(problem, tmp_path / "run", num_steps=2, settings=_SETTINGS, config={})
  assert not (tmp_path / "run").exists()


def test_a_run_ends_without_pictures_that_cannot_be_drawn(finished, tmp_path, capsys):
  """As of a snapshot that was damaged since."""
  _, problem, expected = finished
  shutil.copytree(expected.workdir, tmp_path / "run")
  (tmp_path / "run/result.json").unlink()
  (tmp_path / "run/report.html").unlink()
  next((tmp_path / "run/snapshots").glob("*.npz")).write_bytes(b"damaged")
  again = runs.distill(problem, tmp_path / "run", num_steps=12, settings=_SETTINGS)
  assert again.figures["accuracy_mean"] == expected.figures["accuracy_mean"]
  assert (tmp_path / "run/result.json").exists() and not (tmp_path / "run/report.html").exists()
  said = capsys.readouterr().err
  assert "lacks report.html: ValueError: " in said and "curves.png" not in said


def test_an_init_that_is_not_known_is_named():
  with pytest.raises(ValueError, match="init must be 'fixed', 'random', an InitDistribution or "):
    _make_problem(init="trained")


@pytest.mark.slow
def test_a_file_names_the_optimizer_that_trained_its_networks(tmp_path):
  """Also where the problem's optimizer was replaced: `train_on` refuses what it cannot repeat."""
  _, problem = _make_problem()
  loss = problem.train.loss
  learned = dd_jax.parametrization.join(
      dd_jax.parametrization.pixels((1, 3, 6, 6, 1)),
      dd_jax.parametrization.soft_labels(jnp.eye(3)[None]), dd_jax.step_sizes.learned(2, 1, .1))
  for name, optimizer in (("own", optax.sgd(1., momentum=.9)),
                          ("gradient_descent", dd_jax.optimizers.gradient_descent)):
    result = runs.distill(
        problem._replace(train=dd_jax.unroll(loss, optimizer), learned=learned),
        tmp_path / name, num_steps=2, settings=_SETTINGS)
    assert result.artifact.metadata["inner_optimizer"] == name
  with pytest.raises(ValueError, match="inner_optimizer of the metadata must be one of"):
    dd_jax.train_on(dd_jax.files.artifacts.load(tmp_path / "own/distilled.npz"),
                    apply=problem.apply, key=jax.random.key(0))
