"""From a config to its init distributions: random, fixed, or from pools of trained networks."""

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

import dd_jax
from dd_jax.files import artifacts
from dd_jax import datasets
from dd_jax.files import imagenet_weights
from dd_jax import init_distributions
from dd_jax import models
from experiments import paths
from experiments.choices import choose
from experiments.layouts import Layout

# The two files of a directory of pre-trained networks, and their roles.
POOLS = ("train", "heldout")
# Inits of one known network, whose weights belong to the distilled data.
ONE_NETWORK = ("fixed", "fixed_pretrained", "imagenet")


class Inits(NamedTuple):
  """Where networks come from; those of one pool never meet those of another."""
  train: dd_jax.InitDistribution
  validation: dd_jax.InitDistribution
  test: dd_jax.InitDistribution


def make_inits(config: ConfigDict, model: dd_jax.Model, dataset: datasets.Dataset, layout: Layout,
               key: jax.Array) -> Inits:
  """The init distributions that `config.init` names; a fixed one is drawn with `key`."""
  def fixed():
    random = random_init(config.init, model)
    params = jax.jit(random.sample, static_argnums=2)(random.state, key, 1)
    return everywhere(dd_jax.fixed_init(_slice(params, 0)))

  def fixed_pretrained():
    pool, _ = load_pools(config, model, dataset)
    return everywhere(dd_jax.fixed_init(_slice(pool, 0)))

  def imagenet():
    if not config.init.checkpoint:
      raise ValueError("init.checkpoint must be a file of AlexNet's ImageNet weights; got ''")
    return everywhere(dd_jax.fixed_init(imagenet_weights.load(
        paths.local(config.init.checkpoint, "init.checkpoint"), model)))

  def pretrained():
    pool, heldout = load_pools(config, model, dataset)
    size, aside = jax.tree.leaves(pool)[0].shape[0], config.init.num_validation
    if not 1 <= aside < size:
      raise ValueError(f"init.num_validation must lie in 1..{size - 1} (the pool has {size} "
                       f"networks); got {aside}")
    return (layout.train_pool(_slice(pool, slice(size - aside))),
            layout.heldout_pool(_slice(pool, slice(size - aside, None))),
            layout.heldout_pool(heldout))

  def everywhere(init):
    placed = init._replace(state=layout.place(init.state))
    return layout.train_init(init), placed, placed

  return Inits(*choose({
      "random": lambda: everywhere(random_init(config.init, model)),
      "fixed": fixed,
      "imagenet": imagenet,
      "pretrained": pretrained,
      "fixed_pretrained": fixed_pretrained,
  }, config.init.name, "init.name")())


def these(networks: Any) -> dd_jax.InitDistribution:
  """Exactly these networks `[N, ...]`, in their order, in every draw."""
  def sample(networks, key, num_inits, rows=None):
    del key, num_inits
    return networks if rows is None else _slice(networks, rows)

  return dd_jax.InitDistribution(networks, sample)


def random_init(init: ConfigDict, model: dd_jax.Model) -> dd_jax.InitDistribution:
  """Fresh weights as `config.init.weights` says."""
  weights = choose(init_distributions.WEIGHT_INITS, init.weights, "init.weights")
  return dd_jax.random_init(model.init, weights(*(() if init.scale is None else (init.scale,))))


def load_pools(config: ConfigDict, model: dd_jax.Model, dataset: datasets.Dataset):
  """Weights of the training pool and of the held-out pool in `config.init.pool`.

  Raises:
    ValueError: a pool of another network, image shape, number of classes or source set than the
      config's, or two pools of the same seed.
  """
  if not config.init.pool:
    raise ValueError("init.pool must be a directory that experiments.pretrain wrote; got ''")
  expected = {"model": config.model.name, "dataset": config.init.source or config.data.name,
              "image_shape": list(dataset.train_images.shape[1:]),
              "num_classes": dataset.num_classes, "whitening": config.data.whitening}
  pools = []
  for role in POOLS:
    path = paths.local(config.init.pool, "init.pool") / f"{role}.npz"
    pool = artifacts.load_pool(path)
    for field, value in expected.items():
      if pool.metadata.get(field) != value:
        raise ValueError(f"init.pool must hold networks of {field} {value!r}; "
                         f"those of {path} have {pool.metadata.get(field)!r}")
    models.check_params(model, _slice(pool.params, 0), where=str(path),
                        rule=f"init.pool must hold networks of {config.model.name}")
    pools.append(pool)
  seeds = [(pool.metadata["seed"], pool.metadata["role"]) for pool in pools]
  if seeds[0] == seeds[1]:
    raise ValueError(f"init.pool must hold two pools of different seeds; got {seeds[0]} for both")
  return tuple(pool.params for pool in pools)


def _slice(pool, index):
  return jax.tree.map(lambda leaf: leaf[index], pool)

