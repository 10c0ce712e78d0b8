"""Strict JAX settings for every test, and a cache of what they compile."""

import os

# The launchers' own cache, for the processes that tests start too: a second run is faster.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/dd_jax/xla"))

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items):
  """Slow tests may take longer than pyproject's limit."""
  for item in items:
    if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
      item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture
def x64():
  """Double precision for one test."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


@pytest.fixture
def optax_promotion():
  """Adam raises a float to an integer power, which strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield
