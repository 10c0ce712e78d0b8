"""Pools of pre-trained networks: trained into a directory, and drawn from there."""

from collections.abc import Callable
import functools
import os
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

import dd_jax
from dd_jax import evaluation
from dd_jax import losses
from dd_jax import models
from dd_jax.files import pools
from dd_jax.init_distributions import InitDistribution, fixed_init, pool_size, pretrained_init
from dd_jax.pretraining import pretrain
from dd_jax.runs import once
from dd_jax.runs import paths
from dd_jax.runs.accuracies import std
from dd_jax.runs.data import Data, input_shapes, read_all
from dd_jax.runs.problem import Inits, shapes_of
from dd_jax.runs.programs import num_parallel
from dd_jax.runs.settings import check_positive, check_seed

ROLES = ("train", "heldout")  # The two files of a directory.


class PoolSettings(NamedTuple):
  """How networks are trained for a pool."""
  optimizer: optax.GradientTransformation  # With its learning rate.
  num_train: int = 200  # Networks to distil with.
  num_heldout: int = 200  # Networks to test on, of other seeds.
  block: int = 10  # Networks per program, and per file until all are done.
  num_parallel: int | None = None  # Side by side; None: 1 on a CPU, else a block.
  num_epochs: int = 2  # Passes over the training set.
  batch_size: int = 256  # Images per step.
  precision: str = "highest"  # As in `Settings`.


def pretrain_pools(data: Data, model: models.Model, init: InitDistribution,
                   workdir: str | os.PathLike, *, settings: PoolSettings, seed: int = 0,
                   loss: Callable | None = None, metadata: dict[str, Any] | None = None,
                   config: dict[str, Any] | None = None) -> dict:
  """Trains, or continues to, and measures both pools; returns what result.json holds.

  Networks are trained and written in blocks, so that an interrupted run loses one block at most.
  A network is a function of the seed, the block size, its pool and its place in it.

  Args:
    data: to train and test on.
    model: the network.
    init: where its weights start.
    workdir: receives train.npz, heldout.npz, result.json and config.json.
    settings: how they are trained.
    seed: of everything random.
    loss: `(params, inputs, labels) -> []`. None: cross-entropy.
    metadata: names of the model and whatever `load_pools` shall compare.
    config: what is compared before it goes on. None: what follows from the arguments, of which
      functions, such as the optimizer, cannot be told from one another.

  Raises:
    ValueError, OSError: an argument that does not fit, or an unusable directory; nothing is
      written.
  """
  started = time.monotonic()
  check_seed("seed", seed)
  if data.targets is not None:
    raise ValueError(f"data must have classes to pre-train on; got targets {data.targets.names}")
  metadata = {"dataset": data.name, "data": data.digest, "num_classes": data.num_classes,
              "whitening": None if data.pixels is None else data.pixels.regularization,
              "image_shape": listed_shapes(data),
              **(metadata or {})}
  if config is None:
    numbers = {name: value for name, value in settings._asdict().items() if name != "optimizer"}
    config = {"pool": numbers, "model": metadata.get("model"),
              "weights": shapes_of(jax.eval_shape(model.init, jax.random.key(0)))}
  config = {**config, "seed": seed}
  train_block = _make_train_block(
      data, model, init, losses.classification(model.apply) if loss is None else loss, settings)

  def work(path):
    result, earlier = _train_all(path, seed, settings, train_block, metadata)
    return {**result, "data": data.digest}, earlier

  return once.result_of(work, workdir, "result.json", config=config, made_from=data.digest,
                        started=started)


def pretrained_inits(directory: str | os.PathLike, model: models.Model, *, num_validation: int,
                     expected: dict[str, Any] | None = None) -> Inits:
  """Draws from the training pool, from networks of it that are set aside, and held-out ones.

  Args:
    directory: what `pretrain_pools` wrote.
    model: the network.
    num_validation: networks of the training pool that are set aside for validation.
    expected: metadata that both pools must have.

  Raises:
    ValueError: pools of other networks or of one seed, or too few networks.
  """
  pool, heldout = load_pools(directory, model, expected or {})
  size = pool_size(pool)
  if not 1 <= num_validation < size:
    raise ValueError(f"init.num_validation must lie in 1..{size - 1} (the pool has {size} "
                     f"networks); got {num_validation}")
  return Inits(pretrained_init(_slice(pool, slice(size - num_validation))),
               pretrained_init(_slice(pool, slice(size - num_validation, None))),
               pretrained_init(heldout))


def listed_shapes(data: Data) -> Any:
  """The shapes of one example's inputs, as the metadata of a pool hold them."""
  return jax.tree.map(list, input_shapes(data), is_leaf=lambda x: isinstance(x, tuple))


def first_of_pool(directory: str | os.PathLike, model: models.Model,
                  expected: dict[str, Any] | None = None) -> InitDistribution:
  """The first network of the training pool; errors as of `pretrained_inits`."""
  return fixed_init(_slice(load_pools(directory, model, expected or {})[0], 0))


def load_pools(directory: str | os.PathLike, model: models.Model, expected: dict[str, Any]
               ) -> tuple[Any, Any]:
  """Weights of the training pool and of the held-out pool.

  Raises:
    ValueError: a pool of another network, or whose metadata are not the expected ones, or one pool
      under both names.
  """
  if not os.fspath(directory):
    raise ValueError("init.pool must be a directory that experiments.pretrain wrote; got ''")
  found = []
  for role in ROLES:
    path = paths.local(directory, "init.pool") / f"{role}.npz"
    pool = pools.load(path)
    for field, value in expected.items():
      if pool.metadata.get(field) != value:
        raise ValueError(f"init.pool must hold networks of {field} {value!r}; "
                         f"those of {path} have {pool.metadata.get(field)!r}")
    models.check_params(model, _slice(pool.params, 0), where=str(path),
                        rule=f"init.pool must hold networks of {expected.get('model', 'model')}")
    found.append(pool)
  if _equal(*(pool.params for pool in found)):
    raise ValueError(f"init.pool must hold two pools of different networks; those of {directory} "
                     "are the same")
  return tuple(pool.params for pool in found)


def _train_all(workdir, seed, settings, train_block, metadata):
  """Both pools, block by block: their figures, and the seconds that earlier calls took."""
  result, seconds, earlier = {}, 0., 0.
  (workdir / "blocks").mkdir(exist_ok=True)
  for index, role in enumerate(ROLES):
    key = jax.random.fold_in(jax.random.key(seed), index)
    count = getattr(settings, f"num_{role}")
    starts = range(0, count, settings.block)
    paths_of = [workdir / "blocks" / f"{role}-{start:05d}.npz" for start in starts]
    were_there = [path.exists() for path in paths_of]
    blocks = [_block(path, train_block, jax.random.fold_in(key, start))
              for path, start in tqdm([*zip(paths_of, starts)], desc=role)]
    accuracy = np.concatenate([block.metadata["accuracy"] for block in blocks])[:count]
    spent = np.array([block.metadata["seconds"] for block in blocks])
    seconds, earlier = seconds + float(spent.sum()), earlier + float(spent[were_there].sum())
    params = jax.tree.map(lambda *leaves, count=count: np.concatenate(leaves)[:count],
                          *(block.params for block in blocks))
    pools.save(workdir / f"{role}.npz", params, {
        **metadata, "role": role, "seed": seed, "accuracy": accuracy.tolist(),
        "dd_jax_version": dd_jax.__version__})
    result |= {f"{role}_accuracy_mean": accuracy.mean(), f"num_{role}": count,
               f"{role}_accuracy_std": std(accuracy)}
  return {**result, "train_seconds": seconds}, earlier


def _block(path, train_block, key):
  """The networks of one block, trained unless they lie there whole."""
  if path.exists():
    try:
      return pools.load(path)
    except ValueError as error:
      print(f"warning: {path} is damaged and made anew: {error}", file=sys.stderr)
  began = time.monotonic()
  params, accuracy = jax.block_until_ready(train_block(key))
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
    raise FloatingPointError(f"the weights of {path} are not finite after training; "
                             "lower pool.learning_rate")
  pools.save(path, params, {"accuracy": np.asarray(accuracy, float).tolist(),
                            "seconds": time.monotonic() - began})
  return pools.load(path)


def _make_train_block(data, model, init, loss, settings):
  """`key -> (params [block, ...], accuracies)`."""
  for field in ("num_train", "num_heldout", "num_epochs", "block", "batch_size"):
    check_positive(f"pool.{field}", getattr(settings, field))
  side_by_side = num_parallel(settings.num_parallel, on_accelerator=settings.block)

  @jax.jit
  def train_block(key, init_state, prepared_by, train, test):
    init_key, train_key = jax.random.split(key)
    params = init._replace(state=init_state).sample(init_key, settings.block)
    prepare = functools.partial(data.preparation.apply, prepared_by)

    @functools.wraps(loss)
    def loss_of_stored(params, inputs, labels, **key):
      return loss(params, prepare(inputs), labels, **key)

    with jax.default_matmul_precision(settings.precision):
      params = pretrain(train_key, params, loss_of_stored, *train, optimizer=settings.optimizer,
                        num_epochs=settings.num_epochs, batch_size=settings.batch_size,
                        num_parallel=side_by_side)
      accuracy = jax.lax.map(lambda params: evaluation.measure(
          model.apply, params, *test, batch_size=250, prepare=prepare).accuracy, params)
    return params, accuracy

  arguments = jax.tree.map(jax.numpy.asarray, (
      init.state, data.preparation.state, *map(read_all, (data.train, data.test))))
  jax.eval_shape(train_block, jax.random.key(0), *arguments)
  return lambda key: train_block(key, *arguments)


def _equal(pool, other):
  return all(map(np.array_equal, *map(jax.tree.leaves, (pool, other))))


def _slice(pool, index):
  return jax.tree.map(lambda leaf: leaf[index], pool)
