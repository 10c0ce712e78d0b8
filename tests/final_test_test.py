"""The final test in groups: the same figures as in one, kept when a run is stopped meanwhile."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import runs
from dd_jax.runs import bound
from dd_jax.runs import programs as run_programs
from dd_jax.runs import snapshots
from dd_jax.runs.interruptions import Interrupted
from dd_jax.runs.programs import make_keys, make_programs
from tests import small_runs

pytestmark = pytest.mark.usefixtures("quick_runs")
_EVALUATION = {"device": bound.Evaluation, "host": bound.FedEvaluation}


def _problem():
  """Seven held-out networks."""
  return small_runs.problem(init="random")._replace(num_test_inits=7, num_validation_inits=2)


@pytest.fixture
def small_groups(monkeypatch):
  """Of three networks; of one where batches are fed."""
  monkeypatch.setattr(run_programs, "_GROUP", 3)
  monkeypatch.setattr(bound, "_GROUP_BYTES", 1)


def _distil(workdir, storage):
  return runs.distill(_problem(), workdir, num_steps=4,
                      settings=small_runs.SETTINGS._replace(storage=storage))


@pytest.mark.parametrize("storage, starts", [("device", [0, 3, 6]), ("host", list(range(7)))])
def test_groups_give_what_all_networks_give(small_groups, storage, starts):
  problem = _problem()
  programs = make_programs(problem, num_steps=4, seed=5,
                           settings=small_runs.SETTINGS._replace(storage=storage))
  distilled = programs.decode(programs.state.trainable)
  assert list(programs.test.starts(distilled)) == starts
  found = programs.test(distilled)
  inputs, labels = runs.data.prepared(problem.data, problem.data.test)
  expected = dd_jax.evaluate(
      make_keys(5)["test"], distilled, problem.inits.test, problem.train, problem.apply, inputs,
      labels, num_inits=7)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
  assert len(set(np.asarray(found.after.loss).tolist())) == 7


@pytest.mark.parametrize("storage", ["device", "host"])
def test_validation_is_of_the_validation_networks_and_examples(storage):
  problem = _problem()
  programs = make_programs(problem, num_steps=4, seed=5,
                           settings=small_runs.SETTINGS._replace(storage=storage))
  distilled = programs.decode(programs.state.trainable)
  found = programs.validate(distilled)
  assert found.after.confusion.sum((1, 2)).tolist() == [6, 6]
  expected = dd_jax.evaluate(
      make_keys(5)["validation"], distilled, problem.inits.validation, problem.train,
      problem.apply, *runs.prepared(problem.data, problem.data.validation), num_inits=2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_run_stopped_at_its_test_goes_on_where_it_was(tmp_path, small_groups, monkeypatch,
                                                         storage):
  whole = _distil(tmp_path / "whole", storage)
  workdir, tested = tmp_path / "stopped", []
  of_group = _EVALUATION[storage].of_group

  def stopping(self, distilled, start):
    if self.starts(distilled).stop == 7:  # Not the validation, which has two networks.
      tested.append(start)
      if len(tested) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return of_group(self, distilled, start)

  monkeypatch.setattr(_EVALUATION[storage], "of_group", stopping)
  done = {"device": 6, "host": 2}[storage]
  with pytest.raises(Interrupted, match=f"stopped at the test, after {done} of 7 networks"):
    _distil(workdir, storage)
  files = sorted(path.name for path in (workdir / "tested").iterdir())
  size = {"device": 3, "host": 1}[storage]
  assert [re.sub("^4-[0-9a-f]{16}", "4", name) for name in files] == [
      f"4-{start}-{start + size}.npz" for start in tested]
  assert not (workdir / "result.json").exists()
  (workdir / "tested" / files[0]).write_bytes(b"damaged")
  tested.clear()
  tested.extend([None, None])  # No signal any more.
  result = _distil(workdir, storage)
  again = [start for start in tested if start is not None]
  assert again == {"device": [0, 6], "host": [0, 2, 3, 4, 5, 6]}[storage]
  assert not (workdir / "tested").exists()
  for name, values in snapshots.load_evaluation(workdir).items():
    np.testing.assert_array_equal(values, snapshots.load_evaluation(whole.workdir)[name])
  assert result.figures["accuracy_mean"] == whole.figures["accuracy_mean"]
  assert json.loads((workdir / "result.json").read_text())["num_eval_inits"] == 7


def _stop_after_one_group(monkeypatch, distil):
  """A signal comes while the first group of the seven networks is tested."""
  of_group = bound.Evaluation.of_group

  def stopping(self, distilled, start):
    if self.starts(distilled).stop == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    return of_group(self, distilled, start)

  with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 3 of 7"):
    patch.setattr(bound.Evaluation, "of_group", stopping)
    distil()


def test_groups_of_another_size_are_tested_anew(tmp_path, small_groups, monkeypatch):
  """As on another number of devices."""
  whole = _distil(tmp_path / "whole", "device")
  workdir = tmp_path / "stopped"
  _stop_after_one_group(monkeypatch, lambda: _distil(workdir, "device"))
  monkeypatch.setattr(run_programs, "_GROUP", 5)
  assert _distil(workdir, "device").figures["num_eval_inits"] == 7
  for name, values in snapshots.load_evaluation(workdir).items():
    np.testing.assert_allclose(values, snapshots.load_evaluation(whole.workdir)[name], rtol=1e-6)


def test_groups_of_other_images_are_tested_anew(tmp_path, small_groups, monkeypatch):
  """As of a run that came to the same step another way: on another CPU, without its checkpoints."""
  def distil(workdir, rate):
    return runs.distill(_problem()._replace(optimizer=optax.adam(rate)), workdir, num_steps=4,
                        settings=small_runs.SETTINGS)

  whole, workdir = distil(tmp_path / "whole", .1), tmp_path / "stopped"
  _stop_after_one_group(monkeypatch, lambda: distil(workdir, .3))
  shutil.rmtree(workdir / "checkpoints")
  assert distil(workdir, .1).figures["accuracy_mean"] == whole.figures["accuracy_mean"]
  for name, values in snapshots.load_evaluation(workdir).items():
    np.testing.assert_array_equal(values, snapshots.load_evaluation(whole.workdir)[name])
