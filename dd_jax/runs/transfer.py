"""Networks of every kind trained from scratch on one file of distilled data, and on real images."""

import itertools
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

import dd_jax
from dd_jax.files import artifacts
from dd_jax import augmentation
from dd_jax import baselines
from dd_jax import datasets
from dd_jax import losses
from experiments import accuracies
from experiments import applications
from experiments import fingerprints
from experiments import paths
from experiments import problem
from experiments import workdirs
from experiments.choices import check_positive
from experiments.choices import check_seed
from experiments.choices import choose
from experiments.networks import make_network


def compare_networks(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Trains and tests; returns what transfer.json holds: accuracies by network and set.

  Raises:
    ValueError, OSError: a bad config or file, bad data, an unusable directory; nothing is written.
  """
  started = time.time()
  check_seed("seed", config.seed)
  if not config.distilled:
    raise ValueError("distilled must be the distilled.npz of a run; got ''")
  artifact = artifacts.load(paths.local(config.distilled, "distilled"))
  dataset = applications.load_dataset(artifact, config.data.dir or None,
                                      download=config.data.download)
  sets = _training_sets(config, artifact, dataset)
  shape = artifact.distilled.images.shape[2:]
  networks = {text: make_network(text, dataset.num_classes, shape, "networks")
              for text in config.networks.replace(" ", "").split(",")}
  for field in ("num_epochs", "batch_size", "learning_rate"):
    check_positive(f"train.{field}", config.train[field])
  check_positive("eval.num_inits", config.eval.num_inits)
  for images, labels in sets.values():
    for model in networks.values():
      jax.eval_shape(_make_evaluate(config, model, len(images)), jax.random.key(0), images, labels,
                     images, jnp.zeros(len(images), jnp.int32))
  digest = datasets.digest(dataset)
  with workdirs.held(workdir) as workdir:
    return _compare_networks(config, workdir, artifact, dataset, digest, sets, networks, started)


def _compare_networks(config, workdir, artifact, dataset, digest, sets, networks, started):
  """As `compare_networks`, in a directory that is held."""
  workdirs.open_workdir(config, workdir)
  fingerprints.check_workdir(
      workdir, {**digest, "distilled": fingerprints.of_file(config.distilled)})
  path = workdir / "transfer.json"
  if path.exists():
    print(f"{workdir} holds the finished result of this config:", file=sys.stderr)
    return json.loads(path.read_text())

  test = artifact.normalize(dataset.test_images), dataset.test_labels
  rows = workdirs.reopen_lines(workdir / "rows.jsonl", "accuracy_mean")
  for name, set_name in list(itertools.product(networks, sets))[len(rows):]:
    images, labels = sets[set_name]
    key = jax.random.key(config.seed)  # The same networks for every set.
    accuracy = np.asarray(_make_evaluate(config, networks[name], len(images))(
        key, images, labels, *test), np.float64)
    rows.append({"network": name, "set": set_name, "num_images": len(images),
                 "accuracy_mean": accuracy.mean(), "accuracy_std": accuracies.std(accuracy)})
    workdirs.append_line(workdir / "rows.jsonl", rows[-1])
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
  result = {"rows": rows, "dataset": dataset.name, "distilled_with": artifact.metadata["model"],
            "num_eval_inits": config.eval.num_inits, "wall_seconds": time.time() - started,
            "data": digest, **workdirs.provenance(config)}
  workdirs.write_json(path, result)
  return result


def _training_sets(config, artifact, dataset):
  """`{name: (images [n, H, W, C], labels [n] or [n, K])}`."""
  images, labels, *_ = artifact.distilled
  images = images.reshape(-1, *images.shape[2:])
  labels = labels.reshape(-1, *labels.shape[2:])
  sets = {"distilled": (images, labels)}
  if labels.ndim == 2:
    sets["distilled, hard labels"] = images, jnp.argmax(labels, -1)
  real_bytes = 4 * dataset.num_classes * int(np.prod(images.shape[1:]))
  per_class = artifact.metadata["learned_bytes"] // real_bytes
  if per_class:
    arguments = artifact.normalize(dataset.train_images), dataset.train_labels
    options = {"num_classes": dataset.num_classes, "num_steps": 1, "images_per_class": per_class}
    classes = jnp.repeat(jnp.arange(dataset.num_classes), per_class)
    for name, choice in (("random real", baselines.random_real), ("k-means", baselines.kmeans)):
      sets[name] = jnp.asarray(choice(config.seed, *arguments, **options))[0], classes
  return sets


def _make_evaluate(config, model, num_images):
  """`(key, images, labels, test images, test labels) -> accuracies [N]`."""
  train = config.train
  batch_size = min(train.batch_size, num_images)
  rate = optax.cosine_decay_schedule(train.learning_rate,
                                     train.num_epochs * (num_images // batch_size))
  optimizer = choose({
      "adamw": lambda: optax.adamw(rate, weight_decay=train.weight_decay),
      "sgd": lambda: optax.chain(optax.add_decayed_weights(train.weight_decay),
                                 optax.sgd(rate, momentum=0.9)),
  }, train.optimizer, "train.optimizer")()
  loss = losses.classification(model.apply)
  if train.augmentation is not None:
    loss = augmentation.augmented(loss, augmentation.compose(train.augmentation))

  @jax.jit
  def evaluate(key, images, labels, test_images, test_labels):
    with jax.default_matmul_precision(config.precision):
      return dd_jax.evaluate_from_scratch(
          key, images, labels, dd_jax.random_init(model.init), model.apply, test_images,
          test_labels, num_inits=config.eval.num_inits, loss=loss, optimizer=optimizer,
          num_epochs=train.num_epochs, train_batch_size=batch_size,
          keyed=train.augmentation is not None, batch_size=config.eval.batch_size,
          num_parallel=problem.num_parallel(config.eval, on_accelerator=10)).accuracy

  return evaluate
