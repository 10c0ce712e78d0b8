"""A mean over networks or over examples, in pieces: chunk after chunk, or device beside device.

The outer loss is a mean over N networks of a mean over R real examples. Each function here takes
such a mean, `loss(variable, examples, *constants) -> []` over the leading axis of `examples`, and
returns the same mean computed in pieces; they compose. Sharding annotations place the pieces, so
that the numerical code knows no device; `over_pmap` spells out the one collective of `jax.pmap`.
Inside a `jax.shard_map` of one's own they need its `check_vma=False`.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dd_jax.init_distributions import InitDistribution, pretrained_init
from dd_jax.leaves import is_floating, split_off
from dd_jax.types import Params, wide

INITS, EXAMPLES = "inits", "examples"  # The axes of a mesh: networks, and real examples.
Spec = jax.sharding.PartitionSpec


class Split(NamedTuple):
  """How devices share the two means of an outer loss: `loss -> loss`; None: they do not."""
  networks: Callable | None = None  # Of the mean over networks.
  examples: Callable | None = None  # Of the mean over real examples.


def make_mesh(num_inits: int, devices: list | None = None) -> jax.sharding.Mesh:
  """Devices as `[inits, examples]`: as many as divide N take networks, the others split R.

  Args:
    num_inits: N.
    devices: of all processes, in the same order on each; all there are by default.
  """
  devices = jax.devices() if devices is None else devices
  rows = math.gcd(num_inits, len(devices))
  return jax.make_mesh((rows, len(devices) // rows), (INITS, EXAMPLES), devices=devices,
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)


def split_over_mesh(mesh: jax.sharding.Mesh) -> Split:
  """The networks and real examples of `make_outer_loss` shared over the mesh."""
  return Split(functools.partial(over_mesh, mesh=mesh, axis=INITS),
               functools.partial(over_mesh, mesh=mesh, axis=EXAMPLES)
               if mesh.shape[EXAMPLES] > 1 else None)


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Arrays that every process holds alike, as global arrays on every device of the mesh."""
  return _place(tree, mesh, Spec())


def shard_pool(pool: Params, mesh: jax.sharding.Mesh) -> InitDistribution:
  """`pretrained_init` whose networks lie spread over all devices, each holding its part.

  Draws are those of the whole pool on one device. Zeros pad it to a multiple of the devices.

  Args:
    pool: weights of P networks, each leaf `[P, ...]`, the same in every process.
  """
  size, padded = _pad(pool, mesh.size)
  return pretrained_init(_place(padded, mesh, Spec((INITS, EXAMPLES))), size=size)


def in_chunks(loss: Callable, chunk_size: int) -> Callable:
  """The mean over chunks of `chunk_size` examples, one after the other; the last may be short.

  Whatever is differentiated, the variable, the examples or the constants, its gradient comes from
  the same pass, and can be differentiated again, in either mode. Forward mode alone (`jax.jvp` of
  the mean) is refused by JAX.
  """
  def mean(function, examples):
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    num_whole, rest = divmod(num_examples, chunk_size)
    like = jax.eval_shape(lambda chunk: function(chunk)[0], examples)
    # Summed in float32 or wider, whatever the networks compute in.
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), like)
    parts = []
    if num_whole:
      share = chunk_size / num_examples

      def body(total, chunk):
        shared, own = function(chunk)
        return _add(total, shared, share), jax.tree.map(lambda x: share * x, own)

      total, own = lax.scan(body, total, jax.tree.map(
          lambda x: x[:num_whole * chunk_size].reshape(num_whole, chunk_size, *x.shape[1:]),
          examples))
      parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own))
    if rest:
      share = rest / num_examples
      shared, own = function(jax.tree.map(lambda x: x[-rest:], examples))
      total = _add(total, shared, share)
      parts.append(jax.tree.map(lambda x: share * x, own))
    return (jax.tree.map(lambda x, like: x.astype(like.dtype), total, like),
            jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts))

  return _differentiated_in_its_pass(loss, mean)


def over_mesh(loss: Callable, mesh: jax.sharding.Mesh, axis: str) -> Callable:
  """The mean with the examples split over one axis of the mesh, under `jax.jit`.

  Every device gets its own copy of `variable`, so that gradients are summed over the devices
  once, at the end, and not in every step of a scan.

  Args:
    loss: `(variable, examples, *constants) -> []`, a mean over the examples.
    mesh: from `make_mesh`.
    axis: `INITS` or `EXAMPLES`.

  Raises:
    ValueError: when traced, a number of examples that the axis does not divide.
  """
  spread = _spread(loss, mesh, axis)

  def mean_loss(variable, examples, *constants):
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.shape[axis], *x.shape)), variable)
    return jnp.mean(spread(copies, _split(examples, mesh.shape[axis], axis), *constants))

  return mean_loss


def over_pmap(loss: Callable) -> Callable:
  """The mean with the examples split over the devices of `pmap`; value and gradient are averaged
  over them by one `pmean`. Only by `variable` can it be differentiated.

  Raises:
    ValueError: when traced, a number of examples that the devices do not divide; when
      differentiated, by the examples or the constants.
  """
  def mean(function, examples):
    parts = _split(examples, lax.psum(1, INITS), INITS)
    shared, own = function(jax.tree.map(lambda x: x[lax.axis_index(INITS)], parts))
    return lax.pmean(shared, INITS), own

  def check(perturbed):
    if any(jax.tree.leaves(perturbed[1:])):
      raise ValueError("under pmap the loss must be differentiated by the distilled data alone; "
                       "got initial weights or real examples, for which over_mesh is right")

  return _differentiated_in_its_pass(loss, mean, check)


def map_over_mesh(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """`function(rows) -> tree of [n, ...]` with the rows split over all devices of the mesh.

  `rows` are any pytree of `[n, ...]`; some are repeated where the devices do not divide n, and the
  repetitions dropped.
  """
  spread = _spread(lambda _, rows: function(rows), mesh, (INITS, EXAMPLES))

  def mapped(rows):
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    places = jnp.arange(-(-num_rows // mesh.size) * mesh.size) % num_rows
    results = spread((), jax.tree.map(
        lambda x: x[places].reshape(mesh.size, -1, *x.shape[1:]), rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], results)

  return mapped


def pmap(run: Callable) -> Any:
  """`jax.pmap` of `run(*arguments)` over the devices of all processes.

  Everything is the same on every device, the results too; the networks of an outer loss that is
  split with `Split(over_pmap)` are shared.
  """
  mapped = jax.pmap(lambda _, args: run(*args), axis_name=INITS, in_axes=(0, None), out_axes=None)
  return _OverDevices(mapped, np.arange(jax.local_device_count()))


class _OverDevices(NamedTuple):
  """A program of `jax.pmap`, which needs something to map over, in every stage of compiling it."""
  program: Any
  devices: np.ndarray

  def __call__(self, *args):
    return self.program(self.devices, args)

  def lower(self, *args):
    return self._replace(program=self.program.lower(self.devices, args))

  def compile(self):
    return self._replace(program=self.program.compile())

  def memory_analysis(self):
    return self.program.memory_analysis()


def _differentiated_in_its_pass(loss, mean, check=lambda perturbed: None):
  """`mean` of `loss`, whose gradient is the mean of the gradients that the same pass computes.

  `mean(function, examples)` averages the first tree that `function(chunk)` returns, and joins the
  second, which has an entry for each example. `check(perturbed)` refuses what it must.
  """
  # Not custom_jvp: where JAX linearizes its rule it moves what a loop's body has constant, such as
  # the zeros of a ReLU's gradient, out into arrays that every turn reads (a fifth of a step and
  # more).
  @jax.custom_vjp
  def mean_loss(variable, examples, *constants):
    return mean(lambda chunk: (loss(variable, chunk, *constants), ()), examples)[0]

  def forward(*arguments):
    variable, examples, *constants = jax.tree.map(lambda x: x.value, arguments)
    # What is differentiated, of the arguments that all chunks share and of the examples.
    perturbed = jax.tree.map(_is_perturbed, arguments)
    check(perturbed)
    shared, join_shared = split_off((variable, *constants), (perturbed[0], *perturbed[2:]))

    def of_chunk(chunk):
      own, join_own = split_off(chunk, perturbed[1])

      def of_perturbed(shared, own):
        variable, *constants = join_shared(shared)
        return loss(variable, join_own(own), *constants)

      value, (by_shared, by_own) = jax.value_and_grad(of_perturbed, (0, 1))(shared, own)
      return (value, by_shared), by_own

    (value, (by_variable, *by_constants)), by_examples = mean(of_chunk, examples)
    return value, (by_variable, by_examples, *by_constants)

  def backward(gradients, cotangent):
    return jax.tree.map(lambda gradient: cotangent.astype(gradient.dtype) * gradient, gradients)

  mean_loss.defvjp(forward, backward, symbolic_zeros=True)
  return mean_loss


def _is_perturbed(argument):
  return argument.perturbed and is_floating(argument.value)


def _spread(function, mesh, axis):
  """`function(variables, examples, *constants)` mapped over a leading axis that lies on devices."""
  sharding = jax.sharding.NamedSharding(mesh, Spec(axis))

  def spread(variables, examples, *constants):
    variables, examples = lax.with_sharding_constraint((variables, examples), sharding)
    mapped = jax.vmap(function, in_axes=(0, 0) + (None,) * len(constants), spmd_axis_name=axis)
    return lax.with_sharding_constraint(mapped(variables, examples, *constants), sharding)

  return spread


def _split(examples, num_devices, axis):
  """The leading axis `[n, ...]` as `[devices, n / devices, ...]`."""
  def split(x):
    if x.shape[0] % num_devices:
      what = "num_inits" if axis == INITS else "the real batch"
      raise ValueError(f"{what} must be a multiple of the {num_devices} devices that share it; "
                       f"got {x.shape[0]}")
    return x.reshape(num_devices, -1, *x.shape[1:])

  return jax.tree.map(split, examples)


def _pad(pool, multiple):
  """The number of networks, and the pool with zeros up to a multiple."""
  size = jax.tree.leaves(pool)[0].shape[0]
  return size, jax.tree.map(
      lambda x: np.concatenate([x, np.zeros((-size % multiple, *x.shape[1:]), x.dtype)]), pool)


def _place(tree, mesh, spec):
  sharding = jax.sharding.NamedSharding(mesh, spec)

  def place(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(place, tree)


def _add(total, term, weight):
  return jax.tree.map(lambda a, b: a + weight * b.astype(a.dtype), total, term)
