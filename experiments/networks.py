"""Networks by name, as a flag or a config's field writes them."""

import inspect

import dd_jax
from dd_jax import models
from experiments.choices import choose


def make_network(text: str, num_classes: int, image_shape: tuple[int, ...], field: str
                 ) -> dd_jax.Model:
  """`name` or `name:option=value:...`, such as `convnet:width=32:norm=none`.

  Raises:
    ValueError: an unknown network or option, or images that do not fit; it names the `field`.
  """
  name, *options = text.split(":")
  make = choose(models.MODELS, name, field)
  try:
    values = {key: _value(value) for key, value in (option.split("=") for option in options)}
    inspect.signature(make).bind(num_classes=num_classes, image_shape=image_shape, **values)
    return make(num_classes=num_classes, image_shape=image_shape, **values)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{field} must be NAME or NAME:option=value, as convnet:width=32, for images "
                     f"{tuple(image_shape)}; got {text!r} ({error})") from error


def _value(text):
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      pass
  return text
