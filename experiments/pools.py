"""Pools of pre-trained networks: from a config and a directory to two files of weights."""

import json
import os
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np
import optax
from tqdm import tqdm

import dd_jax
from dd_jax.files import artifacts
from dd_jax import evaluation
from dd_jax import losses
from experiments import fingerprints
from experiments import inits
from experiments import layouts
from experiments import problem
from experiments import recipe
from experiments import workdirs
from experiments.choices import check_positive
from experiments.choices import check_seed


def pretrain_pools(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Trains, or continues to, and measures both pools; returns what result.json holds.

  Networks are trained and written in blocks, so that an interrupted run loses one block at most.
  A network is a function of the seed, the block size, its pool and its place in it.

  Args:
    config: the fields of experiments/configs/pool_default.py.
    workdir: receives train.npz, heldout.npz, result.json and config.json.

  Raises:
    ValueError, OSError: a bad config, bad data or an unusable directory; nothing is written.
  """
  started = time.time()
  check_seed("seed", config.seed)
  data = problem.load_data(config, layouts.one_device())
  model = problem.make_model(config, data.dataset)
  init = inits.random_init(config.init, model)
  train_block = make_train_block(config, data, model, init)
  with workdirs.held(workdir) as workdir:
    return _pretrain_pools(config, workdir, data, train_block, started)


def _pretrain_pools(config, workdir, data, train_block, started):
  """As `pretrain_pools`, in a directory that is held."""
  workdirs.open_workdir(config, workdir)
  fingerprints.check_workdir(workdir, data.digest)
  result_path = workdir / "result.json"
  if result_path.exists():
    print(f"{workdir} holds finished pools of this config; their result:", file=sys.stderr)
    return json.loads(result_path.read_text())

  result, seconds = {}, 0.0
  (workdir / "blocks").mkdir(exist_ok=True)
  for index, role in enumerate(inits.POOLS):
    key = jax.random.fold_in(jax.random.key(config.seed), index)
    blocks = []
    for start in tqdm(range(0, config.pool[f"num_{role}"], config.pool.block), desc=role):
      path = workdir / "blocks" / f"{role}-{start:05d}.npz"
      if not path.exists():
        began = time.time()
        params, accuracy = jax.block_until_ready(
            train_block(jax.random.fold_in(key, start), *data.train, *data.test))
        artifacts.save_pool(path, params, {"accuracy": np.asarray(accuracy, float).tolist(),
                                           "seconds": time.time() - began})
      blocks.append(artifacts.load_pool(path))
    count = config.pool[f"num_{role}"]
    accuracy = np.concatenate([block.metadata["accuracy"] for block in blocks])[:count]
    seconds += sum(block.metadata["seconds"] for block in blocks)
    params = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count],
                          *(block.params for block in blocks))
    artifacts.save_pool(workdir / f"{role}.npz", params, {
        "role": role, "seed": config.seed, "model": config.model.name,
        "dataset": config.data.name, "data": data.digest, "whitening": config.data.whitening,
        "num_classes": data.dataset.num_classes,
        "image_shape": list(data.dataset.train_images.shape[1:]), "accuracy": accuracy.tolist(),
        "dd_jax_version": dd_jax.__version__})
    result |= {f"{role}_accuracy_mean": accuracy.mean(), f"num_{role}": count,
               f"{role}_accuracy_std": accuracy.std(ddof=1) if count > 1 else 0.0}
  result |= {"train_seconds": seconds, "wall_seconds": time.time() - started,
             "data": data.digest, **workdirs.provenance(config)}
  workdirs.write_json(result_path, result)
  return result


def make_train_block(config: ConfigDict, data: problem.Data, model: dd_jax.Model,
                     init: dd_jax.InitDistribution):
  """`(key, train images and labels, test images and labels) -> (params [block, ...], accuracy)`."""
  for field in ("num_train", "num_heldout", "num_epochs", "block", "batch_size"):
    check_positive(f"pool.{field}", config.pool[field])
  loss = losses.classification(model.apply)
  steps_per_epoch = len(data.train[1]) // config.pool.batch_size
  optimizer = optax.adam(recipe.make_schedule(
      "pool", ConfigDict({
          "schedule": config.pool.schedule, "num_steps": config.pool.num_epochs * steps_per_epoch,
          "halve_every": config.pool.halve_every * steps_per_epoch}),
      config.pool.learning_rate), b1=config.pool.beta1)
  num_parallel = problem.num_parallel(config.pool, on_accelerator=config.pool.block)

  @jax.jit
  def train_block(key, train_images, train_labels, test_images, test_labels):
    init_key, train_key = jax.random.split(key)
    params = init.sample(init.state, init_key, config.pool.block)
    with jax.default_matmul_precision(config.precision):
      params = dd_jax.pretrain(
          train_key, params, loss, train_images, train_labels, optimizer=optimizer,
          num_epochs=config.pool.num_epochs, batch_size=config.pool.batch_size,
          num_parallel=num_parallel)
      accuracy = jax.lax.map(lambda params: evaluation.measure(
          model.apply, params, test_images, test_labels, batch_size=250).accuracy, params)
    return params, accuracy

  jax.eval_shape(train_block, jax.random.key(0), *data.train, *data.test)
  return train_block
