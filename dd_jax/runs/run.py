"""One run: from a config and a directory to distilled data, figures and a result."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np
import optax
from tqdm import tqdm

import dd_jax
from dd_jax.files import reuse
from dd_jax.files import artifacts
from dd_jax import parametrization
from dd_jax.inner_loop import GRADIENT_MODES
from dd_jax.inner_loop import MEMORY_MODES
from experiments import accuracies
from experiments import boards
from experiments import figures
from experiments import fingerprints
from experiments import interruptions
from experiments import layouts
from experiments import machine
from experiments import processes
from experiments import reports
from experiments import snapshots
from experiments import watchdog
from experiments import workdirs
from experiments.checkpoints import Checkpoints
from experiments.inits import ONE_NETWORK
from experiments.interruptions import Interrupted
from experiments.problem import Data
from experiments.problem import Problem
from experiments.problem import build
from experiments.problem import model_options


SELECTIONS = {"final": "final images; test data chose nothing",
              "best": "best images by validation accuracy; test data chose nothing"}


def distill_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Distils, or continues to, and evaluates; returns what result.json holds.

  Args:
    config: the fields of experiments/configs/default.py.
    workdir: receives distilled.npz, result.json, config.json, metrics.jsonl,
      checkpoints and pictures, all written by the first process. A finished run is not repeated;
      with a larger outer.num_steps it goes on from its last checkpoint.

  Raises:
    ValueError, OSError: a bad config, bad data, other data than the directory's, an unusable
      directory, too little memory; what was written before stays as it is.
    FloatingPointError: the loss is no longer finite; the last good state is kept.
    Interrupted: SIGTERM or SIGINT came; the state is kept.
  """
  started = time.time()
  boards.check(config.tensorboard)
  problem = build(config)
  workdirs.check_same_config(config)
  made_from = fingerprints.of_run(config, problem.data.digest)
  fingerprints.check_processes(made_from)
  with workdirs.held(workdir) as workdir:
    return _run(problem, config, workdir, made_from, started)


def _run(problem, config, workdir, made_from, started):
  """As `distill_and_evaluate`, in a directory that is held."""
  def open_run():
    workdirs.check_run(config, workdir)  # All that may refuse comes before what is removed.
    fingerprints.check_workdir(workdir, made_from)
    return workdirs.open_run(config, workdir)

  result = processes.on_first(open_run)
  if result is not None:
    print(f"{workdir} holds a finished run of this config; its result:", file=sys.stderr)
    return result

  state, metrics, timing = distill(problem, config, workdir)
  evaluated = jax.block_until_ready(
      problem.test_on(problem.layout.place(problem.decode(state.trainable)),
                      problem.inits.test.state, *problem.data.test))
  evaluated = layouts.to_host(evaluated)
  result = summarize(problem, config, state, evaluated, metrics, timing,
                     wall_seconds=timing["earlier_seconds"] + time.time() - started)
  processes.on_first(
      lambda: write_outputs(problem, config, workdir, state, evaluated, metrics, result))
  return result


def distill(problem: Problem, config: ConfigDict, workdir: pathlib.Path):
  """The loop over dispatches of `log_every` outer steps, from the newest checkpoint on.

  Returns:
    The selected state as numpy arrays, the lines of metrics.jsonl, and times in seconds.
  """
  metrics_path = workdir / "metrics.jsonl"
  first, num_steps = processes.is_first(), config.outer.num_steps
  initial = layouts.to_host(problem.state)
  like = jax.tree.map(np.zeros_like, initial)
  with (Checkpoints(workdir / "checkpoints", json.loads(config.to_json()), config.checkpoints_kept)
        if first else contextlib.nullcontext() as checkpoints, interruptions.deferred() as signals,
        contextlib.closing(boards.Board(workdir, first and config.tensorboard)) as board):

    def resume():
      """The newest state, or the first; the metrics up to it."""
      found = processes.on_first_arrays(lambda: checkpoints.restore_newest(like), like)
      state = initial if found is None else found
      metrics = processes.on_first(lambda: figures.read_metrics(metrics_path, int(state.step)))
      if first:
        workdirs.write_lines(metrics_path, metrics)
        board.begin(int(state.step))
        if state.step == 0:
          keep_images(state)
        print(f"begins at outer step {int(state.step)}", file=sys.stderr)
      return problem.layout.place(state), metrics

    def keep_images(state):
      board.add_images(int(state.step), snapshots.save_images(
          workdir, int(state.step), problem.data, problem.decode(state.trainable)))

    state, metrics = resume()
    timing = {"earlier_seconds": metrics[-1]["seconds"] if metrics else 0.0}
    step = int(state.step)
    clock = time.perf_counter()
    run, validate = compile_programs(problem, config, state)
    timing["compile_seconds"] = time.perf_counter() - clock
    accuracy = None
    steps_watchdog, validation_watchdog = watchdog.Watchdog(), watchdog.Watchdog()
    with tqdm(total=num_steps, initial=step, unit="step", mininterval=1, disable=not first) as bar:
      while step < num_steps:
        with steps_watchdog.watching(f"the outer steps from {step} on"):
          state, infos = run(state, problem.inits.train.state, *problem.data.train)
          now = layouts.to_host(state)
        before, step = step, int(now.step)
        if step < min(before + config.log_every, num_steps):
          message = _not_finite(problem, initial, now)
          if config.outer.on_nonfinite == "stop":
            if first:
              checkpoints.save(now, None)
            raise FloatingPointError(message)
          state, metrics = resume()
          state = problem.layout.place(with_half_the_rate_of(now, layouts.to_host(state), message))
          bar.update(int(state.step) - before)
          step = int(state.step)
          continue
        infos = jax.tree.map(lambda x: x[:step - before], layouts.to_host(infos))
        line = {"step": step, "loss": float(infos.loss.mean()),
                "hypergradient_norm": float(infos.hypergradient_norm.mean())}
        best = max((line.get("validation_accuracy", 0.) for line in metrics), default=0.)
        if _is_due(before, step, config.validation.every) or step == num_steps:
          with validation_watchdog.watching(f"the validation at outer step {step}"):
            line |= validation_figures(problem, config, validate, now)
        line["seconds"] = timing["earlier_seconds"] + time.perf_counter() - clock
        metrics.append(line)
        stopping = step < num_steps and processes.any_of(bool(signals))
        if first:
          if snapshots.is_due(before, step, num_steps):
            keep_images(now)
          workdirs.append_line(metrics_path, line)
          board.add_line(line)
          if (stopping or _is_due(before, step, config.checkpoint_every) or step == num_steps
              or line.get("validation_accuracy", 0.) > best):
            checkpoints.save(now, line.get("validation_accuracy"))
        if stopping:
          raise Interrupted(signals[0] if signals else signal.SIGTERM,
                            f"stopped at outer step {step}; the same command continues from there")
        bar.update(step - before)
        accuracy = line.get("validation_accuracy", accuracy)
        bar.set_postfix(loss=f"{line['loss']:.4f}",
                        **({"validation": f"{100 * accuracy:.1f}%"} if accuracy else {}))
    state = layouts.to_host(state)
    if config.validation.selection == "best":
      state = processes.on_first_arrays(lambda: checkpoints.restore_best(like), like)
  return state, metrics, timing


def _is_due(before, step, every):
  """Whether a multiple of `every` lies in (before, step]; of log_every where a run goes on."""
  return step // every > before // every


def validation_figures(problem: Problem, config: ConfigDict, validate, state: dd_jax.OuterState
                       ) -> dict:
  """What a line of metrics.jsonl says of validation images and networks: means over networks."""
  metrics = layouts.to_host(validate(
      problem.layout.place(problem.decode(state.trainable)), problem.inits.validation.state,
      *problem.data.validation).after)
  return {f"validation_{name}": float(values.mean()) for name, values in
          {"accuracy": metrics.accuracy, **accuracies.poisoning(config.objective, metrics)}.items()}


def compile_programs(problem: Problem, config: ConfigDict, state: dd_jax.OuterState):
  """`run` and `validate` compiled for the state.

  Raises:
    ValueError: the outer steps need more memory than is free; it names the modes that fit.
  """
  run = problem.run.lower(state, problem.inits.train.state, *problem.data.train).compile()
  free = machine.free_bytes()
  needed = machine.program_bytes(run)
  if free is not None and needed > free:
    fitting = []
    for memory in MEMORY_MODES:
      for gradient in GRADIENT_MODES:
        other = config.copy_and_resolve_references()
        other.distill.update(memory=memory, gradient=gradient)
        size = machine.program_bytes(build(other).run.lower(
            state, problem.inits.train.state, *problem.data.train).compile())
        if size <= free:
          fitting.append(f"{memory} with {gradient} ({size / 1e9:.3g} GB)")
    raise ValueError(
        f"distill.memory={config.distill.memory!r} with gradient={config.distill.gradient!r} needs "
        f"an estimated {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
        + (f"these fit: {', '.join(fitting)}" if fitting else
           "no mode fits: lower outer.chunk_size, outer.num_parallel or distill.images_per_class"))
  validate = problem.validate.lower(
      problem.layout.place(problem.decode(layouts.to_host(state.trainable))),
      problem.inits.validation.state, *problem.data.validation).compile()
  return run, validate


def with_half_the_rate_of(failed: dd_jax.OuterState, state: dd_jax.OuterState,
                          message: str) -> dd_jax.OuterState:
  """The state with half the outer learning rates of the one that failed, and a warning why.

  Raises:
    FloatingPointError: they have been halved ten times already.
  """
  scale = optax.tree.get(failed.opt_state, "rate_scale") / 2
  if scale < 2. ** -10:
    raise FloatingPointError(f"{message}; the learning rates were halved ten times in vain")
  if processes.is_first():
    print(f"warning: {message}; back to outer step {int(state.step)}, with {float(scale):.3g} of "
          "the outer learning rates", file=sys.stderr)
  return state._replace(opt_state=optax.tree.set(
      state.opt_state, rate_scale=np.asarray(scale, np.float32)))


def summarize(problem: Problem, config: ConfigDict, state: dd_jax.OuterState,
              evaluated: dd_jax.EvalResult, metrics: list[dict], timing: dict[str, float],
              wall_seconds: float) -> dict:
  """The fields of result.json; accuracies are fractions of the whole test set."""
  run_seconds = metrics[-1]["seconds"] - timing["compile_seconds"]
  images = jax.eval_shape(problem.decode, state.trainable).images
  (selected,) = (line for line in metrics if line["step"] == state.step)
  return {
      **accuracies.summarize(evaluated, config.objective),
      "num_eval_inits": len(evaluated.after.accuracy),
      "validation_accuracy": selected["validation_accuracy"],
      "num_distilled_images": images.shape[0] * images.shape[1],
      "learned_bytes": parametrization.num_bytes(state.trainable),
      "outer_steps": metrics[-1]["step"],
      "selected_step": selected["step"],
      "wall_seconds": wall_seconds,
      "compile_seconds": timing["compile_seconds"],
      "seconds_per_outer_step": run_seconds / metrics[-1]["step"],
      "peak_memory_bytes": machine.peak_bytes(),
      "selection": SELECTIONS[config.validation.selection],
      "data": problem.data.digest,
      **workdirs.provenance(config),
  }


def write_outputs(problem: Problem, config: ConfigDict, workdir: pathlib.Path,
                  state: dd_jax.OuterState, evaluated: dd_jax.EvalResult, metrics: list[dict],
                  result: dict) -> None:
  """distilled.npz, pictures and report; result.json last, as it marks the run as finished."""
  artifact = artifacts.Artifact(
      problem.decode(state.trainable),
      layouts.to_host(problem.inits.test.state) if config.init.name in ONE_NETWORK else None,
      make_metadata(problem.data, config, result), problem.data.whitening)
  distilled = artifact.distilled
  artifacts.save(workdir / "distilled.npz", distilled, init_params=artifact.init_params,
                 whitening=artifact.whitening, metadata=artifact.metadata)
  accuracy = f"{100 * result['accuracy_mean']:.1f}"
  if result["num_eval_inits"] > 1:
    accuracy += f" ± {100 * result['accuracy_std']:.1f}"
  if distilled.images.shape[-1] in (1, 3):
    figures.distilled_images(
        workdir / "distilled.png", artifact.pictures(),
        np.asarray(distilled.labels), np.asarray(distilled.step_sizes),
        f"{config.data.name}, {config.model.name}, {config.init.name} init: test accuracy "
        f"{accuracy} % after {distilled.raw_step_sizes.size} steps of gradient descent")
  figures.curves(workdir / "curves.png", metrics, result["accuracy_mean"])
  snapshots.save_evaluation(workdir, evaluated)
  reports.write(workdir / "report.html", [reports.read_run(workdir, result)])
  workdirs.write_json(workdir / "result.json", result)


def make_metadata(data: Data, config: ConfigDict, result: dict) -> dict:
  """What distilled.npz says of itself; docs/format.md explains every field.

  Args:
    data: that of the run.
    config: that of the run.
    result: what `summarize` returns.
  """
  dataset = data.dataset
  reported = {name: value for name, value in result.items() if name.endswith(("_mean", "_std"))}
  objective = {name: value for name, value in config.objective.items()
               if name == "name" or config.objective.name == "poisoning"}
  return {
      "dataset": config.data.name, "data": data.digest, "num_train": len(dataset.train_labels),
      "num_validation": config.data.num_validation, "num_test": len(dataset.test_labels),
      "num_classes": dataset.num_classes, "image_shape": list(dataset.train_images.shape[1:]),
      "pixel_scale": 255 if dataset.train_images.dtype == np.uint8 else 1,
      "mean": dataset.mean.tolist(), "std": dataset.std.tolist(),
      "pixel_range": list(dataset.pixel_range),
      "whitening": config.data.whitening,
      "order": "for e in epochs, for s in steps; step size softplus(raw_step_sizes[e, s])",
      "inner_optimizer": config.inner.optimizer, "inner_loss": reuse.INNER_LOSS,
      "inner_augmentation": config.inner.augmentation, "inner_siamese": config.inner.siamese,
      "trajectory": {"unrolled": "inner_trajectory",
                     "implicit": "implicit_trajectory",
                     "ridge": "ridge_trajectory"}[config.inner.hypergradient],
      **({name: config.inner[name] for name in ("num_features", "regularization")}
         if config.inner.hypergradient == "ridge" else {}),
      "model": config.model.name, "model_options": model_options(config.model),
      "init": config.init.to_dict(), "objective": objective,
      "precision": config.precision, "seed": config.seed,
      "dd_jax_version": dd_jax.__version__, "jax_version": jax.__version__,
      "device": result["device"], **reported,
      **{name: result[name] for name in ("num_eval_inits", "learned_bytes", "selection",
                                         "outer_steps")},
  }


def _not_finite(problem, initial, state):
  start, now = (np.asarray(problem.decode(at.trainable).step_sizes) for at in (initial, state))
  e, s = np.unravel_index(np.argmax(now / start), now.shape)
  return (f"loss or hypergradient is not finite at outer step {int(state.step)}; the state before "
          f"it is kept. The inner step size that grew most is [e={e}, s={s}], from "
          f"{start[e, s]:.3g} to {now[e, s]:.3g}: lower outer.step_size_learning_rate or "
          "outer.learning_rate, or set outer.clip_norm")
