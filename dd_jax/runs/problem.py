"""A distillation as arrays and functions: what `distill`, pools and baselines take."""

from collections.abc import Callable, Mapping
import functools
import inspect
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dd_jax import datasets
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization
from dd_jax import step_sizes
from dd_jax.init_distributions import InitDistribution
from dd_jax.inner_loop import unroll
from dd_jax.parametrization import Parametrization
from dd_jax.runs import accuracies
from dd_jax.runs.data import Data, examples_at, from_dataset, input_shapes, start_labels
from dd_jax.truncation import WarmStart
from dd_jax.types import Train

_VALIDATION_SHARE = 12  # One training image in so many is set aside.


class Inits(NamedTuple):
  """Where networks come from; those of one pool never meet those of another."""
  train: InitDistribution  # Of every outer step.
  validation: InitDistribution  # Of the progress bar's accuracy.
  test: InitDistribution  # Of the figures in the end.


class Problem(NamedTuple):
  """What is distilled, from what and for what; `_replace` changes any part of it."""
  data: Data  # What is distilled, and tested on.
  learned: Parametrization  # What is learned, and the distilled data that it stands for.
  inits: Inits  # Where the networks come from.
  train: Train  # The inner algorithm, which also trains the networks that are tested.
  apply: Callable  # (params, inputs) -> logits [n, K], or outputs [n, D] for targets.
  real_loss: Callable  # The outer objective on real examples, (params, inputs, labels) -> [].
  # The outer one, with its learning rates; or what makes it of the number of outer steps.
  optimizer: optax.GradientTransformation | Callable[[int], optax.GradientTransformation]
  num_inits: int = 1  # N.
  num_validation_inits: int = 1  # Networks whose accuracy the progress bar shows.
  num_test_inits: int = 1  # Networks that are tested in the end.
  batch_size: int = 256  # R.
  num_parallel: int | None = None  # Networks side by side; None: one on a CPU, all elsewhere.
  chunk_size: int | None = None  # Real examples per pass; None: all R.
  outer_train: Train | None = None  # What is differentiated; None: `train`. Windows, for instance.
  warm: WarmStart | None = None  # Instead of `outer_train`.
  augment: Callable | None = None  # (key, inputs) -> inputs of every real minibatch.
  figures: accuracies.Figures = accuracies.ACCURACY  # What is measured.
  keeps_network: bool = False  # Whether distilled.npz holds the one network that it is for.
  metadata: dict[str, Any] = {}  # What distilled.npz says of itself.
  usual: dict[str, Any] = {}  # A config whose values the report does not repeat.
  made_from: dict[str, str] = {}  # Digests, by name, of all that a run must find unchanged.


def make_problem(data: Data | datasets.Dataset, model: models.Model | Callable[..., models.Model],
                 *, images_per_class: int = 1, num_steps: int = 1, num_epochs: int = 3,
                 init: str | InitDistribution | Inits = "fixed", loss: Callable | None = None,
                 real_loss: Callable | None = None, seed: int = 0) -> Problem:
  """A problem with usual choices: every input and step size learned, hard labels, Adam.

  Targets are learned too, from those of spread training examples on.

  Args:
    data: of `from_dataset`, `from_texts` or `from_columns`, or a dataset, of whose training images
      a twelfth is set aside.
    model: a maker `(num_classes=, image_shape=) -> Model` such as `models.lenet` or
      `functools.partial(models.mlp, hidden=(32,))`, whose weights are Xavier normal; or a maker or
      a `Model` of one's own, which keeps the weights of its `init`.
    images_per_class: in every distill step; of targets, examples.
    num_steps: S.
    num_epochs: E.
    init: "fixed" (one known network), "random" (fresh weights in every outer step), or where the
      networks come from.
    loss: the inner loss, `(params, inputs, labels) -> []`. None: cross-entropy, or of targets
      the squared error.
    real_loss: the outer one. None: the same.
    seed: of the validation split and of a fixed network.

  Raises:
    ValueError: an argument that does not fit, named with its rule and value.
  """
  if isinstance(data, datasets.Dataset):
    data = from_dataset(data, num_validation=max(
        data.num_classes, len(data.train_labels) // _VALIDATION_SHARE), seed=seed)
  shape = input_shapes(data)
  network = model if isinstance(model, models.Model) else model(
      num_classes=data.num_classes, image_shape=shape)
  fixed = isinstance(init, str) and init == "fixed"
  labels = start_labels(data, num_steps, images_per_class)
  usual_loss = losses.LOSSES[data.objective](network.apply)
  maker, options = ((model.func, model.keywords) if isinstance(model, functools.partial) else
                    (model, {}))
  name = name_of(maker, models.MODELS)
  weights = "xavier_normal" if name in models.MODELS else "own"
  num_networks = 1 if fixed else 4
  return Problem(
      data,
      parametrization.join(
          parametrization.inputs(shape, num_steps, labels.shape[1], given=data.given),
          (parametrization.fixed_labels if data.targets is None else parametrization.soft_labels)(
              labels), step_sizes.learned(num_epochs, num_steps, .1 if fixed else .02,
                                               scale="log")),
      _inits(init, weights, network, jax.random.split(jax.random.key(seed), 2)[0]),
      unroll(usual_loss if loss is None else loss, memory="plain"), network.apply,
      usual_loss if real_loss is None else real_loss,
      _optimizer, num_inits=num_networks, num_validation_inits=1 if fixed else 10,
      num_test_inits=1 if fixed else 100,
      batch_size=min(256, len(data.train[1])),
      figures=accuracies.of({}, data.targets and data.targets.std), keeps_network=fixed,
      made_from=data.digest,
      metadata=describe(
          data, model=name, model_options=options,
          inner_algorithm="unroll", inner_optimizer="gradient_descent",
          inner_loss=data.objective if loss is None else name_of(loss),
          init={"name": init if isinstance(init, str) else None, "weights": weights,
                "scale": None},
          objective={"name": data.objective if real_loss is None else name_of(real_loss)}))


def describe(data: Data, **parts: Any) -> dict[str, Any]:
  """The metadata of distilled.npz that follow from the data, and these."""
  images = {} if data.pixels is None else {
      "image_shape": list(input_shapes(data)), "pixel_scale": data.pixels.scale,
      "mean": data.pixels.mean.tolist(), "std": data.pixels.std.tolist(),
      "pixel_range": list(data.pixels.range), "whitening": data.pixels.regularization}
  return {"dataset": data.name, "data": data.digest, "split_seed": data.seed,
          "num_train": len(data.train[1]), "num_validation": len(data.validation[1]),
          "num_test": len(data.test[1]), "num_classes": data.num_classes,
          **({"class_names": list(data.class_names)} if data.class_names else {}), **images,
          **({} if data.targets is None else {"targets": {
              "names": list(data.targets.names), "mean": data.targets.mean.tolist(),
              "std": data.targets.std.tolist()}}),
          "order": "for e in epochs, for s in steps; step size step_sizes[e, s]", **parts}


def told_apart(problem: Problem) -> dict[str, Any]:
  """What tells a problem from others on the same data, as far as JSON can."""
  learned = jax.eval_shape(problem.learned.init, jax.random.key(0))
  shapes = {"learned": learned, "distilled": jax.eval_shape(problem.learned.decode, learned)}
  return {"problem": {name: value for name, value in problem.metadata.items() if name != "data"},
          **{what: shapes_of(tree) for what, tree in shapes.items()},
          "num_test_inits": problem.num_test_inits}


def check_outputs(problem: Problem) -> None:
  """A ValueError where the network has fewer outputs than there are classes."""
  params = jax.eval_shape(lambda state, key: jax.tree.map(
      lambda leaf: leaf[0], problem.inits.test._replace(state=state).sample(key, 1)),
                          problem.inits.test.state, jax.random.key(0))
  inputs, _ = examples_at(problem.data, problem.data.train, np.arange(2))
  found = jax.eval_shape(problem.apply, params, inputs).shape[-1]
  if problem.data.targets is None and found < problem.data.num_classes:
    raise ValueError(f"model must have an output for each of the {problem.data.num_classes} "
                     f"classes; got {found}")


def shapes_of(tree: Any) -> dict[str, list[int]]:
  """The shape of every leaf by its path, for JSON."""
  return {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(part: Any, known: Mapping[str, Any] = {}) -> str | None:
  """The name of a part: the library's, or `package.module:function`, which commands can be told.

  None: it cannot be imported by a name, as what is defined in a function or a notebook.
  """
  for name, value in known.items():
    if value is part:
      return name
  if not inspect.isroutine(part) or "<" in part.__qualname__:  # <locals>, <lambda>.
    return None
  module = part.__module__
  if module == "__main__":
    script = sys.modules[module]
    file = getattr(script, "__file__", None)
    if file is None:
      return None
    module = script.__spec__.name if script.__spec__ else pathlib.Path(file).stem
  return f"{module}:{part.__qualname__}"


def _inits(init, weights, network, key):
  if isinstance(init, Inits):
    return init
  if isinstance(init, InitDistribution):
    return Inits(init, init, init)
  if init not in ("fixed", "random"):
    raise ValueError("init must be 'fixed', 'random', an InitDistribution or Inits; "
                     f"got {init!r}")
  random = init_distributions.random_init(
      network.init, init_distributions.WEIGHT_INITS[weights]())
  found = random if init == "random" else init_distributions.fixed_init(one_network(random, key))
  return Inits(found, found, found)


def one_network(init: InitDistribution, key: jax.Array) -> Any:
  """The weights of one network of a draw."""
  return jax.jit(lambda: jax.tree.map(lambda leaf: leaf[0], init.sample(key, 1)))()


def _optimizer(num_steps):
  """Adam along a cosine, after clipping; step sizes move more slowly than pixels."""
  adams = {name: optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=.5)
           for name, rate in (("inputs", .05), ("labels", .01), ("step_sizes", .01),
                              ("hyper", .01))}
  return optax.chain(optax.clip_by_global_norm(1.), optax.partition(
      adams, lambda trainable: {name: name for name in trainable}))
