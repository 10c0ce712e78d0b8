"""Several starts of the distilled data: the best by validation is the result, and none is lost."""

import json
import os
import signal

import numpy as np
import pytest

from dd_jax import runs
from dd_jax.runs import loop
from dd_jax.runs import queues
from dd_jax.runs.programs import make_programs
from experiments import problem as experiment
from experiments.configs import digits_fixed_init
from tests import small_runs

_NUM_STEPS = 12
_SETTINGS = small_runs.SETTINGS._replace(num_starts=3)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def _distill(workdir, num_steps=_NUM_STEPS, settings=_SETTINGS):
  return runs.distill(small_runs.problem(), workdir, num_steps=num_steps, settings=settings)


def _lines(directory):
  return [{name: value for name, value in json.loads(line).items() if name != "seconds"}
          for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_result_is_that_of_the_start_that_validation_ranks_first(tmp_path):
  problem = small_runs.problem()
  programs = make_programs(problem, num_steps=_NUM_STEPS, seed=0, settings=_SETTINGS)
  states, scores = [], []
  for start in range(3):
    directory = tmp_path / f"alone{start}"
    directory.mkdir()
    state, metrics, _ = loop.run_outer_loop(loop.Run(
        problem, programs._replace(state=programs.begin(start)), _SETTINGS, _NUM_STEPS, 0, {},
        directory))
    states.append(state)
    scores.append(metrics[-1]["validation_accuracy"])
  inputs = [programs.decode(state.trainable).inputs for state in states]
  assert not np.array_equal(inputs[0], inputs[1])

  found = _distill(tmp_path / "run")

  best = int(np.argmax(scores))
  assert found.figures["start"] == best and found.figures["scores_of_starts"] == scores
  assert found.figures["validation_accuracy"] == max(scores)
  assert found.figures["selection"] == ("final images of the best of 3 starts by validation; "
                                        "test data chose nothing")
  np.testing.assert_array_equal(found.artifact.distilled.inputs, inputs[best])
  assert _lines(found.workdir) == _lines(tmp_path / f"alone{best}")
  assert sorted(path.name for path in (found.workdir / "snapshots").iterdir()) == sorted(
      path.name for path in (found.workdir / f"starts/{best}/snapshots").iterdir())


def test_the_first_start_is_that_of_a_run_of_one(tmp_path):
  one = _distill(tmp_path / "one", settings=small_runs.SETTINGS)
  assert "start" not in one.figures and not (one.workdir / "starts").exists()
  assert one.figures["selection"] == "final images; test data chose nothing"
  three = _distill(tmp_path / "three")
  assert _lines(three.workdir / "starts/0") == _lines(one.workdir)


def test_a_run_that_is_stopped_goes_on_with_the_start_that_it_had_begun(tmp_path, monkeypatch):
  expected = _distill(tmp_path / "expected")
  begun = []

  class Bar(loop.tqdm):
    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      begun.append(self.n)

    def update(self, n=1):
      super().update(n)
      if len(begun) == 2 and self.n == 6:
        os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(loop, "tqdm", Bar)
  with pytest.raises(runs.Interrupted, match="stopped at outer step 8; the same c"):
    _distill(tmp_path / "run")
  entry = queues.Entry("run", [], tmp_path / "run", _NUM_STEPS)
  assert queues.steps_taken(entry) == _NUM_STEPS and not queues.is_finished(entry)

  found = _distill(tmp_path / "run")

  assert begun == [0, 0, _NUM_STEPS, 8, 0]
  assert found.figures["scores_of_starts"] == expected.figures["scores_of_starts"]
  np.testing.assert_array_equal(found.artifact.distilled.inputs,
                                expected.artifact.distilled.inputs)


def test_more_steps_go_on_from_every_start(tmp_path):
  _distill(tmp_path / "run", num_steps=8)
  found = _distill(tmp_path / "run")
  assert found.figures["outer_steps"] == _NUM_STEPS
  assert all(_lines(tmp_path / f"run/starts/{start}")[-1]["step"] == _NUM_STEPS
             for start in range(3))


def test_starts_that_would_be_the_same_are_refused(tmp_path):
  config = digits_fixed_init.get_config("smoke")
  config.distill.num_starts, config.distill.start = 2, "real"
  with pytest.raises(ValueError, match="num_starts must be 1 where the distilled data start at"):
    experiment.distill(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
