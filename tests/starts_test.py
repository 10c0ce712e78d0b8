"""Several starts of the distilled data: the best by validation is the result, and none is lost."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import runs
from dd_jax.files import artifacts
from dd_jax.runs import loop
from dd_jax.runs import queues
from dd_jax.runs import starts
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


def test_more_steps_go_on_from_every_start(tmp_path, capsys):
  _distill(tmp_path / "run", num_steps=8)
  capsys.readouterr()
  found = _distill(tmp_path / "run")
  assert found.figures["outer_steps"] == _NUM_STEPS
  assert capsys.readouterr().err.count("begins at outer step 8\n") == 3
  assert all(_lines(tmp_path / f"run/starts/{start}")[-1]["step"] == _NUM_STEPS
             for start in range(3))


def _of_diverging(diverging):
  """The problem, whose loss is no number from the starts of these first pixels on."""
  problem = small_runs.problem()

  def decode(trainable):
    distilled = problem.learned.decode(trainable)
    bad = jnp.isin(distilled.inputs[0, 0, 0, 0, 0], jnp.asarray(diverging))
    return distilled._replace(step_sizes=jnp.where(bad, jnp.nan, distilled.step_sizes))

  return problem._replace(learned=problem.learned._replace(decode=decode))


def test_a_start_that_diverges_is_left_out(tmp_path, capsys):
  expected = _distill(tmp_path / "expected").figures
  bad = (expected["start"] + 1) % 3
  programs = make_programs(small_runs.problem(), num_steps=4, seed=0, settings=_SETTINGS)
  pixels = [float(programs.decode(programs.begin(start).trainable).inputs[0, 0, 0, 0, 0])
            for start in range(3)]
  found = runs.distill(_of_diverging([pixels[bad]]), tmp_path / "run", num_steps=_NUM_STEPS,
                       settings=_SETTINGS)
  scores = [None if start == bad else score
            for start, score in enumerate(expected["scores_of_starts"])]
  assert found.figures["scores_of_starts"] == scores
  assert found.figures["start"] == expected["start"]
  np.testing.assert_allclose(
      found.artifact.distilled.inputs,
      artifacts.load(tmp_path / "expected/distilled.npz").distilled.inputs, rtol=1e-4, atol=1e-4)
  assert f"warning: start {bad} is left out: loss or hypergradient is" in capsys.readouterr().err
  with pytest.raises(FloatingPointError, match="none of the 3 starts came to its end"):
    runs.distill(_of_diverging(pixels), tmp_path / "none", num_steps=_NUM_STEPS,
                 settings=_SETTINGS)


def test_a_signal_after_the_last_step_of_a_start_stops_the_run(tmp_path, monkeypatch):
  expected = _distill(tmp_path / "expected")

  class Checkpoints(loop.Checkpoints):
    def __exit__(self, *error):
      os.kill(os.getpid(), signal.SIGTERM)
      return super().__exit__(*error)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "Checkpoints", Checkpoints)
    with pytest.raises(runs.Interrupted, match=f"stopped at outer step {_NUM_STEPS}; the same c"):
      _distill(tmp_path / "run")
  assert not (tmp_path / "run/starts/1").exists()
  assert (_distill(tmp_path / "run").figures["scores_of_starts"]
          == expected.figures["scores_of_starts"])


def test_the_programs_of_all_starts_are_compiled_once(tmp_path, monkeypatch):
  compiled = []

  def compile_programs(*args, original=starts.compile_programs):
    compiled.append(args)
    return original(*args)

  monkeypatch.setattr(starts, "compile_programs", compile_programs)
  _distill(tmp_path)
  assert len(compiled) == 1


def test_starts_that_would_be_the_same_are_refused(tmp_path):
  config = digits_fixed_init.get_config("smoke")
  config.distill.num_starts, config.distill.start = 2, "real"
  with pytest.raises(ValueError, match="num_starts must be 1 where the distilled data start at"):
    experiment.distill(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
