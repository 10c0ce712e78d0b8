"""Directories held by one process, runs that go on, and runs that start from a finished file."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dd_jax import runs
from dd_jax.files import artifacts
from dd_jax.runs import processes
from dd_jax.runs import workdirs
from experiments import problem
from experiments.configs import diabetes_random_init
from experiments.configs import digits_lenet_pool
from experiments.configs import transfer
from experiments.measurements import sweep
from experiments.names import applied
from tests.launches import ROOT, SMOKE, error_of, launch, smoke

pytestmark = pytest.mark.usefixtures("quick_runs")


def _config(**updates):
  """Ten steps, with a schedule that no length changes."""
  return smoke(**{"outer.num_steps": 10, "outer.schedule": "halving", **updates})


@pytest.fixture(scope="module")
def finished(quick_runs, tmp_path_factory):
  """A run of ten steps."""
  return problem.distill(_config(), tmp_path_factory.mktemp("finished")).workdir


# One process for a directory


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_one_lives_and_not_after_it(tmp_path):
  arguments = [SMOKE, "--config.model.name=mlp", "--config.outer.num_steps=100000",
               f"--workdir={tmp_path / 'run'}"]
  command = [sys.executable, "-m", "experiments.main", *arguments]
  first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/checkpoints/4").exists() and time.monotonic() < deadline:
      assert first.poll() is None
      time.sleep(.05)
    before = (tmp_path / "run/config.json").stat().st_mtime_ns
    assert error_of(launch("experiments.main", *arguments)).startswith(
        "error: workdir must be written by one process at a time; "
        f"{tmp_path / 'run'} is held by process {first.pid} of ")
    assert (tmp_path / "run/config.json").stat().st_mtime_ns == before
    assert first.poll() is None
  finally:
    first.kill()
    first.wait(timeout=60)
  last = max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()
             if path.name.isdigit())
  second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True)
  try:
    begins = next(line for line in second.stderr if "error" in line or "begins at" in line)
    assert int(begins.split()[-1]) >= last - 4
  finally:
    second.kill()
    second.communicate(timeout=60)


def _small_pool(**updates):
  config = digits_lenet_pool.get_config("smoke")
  config.update_from_flattened_dict({"model.name": "mlp", **updates})
  return config


def _comparison(finished, **updates):
  config = transfer.get_config("smoke")
  config.update_from_flattened_dict({"distilled": str(finished / "distilled.npz"), **updates})
  return config


@pytest.mark.parametrize("command", [
    lambda finished, workdir: problem.distill(_config(), workdir),
    lambda finished, workdir: problem.pretrain(_small_pool(), workdir),
    lambda finished, workdir: problem.compare_baselines(_config(), workdir),
    lambda finished, workdir: sweep.sweep(_config(), workdir, "steps", [0]),
    lambda finished, workdir: applied.compare_networks(_comparison(finished), workdir),
])
def test_every_command_refuses_a_directory_that_is_held(finished, tmp_path, command):
  with workdirs.held(tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"one process at a time; .* process {os.getpid()} of "):
      command(finished, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("seed", [-1, 2 ** 32])
def test_seeds_of_more_than_32_bits_are_refused_by_name(finished, tmp_path, seed):
  workdir = tmp_path / "run"
  for name, command in (
      ("seed", lambda: problem.compare_baselines(_config(seed=seed), workdir)),
      ("seed", lambda: problem.pretrain(_small_pool(seed=seed), workdir)),
      ("seed", lambda: applied.compare_networks(_comparison(finished, seed=seed), workdir)),
      ("--seeds", lambda: sweep.sweep(_config(), workdir, "steps", [0, seed])),
      ("--seed", lambda: applied.apply(finished / "distilled.npz", seed=seed))):
    with pytest.raises(ValueError) as error:
      command()
    assert str(error.value) == f"{name} must lie in 0..4294967295; got {seed}"
  assert not workdir.exists()


def test_a_study_of_bounds_needs_images_that_have_one(tmp_path):
  with pytest.raises(ValueError, match="--study=epsilon must go with distill.images='perturbed'"):
    sweep.sweep(_config(), tmp_path / "study", "epsilon", [0])
  assert not (tmp_path / "study").exists()


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("mine")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(OSError, match="workdir must be a directory that can be written; got"):
      with workdirs.held(workdir):
        pass
  assert (tmp_path / "file").read_text() == "mine"


# More outer steps


@pytest.mark.slow
def test_a_lock_without_its_owner_s_name_is_let_go(tmp_path, monkeypatch):
  """On a full disk, where a name cannot be written."""
  def full(*_, **__):
    raise OSError(28, "No space left on device")
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "write_text", full)
    with workdirs.held(tmp_path):
      assert workdirs.is_held(tmp_path)
  assert not workdirs.is_held(tmp_path)


def test_a_finished_run_goes_on_with_more_steps(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  # An end between two dispatches, too: 15 is no multiple of log_every.
  longer = _config(**{"outer.num_steps": 15})
  # Broken off after config.json, before the first new step: the longer command goes on.
  assert workdirs.open_run(json.loads(longer.to_json()), workdir) is None
  assert not (workdir / "result.json").exists()
  assert problem.distill(longer, workdir).figures["outer_steps"] == 15
  result = problem.distill(_config(**{"outer.num_steps": 18}), workdir).figures
  expected = problem.distill(_config(**{"outer.num_steps": 18}), tmp_path / "whole").figures
  with np.load(workdir / "distilled.npz") as actual, \
      np.load(tmp_path / "whole/distilled.npz") as reference:
    assert set(actual) == set(reference)
    for name in set(reference) - {"metadata"}:
      np.testing.assert_array_equal(actual[name], reference[name])
  assert result["outer_steps"] == 18
  assert result["accuracy_mean"] == expected["accuracy_mean"]
  assert json.loads((workdir / "result.json").read_text()) == result
  assert json.loads((workdir / "config.json").read_text()) == result["config"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines][:5] == [2, 4, 6, 8, 10] and lines[-1]["step"] == 18
  assert "18" in (workdir / "report.html").read_text()


@pytest.mark.parametrize("updates, message", [
    ({"outer.num_steps": 8}, "outer.num_steps is 10 there and 8 here"),
    ({"outer.num_steps": 30, "seed": 1}, "seed is 0 there and 1 here"),
    ({"outer.learning_rate": .5}, r"outer\.learning_rate is 0\.05 there and 0\.5 here"),
])
def test_other_changes_of_a_finished_run_are_refused(finished, updates, message):
  before = (finished / "result.json").read_bytes()
  with pytest.raises(ValueError, match=f"but for a larger outer.num_steps; in .*{message}"):
    problem.distill(_config(**updates), finished)
  assert (finished / "result.json").read_bytes() == before


# A start from a finished file


def _start_of(config):
  learned = problem.make_problem(config).learned
  return learned.decode(learned.init(jax.random.key(0)))


def test_a_run_goes_on_from_the_same_start_alone(finished, tmp_path):
  """Hard labels and fixed step sizes of the start lie in no checkpoint."""
  start = tmp_path / "start.npz"
  shutil.copy(finished / "distilled.npz", start)
  config = _config(**{"distill.start": str(start)})
  first = problem.make_problem(config).made_from
  loaded = artifacts.load(start)
  artifacts.save(start, loaded.distilled._replace(step_sizes=2 * loaded.distilled.step_sizes),
                 init_params=loaded.init_params, metadata=loaded.metadata)
  again = problem.make_problem(config).made_from
  assert {name for name in first if first[name] != again[name]} == {"distill.start"}


def test_the_fields_of_one_config_alone_are_named(tmp_path):
  workdirs.open_workdir({"seed": 0, "real_epochs": [5]}, tmp_path)
  with pytest.raises(ValueError, match=r"real_epochs is \[5\] there and 'absent' here$"):
    workdirs.open_workdir({"seed": 0}, tmp_path)
  with pytest.raises(ValueError, match="more is 'absent' there and 1 here"):
    workdirs.open_workdir({"seed": 0, "real_epochs": [5], "more": 1}, tmp_path)


def test_lines_go_on_behind_the_last_whole_one(tmp_path):
  path = tmp_path / "rows.jsonl"
  for kept in ("", '{"step": 1}\n'):
    path.write_text(kept + '{"step"')
    assert len(workdirs.reopen_lines(path, "step")) == kept.count("\n")
    workdirs.append_line(path, {"step": 2})
    assert workdirs.read_lines(path, "step")[-1] == {"step": 2}


def test_a_run_starts_from_a_finished_file(finished, tmp_path):
  start = str(finished / "distilled.npz")
  for labels in ("soft", "hard"):
    actual = _start_of(_config(**{"distill.start": start, "distill.labels": labels, "seed": 3}))
    expected = artifacts.load(start).distilled
    np.testing.assert_array_equal(actual.inputs, expected.inputs)
    np.testing.assert_allclose(actual.step_sizes, expected.step_sizes, rtol=1e-5)
    np.testing.assert_array_equal(
        actual.labels, expected.labels if labels == "hard" else np.eye(10)[expected.labels])
  # Soft labels are a start too.
  soft = np.random.default_rng(0).normal(size=(1, 10, 10)).astype(np.float32)
  artifacts.save(tmp_path / "soft.npz", expected._replace(labels=soft))
  again = _start_of(_config(**{"distill.start": str(tmp_path / "soft.npz"),
                               "distill.labels": "soft"}))
  np.testing.assert_array_equal(again.labels, soft)


def test_epochs_beyond_those_of_a_file_begin_as_its_last(finished):
  start = str(finished / "distilled.npz")
  sizes = np.asarray(artifacts.load(start).distilled.step_sizes)
  assert sizes.shape == (3, 1) and sizes[1] != sizes[2]
  actual = _start_of(_config(**{"distill.start": start, "distill.num_epochs": 5}))
  np.testing.assert_allclose(actual.step_sizes, sizes[[0, 1, 2, 2, 2]], rtol=1e-5)


def test_a_start_brings_its_hyper_parameters(finished, tmp_path):
  loaded, start = artifacts.load(finished / "distilled.npz"), str(tmp_path / "momentum.npz")
  artifacts.save(start, loaded.distilled._replace(hyper={"decay": np.float32(.5)}),
                 metadata={**loaded.metadata, "inner_optimizer": "momentum"})
  of_file, of_config = (_start_of(_config(**{
      "distill.start": start, "inner.optimizer": "momentum", **given})).hyper["decay"]
                        for given in ({}, {"inner.decay": .25}))
  np.testing.assert_allclose([of_file, of_config], [.5, .25])
  with pytest.raises(ValueError, match=r"distill\.start must fit the config: inner optimizer .*"):
    _start_of(_config(**{"distill.start": start}))
  # Of one's own, which has no name in a file.
  artifacts.save(start, loaded.distilled, metadata={**loaded.metadata, "inner_optimizer": "own"})
  own = _config(**{"distill.start": start, "inner.optimizer": "dd_jax.optimizers:gradient_descent"})
  np.testing.assert_array_equal(_start_of(own).inputs, loaded.distilled.inputs)


def test_a_start_of_other_pixels_is_normalised_as_the_data(finished, tmp_path):
  loaded, start = artifacts.load(finished / "distilled.npz"), str(tmp_path / "other.npz")
  mean, std = (np.array(loaded.metadata[name]) for name in ("mean", "std"))
  artifacts.save(start, loaded.distilled, metadata={
      **loaded.metadata, "mean": (mean + .2).tolist(), "std": (2 * std).tolist()})
  actual = _start_of(_config(**{"distill.start": start})).inputs
  np.testing.assert_allclose(actual, 2 * np.asarray(loaded.distilled.inputs) + .2 / std,
                             rtol=1e-4, atol=1e-5)
  artifacts.save(start, loaded.distilled, metadata={**loaded.metadata, "pixel_scale": 1})
  with pytest.raises(ValueError, match="distill.start must be of images normalised by mean, s"):
    _start_of(_config(**{"distill.start": start}))


def test_real_rows_of_targets_start_with_their_own(optax_promotion):
  """Sorted targets beside rows that were drawn without them would teach nothing."""
  config = diabetes_random_init.get_config("smoke")
  config.distill.start = "real"
  described = problem.make_problem(config)
  start = described.learned.decode(described.learned.init(jax.random.key(0)))
  rows, targets = runs.prepared(described.data, described.data.train)
  for row, target in zip(start.inputs.reshape(-1, rows.shape[-1]), start.labels.reshape(-1, 1)):
    place, = np.flatnonzero((rows == np.asarray(row)).all(-1))
    np.testing.assert_allclose(targets[place], target, rtol=1e-6)
  config.distill.real_per_class = 1
  with pytest.raises(ValueError, match="distill.real_per_class must be 0 for targets"):
    problem.make_problem(config)


def test_real_images_of_a_start_are_of_its_labels(finished, tmp_path):
  loaded = artifacts.load(finished / "distilled.npz")
  inputs, start = np.concatenate(2 * [loaded.distilled.inputs], 1), str(tmp_path / "two.npz")
  config = _config(**{"distill.start": start, "distill.real_per_class": 1})
  for labels in (np.tile(np.arange(10), 2), np.repeat(np.arange(10), 2)):
    artifacts.save(start, loaded.distilled._replace(inputs=inputs, labels=labels[None]),
                   metadata=loaded.metadata)
    if labels[1] == 1:
      np.testing.assert_array_equal(_start_of(config).labels, labels[None])
    else:
      with pytest.raises(ValueError, match="distill.start must have the classes of the real imag"):
        _start_of(config)


@pytest.mark.parametrize("updates, message", [
    ({"distill.images_per_class": 2},
     r"images \[S, B, H, W, C\] \[1, 20, 28, 28, 1\]; .* has \[1, 10"),
    ({"distill.num_epochs": 2}, r"step sizes \[E, S\] \[2, 1\]; .* has \[3, 1\]"),
    ({"data.whitening": .1}, r"whitening 0\.1; .* has None"),
    ({"distill.labels": "tied"}, "distill.labels must be 'soft' to start from the labels of"),
    ({"distill.images": "bases"}, "distill.images must be 'pixels' for distill.start="),
    ({"distill.start": "zeros"}, "distill.start must be 'noise', 'real' or the path of a disti"),
    ({"distill.start": "none.npz"}, "none.npz"),
])
def test_a_start_that_does_not_fit_is_refused(finished, tmp_path, updates, message):
  config = _config(**{"distill.start": str(finished / "distilled.npz"), **updates})
  with pytest.raises((ValueError, OSError), match=message):
    problem.distill(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_all_processes_must_be_given_the_same(monkeypatch):
  workdirs.check_same({"train_images": "a"}, "the rule")
  monkeypatch.setattr(processes, "gather_json", lambda mine: [mine, mine, {"train_images": "b"}])
  with pytest.raises(ValueError, match="^the rule; train_images is 'a' in process 0 and 'b' in "
                                       "process 2$"):
    workdirs.check_same({"train_images": "a"}, "the rule")
