"""One run: from a config and a directory to distilled data, figures and a result."""

import json
import os
import pathlib
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

import dd_jax
from dd_jax import artifacts
from dd_jax import datasets
from experiments import figures
from experiments import machine
from experiments import workdirs
from experiments.problem import ONE_NETWORK
from experiments.problem import Problem
from experiments.problem import build


def distill_and_evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Distils, or continues to, and evaluates; returns what result.json holds.

  Args:
    config: the fields of experiments/configs/default.py.
    workdir: receives distilled.npz, result.json, config.json, metrics.jsonl,
      checkpoints and pictures. A finished run is not repeated.

  Raises:
    ValueError, OSError: a bad config, bad data or an unusable directory; nothing is written.
    FloatingPointError: the loss is no longer finite; the last good state is kept.
  """
  started = time.time()
  problem = build(config)
  workdir = workdirs.open_workdir(config, pathlib.Path(workdir))
  result_path = workdir / "result.json"
  if result_path.exists():
    print(f"{workdir} holds a finished run of this config; its result:", file=sys.stderr)
    return json.loads(result_path.read_text())

  state, metrics, timing = distill(problem, config, workdir)
  evaluated = jax.block_until_ready(
      problem.test_on(problem.decode(state.trainable), problem.inits.test.state,
                      *problem.data.test))
  result = summarize(state, config, evaluated, metrics, timing,
                     wall_seconds=timing["earlier_seconds"] + time.time() - started)
  write_outputs(problem, config, workdir, state, metrics, result)
  return result


def distill(problem: Problem, config: ConfigDict, workdir: pathlib.Path):
  """The loop over dispatches of `log_every` outer steps, from the newest checkpoint on.

  Returns:
    The final state, the lines of metrics.jsonl, and times in seconds.
  """
  metrics_path = workdir / "metrics.jsonl"
  state, metrics = problem.state, []
  timing = {"compile_seconds": 0.0, "earlier_seconds": 0.0}
  options = ocp.CheckpointManagerOptions(max_to_keep=2)
  with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as checkpoints:
    if checkpoints.latest_step() is not None:
      state = checkpoints.restore(checkpoints.latest_step(), args=ocp.args.StandardRestore(state))
      metrics = [line for line in figures.read_metrics(metrics_path)
                 if line["step"] <= int(state.step)]
      timing["earlier_seconds"] = metrics[-1]["seconds"] if metrics else 0.0
    workdirs.write_lines(metrics_path, metrics)

    step, num_steps = int(state.step), config.outer.num_steps
    clock = time.perf_counter()
    run, validate = (
        f.lower(*args).compile() for f, args in (
            (problem.run, (state, problem.inits.train.state, *problem.data.train)),
            (problem.validate, (problem.decode(state.trainable), problem.inits.validation.state,
                                *problem.data.validation))))
    timing["compile_seconds"] = time.perf_counter() - clock
    accuracy = None
    with tqdm(total=num_steps, initial=step, unit="step", mininterval=1) as bar:
      while step < num_steps:
        state, infos = run(state, problem.inits.train.state, *problem.data.train)
        before, step = step, int(state.step)
        infos = jax.tree.map(lambda x: np.asarray(x)[:step - before], infos)
        if step < min(before + config.log_every, num_steps):
          checkpoints.save(step, args=ocp.args.StandardSave(state))
          raise FloatingPointError(_not_finite(problem, state))
        line = {"step": step, "loss": float(infos.loss.mean()),
                "hypergradient_norm": float(infos.hypergradient_norm.mean())}
        if step % config.validation.every == 0 or step == num_steps:
          metrics_now = validate(problem.decode(state.trainable),
                                 problem.inits.validation.state,
                                 *problem.data.validation).after
          accuracy = line["validation_accuracy"] = float(metrics_now.accuracy.mean())
          line |= {f"validation_{name}": float(values.mean())
                   for name, values in poisoning(config, metrics_now).items()}
        line["seconds"] = timing["earlier_seconds"] + time.perf_counter() - clock
        metrics.append(line)
        with metrics_path.open("a") as file:
          file.write(json.dumps(line) + "\n")
        if step % config.checkpoint_every == 0 or step == num_steps:
          checkpoints.save(step, args=ocp.args.StandardSave(state))
        bar.update(step - before)
        bar.set_postfix(loss=f"{line['loss']:.4f}",
                        **({"validation": f"{100 * accuracy:.1f}%"} if accuracy else {}))
  return state, metrics, timing


def poisoning(config: ConfigDict, metrics: dd_jax.Metrics) -> dict[str, np.ndarray]:
  """Figures of each network `[N]` that a poisoning objective adds; empty for the others."""
  if config.objective.name != "poisoning":
    return {}
  success, others = dd_jax.poisoning_metrics(
      metrics.confusion, attack_class=config.objective.attack_class,
      target_class=config.objective.target_class)
  return {"attack_success": np.asarray(success, np.float64),
          "others_accuracy": np.asarray(others, np.float64)}


def summarize(state: dd_jax.OuterState, config: ConfigDict, evaluated: dd_jax.EvalResult,
              metrics: list[dict], timing: dict[str, float], wall_seconds: float) -> dict:
  """The fields of result.json; accuracies are fractions of the whole test set."""
  before, after = ({"accuracy": np.asarray(metrics.accuracy, np.float64),
                    **poisoning(config, metrics)} for metrics in evaluated)
  stats = jax.devices()[0].memory_stats() or {}
  run_seconds = metrics[-1]["seconds"] - timing["compile_seconds"]
  images = state.trainable["images"]
  return {
      **{f"{name}_mean": values.mean() for name, values in after.items()},
      **{f"{name}_std": std(values) for name, values in after.items()},
      **{f"{name}_before_mean": values.mean() for name, values in before.items()},
      **{f"{name}_before_std": std(values) for name, values in before.items()},
      "num_eval_inits": len(after["accuracy"]),
      "validation_accuracy": metrics[-1]["validation_accuracy"],
      "num_distilled_images": images.shape[0] * images.shape[1],
      "outer_steps": metrics[-1]["step"],
      "wall_seconds": wall_seconds,
      "compile_seconds": timing["compile_seconds"],
      "seconds_per_outer_step": run_seconds / metrics[-1]["step"],
      "peak_memory_bytes": stats.get("peak_bytes_in_use", machine.peak_host_bytes()),
      "selection": "final images; test data chose nothing",
      **workdirs.provenance(config),
  }


def write_outputs(problem: Problem, config: ConfigDict, workdir: pathlib.Path,
                  state: dd_jax.OuterState, metrics: list[dict], result: dict) -> None:
  """distilled.npz and the pictures; result.json last, as it marks the run as finished."""
  dataset, distilled = problem.data.dataset, problem.decode(state.trainable)
  artifacts.save(
      workdir / "distilled.npz", distilled,
      init_params=(problem.inits.train.state
                   if config.init.name in ONE_NETWORK else None),
      metadata={
          "dataset": config.data.name, "num_classes": dataset.num_classes,
          "num_validation": config.data.num_validation,
          "pixel_scale": 255 if dataset.train_images.dtype == np.uint8 else 1,
          "mean": dataset.mean.tolist(), "std": dataset.std.tolist(),
          "order": "for e in epochs, for s in steps; step size softplus(raw_step_sizes[e, s])",
          "inner_optimizer": "gradient descent on the mean cross-entropy of images[s]",
          "model": config.model.name, "init": config.init.to_dict(), "seed": config.seed,
          "dd_jax_version": dd_jax.__version__, "jax_version": jax.__version__,
          **{name: result[name] for name in ("accuracy_mean", "accuracy_std", "num_eval_inits",
                                             "selection", "outer_steps")},
      })
  accuracy = f"{100 * result['accuracy_mean']:.1f}"
  if result["num_eval_inits"] > 1:
    accuracy += f" ± {100 * result['accuracy_std']:.1f}"
  images = np.asarray(distilled.images)
  if images.shape[-1] in (1, 3):
    figures.distilled_images(
        workdir / "distilled.png", datasets.denormalize(images, dataset.mean, dataset.std),
        np.asarray(distilled.labels), np.asarray(distilled.step_sizes),
        f"{config.data.name}, {config.model.name}, {config.init.name} init: test accuracy "
        f"{accuracy} % after {distilled.raw_step_sizes.size} steps of gradient descent")
  figures.curves(workdir / "curves.png", metrics, result["accuracy_mean"])
  workdirs.write_json(workdir / "result.json", result)


def std(values: np.ndarray) -> float:
  """Unbiased standard deviation; 0 of a single value."""
  return values.std(ddof=1) if len(values) > 1 else 0.0


def _not_finite(problem, state):
  step_sizes = np.asarray(problem.decode(state.trainable).step_sizes)
  e, s = np.unravel_index(np.argmax(step_sizes), step_sizes.shape)
  return (f"loss or hypergradient is not finite at outer step {int(state.step)}; the state before "
          f"it is kept. The largest inner step size is {step_sizes[e, s]:.3g} at [e={e}, s={s}]: "
          "lower outer.step_size_learning_rate or outer.learning_rate, or set outer.clip_norm")
