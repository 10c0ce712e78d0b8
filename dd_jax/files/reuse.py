"""Using distilled data: networks trained on a file exactly as the run trained its own.

What is read of the metadata, all optional but where a network has to be built:

  inner_algorithm     unroll or implicit, which take the same steps, or ridge, with its num_features
                      and regularization
  inner_optimizer     name in `optimizers`; gradient descent where absent
  inner_loss          classification: the mean cross-entropy; or regression: the squared error
  inner_augmentation  names for `augmentation.compose`, or null; inner_siamese beside it
  precision           of float32 products on an accelerator; highest where absent
  model, model_options, num_classes
                      the network
  init                name, weights and scale of the init distribution

A network, an inner loss or an augmentation of the user's own is named `package.module:function`. A
file never causes an import: whoever trusts it imports the function and hands it over.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax

from dd_jax import adapters
from dd_jax import augmentation
from dd_jax import evaluation
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import models
from dd_jax import optimizers
from dd_jax import ridge_regression
from dd_jax.files.artifacts import Artifact
from dd_jax.init_distributions import InitDistribution
from dd_jax.inner_loop import unroll
from dd_jax.types import Array, Params

_PRECISIONS = ("highest", "high", "default")
_ALGORITHMS = ("unroll", "implicit", "ridge")


def train_on(artifact: Artifact, params: Params | None = None, apply: Callable | None = None, *,
             loss: Callable | None = None, key: Array | None = None) -> Params:
  """Trains one network on the distilled data, in the order and with the steps of the run.

  Composes with `jit` and `vmap`, over `params` for many networks:
  `jax.jit(jax.vmap(lambda params: dd_jax.train_on(artifact, params)))`.

  Args:
    artifact: what `artifacts.load` returns.
    params: initial weights theta_0. None: those that the file holds, of a fixed init.
    apply: `(params, inputs [n, ...]) -> logits [n, K]`. None: the network that the metadata name.
      Of data for a ridge regression it is that of a `ridge_regression.ridge_model`.
    loss: `(params, inputs, labels) -> []`, the inner loss; an augmentation that the metadata name
      and this package has is put around it, one of the run's own is a part of it. None: that of
      the metadata, for `apply`.
    key: consumed by an inner loss that takes one: of an augmentation, or of a network with dropout.

  Returns:
    The trained weights. They take real images that went through `artifact.normalize`.

  Raises:
    ValueError: no weights, a network or a loss that cannot be built, a network that has other
      weights, a key that is missing or not used, or training that this package does not know.
  """
  if params is None:
    params = stored_params(artifact)
  if apply is None:
    model = network(artifact)
    models.check_params(model, params, where="params",
                        rule=f"params must be weights of {artifact.metadata['model']}")
    apply = model.apply
  train, takes_key = _inner_algorithm(artifact, apply, loss)
  if (key is not None) != takes_key:
    raise ValueError("key must be given where the inner loss takes one, for an augmentation or for "
                     "dropout, and nowhere else; the file has inner_augmentation="
                     f"{artifact.metadata.get('inner_augmentation')!r}, got key={key}")
  with _precision(artifact):
    return train(key, params, artifact.distilled)[0]


def evaluate_on(key: Array, artifact: Artifact, init: InitDistribution, apply: Callable | None,
                inputs: Any, labels: Array, *, num_inits: int, loss: Callable | None = None,
                plan: evaluation.Plan = evaluation.Plan()) -> evaluation.EvalResult:
  """Trains N networks as `train_on` and tests each on all real examples, before and after.

  Args:
    key: consumed by the draw of the networks and by their training; that of a run's own test
      gives its networks again.
    artifact, apply, loss: as in `train_on`.
    init: where the networks come from.
    inputs, labels: real `[n, ...]`, images of `artifact.normalize`, and `[n]`.
    num_inits: N.
    plan: how much is computed at once, and on which devices.

  Returns:
    Metrics before and after, each field with a leading axis `[N]`; errors as of `train_on`.
  """
  apply = network(artifact).apply if apply is None else apply
  train, _ = _inner_algorithm(artifact, apply, loss)
  with _precision(artifact):
    return evaluation.evaluate(key, artifact.distilled, init, train, apply, inputs, labels,
                               num_inits=num_inits, plan=plan)


def network(artifact: Artifact, make: Callable[[int], models.Model] | None = None) -> models.Model:
  """The network that the run distilled for.

  Args:
    artifact: what `artifacts.load` returns.
    make: `number of outputs -> Model`, of another network to train in the same way: for a ridge
      regression it gives the features, and the head is added. None: that of the metadata.

  Raises:
    ValueError: the metadata name none, or none of this package.
  """
  make = functools.partial(_model, artifact) if make is None else make
  num_classes = artifact.field("num_classes")
  if artifact.metadata.get("inner_algorithm") != "ridge":
    return make(num_classes)
  num_features = artifact.field("num_features")
  return ridge_regression.ridge_model(make(num_features), num_features, num_classes)


def check_classes(artifact: Artifact, class_names: tuple[str, ...], argument: str) -> None:
  """A ValueError that begins with `argument` where data of other `class_names` than the artifact's
  are given; either may have none."""
  if class_names and artifact.class_names and tuple(class_names) != artifact.class_names:
    raise ValueError(f"{argument} must have the classes of the file, "
                     f"{list(artifact.class_names)}; got {list(class_names)}")


def stored_params(artifact: Artifact) -> Params:
  """The weights theta_0 in the file of a fixed init.

  Raises:
    ValueError: the file holds none.
  """
  if artifact.init_params is None:
    init = artifact.metadata.get("init")
    raise ValueError("params must be given: the file holds no weights (its init is "
                     f"{init.get('name') if isinstance(init, dict) else init!r}); draw some with "
                     "dd_jax.network(artifact).init(key), or load a pool of networks")
  return artifact.init_params


def init_distribution(artifact: Artifact, model: models.Model) -> InitDistribution:
  """Fresh weights, drawn as the run drew its random ones or its fixed one.

  Args:
    artifact: of a random or a fixed init; a fixed one's own weights are `stored_params`.
    model: whose weights; another network than the run's will do.

  Raises:
    ValueError: the run's networks were trained ones, or nothing says where they came from.
  """
  init = artifact.field("init")
  try:
    if init["name"] not in ("random", "fixed"):
      raise ValueError(f"its networks are {init['name']!r}, and lie elsewhere")
    scale = () if init["scale"] is None else (init["scale"],)
    weights = init_distributions.WEIGHT_INITS[init["weights"]](*scale)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError("init must be given: that of the file cannot be drawn from "
                     f"({type(error).__name__}: {error})") from error
  return init_distributions.random_init(model.init, weights)


def _model(artifact, num_outputs):
  """What the metadata name."""
  name, options = artifact.field("model"), artifact.field("model_options")
  if _is_own(name):
    raise ValueError(f"apply must be given: the network of the file is {name!r}, and a file never "
                     "causes an import; import it and give train_on the apply of what it makes, "
                     f"network its make, or experiments.apply --network={name}")
  if name not in models.MODELS:
    raise ValueError(f"model of the metadata must be one of {sorted(models.MODELS)}, or apply be "
                     f"given; got {name!r}")
  shape = jax.tree.map(lambda x: tuple(x.shape[2:]), artifact.distilled.inputs)
  arguments = {"num_classes": num_outputs, "image_shape": shape}
  try:
    inspect.signature(models.MODELS[name]).bind(**arguments, **options)
    return models.MODELS[name](**arguments, **options)
  except (AttributeError, TypeError, ValueError) as error:  # Of a dict where an array is wanted.
    raise ValueError(f"model_options of the metadata must be those of {name} for inputs {shape}; "
                     f"got {options} ({error})") from error


def _is_own(name):
  return isinstance(name, str) and ":" in name


def _inner_algorithm(artifact: Artifact, apply: Callable, loss: Callable | None
                     ) -> tuple[Callable, bool]:
  """How the run trained a network, and whether that consumes a key."""
  metadata = artifact.metadata
  for name, known in (("inner_algorithm", _ALGORITHMS),
                      ("inner_optimizer", tuple(optimizers.INNER_OPTIMIZERS))):
    if metadata.get(name, known[0]) not in known:
      raise ValueError(f"{name} of the metadata must be one of {list(known)} to train on the file; "
                       f"got {metadata[name]!r}")
  if metadata.get("inner_algorithm") == "ridge":
    return ridge_regression.ridge(
        ridge_regression.ridge_features(apply, artifact.field("num_features")),
        None if metadata.get("targets") else artifact.field("num_classes"),
        regularization=artifact.field("regularization")), False
  name = metadata.get("inner_optimizer", "gradient_descent")
  hyper = artifact.distilled.hyper
  found = set(hyper) if isinstance(hyper, dict) else set()
  missing = optimizers.DEFAULTS[name].keys() - found
  if missing:
    raise ValueError(f"the file must hold hyper/{min(missing)} of its inner optimizer {name}; "
                     f"it has {sorted(found)}")
  inner_loss = _inner_loss(artifact, apply, loss)
  # Plain: without a gradient nothing is kept, and it is traced fastest.
  train = unroll(inner_loss, optimizers.INNER_OPTIMIZERS[name], memory="plain")
  return train, adapters.takes_key(inner_loss)


def _inner_loss(artifact, apply, loss):
  """The loss with the augmentation of the run."""
  name = artifact.metadata.get("inner_loss", "classification")
  augment = artifact.metadata.get("inner_augmentation")
  if loss is None:
    for field, function in (("inner_loss", name), ("inner_augmentation", augment)):
      if _is_own(function):
        raise ValueError(f"loss must be given: the {field} of the file is {function!r}, and a file "
                         "never causes an import; import it and give the whole inner loss, "
                         "loss(params, inputs, labels)")
    if name not in losses.LOSSES:
      raise ValueError(f"inner_loss of the metadata must be of {list(losses.LOSSES)} to train on "
                       f"it without a loss; got {name!r}")
    loss = losses.LOSSES[name](apply)
  if augment is None or _is_own(augment):
    return loss
  return augmentation.augmented(
      loss, augmentation.compose(augment, siamese=artifact.field("inner_siamese")))


def _precision(artifact):
  precision = artifact.metadata.get("precision", _PRECISIONS[0])
  if precision not in _PRECISIONS:
    raise ValueError(f"precision of the metadata must be one of {list(_PRECISIONS)}; "
                     f"got {precision!r}")
  return jax.default_matmul_precision(precision)
