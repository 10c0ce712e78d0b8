"""Losses and hypergradients of every layout of forced CPU devices, written to one file.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.many_devices OUT.npz NAMES
    XLA_FLAGS=--xla_force_host_platform_device_count=2 \\
      python -m tests.many_devices OUT.npz NAMES HOST:PORT ID   # once for each ID of 0 and 1

Every case is computed on one device too, with the same keys and data.
"""

import sys
from typing import NamedTuple

import jax
import numpy as np

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax import parallel
from dd_jax import parametrization
from dd_jax.runs import processes
from tests import problems

NUM_IMAGES, POOL_SIZE = 24, 19  # The devices divide the images, not the pool.


class Setting(NamedTuple):
  """What is computed on one device, and the layouts of all devices that are compared with it."""
  layouts: tuple[str, ...]
  num_inits: int  # Where there are fewer than devices, these share the real images as well.
  x64: bool = True
  pool: bool = False
  memory: str = "plain"
  window: bool = False  # Its position is shared by all networks.
  network: str = "small"
  of_all: bool = False  # By weights of the pool and real images too.
  options: dict = {}  # How networks and real images are cut on every device.


SETTINGS = {
    "random windows": Setting(("jit", "pmap"), 8, window=True),
    "pool in pieces": Setting(("jit", "pmap"), 16, pool=True, options={
        "num_parallel": 1, "chunk_size": 9}),
    "derivatives of all": Setting(("jit",), 4, pool=True, of_all=True, options={"chunk_size": 5}),
    "one network": Setting(("jit",), 1, memory="remat"),
    "float32 convolution": Setting(("jit", "pmap"), 8, x64=False, pool=True, network="convnet"),
}
QUICK = ("pool in pieces",)
OF_PROCESSES = ("random windows", "pool in pieces", "one network")


def small_network():
  """The two-layer network of the tests: init, trainable, decode, loss and real data."""
  return (problems.init, *problems.trainable(), problems.inner_loss, problems.real(NUM_IMAGES))


def convnet():
  """The same of a network with a convolution."""
  shape = (8, 8, 1)
  model = models.convnet(num_classes=3, image_shape=shape, width=4, depth=1, norm="none")
  labels = parametrization.class_labels(2, 3, 1)
  learned = parametrization.paper(labels, shape, num_epochs=1, step_size=0.02)
  return (model.init, learned.init(jax.random.key(4)), learned.decode,
          losses.classification(model.apply),
          (jax.random.normal(jax.random.key(5), (NUM_IMAGES, *shape)),
           problems.real(NUM_IMAGES)[1]))


def measure(setting):
  """Yields, for one device and for each layout of them all, its name, loss and hypergradient."""
  jax.config.update("jax_enable_x64", setting.x64)
  init, trainable, decode, loss, real = (
      convnet() if setting.network == "convnet" else small_network())
  assert real[0].dtype == ("float64" if setting.x64 else "float32")
  train = dd_jax.unroll(loss, memory=setting.memory)
  if setting.window:
    train = dd_jax.window(train, length=3)
  init = dd_jax.random_init(init)
  if setting.pool:
    init = dd_jax.pretrained_init(init.sample(jax.random.key(3), POOL_SIZE))
  key = jax.random.key(7)

  def hypergradient(init, split=parallel.Split()):
    outer_loss = dd_jax.make_outer_loss(decode, init, train, loss, num_inits=setting.num_inits,
                                        split=split, **setting.options)
    if not setting.of_all:
      return dd_jax.value_and_hypergrad(outer_loss)

    def by_all(*arguments):
      value, (by_trainable, by_pool, by_images) = jax.value_and_grad(outer_loss, (0, 1, 3))(
          *arguments)
      return value, (by_trainable, jax.tree.map(lambda x: x[:POOL_SIZE], by_pool), by_images)

    return by_all

  yield "one", jax.jit(hypergradient(init))(trainable, init.state, key, *real)
  if "jit" in setting.layouts:
    mesh = parallel.make_mesh(setting.num_inits)
    placed = parallel.shard_pool(init.state, mesh) if setting.pool else init
    assert all(shard.data.shape[0] == -(-POOL_SIZE // mesh.size)
               for leaf in jax.tree.leaves(placed.state) for shard in leaf.addressable_shards)
    everywhere = jax.sharding.NamedSharding(mesh, parallel.Spec())
    yield "jit", jax.jit(hypergradient(placed, parallel.split_over_mesh(mesh)),
                         out_shardings=everywhere)(
        parallel.replicate(trainable, mesh), placed.state, key, *parallel.replicate(real, mesh))
  if "pmap" in setting.layouts:
    of = hypergradient(init, parallel.Split(parallel.over_pmap))
    step = parallel.pmap(lambda trainable, state, *real: of(trainable, state, key, *real))
    yield "pmap", step(trainable, init.state, *real)


def measure_map():
  """What `map_over_mesh` gives of more rows than devices and of fewer; how many a device had."""
  mesh = parallel.make_mesh(jax.device_count())
  for num_rows in (3, 8, 21):
    rows = {"a": jax.numpy.arange(num_rows) + 1., "b": jax.numpy.ones((num_rows, 2))}
    yield num_rows, jax.jit(parallel.map_over_mesh(lambda rows: {
        "square": rows["a"] ** 2, "sum": rows["b"].sum(1),
        "on_its_device": jax.numpy.full(len(rows["a"]), len(rows["a"]))}, mesh))(rows)


if __name__ == "__main__":
  out, names, *process = sys.argv[1:]
  if process:
    processes.start(process[0], 2, int(process[1]))
  results = {
      f"{name}/{where}/{jax.tree_util.keystr(path)}": np.asarray(leaf.addressable_data(0))
      for name in names.split(",")
      for where, result in measure(SETTINGS[name])
      for path, leaf in jax.tree_util.tree_leaves_with_path(result)}
  if not process:
    results |= {f"map/{num_rows}/{name}": leaf for num_rows, mapped in measure_map()
                for name, leaf in mapped.items()}
  if processes.is_first():
    np.savez(out, num_devices=jax.device_count(), **results)
