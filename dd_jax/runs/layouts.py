"""How the devices of all processes share a run: arrays placed, functions compiled over them."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dd_jax
from dd_jax import parallel


class Layout(NamedTuple):
  """One way to lay a run out; every way draws the same networks and real images."""
  place: Callable[[Any], Any]  # Puts what every process holds alike on every device.
  train_init: Callable[[dd_jax.InitDistribution], dd_jax.InitDistribution]
  train_pool: Callable[[Any], dd_jax.InitDistribution]  # Of weights [P, ...].
  heldout_pool: Callable[[Any], dd_jax.InitDistribution]
  outer_split: dict[str, Callable]  # Arguments of make_outer_loss.
  eval_split: Callable | None  # Argument of evaluate.
  compile_run: Callable[[Callable], Any]  # Of run(state, init_state, images, labels).


def one_device() -> Layout:
  """Nothing to share."""
  def place(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)

  def pool(weights):
    return dd_jax.pretrained_init(place(weights))

  return Layout(
      place=place, train_init=lambda init: init, train_pool=pool, heldout_pool=pool,
      outer_split={}, eval_split=None, compile_run=functools.partial(jax.jit, donate_argnums=0))


def jit_over_mesh(num_inits: int, devices: list | None = None) -> Layout:
  """Arrays sharded over a mesh of the devices; the compiler finds what must be communicated."""
  mesh = parallel.make_mesh(num_inits, devices)
  replicated = jax.sharding.NamedSharding(mesh, parallel.Spec())
  pool = functools.partial(parallel.shard_pool, mesh=mesh)
  place = functools.partial(parallel.replicate, mesh=mesh)
  return Layout(
      place=place, train_init=lambda init: init._replace(state=place(init.state)),
      train_pool=pool, heldout_pool=pool, outer_split=parallel.split(mesh),
      eval_split=functools.partial(parallel.map_over_mesh, mesh=mesh),
      compile_run=functools.partial(jax.jit, donate_argnums=0, out_shardings=replicated))


def pmap_over_devices(num_inits: int) -> Layout:
  """`jax.pmap` for the outer steps, N / devices networks each; evaluation as over a mesh."""
  if num_inits % jax.device_count():
    raise ValueError(f"outer.num_inits must be a multiple of the {jax.device_count()} devices for "
                     f"parallel='pmap'; got {num_inits}")
  return jit_over_mesh(num_inits)._replace(
      train_init=parallel.pmap_init, train_pool=parallel.pmap_pool,
      outer_split={"split_inits": parallel.over_pmap}, compile_run=parallel.pmap)


LAYOUTS = {"jit": jit_over_mesh, "pmap": pmap_over_devices}


def to_host(tree: Any) -> Any:
  """Numpy arrays of what every device holds alike."""
  def fetch(leaf):
    # A copy: the device's own buffer may be donated to the next call.
    return np.array(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)

  return jax.tree.map(fetch, tree)
