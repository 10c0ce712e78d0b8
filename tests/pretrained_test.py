"""Pools of pre-trained networks, the runs that start from them, and the objectives they are for."""

import json
import shutil

import jax
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax import models
from dd_jax.files import artifacts
from dd_jax.files import pools as pool_files
from dd_jax.runs.provenance import source
from experiments import problem
from experiments.configs import digits_lenet_pool
from tests.launches import SMOKE, launch, smoke, start_anew

_CONFIG = "--config=experiments/configs/digits_lenet_pool.py:smoke"

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
  """Smoke pools of digits: their directory and the result, as the command prints it."""
  workdir = tmp_path_factory.mktemp("pools")
  process = launch("experiments.pretrain", _CONFIG, "--config.model.name=mlp",
                   f"--workdir={workdir}")
  assert process.returncode == 0, process.stderr
  return workdir, json.loads(process.stdout.splitlines()[-1])


def _config(directory, **updates):
  return smoke(**{
      "init.name": "pretrained", "init.pool": str(directory), "init.num_validation": 1,
      "outer.num_inits": 2, "eval.num_inits": 3, **updates})


def test_pools_hold_networks_of_disjoint_seeds_with_their_accuracy(pools):
  workdir, result = pools
  train_pool, heldout_pool = (pool_files.load(workdir / f"{role}.npz")
                              for role in ("train", "heldout"))
  weights = np.concatenate([pool.params["Dense_2"]["kernel"].reshape(3, -1)
                            for pool in (train_pool, heldout_pool)])
  distances = np.linalg.norm(weights[:, None] - weights, axis=-1)
  assert (distances + np.eye(6) > .5).all()  # Six different networks.
  data = datasets.load("digits")
  images = datasets.normalize(data.test_images, data.mean, data.std)
  model = models.mlp(num_classes=10, image_shape=(28, 28, 1))
  for network, accuracy in enumerate(heldout_pool.metadata["accuracy"]):
    params = jax.tree.map(lambda leaf, network=network: leaf[network], heldout_pool.params)
    predicted = np.argmax(model.apply(params, images), -1)
    np.testing.assert_allclose(np.mean(predicted == data.test_labels), accuracy, atol=1e-6)
  np.testing.assert_allclose(result["heldout_accuracy_mean"],
                             np.mean(heldout_pool.metadata["accuracy"]))
  assert result["num_train"] == result["num_heldout"] == 3
  assert result == json.loads((workdir / "result.json").read_text())


def test_training_validation_and_held_out_networks_of_a_pool_are_others(pools):
  inits = problem.make_problem(_config(pools[0])).inits
  train, heldout = (pool_files.load(pools[0] / f"{role}.npz").params["Dense_0"]["kernel"]
                    for role in ("train", "heldout"))
  for init, expected in zip(inits, (train[:2], train[2:], heldout), strict=True):
    np.testing.assert_array_equal(init.state["Dense_0"]["kernel"], expected)


def test_an_interrupted_pool_continues_to_the_same_networks(pools, tmp_path):
  config = digits_lenet_pool.get_config("smoke")
  config.model.name = "mlp"
  expected = pool_files.load(pools[0] / "heldout.npz").params
  (tmp_path / "blocks").mkdir()
  for name in ("train-00000.npz", "heldout-00000.npz"):  # Of two blocks each.
    shutil.copy(pools[0] / "blocks" / name, tmp_path / "blocks")
  (tmp_path / "blocks/heldout-00002.npz").write_bytes(b"damaged")
  assert problem.pretrain(config, tmp_path)["sources"] == ["unknown", source()]
  actual = pool_files.load(tmp_path / "heldout.npz").params
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.slow
def test_a_poisoning_run_from_a_pool_is_tested_on_the_networks_held_out(pools, tmp_path):
  """It reports both of its figures."""
  result = problem.distill(
      _config(pools[0], **{"objective.name": "poisoning", "distill.num_epochs": 1}),
      tmp_path).figures
  np.testing.assert_allclose(result["accuracy_before_mean"], pools[1]["heldout_accuracy_mean"],
                             atol=1e-6)
  assert result["num_eval_inits"] == 3
  for name in ("attack_success", "others_accuracy"):
    for suffix in ("mean", "std", "before_mean", "before_std"):
      assert 0 <= result[f"{name}_{suffix}"] <= 1
  last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert {"validation_attack_success", "validation_others_accuracy"} <= last.keys()


@pytest.mark.slow
def test_a_pool_on_two_devices_is_the_pool_on_one(pools, tmp_path):
  """Before Adam enlarges what sums in another order differ by."""
  found = []
  for number in (1, 2):
    workdir = tmp_path / str(number)
    process = start_anew(
        "experiments.main", SMOKE, "--config.model.name=mlp", "--config.init.name=pretrained",
        f"--config.init.pool={pools[0]}", "--config.init.num_validation=1",
        "--config.outer.num_inits=2", "--config.eval.num_inits=3",
        "--config.validation.num_inits=1",
        f"--workdir={workdir}", JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={number}")
    assert process.returncode == 0, process.stderr
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    found.append((line["loss"], json.loads(process.stdout.splitlines()[-1])))
  (loss, alone), (shared_loss, shared) = found
  assert shared["device"] == "2 x cpu" and shared["num_eval_inits"] == 3
  assert shared_loss == pytest.approx(loss, rel=1e-4)
  assert shared["accuracy_before_mean"] == pytest.approx(alone["accuracy_before_mean"], abs=2e-3)


def test_a_run_from_one_network_of_a_pool_stores_it(pools, tmp_path):
  result = problem.distill(_config(pools[0], **{
      "init.name": "fixed_pretrained", "outer.num_inits": 1, "eval.num_inits": 1,
      "validation.num_inits": 1}), tmp_path)
  pool = pool_files.load(pools[0] / "train.npz")
  np.testing.assert_allclose(result.figures["accuracy_before_mean"], pool.metadata["accuracy"][0],
                             atol=1e-6)
  params = artifacts.load(tmp_path / "distilled.npz").init_params
  np.testing.assert_array_equal(params["Dense_0"]["kernel"], pool.params["Dense_0"]["kernel"][0])


@pytest.mark.parametrize("updates, message", [
    ({"init.pool": ""}, "init.pool must be a directory that experiments.pretrain wrote; got ''"),
    ({"init.name": "imagenet"}, "init.checkpoint must be a file .* weights; got ''"),
    ({"init.name": "imagenet", "init.checkpoint": "weights.bin"},
     r"path must end in .safetensors, .npz, .pth; got weights.bin"),
    ({"init.pool": "nowhere"}, "No such file .*nowhere/train.npz"),
    ({"init.source": "mnist"},
     "init.pool must hold networks of dataset 'mnist'; those of .*train.npz have 'digits'"),
    ({"model.name": "lenet"},
     "init.pool must hold networks of model 'lenet'; those of .*train.npz have 'mlp'"),
    ({"data.image_shape": (32, 32, 3)}, r"networks of image_shape \[32, 32, 3\]; .*\[28, 28, 1\]"),
    ({"outer.num_inits": 3}, "num_inits must be at most the pool's 2 networks; got 3"),
    ({"validation.num_inits": 2}, "num_inits must be at most the pool's 1 networks; got 2"),
    ({"init.num_validation": 3}, r"init.num_validation must lie in 1\.\.2 .*; got 3"),
    ({"eval.num_inits": 4}, "num_inits must be at most the pool's 3 networks; got 4"),
    ({"objective.name": "poisoning", "objective.target_class": 0},
     "target_class must differ from attack_class; got 0 for both"),
    ({"objective.name": "poisoning", "objective.attack_class": 10},
     r"attack_class must lie in 0\.\.9; got 10"),
    ({"objective.name": "attack"}, "objective.name must be one of .*poisoning"),
])
def test_a_pool_or_objective_that_does_not_fit(pools, tmp_path, updates, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    problem.distill(_config(pools[0], **updates), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change, message", [
    (lambda params, metadata: params["Dense_0"].pop("bias"),
     r"with Dense_0/bias \(128,\); in .*train.npz it is absent"),
    (lambda params, metadata: params.update(extra={"w": np.zeros((3, 2))}),
     r"with extra/w absent; in .*train.npz it is \(2,\)"),
    (lambda params, metadata: params["Dense_1"].update(bias=np.zeros((3, 7))),
     r"with Dense_1/bias \(128,\); in .*train.npz it is \(7,\)"),
])
def test_a_pool_that_was_tampered_with(pools, tmp_path, change, message):
  for role in ("train", "heldout"):
    shutil.copy(pools[0] / f"{role}.npz", tmp_path)
  params, metadata = pool_files.load(tmp_path / "train.npz")
  change(params, metadata)
  pool_files.save(tmp_path / "train.npz", params, metadata)
  with pytest.raises(ValueError, match=message):
    problem.make_problem(_config(tmp_path))


def test_one_pool_under_both_names_is_refused(pools, tmp_path):
  for role in ("train", "heldout"):
    shutil.copy(pools[0] / "heldout.npz", tmp_path / f"{role}.npz")
  with pytest.raises(ValueError, match="two pools of different networks; those of .* are the same"):
    problem.make_problem(_config(tmp_path))
