"""Strict JAX settings for every test, and a cache of what they compile."""

import mmap
import os
import pathlib
import socket
import time

# The launchers' own cache, for the processes that tests start too: a second run is faster.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/dd_jax/xla"))
# Many tests compile the same small program, which takes less than JAX's own limit of a second.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jaxlib
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


_BEGUN = time.monotonic()


def pytest_addoption(parser):
  parser.addoption("--begin-within", type=float, metavar="SECONDS",
                   help="a test that would begin later is skipped, and says so; one marked "
                   "slow(minutes=M) M minutes before")


def pytest_configure(config):
  """The quick tests compile more than they compute: code that is made faster, and runs slower."""
  if config.option.markexpr == "not slow":
    flags = ["--xla_backend_optimization_level=0"]
    if _known_to_xla(b"xla_cpu_use_fusion_emitters"):
      flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
  # Files in the order of their names: the last of pytest-xdist's own order are few and long.
  if hasattr(config.option, "loadscopereorder"):
    config.option.loadscopereorder = False


def _known_to_xla(flag):
  """Whether jaxlib has such a flag; one that it has not would end the process."""
  for path in pathlib.Path(jaxlib.__file__).parent.glob("libjax_common*"):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
      return library.find(flag) >= 0
  return False


def pytest_collection_modifyitems(items):
  """Slow tests may take longer than pyproject's limit."""
  for item in items:
    if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
      item.add_marker(pytest.mark.timeout(1200))


def pytest_runtest_setup(item):
  """Ends a run in time on a machine that is slower than most."""
  limit, marker = item.config.option.begin_within, item.get_closest_marker("slow")
  needed = 60 * marker.kwargs.get("minutes", 0) if marker else 0
  if limit is not None and time.monotonic() - _BEGUN + needed > limit:
    pytest.skip(f"it would begin or end too late for --begin-within={limit:.0f} seconds")


@pytest.fixture(scope="module", autouse=True)
def nothing_kept():
  """Programs of a module are dropped with it: gigabytes of them slow every test behind."""
  yield
  jax.clear_caches()


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


@pytest.fixture(scope="module")
def quick_runs():
  """For runs in the tests' own process: the same promotion, and pictures are drawn by no one."""
  from dd_jax.runs import plots
  with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
    patch.setattr(plots, "save", lambda figure, path: plots.plt.close(figure))
    yield


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """No test reaches for the network, nor for the data of whoever runs it."""
  def refuse(*args, **kwargs):
    pytest.fail(f"network: {args}")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket.socket, "connect_ex", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("DD_JAX_DATA", raising=False)
