"""One run: from a problem and a directory to distilled data, figures and a result."""

import base64
import hashlib
import os
import pathlib
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import dd_jax
from dd_jax import parametrization
from dd_jax.evaluation import Plan, draw_networks, train_networks
from dd_jax.files import archive
from dd_jax.files import artifacts
from dd_jax.inner_loop import Unroll
from dd_jax.optimizers import INNER_OPTIMIZERS
from dd_jax.runs import accuracies
from dd_jax.runs import plots
from dd_jax.runs import feeds
from dd_jax.runs import fingerprints
from dd_jax.runs import layouts
from dd_jax.runs import machine
from dd_jax.runs import processes
from dd_jax.runs import report
from dd_jax.runs import snapshots
from dd_jax.runs import storage
from dd_jax.runs import tensorboard
from dd_jax.runs import workdirs
from dd_jax.runs.data import prepared
from dd_jax.runs.final_test import evaluate_held_out
from dd_jax.runs.loop import Run
from dd_jax.runs.problem import Problem, check_outputs, describe, name_of, told_apart
from dd_jax.runs.programs import make_keys, make_programs
from dd_jax.runs.provenance import keep_source, provenance
from dd_jax.runs.settings import Settings
from dd_jax.runs.starts import run_best_start


class Result(NamedTuple):
  """What a run gives, and leaves in its directory."""
  artifact: artifacts.Artifact  # distilled.npz.
  figures: dict[str, Any]  # result.json.
  workdir: pathlib.Path  # The directory.


def distill(problem: Problem, workdir: str | os.PathLike, *, num_steps: int, seed: int = 0,
            settings: Settings = Settings(), config: dict[str, Any] | None = None) -> Result:
  """Distils, or continues to, and tests; on one device or many, in a script or a notebook.

  Args:
    problem: what is distilled, of `make_problem` for instance.
    workdir: receives distilled.npz, result.json, report.html, metrics.jsonl, checkpoints and
      pictures, all written by the first process. A finished run is not repeated; with more steps it
      goes on from its last checkpoint.
    num_steps: outer steps.
    seed: of the distilled data's start, the order of real examples and the networks.
    settings: how the run is watched and kept.
    config: what is compared before a run goes on, and reported, with seed and num_steps. None: what
      follows from the arguments.

  Raises:
    ValueError, OSError: an argument that does not fit, what distilled.npz cannot hold, other data
      than the directory's, an unusable directory, too little memory; what was written before stays
      as it is.
    FloatingPointError: the loss is no longer finite; the last good state is kept.
    Interrupted: SIGTERM or SIGINT came; the state is kept.
  """
  started = time.monotonic()
  tensorboard.check(settings.tensorboard)
  settings.check(num_steps, seed)
  feeds.check(settings.storage)
  storage.check_fits(problem.data, settings.storage)
  config = workdirs.as_json(_config(problem, num_steps, seed, settings, config))
  programs = make_programs(problem, num_steps=num_steps, seed=seed, settings=settings)
  check_outputs(problem)
  _check_file(problem, programs)
  workdirs.check_same(config, "every process must be given the same config")
  workdirs.check_same(problem.made_from, "every process must have the same data, of data.name and "
                      "data.dir")
  with workdirs.held(workdir) as path:
    return _run(Run(problem, programs, settings, num_steps, seed, config, path), started)


def _run(run, started):
  """As `distill`, in a directory that is held."""
  def open_run():
    workdirs.check_run(run.config, run.workdir)  # All that may refuse comes before what is removed.
    fingerprints.check_workdir(run.workdir, run.problem.made_from)
    return workdirs.open_run(run.config, run.workdir)

  result = processes.on_first(open_run)
  if result is not None:
    print(f"{run.workdir} holds a finished run of this config; its result:", file=sys.stderr)
    return Result(_load(run.workdir / "distilled.npz"), result, run.workdir)

  sources = processes.on_first(lambda: keep_source(run.workdir))
  if processes.is_first():
    print(storage.describe(run.problem.data, run.settings.storage), file=sys.stderr)
  state, metrics, timing, chosen = run_best_start(run)
  evaluated = evaluate_held_out(run, state)
  result = _summarize(run, state, evaluated, metrics, timing,
                      wall_seconds=timing["earlier_seconds"] + time.monotonic() - started) | chosen
  result["sources"] = sources
  artifact = _artifact(run, state, result)
  result |= processes.on_first(lambda: _save(run, artifact))
  processes.on_first(lambda: _write(run, artifact, evaluated, metrics, result))
  return Result(artifact, result, run.workdir)


def _check_file(problem, programs):
  """Refuses what distilled.npz cannot hold before the first step, not after the last."""
  params, whitening = _kept(problem)
  distilled = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(
      programs.decode, programs.state.trainable))
  artifacts.to_arrays(artifacts.Artifact(distilled, params, {}, whitening))
  archive.encode_metadata(_metadata(problem))


def _kept(problem):
  """The weights that distilled.npz holds, and the whitening, where there is one."""
  params = layouts.to_host(problem.inits.test.state) if problem.keeps_network else None
  return params, None if problem.data.pixels is None else problem.data.pixels.whitening


def _config(problem, num_steps, seed, settings, given):
  """What tells one run from another; seed and steps do so whatever config is given."""
  if given is None:
    given = {"outer": {"num_inits": problem.num_inits, "batch_size": problem.batch_size},
             **told_apart(problem), "settings": settings._asdict()}
  return {**given, "seed": seed, "outer": {**given.get("outer", {}), "num_steps": num_steps}}


def _summarize(run, state, evaluated, metrics, timing, wall_seconds):
  """The fields of result.json; accuracies are fractions of the whole test set."""
  inputs = jax.eval_shape(run.programs.decode, state.trainable).inputs
  (selected,) = (line for line in metrics if line["step"] == state.step)
  return {
      **accuracies.summarize(evaluated, run.problem.figures),
      "num_eval_inits": len(evaluated.after.loss),
      **{name: value for name, value in selected.items() if name.startswith("validation_")},
      "num_distilled_images": int(np.prod(jax.tree.leaves(inputs)[0].shape[:2])),
      "learned_bytes": parametrization.num_bytes(state.trainable),
      "outer_steps": metrics[-1]["step"],
      "selected_step": selected["step"],
      "wall_seconds": wall_seconds,
      "compile_seconds": timing["compile_seconds"],
      "seconds_per_outer_step": timing["seconds_per_outer_step"],
      "peak_memory_bytes": machine.peak_bytes(),
      "selection": run.settings.selected,
      "data": run.problem.data.digest,
      **provenance(run.config, run.seed),
  }


def _artifact(run, state, result):
  """distilled.npz; docs/format.md explains every field of its metadata."""
  problem = run.problem
  reported = {name: value for name, value in result.items() if name.endswith(("_mean", "_std"))}
  metadata = {
      **_metadata(problem), "precision": run.settings.precision, "seed": run.seed,
      "dd_jax_version": dd_jax.__version__, "jax_version": jax.__version__,
      "device": result["device"], **reported,
      **{name: result[name] for name in ("num_eval_inits", "learned_bytes", "selection",
                                         "outer_steps")}}
  params, whitening = _kept(problem)
  distilled = run.programs.decode(state.trainable)
  if problem.data.readable is not None:
    metadata["readable"] = problem.data.readable(jax.tree.map(np.asarray, distilled.inputs))
  return artifacts.Artifact(distilled, params, metadata, whitening)


def _predicted(run, distilled):
  """Of targets: what the first network that was tested predicts, and the test targets `[n, D]`."""
  problem = run.problem
  if problem.data.targets is None:
    return {}
  inputs, targets = prepared(problem.data, problem.data.test)
  key, init = make_keys(run.seed)["test"], problem.inits.test

  @jax.jit
  def predict(distilled, init_state, inputs):
    given = init._replace(state=init_state)
    networks = jax.tree.map(lambda x: x[:1], draw_networks(key, given, problem.num_test_inits))
    _, trained = train_networks(key, distilled, given, problem.train, networks, plan=Plan(1))
    return problem.apply(jax.tree.map(lambda leaf: leaf[0], trained), inputs)

  with jax.default_matmul_precision(run.settings.precision):
    predictions = np.asarray(predict(distilled, init.state, inputs))
  return {"predictions": predictions, "targets": targets}


def _metadata(problem):
  """What a file says of its problem, whoever made it."""
  return {**describe(problem.data), **problem.metadata, **_inner_algorithm(problem)}


def _inner_algorithm(problem):
  """What really trains networks, where that is not what the metadata were made for."""
  train = problem.train
  if not isinstance(train, Unroll):
    told = problem.metadata.get("inner_algorithm", "unroll")
    return {"inner_algorithm": "own"} if told == "unroll" else {}
  if train.optimizer is None:
    return {"inner_optimizer": "gradient_descent"}
  return {"inner_optimizer": name_of(train.optimizer, INNER_OPTIMIZERS) or "own"}


def _save(run, artifact):
  """Writes distilled.npz; its size and digest, by which anyone tells this file from another."""
  path = run.workdir / "distilled.npz"
  artifacts.save(path, artifact.distilled, init_params=artifact.init_params,
                 whitening=artifact.whitening, metadata=artifact.metadata)
  content = path.read_bytes()
  return {"distilled_bytes": len(content),
          "distilled_blake2b": hashlib.blake2b(content, digest_size=8).hexdigest()}


def _load(path):
  """The file in every process, though the first one alone may see it."""
  if jax.process_count() == 1:
    return artifacts.load(path)
  content = processes.on_first(lambda: base64.b64encode(path.read_bytes()).decode())
  with tempfile.TemporaryDirectory() as directory:
    copy = pathlib.Path(directory) / path.name
    copy.write_bytes(base64.b64decode(content))
    return artifacts.load(copy)


def _write(run, artifact, evaluated, metrics, result):
  """Pictures and report, without which a run is finished too; result.json last, as it says so."""
  workdir, distilled = run.workdir, artifact.distilled
  snapshots.save_evaluation(workdir, evaluated, run.problem.figures, **_predicted(run, distilled))
  for name, draw in (
      ("report.html", lambda path: report.write(path, [report.read_run(workdir, result)],
                                                run.problem.usual)),
      ("curves.png", lambda path: plots.curves(path, metrics, result)),
      ("distilled.png", lambda path: _draw_distilled(path, run.problem, artifact, result))):
    try:
      draw(workdir / name)
    except Exception as error:  # A damaged snapshot, too little memory: no figure is lost for it.
      print(f"warning: {workdir} lacks {name}: {type(error).__name__}: {error}", file=sys.stderr)
  workdirs.write_json(workdir / "result.json", result)
  snapshots.remove_groups(workdir)


def _draw_distilled(path, problem, artifact, result):
  """Of images that can be shown."""
  distilled, name = artifact.distilled, problem.figures.headline
  if problem.data.pixels is None or distilled.inputs.shape[-1] not in (1, 3):
    return
  num_steps = distilled.step_sizes.size
  trained = ("" if artifact.metadata.get("inner_algorithm") == "ridge" else
             f" after {num_steps} inner step{'s' * (num_steps != 1)}")
  plots.distilled_images(
      path, artifact.pictures(), np.asarray(distilled.labels), np.asarray(distilled.step_sizes),
      f"{report.title(artifact.metadata)}: {accuracies.label(name)} "
      f"{accuracies.mean_std(result, name)} on test data{trained}", artifact.class_names)
