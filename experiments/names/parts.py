"""What a name stands for, in a config or a flag: a library's part, or `package.module:name`."""

from collections.abc import Callable, Mapping
import importlib
import inspect
import os
import pathlib
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from dd_jax import augmentation
from dd_jax import datasets
from dd_jax import models
from dd_jax import runs
from dd_jax.datasets import own_files
from dd_jax.runs.settings import check_choice


def is_own(name: str) -> bool:
  """Whether it names something of the user's own."""
  return ":" in name and "=" not in name and "://" not in name and not own_files.is_path(name)


def choose(choices: Mapping[str, Any], name: str, field: str) -> Any:
  """The entry `name`, or what `package.module:name` is.

  Raises:
    ValueError: it is neither; the message names the field.
  """
  if is_own(name):
    return load_own(name, field)
  check_choice(field, name, choices)
  return choices[name]


def make(choices: Mapping[str, Callable[[], Any]], name: str, field: str, kind: type,
         **arguments: Any) -> Any:
  """What the entry `name` makes, or one's own function of the arguments; errors as of both."""
  if is_own(name):
    return make_own(name, field, kind, **arguments)
  check_choice(field, name, choices)
  return choices[name]()


def load_own(name: str, field: str) -> Any:
  """What `package.module:name` is; ValueError in one line where there is no such thing."""
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"{field} must be package.module:function of what can be imported here; "
                     f"got {name!r} ({' '.join(str(error).split())})") from error


def make_own(name: str, field: str, kind: type, **arguments: Any) -> Any:
  """What one's own function makes of the arguments, which it gets by their places.

  Raises:
    ValueError: it is no function of so many, or gives something else than the `kind`.
  """
  function = _function(name, field, *arguments)
  made = function(*arguments.values())
  if not isinstance(made, kind):
    raise ValueError(f"{field} must name a function that gives {kind.__name__}; {name!r} gives "
                     f"{type(made).__name__}")
  return made


def make_model(name: str, num_classes: int, image_shape: Any, options: Mapping[str, Any],
               field: str) -> models.Model:
  """The network of a name: a maker `(num_classes=, image_shape=, ...)`, a Model or a linen module.

  Raises:
    ValueError: an option that it does not have, or something else than a network.
  """
  made = choose(models.MODELS, name, field)
  rule = f"{field} must name a maker (num_classes=, image_shape=) of a dd_jax.Model; {name!r}"
  if callable(made) and not isinstance(made, nn.Module):
    arguments = {"num_classes": num_classes, "image_shape": image_shape}
    known = inspect.signature(made).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for option, value in options.items():
      if option in arguments or not (takes_any or option in known):
        where = f"{field.removesuffix('name')}{option}" if field.endswith(".name") else (
            f"{field}: {option}")
        raise ValueError(f"{where} must be left out for {name}, which has no such option; "
                         f"got {value!r}")
    arguments |= options
    if not _takes(made, **arguments):
      raise ValueError(f"{rule} is {_described(made)}")
    made = made(**arguments)
  if isinstance(made, nn.Module):
    made = models.from_flax(made, image_shape)
  if not (hasattr(made, "init") and hasattr(made, "apply")):
    raise ValueError(f"{rule} gives {type(made).__name__}")
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
    if len(values) < len(options):
      raise ValueError("an option twice")
    return make_model(name, num_classes, image_shape, values, field)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{field} must be NAME or NAME:option=value, as convnet:width=32, for images "
                     f"{tuple(image_shape)}; got {text!r} ({error})") from error


def dataset(name: str, data_dir: str | None, field: str, *, download: bool = False,
            reading: datasets.Reading = datasets.Reading()) -> datasets.Dataset | runs.Data:
  """The data of a name; one's own function gives a Dataset, runs.Data, or the four arrays.

  Raises:
    ValueError, OSError: as of `datasets.load`, or a function that gives something else.
  """
  if not is_own(name):
    if own_files.is_path(name):
      name = path_below(name, data_dir)
    return datasets.load(name, data_dir or None, download=download, reading=reading)
  found = make_own(name, field, object)
  if isinstance(found, datasets.Dataset | runs.Data):
    return found._replace(name=name)
  if isinstance(found, tuple | list) and len(found) == 4:
    return datasets.from_arrays(*found, name=name)
  raise ValueError(f"{field} must give a dd_jax.datasets.Dataset, dd_jax.runs.Data or the arrays "
                   "(train_images, train_labels, test_images, test_labels); "
                   f"{name!r} gives {type(found).__name__}")


def path_below(name: str, data_dir: str | None) -> str:
  """A path as it stands or, where that is nothing, below the directory of the data."""
  folder = pathlib.Path(data_dir or os.environ.get("DD_JAX_DATA") or "~/dd_jax_data")
  below = folder.expanduser() / name
  return str(below if not pathlib.Path(name).expanduser().exists() and below.exists() else name)


def reading(config: ConfigDict) -> datasets.Reading:
  """How files of one's own are read, by the fields of `config.data`."""
  data = config.data
  return datasets.Reading(data.image_shape and tuple(data.image_shape), data.resize, data.label,
                          data.test_fraction, data.get("storage") == "stream")


def loss(name: str, apply: Callable, choices: Mapping[str, Callable], field: str) -> Callable:
  """The loss of a name; one's own is `(params, inputs, labels) -> []`, or makes it of `apply`."""
  if not is_own(name):
    if not choices:
      raise ValueError(f"{field} must be package.module:function; got {name!r}")
    return choose(choices, name, field)()
  found = load_own(name, field)
  if _takes(found, apply):
    return make_own(name, field, Callable, apply=apply)
  if _takes(found, "params", "inputs", "labels", key="key"):
    return found
  return _function(name, field, "params", "inputs", "labels")


def augment(names: str | None, field: str, *, siamese: bool = False) -> Callable | None:
  """`(key, images) -> images` of names with commas between them, or one's own function."""
  if not names:
    return None
  if is_own(names):
    return _function(names, field, "key", "images")
  return augmentation.compose(names, siamese=siamese)


def _function(name, field, *arguments):
  """One's own function; ValueError where it does not take the arguments, here by their names."""
  found = load_own(name, field)
  if not _takes(found, *arguments):
    raise ValueError(f"{field} must name a function of ({', '.join(arguments)}); {name!r} is "
                     f"{_described(found)}")
  return found


def _takes(found, *arguments, **named):
  """Whether it is a function of these."""
  try:
    inspect.signature(found).bind(*arguments, **named)
  except TypeError:
    return False
  except ValueError:  # A builtin that does not say.
    return True
  return True


def _described(found):
  try:
    return f"one of {inspect.signature(found)}"
  except (TypeError, ValueError):
    return type(found).__name__


def _value(text):
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      pass
  return text
