"""Functions of the user's own, taken as they are: with a key or without, with outputs beside."""

from collections.abc import Callable
import inspect
from typing import Any


def with_key(function: Callable) -> Callable:
  """`(*args, key) -> result` of a function that need not know of keys.

  It gets the key where its signature has an argument called `key`.
  """
  if takes_key(function):
    return lambda *args, key: function(*args, key=key)
  return lambda *args, key: function(*args)


def takes_key(function: Callable) -> bool:
  """Whether the signature has an argument called `key`, which `functools.partial` left open."""
  try:
    return ("key" in inspect.signature(function).parameters
            and "key" not in getattr(function, "keywords", {}))
  except (TypeError, ValueError):  # Some builtins have none.
    return False


def scalar(loss: Callable) -> Callable:
  """The loss alone, of a function that may return `(loss, what is beside)`."""
  def value(*args: Any, **kwargs: Any) -> Any:
    result = loss(*args, **kwargs)
    return result[0] if isinstance(result, tuple) else result

  return value
