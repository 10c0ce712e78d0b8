"""How the devices of all processes share a run: arrays placed, functions compiled over them."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import parallel
from dd_jax.init_distributions import InitDistribution, is_pool


class Share(NamedTuple):
  """Real examples of minibatches `[n, R, ...]` among the processes."""
  chosen: np.ndarray  # Which of R this process reads.
  put: Callable[[Any], Any]  # Those, leaves [n, len(chosen), ...], to the devices of all.


class Layout(NamedTuple):
  """One way to lay a run out; every way draws the same networks and real examples."""
  place: Callable[[Any], Any]  # Puts what every process holds alike on every device.
  place_train_init: Callable[[InitDistribution], InitDistribution]
  place_test_init: Callable[[InitDistribution], InitDistribution]
  split: parallel.Split  # Of `make_outer_loss`.
  spread: Callable | None  # Of an evaluation's `Plan`.
  compile_run: Callable[[Callable], Any]  # Of run(state, *arguments), whose state it takes.
  compile: Callable[[Callable], Any]  # Of what gives the same on every device.
  share: Callable[[int], Share]  # Of minibatches of R.
  whole: Callable[[Any], Any]  # In a program: what was shared, on every device.


def of_devices(kind: str, num_inits: int) -> Layout:
  """The layout "jit" or "pmap" of all devices; with one there is nothing to choose."""
  if jax.device_count() == 1:
    return one_device()
  return {"jit": jit_over_mesh, "pmap": pmap_over_devices}[kind](num_inits)


def one_device() -> Layout:
  """Nothing to share."""
  def place(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)

  place_init = _place_init(place, place)
  return Layout(place, place_init, place_init, parallel.Split(), None,
                functools.partial(jax.jit, donate_argnums=0), jax.jit,
                lambda size: Share(np.arange(size), place), lambda tree: tree)


def jit_over_mesh(num_inits: int, devices: list | None = None) -> Layout:
  """Arrays sharded over a mesh of the devices; the compiler finds what must be communicated."""
  mesh = parallel.make_mesh(num_inits, devices)
  replicated = jax.sharding.NamedSharding(mesh, parallel.Spec())
  place = functools.partial(parallel.replicate, mesh=mesh)
  place_init = _place_init(place, lambda pool: parallel.shard_pool(pool, mesh).state)
  return Layout(place, place_init, place_init, parallel.split_over_mesh(mesh),
                functools.partial(parallel.map_over_mesh, mesh=mesh),
                functools.partial(jax.jit, donate_argnums=0, out_shardings=replicated),
                functools.partial(jax.jit, out_shardings=replicated),
                functools.partial(_share_over_mesh, mesh, place),
                functools.partial(jax.lax.with_sharding_constraint, shardings=replicated))


def _share_over_mesh(mesh, place, size):
  """Every device gets as many examples; all of them where the devices do not divide R."""
  if size % mesh.size:
    return Share(np.arange(size), place)
  sharding = jax.sharding.NamedSharding(
      mesh, parallel.Spec(None, (parallel.INITS, parallel.EXAMPLES)))
  here = sharding.addressable_devices_indices_map((1, size)).values()
  chosen = np.unique(np.concatenate([np.arange(size)[of_examples] for _, of_examples in here]))

  def put(tree):
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(
        sharding, np.asarray(x), (len(x), size, *x.shape[2:])), tree)

  return Share(chosen, put)


def pmap_over_devices(num_inits: int) -> Layout:
  """`jax.pmap` for the outer steps, N / devices networks each; evaluation as over a mesh."""
  if num_inits % jax.device_count():
    raise ValueError(f"num_inits must be a multiple of the {jax.device_count()} devices for "
                     f"parallel='pmap'; got {num_inits}")
  layout = jit_over_mesh(num_inits)
  return layout._replace(
      place_train_init=_place_init(layout.place, layout.place),
      split=parallel.Split(parallel.over_pmap), compile_run=parallel.pmap)


def _place_init(place, place_pool):
  """The same distribution with its state on the devices."""
  def place_init(init):
    return init._replace(state=(place_pool if is_pool(init) else place)(init.state))

  return place_init


def to_host(tree: Any) -> Any:
  """Numpy arrays of what every device holds alike."""
  def fetch(leaf):
    if not isinstance(leaf, jax.Array):
      return np.array(leaf)
    assert leaf.is_fully_replicated, leaf.sharding  # Else a share would pass for the whole.
    # A copy: the device's own buffer may be donated to the next call.
    return np.array(leaf.addressable_data(0))

  return jax.tree.map(fetch, tree)
