"""Data that changed under a run, a pool, baselines or a transfer: refused, and nothing is lost."""

import json
import shutil

import numpy as np
import pytest

from dd_jax import datasets
from dd_jax.files import artifacts
from dd_jax.files import pools
from dd_jax.runs import fingerprints
from dd_jax.runs import run
from dd_jax.runs import transfer
from experiments import problem
from experiments.configs import digits_fixed_init
from experiments.configs import digits_lenet_pool
from experiments.configs import transfer as transfer_config
from experiments.names import applied
from tests.launches import SMOKE, error_of, launch

pytestmark = pytest.mark.usefixtures("quick_runs")
_CHANGED = ("workdir must be empty or of the same data; .* data.name and data.dir .*: {} is .* "
            "there and .* now")


def _write(path, change=None):
  """Digits as the user's own file, with one thing changed."""
  digits = datasets.load("digits")
  arrays = {name: getattr(digits, name).copy() for name in (
      "train_images", "train_labels", "test_images", "test_labels")}
  if change is not None:
    arrays[change].flat[0] ^= 1
  np.savez(path, **arrays)


def _files(directory):
  return {str(path.relative_to(directory)): path.read_bytes()
          for path in sorted(directory.rglob("*")) if path.is_file()}


def _config(path, make=digits_fixed_init, **updates):
  config = make.get_config("smoke")
  config.update_from_flattened_dict({
      "data.name": str(path), "model.name": "mlp", **updates})
  return config


@pytest.fixture(scope="module")
def finished(quick_runs, tmp_path_factory):
  """A finished run on a user's own file: its config and its directory."""
  directory = tmp_path_factory.mktemp("finished")
  _write(directory / "mine.npz")
  config = _config(directory / "mine.npz")
  result = problem.distill(config, directory / "run")
  return config, result.workdir, result.figures


def test_the_digest_is_that_of_the_values_alone():
  digits = datasets.load("digits")
  digest = datasets.digest(digits)
  assert digest["train_images"].startswith("uint8 [1297, 28, 28, 1] ")
  assert digest["test_labels"].startswith("int32 [500] ")
  turned = np.asfortranarray(digits.train_images)
  assert datasets.digest(digits._replace(train_images=turned, name="other")) == digest
  for name in digest:
    array = getattr(digits, name)
    for other in (array[::-1], array[:-1], array.astype(np.int64), array.reshape(-1, 1)):
      changed = datasets.digest(digits._replace(**{name: other}))
      assert {key for key in digest if digest[key] != changed[key]} == {name}


def test_a_folder_s_digest_is_of_its_names_and_contents(tmp_path):
  """Such as those of other layouts, which `experiments.transfer` takes."""
  (tmp_path / "a/b").mkdir(parents=True)
  (tmp_path / "a/b/c").write_text("1")
  first = fingerprints.of_file(tmp_path / "a")
  assert first != fingerprints.of_file(tmp_path / "a/b/c")
  (tmp_path / "a/b/c").rename(tmp_path / "a/b/d")
  renamed = fingerprints.of_file(tmp_path / "a")
  (tmp_path / "a/b/d").write_text("2")
  assert len({first, renamed, fingerprints.of_file(tmp_path / "a")}) == 3
  (tmp_path / "a/b/d").write_text("1")
  (tmp_path / "a/b/d").rename(tmp_path / "a/b/c")
  assert fingerprints.of_file(tmp_path / "a") == first


def test_a_run_says_what_it_was_made_from(finished):
  config, workdir, result = finished
  digest = datasets.digest(datasets.load(config.data.name))
  assert result["data"] == digest == json.loads((workdir / "data.json").read_text())
  assert artifacts.load(workdir / "distilled.npz").metadata["data"] == digest


@pytest.mark.parametrize("change", ["train_images", "train_labels", "test_images", "test_labels"])
def test_a_finished_run_is_not_shown_for_other_data(finished, change):
  config, workdir, _ = finished
  before = _files(workdir)
  _write(config.data.name, change)
  try:
    with pytest.raises(ValueError, match=_CHANGED.format(change)):
      problem.distill(config, workdir)
  finally:
    _write(config.data.name)
  assert _files(workdir) == before


def test_it_is_shown_again_once_the_data_are_back(finished):
  config, workdir, result = finished
  assert problem.distill(config, workdir).figures == result


def test_an_interrupted_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
  _write(tmp_path / "mine.npz")
  config = _config(tmp_path / "mine.npz")
  with monkeypatch.context() as patched:
    patched.setattr(run, "_write", _interrupt)
    with pytest.raises(KeyboardInterrupt):
      problem.distill(config, tmp_path / "run")
  before = _files(tmp_path / "run")
  _write(tmp_path / "mine.npz", "train_images")
  with pytest.raises(ValueError, match=_CHANGED.format("train_images")):
    problem.distill(config, tmp_path / "run")
  assert _files(tmp_path / "run") == before
  _write(tmp_path / "mine.npz")
  assert problem.distill(config, tmp_path / "run").figures["outer_steps"] == 6


def _interrupt(*_):
  raise KeyboardInterrupt


def test_a_pool_is_not_continued_on_other_data_nor_a_run_on_another_pool(tmp_path):
  _write(tmp_path / "mine.npz")
  config = _config(tmp_path / "mine.npz", digits_lenet_pool)
  result = problem.pretrain(config, tmp_path / "pool")
  digest = datasets.digest(datasets.load(tmp_path / "mine.npz"))
  assert result["data"] == pools.load(tmp_path / "pool/heldout.npz").metadata["data"]
  assert result["data"] == digest

  started = _config(tmp_path / "mine.npz", **{
      "init.name": "pretrained", "init.pool": str(tmp_path / "pool"), "init.num_validation": 1,
      "outer.num_inits": 2, "eval.num_inits": 3})
  made_from = problem.make_problem(started).made_from
  fingerprints.check_workdir(tmp_path, made_from)
  fingerprints.check_workdir(tmp_path, made_from)
  pool = pools.load(tmp_path / "pool/train.npz")
  pool.params["Dense_0"]["kernel"][0] += 1
  pools.save(tmp_path / "pool/train.npz", *pool)
  with pytest.raises(ValueError, match=_CHANGED.format("init.pool/train.npz")):
    fingerprints.check_workdir(tmp_path, problem.make_problem(started).made_from)

  (tmp_path / "pool/result.json").unlink()
  (tmp_path / "pool/blocks/train-00000.npz").unlink()
  before = _files(tmp_path / "pool")
  _write(tmp_path / "mine.npz", "train_labels")
  with pytest.raises(ValueError, match=_CHANGED.format("train_labels")):
    problem.pretrain(config, tmp_path / "pool")
  assert _files(tmp_path / "pool") == before


def test_baselines_are_not_continued_on_other_data(tmp_path):
  _write(tmp_path / "mine.npz")
  config = _config(tmp_path / "mine.npz")
  (tmp_path / "run").mkdir()
  fingerprints.check_workdir(tmp_path / "run",
                             datasets.digest(datasets.load(tmp_path / "mine.npz")))
  _write(tmp_path / "mine.npz", "test_labels")
  with pytest.raises(ValueError, match=_CHANGED.format("test_labels")):
    problem.compare_baselines(config, tmp_path / "run")


@pytest.mark.parametrize("change", ["distilled", "test_images"])
def test_a_comparison_of_networks_is_not_continued_on_other_files(finished, tmp_path, monkeypatch,
                                                                  change):
  config, workdir, _ = finished
  distilled = tmp_path / "distilled.npz"
  distilled.write_bytes((workdir / "distilled.npz").read_bytes())
  comparison = transfer_config.get_config("smoke")
  comparison.distilled, comparison.networks = str(distilled), "mlp"
  with monkeypatch.context() as patched:
    patched.setattr(transfer, "_make_evaluate", _no_training)
    applied.compare_networks(comparison, tmp_path / "transfer")
    try:
      if change == "distilled":
        artifact = artifacts.load(distilled)
        artifacts.save(distilled, artifact.distilled._replace(inputs=artifact.distilled.inputs + 1),
                       init_params=artifact.init_params, metadata=artifact.metadata)
      else:
        _write(config.data.name, change)
      with pytest.raises(ValueError, match=_CHANGED.format(change)):
        applied.compare_networks(comparison, tmp_path / "transfer")
    finally:
      _write(config.data.name)


def _no_training(*_):
  return lambda key, distilled, validation, test: (np.array([.5]), np.array([.5]))


def test_a_directory_of_an_older_version_takes_the_data_of_now(tmp_path):
  fingerprints.check_workdir(tmp_path, {"train_images": "a"})
  assert json.loads((tmp_path / "data.json").read_text()) == {"train_images": "a"}


@pytest.mark.parametrize("content", ["", "{", "3", "[1]"])
def test_a_damaged_record_is_named(tmp_path, content):
  (tmp_path / "data.json").write_text(content)
  with pytest.raises(ValueError, match="workdir must be .* of the same data; .*data.json is "
                                       "damaged"):
    fingerprints.check_workdir(tmp_path, {"train_images": "a"})


@pytest.mark.slow
def test_on_the_command_line_it_is_one_line(finished, tmp_path):
  _write(tmp_path / "mine.npz", "train_labels")
  line = error_of(launch("experiments.main", SMOKE, "--config.model.name=mlp",
                         f"--config.data.name={tmp_path / 'mine.npz'}",
                         f"--workdir={_moved(finished, tmp_path)}"))
  assert line.startswith("error: workdir must be empty or of the same data;")


def _moved(finished, directory):
  """A finished run whose config names the file of this directory."""
  workdir = shutil.copytree(finished[1], directory / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["name"] = str(directory / "mine.npz")
  (workdir / "config.json").write_text(json.dumps(config))
  return workdir
