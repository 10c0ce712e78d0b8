"""The final test of a run, group after group: what a stopped run has tested stays tested."""

import signal

from tqdm import tqdm

from dd_jax.evaluation import EvalResult
from dd_jax.runs import interruptions
from dd_jax.runs import processes
from dd_jax.runs import snapshots
from dd_jax.runs.bound import together
from dd_jax.runs.checkpoints import digest
from dd_jax.runs.interruptions import Interrupted
from dd_jax.runs.loop import Run
from dd_jax.types import OuterState


def evaluate_held_out(run: Run, state: OuterState) -> EvalResult:
  """Every held-out network, as numpy arrays.

  Raises:
    Interrupted: SIGTERM or SIGINT came; the groups that were tested are kept.
  """
  test, first, step = run.programs.test, processes.is_first(), int(state.step)
  distilled = run.programs.layout.place(run.programs.decode(state.trainable))
  # A group is of these very images; those of a run that went another way to this step are not.
  name = f"{step}-{digest(state.trainable)[:16]}"
  starts, groups = test.starts(distilled), []
  with (interruptions.deferred() as signals,
        tqdm(total=starts.stop, desc="test", unit="network", mininterval=1,
             disable=not first or len(starts) == 1) as bar):
    for start in starts:
      stop = min(start + starts.step, starts.stop)
      # Another number of devices makes groups of another size, which are others.
      path = run.workdir / "tested" / f"{name}-{start}-{stop}.npz"
      group = snapshots.load_group(path)
      if group is None:
        group = test.of_group(distilled, start)
        if first and len(starts) > 1:
          snapshots.save_group(path, group)
      groups.append(group)
      bar.update(stop - start)
      if start != starts[-1] and processes.any_of(bool(signals)):
        raise Interrupted(signals[0] if signals else signal.SIGTERM,
                          f"stopped at the test, after {stop} of {starts.stop} networks; the same "
                          "command continues from there")
  return together(groups)
