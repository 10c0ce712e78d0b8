"""Pytrees as named arrays, and back exactly as they were: what every file here is made of.

A name is `prefix/part/part`, with a part for each container on the way to the array:

  Dense_0      a str key; % / \\ and control characters in it, and a first # [ ( {, are
               percent-escaped, as in URLs: Haiku's "mlp/~/linear_0" is mlp%2F~%2Flinear_0
  #3           an int key
  [3] (3)      a position in a list, in a tuple
  {} [] ()     an empty container; its array is of size zero

A lone array is named by the prefix.
"""

import os
import re
from typing import Any
import urllib.parse

import jax
import numpy as np

from dd_jax.datasets import npz

_EMPTY = {"{}": dict, "[]": list, "()": tuple}
_ESCAPED = re.compile(r"[%/\\\x00-\x1f\ud800-\udfff]|\A[#\[({]")
_INT = "(0|-?[1-9][0-9]{0,99})"
_PARTS = {"#": re.compile(rf"#{_INT}"), "[": re.compile(rf"\[{_INT}\]"),
          "(": re.compile(rf"\({_INT}\)")}
_DEEPEST = 100  # JAX walks trees by recursion: a file must not exhaust the stack.


def flatten(tree: Any, prefix: str, where: str) -> dict[str, np.ndarray]:
  """The arrays of a tree by their names.

  Args:
    tree: dicts with str or int keys, lists and tuples of arrays.
    prefix: begins every name; without a slash.
    where: what the tree is, in the message.

  Raises:
    ValueError: another container (named tuples, None), another key, str and int keys in one dict,
      more than 100 levels, or what is no array of numbers.
  """
  rule = f"{where} must be dicts, lists and tuples of arrays"
  if jax.tree_util.all_leaves([tree]):
    return {prefix: npz.numeric(tree, rule)}
  kind = type(tree)
  if kind not in (dict, list, tuple):
    raise ValueError(f"{rule}; got {kind.__name__}")
  if prefix.count("/") >= _DEEPEST:
    raise ValueError(f"{rule}, {_DEEPEST} deep at most; got more")
  if not tree:
    return {f"{prefix}/{kind()}": np.zeros(0, np.float32)}
  if kind is dict:
    kinds = {type(key) for key in tree}
    if len(kinds) > 1 or not kinds <= {str, int}:
      raise ValueError(f"{rule} with keys that are all str or all int; got {list(tree)}")
    parts = {f"#{key}" if kinds == {int} else _escape(key): child for key, child in tree.items()}
  else:
    parts = {f"[{i}]" if kind is list else f"({i})": child for i, child in enumerate(tree)}
  return {name: array for part, child in parts.items()
          for name, array in flatten(child, f"{prefix}/{part}", where).items()}


def unflatten(arrays: dict[str, np.ndarray], prefix: str, where: str | os.PathLike) -> Any:
  """The tree that `flatten` took apart; None where no array has the prefix.

  Args:
    arrays: by name, others among them.
    prefix: as of `flatten`.
    where: begins the message: the path of the file.

  Raises:
    ValueError: names that are those of no tree.
  """
  found = {name: array for name, array in arrays.items()
           if name == prefix or name.startswith(f"{prefix}/")}
  for name in found:
    if name.count("/") > _DEEPEST:
      raise ValueError(f"{where} must hold trees of {_DEEPEST} levels at most; got {name[:80]!r}")
  return _grow([(name, name.split("/")[1:], array) for name, array in found.items()],
               where) if found else None


def _grow(named, where):
  """The tree of `(whole name, parts below here, array)`."""
  for name, parts, array in named:
    if not parts and len(named) == 1:
      return array
    if not parts:
      inner = next(other for other, below, _ in named if below)
      raise ValueError(f"{where} must hold arrays beside each other; {inner!r} lies within another "
                       "array")
  children = {}
  for name, (part, *below), array in named:
    children.setdefault(part, []).append((name, below, array))
  name, (first, *below), array = named[0]
  if first in _EMPTY and len(named) == 1 and not below and not array.size:
    return _EMPTY[first]()
  kind = first[:1] if first[:1] in _PARTS else ""
  keys = [_key(part, kind) for part in children]
  sequence = kind in ("[", "(")
  if None in keys or len(set(keys)) < len(keys) or sequence and set(keys) != set(range(len(keys))):
    raise ValueError(f"{where} must hold arrays by the names of one tree; "
                     f"got {sorted(name for name, _, _ in named)[:10]}")
  tree = {key: _grow(child, where) for key, child in zip(keys, children.values())}
  if not sequence:
    return tree
  return (list if kind == "[" else tuple)(tree[i] for i in range(len(tree)))


def _key(part, kind):
  """The key or position that the part names; None where it is none of the kind."""
  if kind:
    match = _PARTS[kind].fullmatch(part)
    return int(match[1]) if match else None
  if part[:1] in (*_PARTS, "{"):
    return None
  try:
    return urllib.parse.unquote(part, errors="surrogatepass")
  except UnicodeDecodeError:
    return None


def _escape(key):
  return _ESCAPED.sub(
      lambda found: urllib.parse.quote(found[0], safe="", errors="surrogatepass"), key)
