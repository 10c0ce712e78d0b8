"""What a name stands for, of a config or a flag: a part of the library, or `package.module:name`."""

from collections.abc import Callable, Mapping
import importlib
import inspect
from typing import Any

from flax import linen as nn

from dd_jax import augmentation
from dd_jax import datasets
from dd_jax import models
from dd_jax import runs
from dd_jax.runs.settings import check_choice


def is_own(name: str) -> bool:
  """Whether it names something of the user's own."""
  return ":" in name and "=" not in name and not name.endswith(".npz")


def choose(choices: Mapping[str, Any], name: str, field: str) -> Any:
  """The entry `name`, or what `package.module:name` is.

  Raises:
    ValueError: it is neither; the message names the field.
  """
  if is_own(name):
    return load_own(name, field)
  check_choice(field, name, choices)
  return choices[name]


def load_own(name: str, field: str) -> Any:
  """What `package.module:name` is; ValueError in one line where there is no such thing."""
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"{field} must be package.module:function of what can be imported here; "
                     f"got {name!r} ({' '.join(str(error).split())})") from error


def make_model(name: str, num_classes: int, image_shape: Any, options: Mapping[str, Any],
               field: str) -> models.Model:
  """The network of a name: a maker `(num_classes=, image_shape=, ...)`, a Model or a linen module.

  Raises:
    ValueError: an option that it does not have, or something else than a network.
  """
  made = choose(models.MODELS, name, field)
  if callable(made) and not isinstance(made, models.Model | nn.Module):
    known = inspect.signature(made).parameters
    for option, value in options.items():
      if option not in known:
        raise ValueError(f"{field.removesuffix('name')}{option} must be left out for {name}, which "
                         f"has no such option; got {value!r}")
    made = made(num_classes=num_classes, image_shape=image_shape, **options)
  if isinstance(made, nn.Module):
    made = models.from_flax(made, image_shape)
  if not (hasattr(made, "init") and hasattr(made, "apply")):
    raise ValueError(f"{field} must name a maker (num_classes=, image_shape=) of a dd_jax.Model; "
                     f"{name!r} gives {type(made).__name__}")
  return models.Model(made.init, made.apply)


def network(text: str, num_classes: int, image_shape: Any, field: str) -> models.Model:
  """The network of `name`, `name:option=value:...` or `package.module:function`.

  Raises:
    ValueError: an unknown network or option, or images that do not fit; it names the `field`.
  """
  name, *options = text.split(":")
  if is_own(text) and name not in models.MODELS:
    return make_model(text, num_classes, image_shape, {}, field)
  check_choice(field, name, models.MODELS)
  try:
    values = {key: _value(value) for key, value in (option.split("=") for option in options)}
    return make_model(name, num_classes, image_shape, values, field)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{field} must be NAME or NAME:option=value, as convnet:width=32, for images "
                     f"{tuple(image_shape)}; got {text!r} ({error})") from error


def dataset(name: str, data_dir: str | None, field: str, *, download: bool = False
            ) -> datasets.Dataset | runs.Data:
  """The data of a name; one's own function gives a Dataset, runs.Data, or the four arrays.

  Raises:
    ValueError, OSError: as of `datasets.load`, or a function that gives something else.
  """
  if not is_own(name):
    return datasets.load(name, data_dir or None, download=download)
  found = _call(load_own(name, field), field, name)
  if isinstance(found, datasets.Dataset):
    return found._replace(name=name)
  if isinstance(found, runs.Data):
    return found._replace(name=name)
  if isinstance(found, tuple | list) and len(found) == 4:
    return datasets.from_arrays(*found, name=name)
  raise ValueError(f"{field} must give a dd_jax.datasets.Dataset, dd_jax.runs.Data or the arrays "
                   "(train_images, train_labels, test_images, test_labels); "
                   f"{name!r} gives {type(found).__name__}")


def loss(name: str, apply: Callable, choices: Mapping[str, Callable], field: str) -> Callable:
  """The loss of a name; one's own is `(params, inputs, labels) -> []`, or makes it from `apply`."""
  if not is_own(name):
    return choose(choices, name, field)()
  found = load_own(name, field)
  if not callable(found):
    raise ValueError(f"{field} must be a function; {name!r} is {type(found).__name__}")
  needed = [parameter for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty]
  return _call(found, field, name, apply) if len(needed) == 1 else found


def augment(names: str | None, field: str, *, siamese: bool = False) -> Callable | None:
  """`(key, images) -> images` of names with commas between them, or one's own function."""
  if not names:
    return None
  return load_own(names, field) if is_own(names) else augmentation.compose(names, siamese=siamese)


def _call(function, field, name, *arguments):
  if not callable(function):
    raise ValueError(f"{field} must be a function; {name!r} is {type(function).__name__}")
  try:
    return function(*arguments)
  except TypeError as error:
    raise ValueError(f"{field} must be a function of {len(arguments)} arguments; {name!r} fails: "
                     f"{' '.join(str(error).split())}") from error


def _value(text):
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      pass
  return text
