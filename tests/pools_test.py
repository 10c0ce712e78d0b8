"""dd_jax.files.pools: pools come back bit for bit, and what is none."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import pools
from dd_jax.runs import pools as training
from tests.artifacts_test import TREES
from tests.arrays import assert_identical


@pytest.mark.parametrize("name", TREES)
def test_round_trip(tmp_path, name):
  params = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), TREES[name])
  pools.save(tmp_path / "pool.npz", params, {"accuracy": [.5, .25]})
  loaded = pools.load(tmp_path / "pool.npz")
  assert isinstance(loaded, dd_jax.Pool) and loaded.metadata == {"accuracy": [.5, .25]}
  assert_identical(loaded.params, params)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded.params))


def test_a_pool_of_version_1(tmp_path):
  kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
  np.savez(tmp_path / "old.npz", **{
      "params/Dense_0/kernel": kernel, "metadata": json.dumps({"format_version": 1, "seed": 1})})
  loaded = pools.load(tmp_path / "old.npz")
  assert_identical(loaded.params, {"Dense_0": {"kernel": kernel}})
  assert loaded.metadata == {"seed": 1}


@pytest.mark.parametrize("params", [{}, {"a": np.ones((2, 1)), "b": np.ones(3)},
                                    {"a": np.ones(())}, [np.ones((0, 3))]])
def test_what_cannot_be_saved(tmp_path, params):
  with pytest.raises(ValueError, match=r"params must be arrays \[P, ...\] of one number of netw"):
    pools.save(tmp_path / "pool.npz", params, {})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arrays, text", [
    ({"params/a": np.ones(())}, r"must be arrays \[P, ...\]"),
    ({"params/a": np.ones(2), "params/b": np.ones(3)}, r"must be arrays .*\(2,\), \(3,\)"),
    ({"init/a": np.ones(2)}, "must be a pool of networks .* no weights params/..."),
    ({"params/a": np.ones(2), "params/a/b": np.ones(2)}, "'params/a/b' lies within another array"),
])
def test_what_is_no_pool(tmp_path, arrays, text):
  path = tmp_path / "pool.npz"
  np.savez(path, metadata='{"format_version": 1}', **arrays)
  with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))} [^\n]*{text}[^\n]*\Z"):
    pools.load(path)


def test_networks_that_are_not_finite_are_not_kept(tmp_path):
  path = tmp_path / "0.npz"
  with pytest.raises(FloatingPointError, match="not finite after training; lower pool.learning_r"):
    training._block(path, lambda key: ({"w": jnp.full((2, 3), jnp.inf)}, jnp.zeros(2)), None)
  assert not path.exists()
