"""Losses and hypergradients of every layout of forced CPU devices, written to one file.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.many_devices OUT.npz
    XLA_FLAGS=--xla_force_host_platform_device_count=2 \\
      python -m tests.many_devices OUT.npz HOST:PORT ID   # once for each ID of 0 and 1

Every case is computed on one device too, with the same keys and data.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import dd_jax
from dd_jax import models
from dd_jax import losses
from dd_jax import parallel
from experiments import processes
from tests import problems

# Networks, and whether they and the real images are taken in chunks on every device. Where there
# are fewer networks than devices, the devices share the real images as well.
SHAPES = {"8 inits": (8, {}), "16 inits": (16, {"num_parallel": 1, "chunk_size": 3}),
          "4 inits": (4, {"chunk_size": 2}), "1 init": (1, {})}
# What is computed on one device, and the layouts of all devices that are compared with it.
SETTINGS = {f"{setting} 8 inits": ("jit", "pmap") for setting in (
    "float64 random plain", "float64 pool remat", "float32 random remat", "float32 pool plain")}
SETTINGS |= {"float64 random remat 16 inits": ("jit",), "float64 pool remat 16 inits": ("pmap",),
             "float64 pool remat 4 inits": ("jit",), "float64 random remat 1 init": ("jit",),
             "float64 all remat 4 inits": ("jit",),  # By weights of a pool and real images too.
             "lenet random remat 8 inits": ("jit",), "lenet pool remat 8 inits": ("pmap",)}
# Of these, what two processes compute.
OF_PROCESSES = ("float64 random plain 8 inits", "float64 pool remat 8 inits",
                "float32 pool plain 8 inits", "float64 random remat 1 init")
NUM_IMAGES, POOL_SIZE = 24, 19  # The devices divide the images, not the pool.


def small_network():
  """The two-layer network of the tests: init, trainable, decode, loss and real data."""
  return (problems.init, *problems.trainable(), problems.inner_loss, problems.real(NUM_IMAGES))


def lenet():
  """The same of a LeNet as the launcher uses it."""
  model = models.lenet(num_classes=10, image_shape=(28, 28, 1))
  labels = dd_jax.parametrization.class_labels(2, 10, 1)
  learned = dd_jax.parametrization.paper(labels, (28, 28, 1), num_epochs=2, step_size=0.02)
  real = (jax.random.normal(jax.random.key(5), (NUM_IMAGES, 28, 28, 1)),
          jnp.arange(NUM_IMAGES) % 10)
  return (model.init, learned.init(jax.random.key(4)), learned.decode,
          losses.classification(model.apply), real)


def measure(setting):
  """Yields, for one device and for each layout of them all, its name, loss and hypergradient."""
  problem, kind, memory, shape = setting.split(maxsplit=3)
  jax.config.update("jax_enable_x64", problem == "float64")
  init, trainable, decode, loss, real = lenet() if problem == "lenet" else small_network()
  assert real[0].dtype == ("float64" if problem == "float64" else "float32")
  num_inits, options = SHAPES[shape]
  init = dd_jax.random_init(init)
  if kind != "random":
    init = dd_jax.pretrained_init(init.sample((), jax.random.key(3), POOL_SIZE))
  key = jax.random.key(7)

  def hypergradient(sample, **split):
    outer_loss = dd_jax.make_outer_loss(
        decode, sample, loss, loss, num_inits=num_inits, memory=memory, **split, **options)
    if kind != "all":
      return dd_jax.value_and_hypergrad(outer_loss)

    def by_all(*arguments):
      value, (by_trainable, by_pool, by_images) = jax.value_and_grad(outer_loss, (0, 1, 3))(
          *arguments)
      return value, (by_trainable, jax.tree.map(lambda x: x[:POOL_SIZE], by_pool), by_images)

    return by_all

  yield "one", jax.jit(hypergradient(init.sample))(trainable, init.state, key, *real)
  if "jit" in SETTINGS[setting]:
    mesh = parallel.make_mesh(num_inits)
    placed = parallel.shard_pool(init.state, mesh) if kind != "random" else init
    assert all(shard.data.shape[0] == -(-POOL_SIZE // mesh.size)
               for leaf in jax.tree.leaves(placed.state) for shard in leaf.addressable_shards)
    everywhere = jax.sharding.NamedSharding(mesh, parallel.Spec())
    yield "jit", jax.jit(hypergradient(placed.sample, **parallel.split(mesh)),
                         out_shardings=everywhere)(
        parallel.replicate(trainable, mesh), placed.state, key, *parallel.replicate(real, mesh))
  if "pmap" in SETTINGS[setting]:
    placed = parallel.pmap_pool(init.state) if kind == "pool" else parallel.pmap_init(init)
    of = hypergradient(placed.sample, split_inits=parallel.over_pmap)
    step = parallel.pmap(lambda trainable, state, *real: of(trainable, state, key, *real))
    yield "pmap", step(trainable, placed.state, *real)


if __name__ == "__main__":
  out, *process = sys.argv[1:]
  if process:
    processes.start(process[0], 2, int(process[1]))
  results = {
      f"{setting}/{where}/{jax.tree_util.keystr(path)}": np.asarray(leaf.addressable_data(0))
      for setting in (OF_PROCESSES if process else SETTINGS) for where, result in measure(setting)
      for path, leaf in jax.tree_util.tree_leaves_with_path(result)}
  if processes.is_first():
    np.savez(out, num_devices=jax.device_count(), **results)
