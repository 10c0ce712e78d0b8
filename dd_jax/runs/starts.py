"""Several starts of the distilled data: an outer loop from each; the best by validation goes on.

Starts are told apart by the key of the images alone: networks and the order of real examples are
the same for all, so that their validation figures can be compared.
"""

import math
import shutil
import sys
from typing import Any

from dd_jax.runs import processes
from dd_jax.runs.loop import Run, compile_programs, run_outer_loop, score
from dd_jax.types import OuterState


def run_best_start(run: Run) -> tuple[OuterState, list[dict], dict[str, float], dict[str, Any]]:
  """As `run_outer_loop`, from each of `settings.num_starts` starts.

  Start k lies in starts/k of the run's directory; metrics and pictures of the best one are copied
  to the directory itself.

  Returns:
    State and lines of the best start, times of all of them together, and what result.json says of
    the choice: nothing of one start.

  Raises:
    FloatingPointError: no start has a loss that stays finite; of several, those that have none are
      left out.
  """
  number = run.settings.num_starts
  if number == 1:
    return *run_outer_loop(run), {}
  compiled: list[tuple[Any, Any]] = []  # The programs are the same for all.

  def compile_once(state):
    if not compiled:
      compiled.append(compile_programs(run, state))
    return compiled[0]

  outcomes = {start: outcome for start in range(number)
              if (outcome := _run_start(run, start, compile_once)) is not None}
  if not outcomes:
    raise FloatingPointError(f"none of the {number} starts came to its end; why stands above")
  scores = [_selected_score(run, *outcomes[start][:2]) if start in outcomes else None
            for start in range(number)]
  ranked = {start: -math.inf if (found := scores[start]) is None else found for start in outcomes}
  best = max(ranked, key=lambda start: ranked[start])
  processes.on_first(lambda: _copy(_directory(run, best), run.workdir))
  state, metrics, timing = outcomes[best]
  together = {name: sum(times[name] for *_, times in outcomes.values())
              for name in ("earlier_seconds", "compile_seconds")}
  return state, metrics, {**timing, **together}, {"start": best, "scores_of_starts": scores}


def _run_start(run, start, compiled):
  """What its outer loop gives; None where its loss does not stay finite."""
  directory = _directory(run, start)
  processes.on_first(lambda: directory.mkdir(parents=True, exist_ok=True))
  if processes.is_first():
    print(f"start {start} of 0..{run.settings.num_starts - 1}", file=sys.stderr)
  of_start = run._replace(
      workdir=directory, programs=run.programs._replace(state=run.programs.begin(start)))
  try:
    return run_outer_loop(of_start, compiled)
  except FloatingPointError as error:
    if processes.is_first():
      print(f"warning: start {start} is left out: {error}", file=sys.stderr)
    return None


def _directory(run, start):
  return run.workdir / "starts" / str(start)


def _selected_score(run, state, metrics):
  (selected,) = (line for line in metrics if line["step"] == state.step)
  return score(selected, run.problem.figures)


def _copy(source, workdir):
  """What report and pictures of a run are made from."""
  shutil.copyfile(source / "metrics.jsonl", workdir / "metrics.jsonl")
  shutil.rmtree(workdir / "snapshots", ignore_errors=True)
  if (source / "snapshots").exists():
    shutil.copytree(source / "snapshots", workdir / "snapshots")
