"""dd_jax.files.trees: names of arrays and the trees that they stand for."""

import collections
from typing import NamedTuple

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from dd_jax.files import trees
from tests.arrays import assert_identical


class Layer(NamedTuple):
  w: np.ndarray


def test_the_names_of_a_tree():
  one = np.ones(1)
  tree = {"mlp/~/linear_0": {"w": one}, "layers": {3: [one, (one, ())]}, "#[({%": {}, "a[0]": one,
          "empty": []}
  assert list(trees.flatten(tree, "init", "init_params")) == [
      "init/mlp%2F~%2Flinear_0/w", "init/layers/#3/[0]", "init/layers/#3/[1]/(0)",
      "init/layers/#3/[1]/(1)/()", "init/%23[({%25/{}", "init/a[0]", "init/empty/[]"]
  assert list(trees.flatten(one, "init", "init_params")) == ["init"]
  assert list(trees.flatten((), "init", "init_params")) == ["init/()"]


_TREES = st.recursive(
    st.integers(0, 99).map(np.float32),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    | st.dictionaries(st.text("#[](){}%/0123\\\0\n", max_size=4), inner, max_size=3)
    | st.dictionaries(st.integers(), inner, max_size=3), max_leaves=8)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
@hypothesis.given(_TREES)
def test_any_tree_comes_back(tree):
  named = trees.flatten(tree, "init", "init_params")
  for order in (list(named), sorted(named, reverse=True)):
    found = trees.unflatten({"other": np.ones(2)} | {name: named[name] for name in order}, "init",
                            "a.npz")
    assert_identical(found, tree)


def test_nothing_by_the_prefix_is_none():
  assert trees.unflatten({"initial": np.ones(1), "x/init": np.ones(1)}, "init", "a.npz") is None


def deep(levels):
  tree = np.ones(1)
  for _ in range(levels):
    tree = [tree]
  return tree


def test_depth_is_limited():
  named = trees.flatten(deep(100), "init", "init_params")
  assert_identical(trees.unflatten(named, "init", "a.npz"), deep(100))
  with pytest.raises(ValueError, match="arrays, 100 deep at most; got more"):
    trees.flatten(deep(101), "init", "init_params")
  with pytest.raises(ValueError, match="a.npz must hold trees of 100 levels at most; got 'init/a/"):
    trees.unflatten({"init" + 5000 * "/a": np.ones(1)}, "init", "a.npz")


@pytest.mark.parametrize("tree, text", [
    (Layer(np.ones(1)), "of arrays; got Layer"),
    ([Layer(np.ones(1))], "of arrays; got Layer"),
    (collections.OrderedDict(w=np.ones(1)), "of arrays; got OrderedDict"),
    ({"w": None}, "of arrays; got NoneType"),
    ({"w": "text"}, "of arrays of numbers; got <U4"),
    ({"w": jax.random.key(0)}, "of arrays of numbers; got PRNGKeyArray: "),
    ({"w": jax.numpy.ones(1, jax.numpy.bfloat16)}, "of arrays of numbers; got bfloat16"),
    ({True: np.ones(1)}, r"keys that are all str or all int; got \[True\]"),
    ({(0, 1): np.ones(1)}, r"keys that are all str or all int; got \[\(0, 1\)\]"),
    ({1: np.ones(1), "1": np.ones(1)}, r"keys that are all str or all int; got \[1, '1'\]"),
])
def test_what_is_no_tree_of_arrays(tree, text):
  with pytest.raises(ValueError, match=rf"\Aweights must be dicts, lists and tuples [^\n]*{text}"):
    trees.flatten(tree, "init", "weights")


@pytest.mark.parametrize("names", [
    ["[0]", "[2]"], ["[1]"], ["[0]", "(1)"], ["[0]", "a"], ["#1", "a"], ["#x"], ["#01"], ["#"],
    ["#1", "#01"], ["[00]"], ["[-1]"], ["[9999999999]"], ["(0"], ["{}"], ["{}/a"], ["{x"],
    ["()", "(0)"], ["[]", "[0]"], ["a%2Fb", "a%2fb"], ["#" + "9" * 5000], ["[²]"]])
def test_names_of_no_tree(names):
  """Arrays of size 1, so that an empty container is none either."""
  with pytest.raises(ValueError, match=r"\Aa.npz must hold arrays by the names of one tree; got "):
    trees.unflatten({f"init/{name}": np.ones(1) for name in names}, "init", "a.npz")


@pytest.mark.parametrize("names, inner", [
    (["init", "init/a"], "init/a"), (["init/a", "init/a/b"], "init/a/b"),
    (["init/[0]/x/y", "init/[0]/x"], "init/[0]/x/y")])
def test_an_array_within_an_array(names, inner):
  with pytest.raises(ValueError) as error:
    trees.unflatten({name: np.ones(1) for name in names}, "init", "a.npz")
  assert str(error.value) == ("a.npz must hold arrays beside each other; "
                              f"{inner!r} lies within another array")
