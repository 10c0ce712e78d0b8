"""Random arrays, their comparison and a quick compilation, for the tests of single operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# These programs run in microseconds: unoptimized, they compile in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def assert_close(actual, expected, tolerance=1e-12):
  """Relative L2 distance of every leaf, and no other shape or dtype."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def assert_identical(actual, expected):
  """The same tree, and every leaf the same to the bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    a, e = np.asarray(a), np.asarray(e)
    assert (a.shape, a.dtype) == (e.shape, e.dtype)
    assert a.tobytes() == e.tobytes()
