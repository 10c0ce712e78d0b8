"""Some leaves of a tree apart from the others: those that are differentiated, or can be."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_floating(leaf: Any) -> bool:
  """Whether it can be differentiated at all; integers and keys cannot."""
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def split_off(tree: Any, chosen: Any) -> tuple[Any, Callable[[Any], Any]]:
  """The tree with None for the leaves that are not chosen, and `join(such a tree) -> tree`.

  Args:
    tree: any pytree.
    chosen: of the same structure, bools.
  """
  some = jax.tree.map(lambda x, chosen: x if chosen else None, tree, chosen)
  return some, lambda other: jax.tree.map(
      lambda x, chosen, new: new if chosen else x, tree, chosen, other)


def split_off_floating(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
  """As `split_off`, of the leaves that can be differentiated."""
  return split_off(tree, jax.tree.map(is_floating, tree))
