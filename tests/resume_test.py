"""A run that is stopped, by whatever, continues to the same result; guards stop it in time."""

import functools
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dd_jax import runs
from dd_jax.runs import accuracies
from dd_jax.runs import loop
from dd_jax.runs import machine
from dd_jax.runs.programs import make_programs
from tests import small_runs

_NUM_STEPS = 40
_CONFIG = {"seed": 0, "outer": {"num_steps": _NUM_STEPS}}

# The trees of optax's Adam need promotion; the launcher's own processes have no strict setting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


def _distill(workdir, **settings):
  return runs.distill(small_runs.problem(), workdir, num_steps=_NUM_STEPS, config=_CONFIG,
                      settings=small_runs.SETTINGS._replace(**settings))


def _make_run(problem, **settings):
  """`workdir -> Run` of the outer loop alone, whose programs are traced once."""
  settings = small_runs.SETTINGS._replace(**settings)
  return functools.partial(loop.Run, problem, make_programs(
      problem, num_steps=_NUM_STEPS, seed=0, settings=settings), settings, _NUM_STEPS, 0, _CONFIG)


def _with(run, **settings):
  return run._replace(settings=run.settings._replace(**settings))


@pytest.fixture(scope="module")
def make_run():
  with jax.numpy_dtype_promotion("standard"):
    return _make_run(small_runs.problem())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  with jax.numpy_dtype_promotion("standard"):
    _distill(workdir)
  return workdir


@pytest.fixture
def interrupt(monkeypatch):
  """`interrupt(run, workdir, number)`: a run that gets a signal once it has passed `after`."""
  class Bar(loop.tqdm):
    def update(self, n=1):
      super().update(n)
      if self.n == Bar.after:
        os.kill(os.getpid(), Bar.number)

  def run(function, workdir, number=signal.SIGTERM, after=10):
    Bar.number, Bar.after = number, after
    with monkeypatch.context() as patch:
      patch.setattr(loop, "tqdm", Bar)
      with pytest.raises(runs.Interrupted,
                         match=f"stopped at outer step {after + 2}; the same c") as stopped:
        function(workdir)
    assert stopped.value.number == number
    assert not (workdir / "result.json").exists()

  return run


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()
                if path.name.isdigit())


def _assert_same_lines(workdir, expected):
  timeless = [[{name: value for name, value in line.items() if name != "seconds"}
               for line in _lines(directory)] for directory in (workdir, expected)]
  assert timeless[0] == timeless[1]


def _assert_same_state(state, expected):
  """Bit for bit the newest state of a finished run."""
  with loop.Checkpoints(expected / "checkpoints", _CONFIG, 2) as checkpoints:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True),
                 state, checkpoints.restore_newest(jax.tree.map(np.zeros_like, state)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_continues(
    make_run, interrupt, tmp_path, uninterrupted, number):
  run = _with(make_run(tmp_path), checkpoint_every=8)
  interrupt(lambda _: loop.run_outer_loop(run), tmp_path, number)
  assert _steps(tmp_path)[-1] == 12  # Not one that was due: written for the signal.
  state, lines, _ = loop.run_outer_loop(run)
  assert [line["step"] for line in lines] == list(range(2, _NUM_STEPS + 1, 2))
  _assert_same_state(state, uninterrupted)


def test_a_signal_in_the_last_outer_steps_stops_the_run_before_its_test(
    make_run, interrupt, tmp_path, uninterrupted):
  run = make_run(tmp_path)
  interrupt(lambda _: loop.run_outer_loop(run), tmp_path, after=_NUM_STEPS - 2)
  assert _steps(tmp_path)[-1] == _NUM_STEPS
  state, _, timing = loop.run_outer_loop(run)
  _assert_same_state(state, uninterrupted)
  assert timing["seconds_per_outer_step"] > 0  # Though no step was left.
  _assert_same_lines(tmp_path, uninterrupted)


def test_the_files_of_a_run_that_was_stopped_are_those_of_one_that_was_not(
    interrupt, tmp_path, uninterrupted):
  interrupt(_distill, tmp_path)
  result = _distill(tmp_path)
  assert result.figures["outer_steps"] == _NUM_STEPS
  assert ((tmp_path / "distilled.npz").read_bytes()
          == (uninterrupted / "distilled.npz").read_bytes())
  _assert_same_lines(tmp_path, uninterrupted)
  before = (tmp_path / "result.json").stat().st_mtime_ns
  assert _distill(tmp_path).figures == result.figures  # A finished run is not repeated.
  assert (tmp_path / "result.json").stat().st_mtime_ns == before


def test_damaged_files_are_survived(make_run, interrupt, tmp_path, uninterrupted, capsys):
  run = make_run(tmp_path)
  interrupt(lambda _: loop.run_outer_loop(run), tmp_path)
  newest = max((tmp_path / "checkpoints/12").rglob("*"), key=lambda path: path.stat().st_size)
  os.truncate(newest, newest.stat().st_size // 2)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 14, "lo')
  state, _, _ = loop.run_outer_loop(run)
  assert "warning: the checkpoint of outer step 12" in capsys.readouterr().err
  _assert_same_state(state, uninterrupted)
  _assert_same_lines(tmp_path, uninterrupted)


def test_a_run_of_a_version_that_lacked_a_field_goes_on(tmp_path, capsys):
  def distill(num_steps, **distill):
    return runs.distill(small_runs.problem(), tmp_path, num_steps=num_steps,
                        config={"distill": distill}, settings=small_runs.SETTINGS)

  earlier = distill(8, start="noise").figures
  assert distill(8, start="noise", num_starts=1).figures == earlier
  assert "holds a finished run of this config" in capsys.readouterr().err
  assert distill(12, start="noise", num_starts=1).figures["outer_steps"] == 12
  assert "begins at outer step 8\n" in capsys.readouterr().err
  with pytest.raises(ValueError, match=r"; in .* distill\.num_starts is 1 there and 2 here$"):
    distill(12, start="noise", num_starts=2)


@pytest.mark.parametrize("kept", [0, 3])
def test_lost_lines_of_metrics_do_not_keep_a_run_from_its_end(
    uninterrupted, tmp_path, kept):
  """As after a power failure, or in a copy of a run that was under way."""
  shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
  (tmp_path / "result.json").write_text(5 * "\0")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "metrics.jsonl").write_text("".join(lines[:kept]))
  figures = _distill(tmp_path).figures
  assert figures["selected_step"] == figures["outer_steps"] == _NUM_STEPS
  assert figures["validation_accuracy"] == json.loads(
      (uninterrupted / "result.json").read_text())["validation_accuracy"]
  assert [line["step"] for line in _lines(tmp_path)][-1] == _NUM_STEPS


def test_a_run_that_lost_its_result_alone_repeats_no_step(uninterrupted, tmp_path, capsys):
  shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
  (tmp_path / "result.json").unlink()
  (tmp_path / "distilled.npz").unlink()
  assert _distill(tmp_path).figures["outer_steps"] == _NUM_STEPS
  assert "begins at outer step 40" in capsys.readouterr().err
  assert ((tmp_path / "distilled.npz").read_bytes()
          == (uninterrupted / "distilled.npz").read_bytes())
  _assert_same_lines(tmp_path, uninterrupted)


@pytest.mark.parametrize("figures", [
    accuracies.ACCURACY, accuracies.poisoning(attack_class=0, target_class=1)],
    ids=["accuracy", "poisoning"])
def test_the_best_images_are_selected_on_request(tmp_path, monkeypatch, figures):
  """The last of equal scores, at a step of no usual checkpoint; as a run that ends there."""
  names = {*figures.choosing, "accuracy"}

  def scripted(run, validate, state):
    score = {6: .9, 18: .9}.get(int(state.step), .5)
    return {f"validation_{name}": 1 - score if name not in figures.choosing else score
            for name in names}

  monkeypatch.setattr(loop, "_validation_figures", scripted)
  problem = small_runs.problem()._replace(optimizer=optax.adam(.1), figures=figures)
  settings = small_runs.SETTINGS._replace(selection="best")
  result = runs.distill(problem, tmp_path / "run", num_steps=_NUM_STEPS, settings=settings)
  assert result.figures["selected_step"] == 18 and 18 in _steps(tmp_path / "run")
  assert result.figures[f"validation_{figures.headline}"] == .9
  assert result.figures["selection"].startswith("best images by validation;")
  assert result.figures["outer_steps"] == _NUM_STEPS
  ended = runs.distill(problem, tmp_path / "ended", num_steps=18, settings=settings)
  np.testing.assert_array_equal(result.artifact.distilled.inputs, ended.artifact.distilled.inputs)


def test_a_line_of_the_metrics_is_of_its_steps_and_of_networks_after_training(tmp_path):
  problem = small_runs.problem()
  _distill(tmp_path)
  programs = make_programs(problem, num_steps=_NUM_STEPS, seed=0, settings=small_runs.SETTINGS)
  state, infos = programs.steps(programs.state)
  validated = programs.validate(programs.decode(state.trainable))
  first = _lines(tmp_path)[0]
  assert first["step"] == 2
  np.testing.assert_allclose(first["loss"], infos.loss.mean(), rtol=1e-5)
  np.testing.assert_allclose(first["hypergradient_norm"], infos.hypergradient_norm.mean(),
                             rtol=1e-5)
  np.testing.assert_allclose(first["validation_accuracy"], validated.after.accuracy.mean(),
                             rtol=1e-6)


@pytest.fixture(scope="module")
def exploding():
  """The first outer step multiplies the step sizes by e^10; beyond 2 they overflow."""
  def decode(trainable):
    distilled = problem.learned.decode(trainable)
    return distilled._replace(step_sizes=jnp.where(
        distilled.step_sizes < 2, distilled.step_sizes, 1e38))

  problem = small_runs.problem()
  growing = optax.chain(
      optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates)),
      optax.scale_by_schedule(lambda step: jnp.where(step == 0, 10., 0.)))
  parts = {"inputs": optax.sgd(.1), "step_sizes": growing}
  with jax.numpy_dtype_promotion("standard"):
    return _make_run(problem._replace(
        learned=problem.learned._replace(decode=decode),
        optimizer=optax.partition(parts, {name: name for name in parts})))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(exploding, tmp_path):
  with pytest.raises(FloatingPointError, match=r"not finite at outer step 1; .*\[e=\d, s=0\]"):
    loop.run_outer_loop(exploding(tmp_path))
  assert _steps(tmp_path) == [1]


def test_on_request_the_learning_rates_are_halved_until_the_loss_is_finite(
    exploding, tmp_path, capsys):
  state, lines, _ = loop.run_outer_loop(_with(exploding(tmp_path), on_nonfinite="halve"))
  warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: loss or" in line]
  assert [line.split(", with ")[1] for line in warnings] == [
      f"{rate} of the outer learning rates" for rate in (.5, .25)]
  assert state.step == _NUM_STEPS and np.isfinite([line["loss"] for line in lines]).all()
  assert lines == _lines(tmp_path)


def test_halving_in_vain_ends(exploding, tmp_path):
  run = _with(exploding(tmp_path), on_nonfinite="halve")
  state = run.programs.state
  hopeless = {**state.trainable, "step_sizes": state.trainable["step_sizes"] + 10.}
  with pytest.raises(FloatingPointError, match="outer step 0; .* halved ten times in vain"):
    loop.run_outer_loop(run._replace(programs=run.programs._replace(
        state=state._replace(trainable=hopeless))))


@pytest.mark.slow
@pytest.mark.parametrize("free, advice", [
    (.99e9, "memory='plain' with gradient='forward_over_reverse' fits ("),
    (.1e9, r"memory=\d+ with gradient='reverse' fits (0\.0[5-9]"),
    (1e6, "no memory mode fits: lower chunk_size")])
def test_too_little_memory_is_said_before_the_run_with_the_fastest_that_fits(
    tmp_path, monkeypatch, free, advice):
  sizes = []
  original = machine.program_bytes

  def in_gb_of_the_first(program):
    sizes.append(original(program))
    return 1e9 * sizes[-1] / sizes[0]

  monkeypatch.setattr(machine, "program_bytes", in_gb_of_the_first)
  monkeypatch.setattr(machine, "free_bytes", lambda: free)
  with pytest.raises(ValueError) as error:
    loop.run_outer_loop(_make_run(small_runs.problem(num_epochs=100))(tmp_path))
  needed, found = str(error.value).split(" GB are free; ")
  assert needed == (f"memory='plain' with gradient='reverse' needs an estimated 1 GB and "
                    f"{free / 1e9:.3g}")
  assert re.match(advice.replace("(", r"\("), found)
  assert not _lines(tmp_path)  # Not a step was taken.
