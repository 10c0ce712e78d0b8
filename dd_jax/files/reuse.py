"""Using distilled data: networks trained on a file exactly as the run trained its own.

What is read of the metadata, all optional but where a network has to be built:

  inner_optimizer     name in `inner_optimizers`; gradient descent where absent
  inner_augmentation  names for `augmentation.compose`, or null; inner_siamese beside it
  inner_loss          the mean cross-entropy of a minibatch, the only one there is
  trajectory          inner_trajectory or implicit_trajectory, which take the same steps; or
                      ridge_trajectory, with its num_features and regularization
  precision           of float32 products on an accelerator; highest where absent
  model, model_options, num_classes
                      the network
  init                name, weights and scale of the init distribution
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax

from dd_jax import augmentation
from dd_jax import evaluation
from dd_jax import ridge_regression
from dd_jax import init_distributions
from dd_jax import optimizers
from dd_jax import losses
from dd_jax import models
from dd_jax.files.artifacts import Artifact
from dd_jax.init_distributions import InitDistribution
from dd_jax.inner_loop import unroll
from dd_jax.types import Array, Params

INNER_LOSS = "mean cross-entropy of images[s]"
_RIDGE = "ridge_trajectory"
_TRAJECTORIES = ("inner_trajectory", "implicit_trajectory", _RIDGE)


def train_on(artifact: Artifact, params: Params | None = None, apply: Callable | None = None, *,
             key: Array | None = None) -> Params:
  """Trains one network on the distilled data, in the order and with the steps of the run.

  Composes with `jit` and `vmap`, over `params` for many networks:
  `jax.jit(jax.vmap(lambda params: dd_jax.train_on(artifact, params)))`.

  Args:
    artifact: what `artifacts.load` returns.
    params: initial weights theta_0. None: those that the file holds, of a fixed init.
    apply: `(params, images [n, H, W, C], *, key=None) -> logits [n, K]`. None: the network that
      the metadata name. Of data for a ridge regression it is that of an `ridge_regression.ridge_model`.
    key: consumed by the augmentation of the distilled images, where the run had one.

  Returns:
    The trained weights. They take real images that went through `artifact.normalize`.

  Raises:
    ValueError: no weights, a network that cannot be built or has other weights, a key that is
      missing or not used, or training that this package does not know.
  """
  training = _training(artifact, apply)
  if (key is not None) != training.keyed:
    raise ValueError("key must be given where the run augmented its distilled images, and nowhere "
                     f"else; the file has inner_augmentation="
                     f"{artifact.metadata.get('inner_augmentation')!r}, got key={key}")
  if params is None:
    params = stored_params(artifact)
  if apply is None:
    models.check_params(network(artifact), params, where="params",
                        rule=f"params must be weights of {artifact.metadata['model']}")
  with _precision(artifact):
    trained, _ = training.trajectory(training.inner_loss, params, artifact.distilled,
                                     optimizer=training.optimizer, key=key)
  return trained


def evaluate_on(key: Array, artifact: Artifact, init: InitDistribution, apply: Callable | None,
                images: Array, labels: Array, **options: Any) -> evaluation.EvalResult:
  """Trains N networks as `train_on` and tests each on all images, before and after.

  Args:
    key: consumed by the draw of the networks and by the augmentation; that of a run's own test
      gives its networks again.
    artifact, apply: as in `train_on`.
    init: where the networks come from.
    images, labels: real `[n, H, W, C]`, of `artifact.normalize`, and `[n]`.
    **options: `num_inits` and others of `evaluation.evaluate`.

  Returns:
    Metrics before and after, each field with a leading axis `[N]`; errors as of `train_on`.
  """
  training = _training(artifact, apply)
  with _precision(artifact):
    return evaluation.evaluate(key, artifact.distilled, init, images=images, labels=labels,
                               **training._asdict(), **options)


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
  if artifact.metadata.get("trajectory") != _RIDGE:
    return make(num_classes)
  num_features = artifact.field("num_features")
  return ridge_regression.ridge_model(make(num_features), num_features, num_classes)


def _model(artifact, num_outputs):
  """What the metadata name."""
  name, options = artifact.field("model"), artifact.field("model_options")
  shape = tuple(artifact.distilled.images.shape[2:])
  arguments = {"num_classes": num_outputs, "image_shape": shape}
  if name not in models.MODELS:
    raise ValueError(f"model of the metadata must be one of {sorted(models.MODELS)}, or apply be "
                     f"given; got {name!r}")
  try:
    inspect.signature(models.MODELS[name]).bind(**arguments, **options)
    return models.MODELS[name](**arguments, **options)
  except (TypeError, ValueError) as error:
    raise ValueError(f"model_options of the metadata must be those of {name} for images {shape}; "
                     f"got {options} ({error})") from error


def stored_params(artifact: Artifact) -> Params:
  """The weights theta_0 in the file of a fixed init.

  Raises:
    ValueError: the file holds none.
  """
  if artifact.init_params is None:
    init = artifact.metadata.get("init")
    raise ValueError("params must be given: the file holds no weights (its init is "
                     f"{init.get('name') if isinstance(init, dict) else init!r}); draw some with "
                     "dd_jax.network(artifact).init(key), or load_pool a pool of networks")
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


class _Training(NamedTuple):
  """Arguments of `evaluation.evaluate`."""
  apply: Callable
  inner_loss: Callable
  optimizer: Callable
  keyed: bool
  trajectory: Callable


def _training(artifact, apply):
  """How the run trained a network."""
  metadata = artifact.metadata
  for name, known in (("trajectory", _TRAJECTORIES), ("inner_loss", (INNER_LOSS,)),
                      ("inner_optimizer", tuple(optimizers.INNER_OPTIMIZERS))):
    if metadata.get(name, known[0]) not in known:
      raise ValueError(f"{name} of the metadata must be one of {list(known)} to train on the file; "
                       f"got {metadata[name]!r}")
  optimizer = metadata.get("inner_optimizer", "gradient_descent")
  missing = optimizers.DEFAULTS[optimizer].keys() - dict(artifact.distilled.hyper).keys()
  if missing:
    raise ValueError(f"the file must hold hyper/{min(missing)} of its inner optimizer {optimizer}; "
                     f"it has {sorted(dict(artifact.distilled.hyper))}")
  apply = network(artifact).apply if apply is None else apply
  inner_loss, augment = losses.classification(apply), metadata.get("inner_augmentation")
  if augment is not None:
    inner_loss = augmentation.augmented(
        inner_loss, augmentation.compose(augment, siamese=artifact.field("inner_siamese")))
  trajectory = inner_trajectory
  if metadata.get("trajectory") == _RIDGE:
    trajectory = ridge_regression.ridge_trajectory(
        ridge_regression.ridge_features(apply, artifact.field("num_features")),
        artifact.field("num_classes"), regularization=artifact.field("regularization"))
  return _Training(apply, inner_loss, optimizers.INNER_OPTIMIZERS[optimizer],
                   augment is not None, trajectory)


def _precision(artifact):
  precision = artifact.metadata.get("precision", PRECISIONS[0])
  if precision not in PRECISIONS:
    raise ValueError(f"precision of the metadata must be one of {list(PRECISIONS)}; "
                     f"got {precision!r}")
  return jax.default_matmul_precision(precision)
