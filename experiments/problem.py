"""From a config to what it describes: data, networks, init distributions and jitted functions."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import optax

import dd_jax
from dd_jax import artifacts
from dd_jax import augmentation
from dd_jax import datasets
from dd_jax import imagenet_weights
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from experiments import layouts
from experiments.layouts import Layout

# The two files of a directory of pre-trained networks, and their roles.
POOLS = ("train", "heldout")
# Inits of one known network, whose weights belong to the distilled data.
ONE_NETWORK = ("fixed", "fixed_pretrained", "imagenet")


class Data(NamedTuple):
  """A dataset with its splits on the device: normalised images [n, H, W, C] and labels [n]."""
  dataset: datasets.Dataset  # Without the validation images.
  train: tuple[jax.Array, jax.Array]
  validation: tuple[jax.Array, jax.Array]
  test: tuple[jax.Array, jax.Array]


class Inits(NamedTuple):
  """Where networks come from; those of one pool never meet those of another."""
  train: dd_jax.InitDistribution
  validation: dd_jax.InitDistribution
  test: dd_jax.InitDistribution


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
  keys = dict(zip(("init", "images", "outer", "validation", "test"),
                  jax.random.split(jax.random.key(config.seed), 5)))
  layout = make_layout(config) if layout is None else layout
  data = load_data(config, layout)
  num_classes, image_shape = data.dataset.num_classes, data.dataset.train_images.shape[1:]
  model = make_model(config, data.dataset)
  inits = make_inits(config, model, data.dataset, layout, keys["init"])
  inner_loss = losses.classification(model.apply)

  labels = parametrization.class_labels(config.distill.num_steps, num_classes,
                                        config.distill.images_per_class)
  decode = parametrization.pixels(labels, step_size_scale=config.distill.step_size_scale)
  outer_loss = dd_jax.make_outer_loss(
      decode, inits.train.sample, inner_loss, make_real_loss(config.objective, model, num_classes),
      num_inits=config.outer.num_inits, chunk_size=config.outer.chunk_size,
      num_parallel=num_parallel(config.outer, on_accelerator=None),
      memory=config.distill.memory, gradient=config.distill.gradient, **layout.outer_split)
  augment = config.outer.augmentation and choose(
      augmentation.AUGMENTATIONS, config.outer.augmentation, "outer.augmentation")
  optimizer = make_optimizer(config.outer)
  state = dd_jax.init_outer_state(
      dd_jax.init_distilled(keys["images"], labels=labels, image_shape=image_shape,
                            num_epochs=config.distill.num_epochs,
                            step_size=config.distill.step_size,
                            step_size_scale=config.distill.step_size_scale), optimizer)

  def evaluate_on(key, init, num_inits):
    def evaluate(distilled, init_state, images, labels):
      with jax.default_matmul_precision(config.precision):
        return dd_jax.evaluate(
            key, distilled, init._replace(state=init_state), model.apply, images, labels,
            num_inits=num_inits, inner_loss=inner_loss, batch_size=config.eval.batch_size,
            num_parallel=num_parallel(config.eval, on_accelerator=10), split=layout.eval_split)
    return jax.jit(evaluate)

  problem = Problem(
      data, model, inits, layout, decode, layout.place(state),
      run=layout.compile_run(functools.partial(
          dd_jax.run_outer_steps, dd_jax.make_outer_step(
              outer_loss, optimizer, precision=config.precision), keys["outer"],
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
  distilled = decode(state.trainable)
  jax.eval_shape(problem.run, state, inits.train.state, *data.train)
  jax.eval_shape(problem.validate, distilled, inits.validation.state, *data.validation)
  jax.eval_shape(problem.test_on, distilled, inits.test.state, *data.test)
  return problem


def make_layout(config: ConfigDict) -> Layout:
  """How the devices share the run; with one there is nothing to choose."""
  layout = choose(layouts.LAYOUTS, config.parallel, "parallel")
  return layouts.one_device() if jax.device_count() == 1 else layout(config.outer.num_inits)


def load_data(config: ConfigDict, layout: Layout) -> Data:
  """The dataset that `config.data` names, its validation images set aside."""
  dataset = datasets.load(config.data.name, config.data.dir or None,
                          download=config.data.download)
  if config.data.image_shape is not None:
    dataset = datasets.reframe(dataset, tuple(config.data.image_shape))
  dataset, validation_images, validation_labels = datasets.split_validation(
      dataset, config.data.num_validation, seed=config.seed)

  def on_device(images, labels):
    return layout.place((datasets.normalize(images, dataset.mean, dataset.std), labels))

  return Data(dataset, train=on_device(dataset.train_images, dataset.train_labels),
              validation=on_device(validation_images, validation_labels),
              test=on_device(dataset.test_images, dataset.test_labels))


def make_model(config: ConfigDict, dataset: datasets.Dataset) -> dd_jax.Model:
  """The network that `config.model` names, for the dataset's images and classes."""
  return choose(models.MODELS, config.model.name, "model.name")(
      num_classes=dataset.num_classes, image_shape=dataset.train_images.shape[1:],
      **({"convolution": config.model.convolution} if config.model.convolution else {}))


def make_inits(config: ConfigDict, model: dd_jax.Model, dataset: datasets.Dataset, layout: Layout,
               key: jax.Array) -> Inits:
  """The init distributions that `config.init` names; a fixed one is drawn with `key`."""
  def fixed():
    random = random_init(config.init, model)
    params = jax.jit(random.sample, static_argnums=2)(random.state, key, 1)
    return everywhere(dd_jax.fixed_init(_slice(params, 0)))

  def fixed_pretrained():
    pool, _ = load_pools(config, model, dataset)
    return everywhere(dd_jax.fixed_init(_slice(pool, 0)))

  def imagenet():
    if not config.init.checkpoint:
      raise ValueError("init.checkpoint must be a file of AlexNet's ImageNet weights; got ''")
    return everywhere(dd_jax.fixed_init(imagenet_weights.load(config.init.checkpoint, model)))

  def pretrained():
    pool, heldout = load_pools(config, model, dataset)
    size, aside = jax.tree.leaves(pool)[0].shape[0], config.init.num_validation
    if not 1 <= aside < size:
      raise ValueError(f"init.num_validation must lie in 1..{size - 1} (the pool has {size} "
                       f"networks); got {aside}")
    return (layout.train_pool(_slice(pool, slice(size - aside))),
            layout.heldout_pool(_slice(pool, slice(size - aside, None))),
            layout.heldout_pool(heldout))

  def everywhere(init):
    placed = init._replace(state=layout.place(init.state))
    return layout.train_init(init), placed, placed

  return Inits(*choose({
      "random": lambda: everywhere(random_init(config.init, model)),
      "fixed": fixed,
      "imagenet": imagenet,
      "pretrained": pretrained,
      "fixed_pretrained": fixed_pretrained,
  }, config.init.name, "init.name")())


def random_init(init: ConfigDict, model: dd_jax.Model) -> dd_jax.InitDistribution:
  """Fresh weights as `config.init.weights` says."""
  weights = choose(init_distributions.WEIGHT_INITS, init.weights, "init.weights")
  return dd_jax.random_init(model.init, weights(*(() if init.scale is None else (init.scale,))))


def load_pools(config: ConfigDict, model: dd_jax.Model, dataset: datasets.Dataset):
  """Weights of the training pool and of the held-out pool in `config.init.pool`.

  Raises:
    ValueError: a pool of another network, image shape, number of classes or source set than the
      config's, or two pools of the same seed.
  """
  if not config.init.pool:
    raise ValueError("init.pool must be a directory that experiments.pretrain wrote; got ''")
  expected = {"model": config.model.name, "dataset": config.init.source or config.data.name,
              "image_shape": list(dataset.train_images.shape[1:]),
              "num_classes": dataset.num_classes}
  shapes = _leaf_shapes(jax.eval_shape(model.init, jax.random.key(0)))
  pools = []
  for role in POOLS:
    path = pathlib.Path(config.init.pool) / f"{role}.npz"
    pool = artifacts.load_pool(path)
    for field, value in expected.items():
      if pool.metadata.get(field) != value:
        raise ValueError(f"init.pool must hold networks of {field} {value!r}; "
                         f"those of {path} have {pool.metadata.get(field)!r}")
    found = {name: shape[1:] for name, shape in _leaf_shapes(pool.params).items()}
    if found != shapes:
      name = min(name for name in found.keys() | shapes.keys()
                 if found.get(name) != shapes.get(name))
      raise ValueError(f"init.pool must hold networks of {config.model.name} with {name} "
                       f"{shapes.get(name, 'absent')}; in {path} it is {found.get(name, 'absent')}")
    pools.append(pool)
  seeds = [(pool.metadata["seed"], pool.metadata["role"]) for pool in pools]
  if seeds[0] == seeds[1]:
    raise ValueError(f"init.pool must hold two pools of different seeds; got {seeds[0]} for both")
  return tuple(pool.params for pool in pools)


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


def make_optimizer(outer: ConfigDict) -> optax.GradientTransformation:
  """Adam on images and step sizes, each with its learning rate, after clipping."""
  def adam(field, weight_decay):
    check_positive(f"outer.{field}", outer[field])
    return optax.adamw(make_schedule("outer", outer, outer[field]), b1=outer.beta1, b2=outer.beta2,
                       weight_decay=weight_decay)

  if not outer.weight_decay >= 0:
    raise ValueError(f"outer.weight_decay must not be negative; got {outer.weight_decay}")
  clip = optax.identity()
  if outer.clip_norm is not None:
    check_positive("outer.clip_norm", outer.clip_norm)
    clip = optax.clip_by_global_norm(outer.clip_norm)
  partition = optax.partition(
      {"images": adam("learning_rate", outer.weight_decay),
       "step_sizes": adam("step_size_learning_rate", 0.)},
      {"images": "images", "step_sizes": "step_sizes"})
  # A part of the state, so that a run which has halved it continues with it.
  scale = optax.inject_hyperparams(lambda rate_scale: optax.scale(rate_scale))(rate_scale=1.0)
  return optax.chain(clip, partition, scale)


def make_schedule(name: str, section: ConfigDict, rate: float) -> optax.Schedule:
  """The learning rate over `section.num_steps` steps; `name` is the section's in the config."""
  for field in ("num_steps", "halve_every"):
    check_positive(f"{name}.{field}", section[field])
  return choose({
      "halving": lambda: lambda step: rate * 0.5 ** (step // section.halve_every),
      "cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps),
      "squared_cosine": lambda: optax.cosine_decay_schedule(rate, section.num_steps, exponent=2),
  }, section.schedule, f"{name}.schedule")()


def choose(choices, name, field):
  """The entry `name`; a ValueError that names the config's field lists the choices."""
  check_choice(choices, name, field)
  return choices[name]


def check_choice(choices, name, field):
  """A ValueError that names the config's field and lists the choices."""
  if name not in choices:
    raise ValueError(f"{field} must be one of {sorted(choices)}; got {name!r}")


def check_positive(field, value):
  """A ValueError that names the config's field, unless the value is positive."""
  if not value > 0:
    raise ValueError(f"{field} must be positive; got {value}")


def _slice(pool, index):
  return jax.tree.map(lambda leaf: leaf[index], pool)


def _leaf_shapes(params):
  return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _check_intervals(config):
  check_positive("log_every", config.log_every)
  check_positive("checkpoints_kept", config.checkpoints_kept)
  for field, value in (("checkpoint_every", config.checkpoint_every),
                       ("validation.every", config.validation.every)):
    if value < 1 or value % config.log_every:
      raise ValueError(f"{field} must be a multiple of log_every={config.log_every}; got {value}")
