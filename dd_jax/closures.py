"""What a function closes over, as an argument: rules of differentiation see arguments alone."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def hoist(function: Callable, *examples: Any) -> tuple[Callable, list[Any]]:
  """The function closed over nothing, and the arrays that it was closed over.

  Args:
    function: of pytrees, traceable.
    *examples: arguments of the shapes and types that it will get.

  Returns:
    `(converted, closed)`: `converted(closed, *arguments)` is `function(*arguments)`.
  """
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)

  def converted(closed, *arguments):
    results = jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, closed))(*jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return converted, jaxpr.consts
