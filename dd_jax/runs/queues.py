"""Many runs, one after another, for as long as there is time: each goes on where it stopped."""

from collections.abc import Sequence
import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from dd_jax.runs import interruptions
from dd_jax.runs import local_processes
from dd_jax.runs import workdirs


class Entry(NamedTuple):
  """A run of the queue."""
  name: str
  command: list[str]  # What runs it, or continues it; ended by SIGTERM it has written its state.
  workdir: pathlib.Path  # Its directory.
  num_steps: int | None = None  # Outer steps it is to have in the end; None: what its config says.


def steps_taken(entry: Entry) -> int:
  """Outer steps that its directory has a line of; of several starts, those of the farthest."""
  paths = [entry.workdir / "metrics.jsonl", *entry.workdir.glob("starts/*/metrics.jsonl")]
  return max((line["step"] for path in paths for line in workdirs.read_lines(path, "step")[-1:]),
             default=0)


def is_finished(entry: Entry) -> bool:
  """Whether its directory holds a result of as many steps."""
  result = workdirs.read_result(entry.workdir / "result.json")
  return result is not None and (
      entry.num_steps is None or result.get("outer_steps", 0) >= entry.num_steps)


def work(entries: Sequence[Entry], seconds: float) -> list[dict]:
  """Runs what is not finished, always that of the fewest steps, until the time is over.

  The one that runs then is asked to stop, which it does at a checkpoint; so it is where SIGTERM or
  SIGINT comes. One that fails is left alone, and the others go on; one that another process holds,
  such as what a killed queue left and is writing its state, comes when it is free.

  Returns:
    For each entry its `name`, the `steps` it has, the `num_steps` it is to have, and its `state`:
    finished, begun, waiting, or failed with an exit status.
  """
  until, failed, stopped = time.monotonic() + seconds, {}, False
  with interruptions.deferred() as signals:
    while not stopped and (left := [entry for entry in entries if entry.name not in failed
                                    and not is_finished(entry)]):
      free = [entry for entry in left if not workdirs.is_held(entry.workdir)]
      if not free:
        time.sleep(.5)
        stopped = bool(signals) or time.monotonic() >= until
        continue
      entry = min(free, key=steps_taken)
      print(f"{entry.name}: from step {steps_taken(entry)}", file=sys.stderr)
      status, stopped = _run(entry.command, until, signals)
      if status and not stopped:
        failed[entry.name] = status
  return [{"name": entry.name, "steps": steps_taken(entry), "num_steps": entry.num_steps,
           "state": _state(entry, failed)} for entry in entries]


def _run(command, until, signals):
  """The exit status of a process, and whether it was asked to stop."""
  # In a session of its own Ctrl-C reaches it once, from here: a second signal would kill it.
  with subprocess.Popen(local_processes.ending_with_parent(command), stdout=subprocess.DEVNULL,
                        start_new_session=True) as process:
    try:
      while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
          # A signal to all processes may end it before it is handed on.
          return process.wait(timeout=min(1., max(0., until - time.monotonic()))), bool(signals)
        if signals or time.monotonic() >= until:
          process.send_signal(signal.SIGTERM)
          return process.wait(), True
    finally:
      if process.poll() is None:
        process.kill()


def _state(entry, failed):
  if is_finished(entry):
    return "finished"
  if entry.name in failed:
    return f"failed with exit status {failed[entry.name]}"
  return "begun" if steps_taken(entry) else "waiting"
