"""From a config to what it describes: a problem of the library and the settings of its run."""

from collections.abc import Callable, Sequence
import functools
import json
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

import dd_jax
from dd_jax import augmentation
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import optimizers
from dd_jax import ridge_regression
from dd_jax import runs
from dd_jax import truncation
from dd_jax.files import imagenet_weights
from dd_jax.runs import accuracies
from dd_jax.runs import fingerprints
from dd_jax.runs import paths
from dd_jax.runs import pools
from dd_jax.runs.problem import describe, one_network
from dd_jax.runs.programs import make_keys
from dd_jax.runs.settings import check_choice, check_positive, check_seed
from experiments.names import learned
from experiments.names import loaded
from experiments.names import parts
from experiments.configs import default

# Inits of one known network, whose weights belong to the distilled data.
_ONE_NETWORK = ("fixed", "fixed_pretrained", "imagenet")
# What the settings of a run are called in a config, where not alike.
_FIELDS = {"num_steps": "outer.num_steps", "validate_every": "validation.every",
           "num_starts": "distill.num_starts", "on_nonfinite": "outer.on_nonfinite",
           "selection": "validation.selection", "storage": "data.storage"}


def distill(config: ConfigDict, workdir: str) -> runs.Result:
  """Runs what the config describes; see `dd_jax.runs.distill`."""
  settings = make_settings(config)
  return runs.distill(make_problem(config), workdir, num_steps=config.outer.num_steps,
                      seed=config.seed, settings=settings, config=json.loads(config.to_json()))


def pretrain(config: ConfigDict, workdir: str) -> dict:
  """Trains the pools of a config of experiments/configs/pool_default.py."""
  check_seed("seed", config.seed)
  data = loaded.load_data(config)
  model = parts.make_model(config.model.name, data.num_classes, runs.input_shapes(data),
                           model_options(config.model), "model.name")
  pool = config.pool
  check_positive("pool.num_epochs", pool.num_epochs)
  steps_per_epoch = dd_jax.distillation.check_batch_size(pool.batch_size, len(data.train[1]))
  schedule = learned.make_schedule("pool", ConfigDict({
      "schedule": pool.schedule, "num_steps": pool.num_epochs * steps_per_epoch,
      "halve_every": pool.halve_every * steps_per_epoch}), pool.learning_rate)
  return runs.pretrain_pools(
      data, model, random_init(config, model), workdir, seed=config.seed,
      settings=runs.PoolSettings(
          optax.adam(schedule, b1=pool.beta1), pool.num_train, pool.num_heldout, pool.block,
          pool.num_parallel, pool.num_epochs, pool.batch_size, config.precision),
      metadata={"model": config.model.name}, config=json.loads(config.to_json()))


def compare_baselines(config: ConfigDict, workdir: str, real_epochs: Sequence[int] = ()) -> dict:
  """Measures the baselines of a config of experiments/configs/default.py."""
  objective = config.objective
  return runs.compare_baselines(
      make_problem(config), workdir, seed=config.seed, settings=make_settings(config),
      real_epochs=real_epochs, read_as=({objective.attack_class: objective.target_class}
               if objective.name == "poisoning" else None), config=json.loads(config.to_json()))


def make_settings(config: ConfigDict) -> runs.Settings:
  """How the run is watched, kept and computed; mistakes are named by their fields."""
  settings = runs.Settings(
      config.log_every, config.validation.every, config.checkpoint_every, config.checkpoints_kept,
      config.validation.selection, config.distill.num_starts, config.outer.on_nonfinite,
      config.eval.batch_size, config.eval.num_parallel, config.parallel, config.precision,
      config.data.storage, config.tensorboard)
  settings.check(config.outer.num_steps, config.seed, _FIELDS)
  return settings


def make_problem(config: ConfigDict) -> runs.Problem:
  """Loads the data and resolves every name.

  Args:
    config: the fields of experiments/configs/default.py.

  Raises:
    ValueError, OSError: a field that does not fit, or data that are not there.
  """
  check_seed("seed", config.seed)
  data = loaded.load_data(config)
  model = make_network(config, data)
  inits = make_inits(config, model, data, make_keys(config.seed)["init"])
  inner_loss = make_inner_loss(config.inner, model, data)
  train = make_train(config, model, inner_loss, data)
  parametrization = learned.make_parametrization(config, data)
  trainable = jax.eval_shape(parametrization.init, jax.random.key(0))
  problem = runs.Problem(
      data, parametrization, inits, train, model.apply,
      make_real_loss(config.objective, model, data),
      learned.make_optimizer(config.outer, trainable),
      num_inits=config.outer.num_inits, num_validation_inits=config.validation.num_inits,
      num_test_inits=config.eval.num_inits, batch_size=config.outer.batch_size,
      num_parallel=config.outer.num_parallel, chunk_size=config.outer.chunk_size,
      augment=parts.augment(config.outer.augmentation, "outer.augmentation"),
      figures=accuracies.of(config.objective, data.targets and data.targets.std),
      keeps_network=config.init.name in _ONE_NETWORK,
      metadata=_metadata(config, data), usual=json.loads(default.get_config().to_json()),
      made_from={**data.digest, **_digests_of_files(config)})
  return _with_window(problem, config)


def make_network(config: ConfigDict, data: runs.Data) -> dd_jax.Model:
  """The network that is trained: the model, or its features with a ridge regression on top."""
  def make(num_outputs):
    return parts.make_model(config.model.name, num_outputs, runs.input_shapes(data),
                            model_options(config.model), "model.name")

  if config.inner.hypergradient != "ridge":
    return make(data.num_classes)
  size = config.inner.num_features
  check_positive("inner.num_features", size)
  for field in ("augmentation", "loss"):
    if config.inner[field] is not None:
      raise ValueError(f"inner.{field} must be left out for inner.hypergradient='ridge'; "
                       f"got {config.inner[field]!r}")
  return ridge_regression.ridge_model(make(size), size, data.num_classes)


def model_options(model: ConfigDict) -> dict[str, Any]:
  """The options that `config.model` sets."""
  return {name: value for name, value in model.items() if name != "name" and value is not None}


def make_inner_loss(inner: ConfigDict, model: dd_jax.Model, data: runs.Data):
  """The loss on distilled examples that `config.inner` names."""
  found = parts.loss(inner.loss or data.objective, model.apply, {
      name: functools.partial(make, model.apply) for name, make in losses.LOSSES.items()},
                     "inner.loss")
  augment = parts.augment(inner.augmentation, "inner.augmentation", siamese=inner.siamese)
  return found if augment is None else augmentation.augmented(found, augment)


def make_train(config: ConfigDict, model: dd_jax.Model, loss, data: runs.Data
               ) -> dd_jax.types.Train:
  """The inner algorithm that `config.inner` names."""
  inner = config.inner
  optimizer = parts.choose(optimizers.INNER_OPTIMIZERS, inner.optimizer, "inner.optimizer")
  memory = config.distill.memory
  return parts.make({
      "unrolled": lambda: dd_jax.unroll(
          loss, optimizer, memory=int(memory) if memory.isdecimal() else memory,
          gradient=config.distill.gradient),
      "implicit": lambda: dd_jax.implicit(loss, optimizer, solver=inner.solver,
                                          num_terms=inner.num_terms, damping=inner.damping),
      "ridge": lambda: dd_jax.ridge(
          ridge_regression.ridge_features(model.apply, inner.num_features),
          None if data.targets else data.num_classes, regularization=inner.regularization),
  }, inner.hypergradient, "inner.hypergradient", Callable, loss=loss, optimizer=optimizer)


def make_real_loss(objective: ConfigDict, model: dd_jax.Model, data: runs.Data):
  """The outer loss on real examples that `config.objective` names."""
  if objective.name == "classification":
    return losses.LOSSES[data.objective](model.apply)
  return parts.loss(objective.name, model.apply, {
      "classification": None,
      "poisoning": lambda: losses.poisoning(
          model.apply, attack_class=objective.attack_class, target_class=objective.target_class,
          num_classes=data.num_classes)}, "objective.name")


def make_inits(config: ConfigDict, model: dd_jax.Model, data: runs.Data, key: jax.Array
               ) -> runs.Inits:
  """The init distributions that `config.init` names; a fixed one is drawn with `key`."""
  def imagenet():
    if not config.init.checkpoint:
      raise ValueError("init.checkpoint must be a file of AlexNet's ImageNet weights; got ''")
    return everywhere(dd_jax.fixed_init(imagenet_weights.load(
        paths.local(config.init.checkpoint, "init.checkpoint"), model)))

  def everywhere(init):
    return runs.Inits(init, init, init)

  if parts.is_own(config.init.name):
    return everywhere(parts.make_own(config.init.name, "init.name", dd_jax.InitDistribution,
                                     model=model))
  found = parts.choose({
      "random": lambda: everywhere(random_init(config, model)),
      "fixed": lambda: everywhere(dd_jax.fixed_init(
          one_network(random_init(config, model), key))),
      "imagenet": imagenet,
      "pretrained": lambda: pools.pretrained_inits(
          config.init.pool, model, num_validation=config.init.num_validation,
          expected=_of_pool(config, data)),
      "fixed_pretrained": lambda: everywhere(pools.first_of_pool(
          config.init.pool, model, _of_pool(config, data))),
  }, config.init.name, "init.name")()
  if not config.init.noise:
    return found
  check_positive("init.noise", config.init.noise)
  if config.init.name not in _ONE_NETWORK:
    raise ValueError(f"init.noise must be left out unless init.name is one of "
                     f"{sorted(_ONE_NETWORK)}; got {config.init.noise}")
  return found._replace(
      train=init_distributions.near_init(found.train.state, config.init.noise))


def random_init(config: ConfigDict, model: dd_jax.Model) -> dd_jax.InitDistribution:
  """Fresh weights as `config.init` says."""
  if (scale := config.init.scale) is not None:
    check_positive("init.scale", scale)
    if weights_name(config) == "own":
      raise ValueError(f"init.scale must be left out where init.weights is 'own'; got {scale}")
  weights = parts.choose(init_distributions.WEIGHT_INITS, weights_name(config), "init.weights")
  return dd_jax.random_init(model.init, weights() if scale is None else weights(scale))


def weights_name(config: ConfigDict) -> str:
  """The distribution of weights where `config.init.weights` is empty too."""
  usual = "own" if parts.is_own(config.model.name) else "xavier_normal"
  return config.init.weights or usual


def _of_pool(config, data):
  """What the metadata of a fitting pool hold."""
  return {"model": config.model.name, "dataset": config.init.source or config.data.name,
          "image_shape": pools.listed_shapes(data), "num_classes": data.num_classes,
          "whitening": config.data.whitening}


def _with_window(problem, config):
  """The problem with the stretch of the trajectory that `config.window` names."""
  window = config.window
  if window.start is None:
    return problem
  check_choice("window.start", window.start, ("last", "random", "adaptive", "warm"))
  total = config.distill.num_steps * config.distill.num_epochs
  if not 1 <= window.length <= total:
    raise ValueError(f"window.length must lie in 1..{total} (E * S); got {window.length}")
  if window.start == "warm":
    return problem._replace(warm=dd_jax.warm_start(
        problem.inits.train, problem.train, size=window.pool_size, length=window.length,
        num_inits=config.outer.num_inits))
  start = {"last": lambda: truncation.last_start, "random": lambda: truncation.random_start,
           "adaptive": functools.partial(truncation.adaptive_start, window.temperature)}
  return problem._replace(outer_train=dd_jax.window(
      problem.train, start=start[window.start](), length=window.length))


def _digests_of_files(config):
  """Of the files that the run starts from, by their fields."""
  files = {}
  if config.init.name in ("pretrained", "fixed_pretrained"):
    folder = paths.local(config.init.pool, "init.pool")
    files = {f"init.pool/{role}.npz": folder / f"{role}.npz" for role in pools.ROLES}
  elif config.init.name == "imagenet":
    files["init.checkpoint"] = paths.local(config.init.checkpoint, "init.checkpoint")
  if config.distill.start.endswith(".npz"):
    files["distill.start"] = paths.local(config.distill.start, "distill.start")
  return {name: fingerprints.of_file(path) for name, path in files.items()}


def _metadata(config, data):
  """What distilled.npz says of itself; docs/format.md explains every field."""
  inner, objective = config.inner, config.objective
  reading = loaded.reading(config)
  return describe(
      data, **({"reading": reading} if reading else {}),
      inner_optimizer=inner.optimizer,
      inner_loss=inner.loss or data.objective,
      inner_augmentation=inner.augmentation, inner_siamese=inner.siamese,
      inner_algorithm={"unrolled": "unroll"}.get(inner.hypergradient, inner.hypergradient),
      **({name: inner[name] for name in ("num_features", "regularization")}
         if inner.hypergradient == "ridge" else {}),
      model=config.model.name, model_options=model_options(config.model),
      init={**config.init.to_dict(), "weights": weights_name(config)},
      objective={name: value for name, value in objective.items()
                 if name == "name" or objective.name == "poisoning"})
