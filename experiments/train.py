"""One run: from a config and a directory to distilled data, figures and a result."""

import functools
import json
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

import dd_jax
from dd_jax import artifacts
from dd_jax import datasets
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from experiments import figures
from experiments import machine


class Problem(NamedTuple):
  """What a config describes, as arrays and functions."""
  dataset: datasets.Dataset  # Without the validation images.
  train: tuple[jax.Array, jax.Array]  # Normalised images [n, H, W, C] and labels [n].
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]
  init: dd_jax.InitDistribution
  decode: Any
  state: dd_jax.OuterState  # Before the first outer step.
  run: Any  # run(state, init_state, *train) -> (state, infos [log_every])
  validate: Any  # validate(trainable, init_state, *validation) -> EvalResult
  test_on: Any  # test_on(trainable, init_state, *test) -> EvalResult


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
  workdir = open_workdir(config, pathlib.Path(workdir))
  result_path = workdir / "result.json"
  if result_path.exists():
    print(f"{workdir} holds a finished run of this config; its result:", file=sys.stderr)
    return json.loads(result_path.read_text())

  state, metrics, timing = distill(problem, config, workdir)
  evaluated = jax.block_until_ready(
      problem.test_on(state.trainable, problem.init.state, *problem.test))
  result = summarize(state, config, evaluated, metrics, timing,
                     wall_seconds=timing["earlier_seconds"] + time.time() - started)
  write_outputs(problem, config, workdir, state, metrics, result)
  return result


def build(config: ConfigDict) -> Problem:
  """Loads the data, resolves every name, and checks the whole run by tracing it."""
  keys = dict(zip(("init", "images", "outer", "validation", "test"),
                  jax.random.split(jax.random.key(config.seed), 5)))
  dataset = datasets.load(config.data.name, config.data.dir or None,
                          download=config.data.download)
  dataset, validation_images, validation_labels = datasets.split_validation(
      dataset, config.data.num_validation, seed=config.seed)

  def on_device(images, labels):
    return (jnp.asarray(datasets.normalize(images, dataset.mean, dataset.std)),
            jnp.asarray(labels))

  train = on_device(dataset.train_images, dataset.train_labels)
  validation = on_device(validation_images, validation_labels)
  test = on_device(dataset.test_images, dataset.test_labels)

  image_shape = dataset.train_images.shape[1:]
  model = _choose(models.MODELS, config.model.name, "model.name")(
      num_classes=dataset.num_classes, image_shape=image_shape,
      **({"convolution": config.model.convolution} if config.model.convolution else {}))
  init = make_init(config, model, keys["init"])
  inner_loss = losses.classification(model.apply)

  on_cpu = jax.default_backend() == "cpu"
  labels = parametrization.class_labels(config.distill.num_steps, dataset.num_classes,
                                        config.distill.images_per_class)
  decode = parametrization.pixels(labels, step_size_scale=config.distill.step_size_scale)
  outer_loss = dd_jax.make_outer_loss(
      decode, init.sample, inner_loss, losses.classification(model.apply),
      num_inits=config.outer.num_inits, chunk_size=config.outer.chunk_size,
      num_parallel=config.outer.num_parallel or (1 if on_cpu else None),
      memory=config.distill.memory, gradient=config.distill.gradient)
  optimizer = make_optimizer(config.outer)
  state = dd_jax.init_outer_state(
      dd_jax.init_distilled(keys["images"], labels=labels, image_shape=image_shape,
                            num_epochs=config.distill.num_epochs,
                            step_size=config.distill.step_size,
                            step_size_scale=config.distill.step_size_scale), optimizer)

  def evaluate(key, num_inits, trainable, init_state, images, labels):
    with jax.default_matmul_precision(config.precision):
      return dd_jax.evaluate(
          key, decode(trainable), init._replace(state=init_state), model.apply, images, labels,
          num_inits=num_inits, inner_loss=inner_loss, batch_size=config.eval.batch_size,
          num_parallel=config.eval.num_parallel or (1 if on_cpu else 10))

  problem = Problem(
      dataset, train, validation, test, init, decode, state,
      run=jax.jit(functools.partial(
          dd_jax.run_outer_steps, dd_jax.make_outer_step(
              outer_loss, optimizer, precision=config.precision), keys["outer"],
          batch_size=config.outer.batch_size, num_steps=config.log_every,
          stop=config.outer.num_steps), donate_argnums=0),
      validate=jax.jit(functools.partial(evaluate, keys["validation"],
                                         config.validation.num_inits)),
      test_on=jax.jit(functools.partial(evaluate, keys["test"], config.eval.num_inits)))
  _check_intervals(config)
  # Tracing meets every rule of the library before anything is written.
  jax.eval_shape(problem.run, state, init.state, *train)
  jax.eval_shape(problem.validate, state.trainable, init.state, *validation)
  jax.eval_shape(problem.test_on, state.trainable, init.state, *test)
  return problem


def make_init(config: ConfigDict, model: dd_jax.Model, key: jax.Array) -> dd_jax.InitDistribution:
  """The init distribution that `config.init` names; a fixed one is drawn with `key`."""
  weights = _choose(init_distributions.WEIGHT_INITS, config.init.weights, "init.weights")
  scale = () if config.init.scale is None else (config.init.scale,)
  random = dd_jax.random_init(model.init, weights(*scale))

  def fixed():
    params = jax.jit(random.sample, static_argnums=2)(random.state, key, 1)
    return dd_jax.fixed_init(jax.tree.map(lambda leaf: leaf[0], params))

  return _choose({"random": lambda: random, "fixed": fixed}, config.init.name, "init.name")()


def make_optimizer(outer: ConfigDict) -> optax.GradientTransformation:
  """Adam on images and step sizes, each with its learning rate, after clipping."""
  schedules = {
      "halving": lambda rate: lambda step: rate * 0.5 ** (step // outer.halve_every),
      "cosine": lambda rate: optax.cosine_decay_schedule(rate, outer.num_steps),
      "squared_cosine": lambda rate: optax.cosine_decay_schedule(
          rate, outer.num_steps, exponent=2),
  }
  schedule = _choose(schedules, outer.schedule, "outer.schedule")

  def adam(field, weight_decay):
    _check_positive(f"outer.{field}", outer[field])
    return optax.adamw(schedule(outer[field]), b1=outer.beta1, b2=outer.beta2,
                       weight_decay=weight_decay)

  if not outer.weight_decay >= 0:
    raise ValueError(f"outer.weight_decay must not be negative; got {outer.weight_decay}")
  for field in ("num_steps", "halve_every"):
    _check_positive(f"outer.{field}", outer[field])
  clip = optax.identity()
  if outer.clip_norm is not None:
    _check_positive("outer.clip_norm", outer.clip_norm)
    clip = optax.clip_by_global_norm(outer.clip_norm)
  return optax.chain(clip, optax.partition(
      {"images": adam("learning_rate", outer.weight_decay),
       "step_sizes": adam("step_size_learning_rate", 0.)},
      {"images": "images", "step_sizes": "step_sizes"}))


def open_workdir(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Creates the directory, or recognises one of the same config."""
  mine = json.loads(config.to_json())
  path = workdir / "config.json"
  try:
    if not path.exists():
      workdir.mkdir(parents=True, exist_ok=True)
      _write_json(path, mine)
      return workdir
    theirs = _flatten(json.loads(path.read_text()))
  except OSError as error:
    raise OSError(f"workdir must be a directory that can be written; got {workdir}: "
                  f"{error.strerror}") from error
  except json.JSONDecodeError as error:
    raise ValueError(f"workdir must be empty or of the same config; {path} is damaged: "
                     f"{error}") from error
  differing = [f"{name} is {theirs.get(name)!r} there and {value!r} here"
               for name, value in _flatten(mine).items() if theirs.get(name) != value]
  if differing:
    raise ValueError(f"workdir must be empty or of the same config; in {workdir} "
                     + ", ".join(differing))
  return workdir


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
    _write_lines(metrics_path, metrics)

    step, num_steps = int(state.step), config.outer.num_steps
    clock = time.perf_counter()
    run, validate = (
        f.lower(*args).compile() for f, args in (
            (problem.run, (state, problem.init.state, *problem.train)),
            (problem.validate, (state.trainable, problem.init.state, *problem.validation))))
    timing["compile_seconds"] = time.perf_counter() - clock
    accuracy = None
    with tqdm(total=num_steps, initial=step, unit="step", mininterval=1) as bar:
      while step < num_steps:
        state, infos = run(state, problem.init.state, *problem.train)
        before, step = step, int(state.step)
        infos = jax.tree.map(lambda x: np.asarray(x)[:step - before], infos)
        if step < min(before + config.log_every, num_steps):
          checkpoints.save(step, args=ocp.args.StandardSave(state))
          raise FloatingPointError(_not_finite(problem, state))
        line = {"step": step, "loss": float(infos.loss.mean()),
                "hypergradient_norm": float(infos.hypergradient_norm.mean())}
        if step % config.validation.every == 0 or step == num_steps:
          metrics_now = validate(state.trainable, problem.init.state, *problem.validation).after
          accuracy = line["validation_accuracy"] = float(metrics_now.accuracy.mean())
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


def summarize(state: dd_jax.OuterState, config: ConfigDict, evaluated: dd_jax.EvalResult,
              metrics: list[dict], timing: dict[str, float], wall_seconds: float) -> dict:
  """The fields of result.json; accuracies are fractions of the whole test set."""
  before, after = (np.asarray(m.accuracy, np.float64) for m in evaluated)
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  run_seconds = metrics[-1]["seconds"] - timing["compile_seconds"]
  images = state.trainable["images"]
  return {
      "accuracy_mean": after.mean(),
      "accuracy_std": after.std(ddof=1) if len(after) > 1 else 0.0,
      "accuracy_before_mean": before.mean(),
      "num_eval_inits": len(after),
      "validation_accuracy": metrics[-1]["validation_accuracy"],
      "num_distilled_images": images.shape[0] * images.shape[1],
      "outer_steps": metrics[-1]["step"],
      "wall_seconds": wall_seconds,
      "compile_seconds": timing["compile_seconds"],
      "seconds_per_outer_step": run_seconds / metrics[-1]["step"],
      "peak_memory_bytes": stats.get("peak_bytes_in_use", machine.peak_host_bytes()),
      "selection": "final images; test data chose nothing",
      "device": f"{jax.device_count()} x {device.device_kind}",
      "jax_version": jax.__version__,
      "dd_jax_version": dd_jax.__version__,
      "seed": config.seed,
      "config": json.loads(config.to_json()),
  }


def write_outputs(problem: Problem, config: ConfigDict, workdir: pathlib.Path,
                  state: dd_jax.OuterState, metrics: list[dict], result: dict) -> None:
  """distilled.npz and the pictures; result.json last, as it marks the run as finished."""
  dataset, distilled = problem.dataset, problem.decode(state.trainable)
  artifacts.save(
      workdir / "distilled.npz", distilled,
      init_params=problem.init.state if config.init.name == "fixed" else None,
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
  _write_json(workdir / "result.json", result)


def _choose(choices, name, field):
  if name not in choices:
    raise ValueError(f"{field} must be one of {sorted(choices)}; got {name!r}")
  return choices[name]


def _check_positive(field, value):
  if not value > 0:
    raise ValueError(f"{field} must be positive; got {value}")


def _check_intervals(config):
  _check_positive("log_every", config.log_every)
  for field, value in (("checkpoint_every", config.checkpoint_every),
                       ("validation.every", config.validation.every)):
    if value < 1 or value % config.log_every:
      raise ValueError(f"{field} must be a multiple of log_every={config.log_every}; got {value}")


def _not_finite(problem, state):
  step_sizes = np.asarray(problem.decode(state.trainable).step_sizes)
  e, s = np.unravel_index(np.argmax(step_sizes), step_sizes.shape)
  return (f"loss or hypergradient is not finite at outer step {int(state.step)}; the state before "
          f"it is kept. The largest inner step size is {step_sizes[e, s]:.3g} at [e={e}, s={s}]: "
          "lower outer.step_size_learning_rate or outer.learning_rate, or set outer.clip_norm")


def _flatten(tree, prefix=""):
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {name: leaf for key, value in tree.items()
          for name, leaf in _flatten(value, f"{prefix}{key}.").items()}


def _write_json(path, content):
  text = json.dumps(content, indent=2) + "\n"
  artifacts.write_atomically(path, lambda file: file.write(text.encode()))


def _write_lines(path, lines):
  text = "".join(json.dumps(line) + "\n" for line in lines)
  artifacts.write_atomically(path, lambda file: file.write(text.encode()))
