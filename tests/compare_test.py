"""The baselines command and the studies: their figures from the same networks and real runs."""

import csv
import json

import jax
from matplotlib import image as mpl_image
import numpy as np
import pytest

from dd_jax import baselines
from dd_jax import parametrization
from dd_jax import step_sizes
from dd_jax import runs
from dd_jax.runs import accuracies
from dd_jax.runs import comparison
from experiments import problem
from experiments.configs import digits_fixed_init
from experiments.measurements import sweep
from tests import small_runs

# The trees of optax's Adam need promotion; the launcher's own processes have no strict setting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture
def small(monkeypatch):
  """Few sets and step sizes."""
  monkeypatch.setattr(comparison, "_NUM_SETS", 2)
  monkeypatch.setattr(comparison, "_NUM_CANDIDATES", 3)
  monkeypatch.setattr(comparison, "_STEP_SIZES", [.05, .3, 3e30])


def test_baselines_of_a_fixed_init(small, monkeypatch, tmp_path):
  described = small_runs.problem()
  result = runs.compare_baselines(described, tmp_path)
  assert json.loads((tmp_path / "baselines.json").read_text()) == result
  assert list(result["baselines"]) == ["random_real", "optimized_real", "kmeans", "average_real"]
  assert [figures["num_sets"] for figures in result["baselines"].values()] == [2, 2, 2, 1]

  # Class means on the one known network, by hand.
  figures = result["baselines"]["average_real"]
  assert figures["step_size"] in (.05, .3)  # 3e30 diverges.
  images, labels = runs.prepared(described.data, described.data.train)
  means = baselines.average_real(images, labels, num_classes=3, num_steps=1, images_per_class=1)
  np.testing.assert_allclose(means[0, 2], images[labels == 2].mean(0), atol=1e-5)
  distilled = baselines.with_step_size(means, parametrization.class_labels(1, 3, 1),
                                       step_size=figures["step_size"], num_epochs=3)
  params, _ = described.train(jax.random.key(0), described.inits.train.state, distilled)
  test_images, test_labels = runs.prepared(described.data, described.data.test)
  predicted = described.apply(params, test_images).argmax(-1)
  np.testing.assert_allclose(figures["accuracy_mean"], np.mean(predicted == test_labels),
                             atol=1e-6)
  nearest = np.linalg.norm(test_images.reshape(-1, 1, 16) - means.reshape(3, 16),
                           axis=-1).argmin(-1)
  np.testing.assert_allclose(figures["nearest_neighbor_mean"], np.mean(nearest == test_labels),
                             atol=1e-6)
  # Finished baselines are not repeated, of an interrupted comparison either.
  assert runs.compare_baselines(described, tmp_path) == result
  lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
  (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
  (tmp_path / "baselines.json").unlink()
  measured, sets = [], comparison._Comparison._sets
  monkeypatch.setattr(comparison._Comparison, "_sets",
                      lambda self, name, *args: measured.append(name) or sets(self, name, *args))
  assert runs.compare_baselines(described, tmp_path)["baselines"] == result["baselines"]
  assert measured == ["kmeans", "average_real"]
  again = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
  assert again[:2] == lines[:2] and len(again) == len(lines)
  for line, other in zip(again, lines):
    assert {**json.loads(line), "seconds": 0} == {**json.loads(other), "seconds": 0}


def test_baselines_of_fewer_images_than_classes_are_refused(tmp_path):
  described = small_runs.problem()
  learned = parametrization.join(
      parametrization.inputs((4, 4, 1), 1, 2), parametrization.soft_labels(
          parametrization.few_labels(1, 3, 2)), step_sizes.learned(1, 1, .02))
  with pytest.raises(ValueError, match="divisible by the 3 classes; got B=2"):
    runs.compare_baselines(described._replace(learned=learned), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_step_sizes_and_epochs_are_chosen_on_validation_examples(small, monkeypatch, tmp_path):
  seen, make_evaluate = [], comparison._make_evaluate

  def recorded(*args):
    evaluate = make_evaluate(*args)

    def call(networks, distilled, inputs, labels):
      seen.append(len(labels))
      return evaluate(networks, distilled, inputs, labels)

    return call

  monkeypatch.setattr(comparison, "_make_evaluate", recorded)
  described = small_runs.problem()
  runs.compare_baselines(described, tmp_path, real_epochs=(1, 2))
  validation, test = (len(split[1]) for split in (described.data.validation, described.data.test))
  assert (validation, test) == (6, 30)
  chosen = 3 * [validation]  # Of three step sizes, or the best two of three sets.
  traced, seen = seen[:2], seen[2:]  # Before anything is written.
  assert traced == [validation, test]
  assert seen == 3 * [*chosen, test, test] + [*chosen, test] + [validation, validation, test]


def test_baselines_share_the_held_out_networks_and_know_poisoning(small, tmp_path):
  described = small_runs.problem(init="random")._replace(
      num_test_inits=5, num_validation_inits=2, figures=accuracies.poisoning(0, 1))
  figures = runs.compare_baselines(described, tmp_path, read_as={0: 1})["baselines"]["random_real"]
  assert {"attack_success_mean", "others_accuracy_std"} <= figures.keys()
  assert "nearest_neighbor_mean" not in figures


def test_a_poisoning_s_real_examples_are_poisoned_too(small, monkeypatch, tmp_path):
  labels, minibatches = [], comparison.minibatches

  def recorded(*args, **options):
    train = minibatches(*args, **options)

    def call(key, params, distilled):
      labels.append(np.asarray(distilled.labels) if not isinstance(
          distilled.labels, jax.core.Tracer) else None)
      return train(key, params, distilled)

    return call

  monkeypatch.setattr(comparison, "minibatches", recorded)
  described = small_runs.problem()._replace(figures=accuracies.poisoning(0, 1))
  with jax.disable_jit():
    runs.compare_baselines(described, tmp_path, read_as={0: 1}, real_epochs=(1,))
  known = [found for found in labels if found is not None]
  assert known and all(set(np.unique(found)) == {1, 2} for found in known)


@pytest.mark.parametrize("changes, settings, message", [
    ({"num_test_inits": 3}, {}, "num_inits must be 1 for a fixed init; got 3"),
    ({}, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ({"learned": parametrization.paper(parametrization.class_labels(20, 3, 1), (4, 4, 1),
                                       num_epochs=1, step_size=.1)}, {},
     "images must hold at least 20 of every class; got 10 of class ")])
def test_what_does_not_fit_baselines_is_named_before_anything_is_written(
    tmp_path, changes, settings, message):
  with pytest.raises(ValueError, match=message):
    runs.compare_baselines(small_runs.problem()._replace(**changes), tmp_path / "run",
                           settings=runs.Settings(**settings))
  assert not (tmp_path / "run").exists()


def test_the_command_labels_the_images_of_the_attack_class_as_the_target(monkeypatch, tmp_path):
  monkeypatch.setattr(runs, "compare_baselines", lambda problem, workdir, **options: options)
  config = digits_fixed_init.get_config("smoke")
  assert problem.compare_baselines(config, tmp_path)["read_as"] is None
  config.objective.update(name="poisoning", attack_class=3, target_class=5)
  assert problem.compare_baselines(config, tmp_path)["read_as"] == {3: 5}


def test_shares_are_a_partition():
  networks = {"w": np.arange(7)}
  shares = comparison._shares(networks, 3)
  np.testing.assert_array_equal(np.concatenate([share["w"] for share in shares]), np.arange(7))
  assert len(shares) == 3 and min(len(share["w"]) for share in shares) == 2
  assert comparison._shares(networks, 8) == [networks] * 8


@pytest.mark.slow
def test_a_study_is_a_run_for_each_value(monkeypatch, tmp_path):
  monkeypatch.setitem(sweep.STUDIES, "steps", (
      "distill steps S", {s: {"distill.num_steps": s} for s in (1, 2)}))
  config = digits_fixed_init.get_config("smoke")
  config.model.name = "mlp"
  sweep.sweep(config, tmp_path, "steps", [0])
  with (tmp_path / "steps.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["distill steps S"] for row in rows] == ["1", "2"]
  for row, images in zip(rows, (10, 20), strict=True):
    result = json.loads((tmp_path / f"steps-{row['distill steps S']}/result.json").read_text())
    assert float(row["accuracy_mean"]) == result["accuracy_mean"]
    assert int(row["num_distilled_images"]) == result["num_distilled_images"] == images
  assert mpl_image.imread(tmp_path / "steps.png")[..., :3].std() > .05
