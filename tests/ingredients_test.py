"""Every ingredient of later work in a real run, the same run resumed, and what does not fit."""

import json
import shutil

import jax
import numpy as np
import pytest

from dd_jax import parametrization
from dd_jax.files import artifacts
from dd_jax.runs import transfer as scratch
from dd_jax.runs.programs import make_programs
from experiments import problem
from experiments.configs import digits_fixed_init
from experiments.configs import mnist_ingredients
from experiments.configs import transfer
from experiments.names import applied

pytestmark = pytest.mark.usefixtures("optax_promotion")


def _config(**updates):
  """A few steps of a network that compiles at once, drawn anew in every step."""
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({
      "model.name": "mlp", "init.name": "random", "distill.num_steps": 2, "outer.num_inits": 2,
      "outer.chunk_size": 40, "eval.num_inits": 2, "validation.num_inits": 2})
  fields = {**updates}
  if "window.length" in fields:
    fields["window.length"] = 3
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
@pytest.mark.parametrize("name", mnist_ingredients.INGREDIENTS)
def test_every_ingredient_runs_and_leaves_a_file_that_holds_it(tmp_path, name):
  fields = mnist_ingredients.INGREDIENTS[name]
  config = _config(**fields)
  result = problem.distill(config, tmp_path).figures
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert all(np.isfinite([line["loss"], line["hypergradient_norm"]]).all() for line in lines)
  assert lines[0]["hypergradient_norm"] > 0
  artifact = artifacts.load(tmp_path / "distilled.npz")
  distilled = artifact.distilled
  assert distilled.inputs.shape == (2, 10 * config.distill.images_per_class, 28, 28, 1)
  assert (distilled.labels.ndim == 3) == (config.distill.labels != "hard")
  assert (artifact.whitening is not None) == (config.data.whitening is not None)
  assert set(distilled.hyper) == {"momentum": {"decay"}, "adam": {"b1", "b2"},
                                  "gradient_descent": set()}[config.inner.optimizer]
  # The images of the file train the networks of the test to the reported accuracy.
  programs = make_programs(problem.make_problem(config), num_steps=6, seed=0,
                           settings=problem.make_settings(config))
  again = programs.test(jax.tree.map(np.asarray, distilled))
  np.testing.assert_allclose(np.mean(again.after.accuracy), result["accuracy_mean"], atol=2e-3)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(programs.state.trainable))
  assert result["learned_bytes"] == 4 * numbers


@pytest.mark.slow
def test_a_run_with_warm_starts_continues_with_its_pool(tmp_path):
  """The pool of networks lies in the checkpoint."""
  fields = mnist_ingredients.INGREDIENTS["warm_start"]
  config = _config(**fields)
  whole, halfway = tmp_path / "whole", tmp_path / "halfway"
  problem.distill(config, whole)
  # Only the checkpoint of step 4 is left, as after a kill.
  shutil.copytree(whole / "checkpoints/4", halfway / "checkpoints/4")
  for name in ("config.json", "metrics.jsonl"):
    shutil.copy(whole / name, halfway)
  problem.distill(config, halfway)
  with np.load(halfway / "distilled.npz") as actual, np.load(whole / "distilled.npz") as expected:
    for name in ("images", "step_sizes"):
      np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize("updates, message", [
    ({"window.start": "random", "window.length": 3, "distill.num_epochs": 1},
     r"window\.length must lie in 1\.\.2 \(E \* S\); got 3"),
    ({"window.start": "first"},
     r"window\.start must be one of \['adaptive', 'last', 'random', 'warm'\]; got 'first'"),
    ({"window.start": "warm", "window.pool_size": 1, "window.length": 3},
     "size must be at least num_inits=2; got 1"),
    ({"window.start": "adaptive", "window.length": 3, "window.temperature": 0.},
     "temperature must be positive; got 0.0"),
    ({"inner.augmentation": "color"}, "color must have images of 3 channels; got 1"),
    ({"inner.augmentation": "flip,noise"}, r"augmentation must be some of \[.*\]; got 'noise'"),
    ({"outer.augmentation": "noise"}, r"augmentation must be some of \[.*\]; got 'noise'"),
    ({"distill.max_bytes": 100}, r"distill\.max_bytes must be at least the \d+ bytes .*; got 100"),
    ({"distill.images": "voxels"},
     r"distill\.images must be one of \['bases', 'perturbed', 'pixels', 'upsampled'\]; "
     r"got 'voxels'"),
    ({"distill.images": "upsampled", "distill.upsampling": 3},
     "factor must divide the image size 28x28; got 3"),
    ({"distill.images": "bases", "distill.num_bases": 0}, "num_bases must be at least 1; got 0"),
    ({"distill.labels": "fuzzy"}, r"distill\.labels must be one of \['hard', 'soft', 'tied'\]"),
    ({"distill.few_images": 5},
     r"distill\.labels must be 'soft' for distill\.few_images=5; got 'h"),
    ({"distill.few_images": 11, "distill.labels": "soft"}, r"batch must lie in 1\.\.10 .*; got 11"),
    ({"distill.few_images": 5, "distill.labels": "soft", "distill.start": "real"},
     r"distill\.few_images must be left out where images start as real ones; got 5"),
    ({"distill.step_size_sharing": "none"}, r"sharing must be one of .*; got 'none'"),
    ({"inner.optimizer": "lion"},
     r"inner\.optimizer must be one of \['adam', 'gradient_descent', .*\]; got 'lion'"),
    ({"inner.decay": .5}, r"inner\.decay must be left out for .*'gradient_descent'.*; got 0.5"),
    ({"inner.optimizer": "adam", "inner.b1": 1.}, r"inner\.b1 must lie in \[0, 1\); got 1.0"),
    ({"inner.weight_decay": 0., "inner.learned": True},
     "weight_decay must lie between 0 and 1 to be learned; got 0.0"),
    ({"inner.hypergradient": "guess"},
     r"inner\.hypergradient must be one of \['implicit', 'ridge', 'unrolled'\]; got 'guess'"),
    ({"inner.hypergradient": "implicit", "inner.solver": "lu"}, "solver must be one of .*'lu'"),
    ({"inner.hypergradient": "ridge", "inner.num_features": 0},
     r"inner\.num_features must be positive; got 0"),
    ({"inner.hypergradient": "ridge", "inner.regularization": 0.},
     r"regularization must be positive; got 0.0"),
    ({"inner.hypergradient": "ridge", "inner.augmentation": "flip"},
     r"inner\.augmentation must be left out for inner\.hypergradient='ridge'; got 'flip'"),
    ({"outer.schedule": "optax:constant_schedule"},
     r"outer\.schedule must name a function of \(rate, num_steps\); .* is one of \(value"),
    ({"distill.labels": "dd_jax.losses:regression"},
     r"distill\.labels must name a function that gives Part; .* gives function"),
    ({"outer.label_learning_rate": 0., "distill.labels": "soft"},
     r"outer\.label_learning_rate must be positive; got 0.0"),
    ({"data.whitening": -1.}, "regularization must be positive; got -1.0"),
])
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, updates, message):
  config = _config()
  config.update_from_flattened_dict(updates)
  with pytest.raises(ValueError, match=message) as error:
    problem.distill(config, tmp_path / "run")
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
  """A whitened file with soft labels and two images a class, as a run begins."""
  described = problem.make_problem(_config(**{"distill.labels": "soft", "data.whitening": .1}))
  trainable = described.learned.init(jax.random.key(0))
  path = tmp_path_factory.mktemp("soft") / "distilled.npz"
  artifacts.save(path, described.learned.decode(trainable),
                 whitening=described.data.pixels.whitening, metadata={
                     **described.metadata, "learned_bytes": parametrization.num_bytes(trainable)})
  return path


@pytest.mark.slow
def test_networks_are_compared_on_four_sets_of_the_same_budget(soft, tmp_path):
  config = transfer.get_config("smoke")
  config.distilled, config.networks = str(soft), "mlp, convnet:width=2:depth=1"
  config.train.update(augmentation="crop", real_epochs=1)
  result = applied.compare_networks(config, tmp_path)
  sets = {"distilled": 20, "distilled, hard labels": 20, "random real": 20, "k-means": 20,
          "all real": 1097}
  assert [(row["network"], row["augmentation"], row["set"], row["num_images"])
          for row in result["rows"]] == [
      (network, augmentation, name, number) for network in ("mlp", "convnet:width=2:depth=1")
      for augmentation in ("none", "crop") for name, number in sets.items()]
  assert [{*row} >= {"hlr", "ior", "lrs"} and ("ars" in row) == (row["augmentation"] == "crop")
          for row in result["scores"]] == [True] * 4
  assert all(0 <= row["accuracy_mean"] <= 1 for row in result["rows"])
  assert applied.compare_networks(config, tmp_path) == json.loads(
      (tmp_path / "transfer.json").read_text())
  lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "rows.jsonl").write_text("".join(lines[:13]))
  (tmp_path / "transfer.json").unlink()
  again = applied.compare_networks(config, tmp_path)["rows"]
  untimed = [[{**row, "seconds": 0} for row in rows] for rows in (again, result["rows"])]
  assert untimed[0] == untimed[1] and again[:13] == result["rows"][:13]
  written = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
  assert written[:13] == lines[:13] and [json.loads(line) for line in written] == again


def test_scores_are_those_of_their_closed_forms():
  by_set = {"distilled": .7, "distilled, hard labels": .6, "random real": .5, "all real": .9}
  rows = [{"network": "mlp", "augmentation": "none", "set": name, "accuracy_mean": accuracy}
          for name, accuracy in by_set.items()]
  rows += [{**row, "augmentation": "crop", "accuracy_mean": row["accuracy_mean"] + .1}
           for row in rows[:1]] + [{**rows[2], "augmentation": "crop"}]
  plain, augmented = scratch.scores(rows)
  low, high = np.exp(-1), np.exp(1)
  assert plain == {"network": "mlp", "augmentation": "none", "hlr": pytest.approx(.3),
                   "ior": pytest.approx(.2),
                   "lrs": pytest.approx((np.exp(-.05) - low) / (high - low))}
  assert augmented == {"network": "mlp", "augmentation": "crop", "ior": pytest.approx(.3),
                       "ars": pytest.approx((np.exp(.25) - low) / (high - low))}


def test_the_length_is_chosen_on_validation_images():
  chosen = scratch._chosen({100: ([.5, .6], [.9, .9]), 300: ([.6, .6], [.4, .5])})
  assert chosen["num_epochs"] == 300 and chosen["accuracy_mean"] == pytest.approx(.45)
  assert chosen["by_epochs"] == [
      {"num_epochs": 100, "validation_accuracy_mean": .55, "accuracy_mean": .9, "accuracy_max": .9},
      {"num_epochs": 300, "validation_accuracy_mean": .6, "accuracy_mean": .45, "accuracy_max": .5}]


@pytest.mark.slow
def test_real_images_train_networks_from_scratch(soft, tmp_path):
  config = transfer.get_config("smoke")
  config.distilled, config.train.num_epochs = str(soft), (60,)
  rows = applied.compare_networks(config, tmp_path)["rows"]
  accuracy = {row["set"]: row["accuracy_mean"] for row in rows}
  assert accuracy["random real"] > .35 and accuracy["k-means"] > .35


@pytest.mark.parametrize("updates, message", [
    ({"distilled": ""}, "distilled must be the distilled.npz of a run; got ''"),
    ({"networks": "resnet"}, "networks must be one of .*; got 'resnet'"),
    ({"networks": "convnet:width"}, "networks must be NAME or NAME:option=.*'convnet:width'"),
    ({"networks": "mlp:depth=2"}, "networks must be NAME or NAME:option=.*'mlp:depth=2'"),
    ({"train.optimizer": "lion"}, r"train\.optimizer must be one of \['adamw', 'sgd'\]"),
    ({"train.num_epochs": (2, 0)}, r"train\.num_epochs must be positive; got 0"),
    ({"train.num_epochs": ()}, r"train\.num_epochs must hold at least one number; got \(\)"),
    ({"train.real_epochs": 0}, r"train\.real_epochs must be positive; got 0"),
    ({"train.augmentation": "color"}, "color must have images of 3 channels; got 1"),
])
def test_a_bad_comparison_is_named_before_anything_is_written(soft, tmp_path, updates, message):
  config = transfer.get_config("smoke")
  config.distilled = str(soft)
  config.update_from_flattened_dict(updates)
  with pytest.raises(ValueError, match=message):
    applied.compare_networks(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
