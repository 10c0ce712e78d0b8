"""The outer loop of a run: dispatches, validation, checkpoints, signals, learning rates halved."""

from collections.abc import Callable
import contextlib
import functools
import pathlib
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from dd_jax.inner_loop import Unroll
from dd_jax.runs import accuracies
from dd_jax.runs import fitting
from dd_jax.runs import interruptions
from dd_jax.runs import layouts
from dd_jax.runs import machine
from dd_jax.runs import processes
from dd_jax.runs import snapshots
from dd_jax.runs import watchdog
from dd_jax.runs import workdirs
from dd_jax.runs.checkpoints import Checkpoints
from dd_jax.runs.interruptions import Interrupted
from dd_jax.runs.problem import Problem
from dd_jax.runs.programs import Programs, make_programs
from dd_jax.runs.settings import Settings
from dd_jax.runs.tensorboard import Board
from dd_jax.types import OuterState


class Run(NamedTuple):
  """One run: what, how, for how long, and where."""
  problem: Problem
  programs: Programs
  settings: Settings
  num_steps: int
  seed: int
  config: dict[str, Any]
  workdir: pathlib.Path


def run_outer_loop(run: Run, compiled: Callable[[OuterState], tuple[Any, Any]] | None = None
                   ) -> tuple[OuterState, list[dict], dict[str, float]]:
  """Dispatches of `log_every` outer steps, from the newest checkpoint on.

  Args:
    run: the run.
    compiled: what gives its `compile_programs` of a state. None: they are compiled.

  Returns:
    The selected state as numpy arrays, the lines of metrics.jsonl, and times in seconds.

  Raises:
    Interrupted: SIGTERM or SIGINT came; the state is kept, whole.
    FloatingPointError: the loss is no longer finite; so is the last good state.
    ValueError, OSError: too little memory, or a checkpoint that cannot be read or written.
  """
  with interruptions.deferred() as signals:
    found = _run(run, compiled or functools.partial(compile_programs, run), signals)
    if processes.any_of(bool(signals)):  # It came when there was no step more to take.
      raise _interrupted(signals, run.num_steps)
  return found


def _run(run, compiled, signals):
  programs, settings, num_steps = run.programs, run.settings, run.num_steps
  first = processes.is_first()
  like = jax.tree.map(np.zeros_like, layouts.to_host(programs.state))
  with (Checkpoints(run.workdir / "checkpoints", run.config, settings.checkpoints_kept)
        if first else contextlib.nullcontext() as checkpoints,  # None in the others.
        contextlib.closing(Board(run.workdir, first and settings.tensorboard)) as board):
    keeper = _Keeper(run, checkpoints, board, like, layouts.to_host(programs.state))
    state, metrics = keeper.resume()
    timing = {"earlier_seconds": metrics[-1]["seconds"] if metrics else 0.0}
    clock = time.perf_counter()
    outer_steps, validate = compiled(state)
    timing["compile_seconds"] = time.perf_counter() - clock
    measured = run.problem.figures
    began = step = int(state.step)
    shown, best = None, _best(metrics, measured)
    steps_watchdog, validation_watchdog = watchdog.Watchdog(), watchdog.Watchdog()
    with tqdm(total=num_steps, initial=step, unit="step", mininterval=1, disable=not first) as bar:
      while step < num_steps:
        with steps_watchdog.watching(f"the outer steps from {step} on"):
          state, infos = outer_steps(state)
          infos = layouts.to_host(infos)
        before, step = step, int(layouts.to_host(state.step))
        if step < min(before + settings.log_every, num_steps):
          state, metrics = keeper.recover(layouts.to_host(state))
          best = _best(metrics, measured)
          bar.update(int(state.step) - before)
          step = int(state.step)
          continue
        infos = jax.tree.map(lambda x: x[:step - before], infos)
        line = {"step": step, "loss": float(infos.loss.mean()),
                "hypergradient_norm": float(infos.hypergradient_norm.mean())}
        if is_due(before, step, settings.validate_every) or step == num_steps:
          with validation_watchdog.watching(f"the validation at outer step {step}"):
            line |= _validation_figures(run, validate, state)
        line["seconds"] = timing["earlier_seconds"] + time.perf_counter() - clock
        metrics.append(line)
        best = _best(metrics[-1:], measured, best)
        stopping = step < num_steps and processes.any_of(bool(signals))
        if first:
          keeper.keep(state, before, line, checkpoint=(
              stopping or is_due(before, step, settings.checkpoint_every) or step == num_steps
              or best is not None and score(line, measured) == best))
        if stopping:
          keeper.wait()
          raise _interrupted(signals, step)
        bar.update(step - before)
        shown = line.get(f"validation_{measured.headline}", shown)
        bar.set_postfix(loss=f"{line['loss']:.4f}", **({} if shown is None else {
            "validation": accuracies.shown(measured.headline, shown)
                          + accuracies.unit(measured.headline).strip()}))
    # Of this session; of all where it had no step to take.
    seconds = metrics[-1]["seconds"] - (sum(timing.values()) if step > began else 0)
    timing["seconds_per_outer_step"] = seconds / (step - began or step)
    state = layouts.to_host(state)
    if settings.selection == "best":
      selected = processes.on_first_arrays(lambda: checkpoints.restore_best(like), like)
      state = state if selected is None else selected
  return state, metrics, timing


def score(line: dict, measured: accuracies.Figures) -> float | None:
  """What a line of metrics.jsonl is chosen by; None where it was not validated, or is none."""
  found = accuracies.chosen_by(
      {name: line.get(f"validation_{name}", np.nan) for name in measured.choosing}, measured)
  return found if np.isfinite(found) else None


def _best(metrics, measured, so_far=None):
  """The highest of `so_far` and the scores of these lines; None of none."""
  return max((found for found in (so_far, *(score(line, measured) for line in metrics))
              if found is not None), default=None)


def _interrupted(signals, step):
  return Interrupted(signals[0] if signals else signal.SIGTERM,
                     f"stopped at outer step {step}; the same command continues from there")


def is_due(before: int, step: int, every: int) -> bool:
  """Whether a multiple of `every` lies in (before, step]; of log_every where a run goes on."""
  return step // every > before // every


class _Keeper(NamedTuple):
  """What a run keeps on disk, and how it goes on from there."""
  run: Run
  checkpoints: Any  # None but in the first process.
  board: Board
  like: OuterState
  initial: OuterState  # On the host.

  def resume(self):
    """The newest state, or the first, on the devices; the metrics up to it."""
    found = processes.on_first_arrays(lambda: self.checkpoints.restore_newest(self.like),
                                      self.like)
    state = self.initial if found is None else found
    path = self.run.workdir / "metrics.jsonl"
    metrics = processes.on_first(lambda: _complete(
        workdirs.read_lines(path, "step"), self.checkpoints.lines(), int(state.step)))
    if processes.is_first():
      workdirs.write_lines(path, metrics)
      self.board.begin(int(state.step))
      if state.step == 0:
        self._keep_images(state)
      print(f"begins at outer step {int(state.step)}", file=sys.stderr)
    return self.run.programs.layout.place(state), metrics

  def wait(self):
    """Until the state is whole: the first process cannot write on once others have left."""
    processes.on_first(lambda: self.checkpoints.wait())

  def keep(self, state, before, line, *, checkpoint):
    """Writes what is due; the state comes to the host only where it is."""
    shown = snapshots.is_shown(before, line["step"], self.run.num_steps)
    host = layouts.to_host(state) if shown or checkpoint else None
    if shown:
      self._keep_images(host)
    workdirs.append_line(self.run.workdir / "metrics.jsonl", line)
    self.board.add_line(line)
    if checkpoint:
      self.checkpoints.save(host, score(line, self.run.problem.figures), line)

  def recover(self, failed):
    """Stops, or goes back to a checkpoint with half the learning rates of the state that failed.

    Raises:
      FloatingPointError: that is not wanted, or they have been halved ten times already.
    """
    message = _not_finite(self.run.programs, self.initial, failed)
    if self.run.settings.on_nonfinite == "stop":
      if processes.is_first():
        self.checkpoints.save(failed, None)
      self.wait()
      raise FloatingPointError(message)
    state, metrics = self.resume()
    scale = optax.tree.get(failed.opt_state, "rate_scale") / 2
    if scale < 2. ** -10:
      raise FloatingPointError(f"{message}; the learning rates were halved ten times in vain")
    if processes.is_first():
      print(f"warning: {message}; back to outer step {int(state.step)}, with {float(scale):.3g} of "
            "the outer learning rates", file=sys.stderr)
    host = layouts.to_host(state)
    return self.run.programs.layout.place(host._replace(opt_state=optax.tree.set(
        host.opt_state, rate_scale=np.asarray(scale, np.float32)))), metrics

  def _keep_images(self, state):
    pixels = snapshots.save_images(
        self.run.workdir, int(state.step), self.run.problem.data.pixels,
        self.run.programs.decode(state.trainable))
    if pixels is not None:
      self.board.add_images(int(state.step), pixels)


def _complete(metrics, kept, step):
  """The lines with those that checkpoints kept, where a machine that stopped has lost some."""
  return sorted({line["step"]: line for line in (*kept, *metrics) if line["step"] <= step}.values(),
                key=lambda line: line["step"])


def _validation_figures(run, validate, state):
  """What a line of metrics.jsonl says of validation examples: means over networks."""
  programs = run.programs
  metrics = layouts.to_host(validate(
      programs.layout.place(programs.decode(layouts.to_host(state.trainable)))).after)
  return {f"validation_{name}": float(values.mean()) for name, values in
          run.problem.figures.of(metrics).items()}


def compile_programs(run: Run, state: OuterState) -> tuple[Any, Any]:
  """The outer steps and the validation compiled for the state; that of fed data when it is called.

  Raises:
    ValueError: the outer steps need more memory than is free; it names what would fit.
  """
  programs = run.programs
  outer_steps = programs.steps.lower(state).compile()
  free, needed = machine.free_bytes(), machine.program_bytes(outer_steps)
  if free is not None and needed > free:
    raise ValueError(_too_large(run, state, needed, free))
  validate = programs.validate.lower(
      programs.layout.place(programs.decode(layouts.to_host(state.trainable)))).compile()
  return outer_steps, validate


def _too_large(run, state, needed, free):
  """What is too large, and of an unrolled trajectory what would not be."""
  used = run.problem.train

  def size_of(train):
    return machine.program_bytes(make_programs(
        run.problem._replace(train=train), num_steps=run.num_steps, seed=run.seed,
        settings=run.settings).steps.lower(state).compile())

  named, advice = "an outer step", "lower chunk_size, num_parallel or images_per_class"
  if isinstance(used, Unroll) and run.problem.outer_train is None and run.problem.warm is None:
    named = f"memory={used.memory!r} with gradient={used.gradient!r}"
    length = jax.eval_shape(run.programs.decode, state.trainable).step_sizes.size
    advice = fitting.advice(used, length, size_of, free)
  return (f"{named} needs an estimated {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
          + advice)


def _not_finite(programs, initial, state):
  start, now = (np.asarray(programs.decode(at.trainable).step_sizes) for at in (initial, state))
  with np.errstate(over="ignore"):
    e, s = np.unravel_index(np.argmax(now / start), now.shape)
  return (f"loss or hypergradient is not finite at outer step {int(state.step)}; the state before "
          f"it is kept. The inner step size that grew most is [e={e}, s={s}], from "
          f"{start[e, s]:.3g} to {now[e, s]:.3g}: lower the outer learning rates, or clip the "
          "hypergradient")
