"""From a config to what it describes: data, networks, init distributions and jitted functions."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

import dd_jax
from dd_jax import augmentation
from dd_jax import datasets
from dd_jax import implicit
from dd_jax import losses
from dd_jax import models
from dd_jax import whitening
from experiments import layouts
from experiments import recipe
from experiments.choices import check_choice
from experiments.choices import check_positive
from experiments.choices import check_seed
from experiments.choices import choose
from experiments.inits import Inits
from experiments.inits import make_inits
from experiments.layouts import Layout


class Data(NamedTuple):
  """A dataset with its splits on the device: normalised images [n, H, W, C] and labels [n]."""
  dataset: datasets.Dataset  # Without the validation images.
  whitening: whitening.Whitening | None
  train: tuple[jax.Array, jax.Array]
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]
  digest: dict[str, str]  # Of the whole dataset as it was loaded.


class Problem(NamedTuple):
  """What a config describes, as arrays and functions."""
  data: Data
  model: dd_jax.Model
  inits: Inits
  layout: Layout
  decode: Any
  state: dd_jax.OuterState  # Before the first outer step.
  run: Any  # run(state, inits.train.state, *train) -> (state, infos [log_every])
  validate: Any  # validate(distilled, inits.validation.state, *validation) -> EvalResult
  test_on: Any  # test_on(distilled, inits.test.state, *test) -> EvalResult


def build(config: ConfigDict, layout: Layout | None = None) -> Problem:
  """Loads the data, resolves every name, and checks the whole run by tracing it.

  Args:
    config: the fields of experiments/configs/default.py.
    layout: how devices share the run; what `config.parallel` says by default.
  """
  check_seed("seed", config.seed)
  keys = make_keys(config.seed)
  layout = make_layout(config) if layout is None else layout
  data = load_data(config, layout)
  num_classes = data.dataset.num_classes
  model = make_network(config, data.dataset)
  inits = make_inits(config, model, data.dataset, layout, keys["init"])
  training = recipe.make_training(config, model, num_classes)
  learned = recipe.make_parametrization(config, data.train, num_classes)
  window = recipe.make_window(config, training, inits.train.sample)

  outer_loss = dd_jax.make_outer_loss(
      learned.decode, window.sample, real_loss=make_real_loss(config.objective, model, num_classes),
      window=window.window, num_inits=config.outer.num_inits, chunk_size=config.outer.chunk_size,
      num_parallel=num_parallel(config.outer, on_accelerator=None),
      **training._asdict(), **recipe.trajectory_options(config), **layout.outer_split)
  augment = config.outer.augmentation and augmentation.compose(config.outer.augmentation)
  trainable = learned.init(keys["images"])
  optimizer = recipe.make_optimizer(config.outer, trainable)
  carry, carry_on = (), None
  if window.warm is not None:
    carry = window.warm.init(keys["warm"], inits.train.state, learned.decode(trainable))

    def carry_on(key, pool, init_state, trainable):
      return window.warm.carry_on(key, pool, init_state, learned.decode(trainable))

  state = dd_jax.init_outer_state(trainable, optimizer, carry)

  def evaluate_on(key, init, num_inits):
    def evaluate(distilled, init_state, images, labels):
      with jax.default_matmul_precision(config.precision):
        return dd_jax.evaluate(
            key, distilled, init._replace(state=init_state), model.apply, images, labels,
            num_inits=num_inits, batch_size=config.eval.batch_size,
            num_parallel=num_parallel(config.eval, on_accelerator=10), split=layout.eval_split,
            **training._asdict())
    return jax.jit(evaluate)

  problem = Problem(
      data, model, inits, layout, learned.decode, layout.place(state),
      run=layout.compile_run(functools.partial(
          dd_jax.run_outer_steps, dd_jax.make_outer_step(
              outer_loss, optimizer, precision=config.precision, carry_on=carry_on), keys["outer"],
          batch_size=config.outer.batch_size, num_steps=config.log_every,
          stop=config.outer.num_steps, augment=augment)),
      validate=evaluate_on(keys["validation"], inits.validation, config.validation.num_inits),
      test_on=evaluate_on(keys["test"], inits.test, config.eval.num_inits))
  _check_intervals(config)
  for field, value, choices in (
      ("outer.on_nonfinite", config.outer.on_nonfinite, ("stop", "halve")),
      ("validation.selection", config.validation.selection, ("final", "best"))):
    check_choice(choices, value, field)
  # Tracing meets every rule of the library before anything is written.
  distilled = learned.decode(state.trainable)
  jax.eval_shape(problem.run, state, inits.train.state, *data.train)
  jax.eval_shape(problem.validate, distilled, inits.validation.state, *data.validation)
  jax.eval_shape(problem.test_on, distilled, inits.test.state, *data.test)
  return problem


def make_keys(seed: int) -> dict[str, jax.Array]:
  """The keys of a run, by what consumes them."""
  return dict(zip(("init", "images", "outer", "validation", "test", "warm"),
                  jax.random.split(jax.random.key(seed), 6)))


def make_layout(config: ConfigDict) -> Layout:
  """How the devices share the run; with one there is nothing to choose."""
  layout = choose(layouts.LAYOUTS, config.parallel, "parallel")
  return layouts.one_device() if jax.device_count() == 1 else layout(config.outer.num_inits)


def load_data(config: ConfigDict, layout: Layout) -> Data:
  """The dataset that `config.data` names, its validation images set aside."""
  dataset = datasets.load(config.data.name, config.data.dir or None,
                          download=config.data.download)
  digest = datasets.digest(dataset)
  if config.data.image_shape is not None:
    dataset = datasets.reframe(dataset, tuple(config.data.image_shape))
  dataset, validation_images, validation_labels = datasets.split_validation(
      dataset, config.data.num_validation, seed=config.seed)

  def normalized(images):
    return datasets.normalize(images, dataset.mean, dataset.std)

  fitted = config.data.whitening and whitening.fit(normalized(dataset.train_images),
                                                   regularization=config.data.whitening)

  def on_device(images, labels):
    images = normalized(images)
    return layout.place((whitening.whiten(fitted, images) if fitted else images, labels))

  return Data(dataset, fitted, train=on_device(dataset.train_images, dataset.train_labels),
              validation=on_device(validation_images, validation_labels),
              test=on_device(dataset.test_images, dataset.test_labels), digest=digest)


def make_model(config: ConfigDict, dataset: datasets.Dataset) -> dd_jax.Model:
  """The network that `config.model` names, for the dataset's images and classes."""
  make = choose(models.MODELS, config.model.name, "model.name")
  options = model_options(config.model)
  for name, value in options.items():
    if name not in inspect.signature(make).parameters:
      raise ValueError(f"model.{name} must be left out for {config.model.name}, which has no such "
                       f"option; got {value!r}")
  return make(num_classes=dataset.num_classes, image_shape=dataset.train_images.shape[1:],
              **options)


def make_network(config: ConfigDict, dataset: datasets.Dataset) -> dd_jax.Model:
  """The network that is trained: the model, or its features with a ridge regression on top."""
  if config.inner.hypergradient != "ridge":
    return make_model(config, dataset)
  size = config.inner.num_features
  check_positive("inner.num_features", size)
  if config.inner.augmentation is not None:
    raise ValueError("inner.augmentation must be left out for inner.hypergradient='ridge'; "
                     f"got {config.inner.augmentation!r}")
  return implicit.ridge_model(make_model(config, dataset._replace(num_classes=size)), size,
                              dataset.num_classes)


def model_options(model: ConfigDict) -> dict[str, Any]:
  """The options that `config.model` sets."""
  return {name: value for name, value in model.items() if name != "name" and value is not None}


def make_real_loss(objective: ConfigDict, model: dd_jax.Model, num_classes: int):
  """The outer loss on real images that `config.objective` names."""
  return choose({
      "classification": lambda: losses.classification(model.apply),
      "poisoning": lambda: losses.poisoning(
          model.apply, attack_class=objective.attack_class, target_class=objective.target_class,
          num_classes=num_classes),
  }, objective.name, "objective.name")()


def num_parallel(section: ConfigDict, on_accelerator: int | None) -> int | None:
  """Networks side by side: what the config says, else one on a CPU."""
  return section.num_parallel or (1 if jax.default_backend() == "cpu" else on_accelerator)


def _check_intervals(config):
  check_positive("log_every", config.log_every)
  check_positive("checkpoints_kept", config.checkpoints_kept)
  for field, value in (("checkpoint_every", config.checkpoint_every),
                       ("validation.every", config.validation.every)):
    if value < 1 or value % config.log_every:
      raise ValueError(f"{field} must be a multiple of log_every={config.log_every}; got {value}")
