"""Networks of every kind trained from scratch on one file of distilled data, and on real images."""

from collections.abc import Callable, Mapping
import itertools
import json
import os
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dd_jax
from dd_jax import baselines
from dd_jax import datasets
from dd_jax import losses
from dd_jax.datasets.rows import in_memory
from dd_jax.evaluation import Plan, evaluate
from dd_jax.init_distributions import random_init
from dd_jax.pretraining import minibatches
from dd_jax.runs import accuracies
from dd_jax.runs import fingerprints
from dd_jax.runs import workdirs
from dd_jax.runs.programs import num_parallel
from dd_jax.runs.settings import Settings, check_positive, check_seed
from dd_jax.types import DistilledData


class Training(NamedTuple):
  """How every network is trained."""
  optimizer: Callable[[int], optax.GradientTransformation]  # Of the number of its steps.
  num_epochs: int = 200
  batch_size: int = 20  # At most all images of a set.
  wrap_loss: Callable[[Callable], Callable] = lambda loss: loss  # An augmentation, for instance.
  num_inits: int = 5  # Networks of each kind and set.


def compare_networks(artifact: dd_jax.Artifact, dataset: datasets.Dataset,
                     networks: Mapping[str, dd_jax.Model], workdir: str | os.PathLike, *,
                     training: Training, seed: int = 0, settings: Settings = Settings(),
                     config: dict[str, Any] | None = None,
                     made_from: dict[str, str] | None = None) -> dict:
  """Trains and tests; returns what transfer.json holds: accuracies by network and set.

  Args:
    artifact: the distilled.npz of a run.
    dataset: its dataset, with images of its shape.
    networks: by the names that the rows will have.
    workdir: receives transfer.json.
    training: how networks are trained.
    seed: of the networks and the real sets.
    settings: its batch_size, num_parallel and precision.
    config: what is compared before it goes on. None: what follows from the arguments.
    made_from: digests of files that must not change.

  Raises:
    ValueError, OSError: an argument that does not fit, or an unusable directory; nothing is
      written.
  """
  started = time.time()
  check_seed("seed", seed)
  for field in ("num_epochs", "batch_size"):
    check_positive(f"train.{field}", getattr(training, field))
  check_positive("eval.num_inits", training.num_inits)
  config = workdirs.as_json(
      {"seed": seed, "networks": list(networks)} if config is None else config)
  sets = _training_sets(artifact, dataset, seed)
  test = artifact.normalize(in_memory(dataset.test_images)), dataset.test_labels
  programs = {}
  for (name, model), (set_name, distilled) in itertools.product(networks.items(), sets.items()):
    programs[name, set_name] = _make_evaluate(model, training, settings, distilled)
    jax.eval_shape(programs[name, set_name], jax.random.key(0), distilled, test[0][:1],
                   jnp.zeros(1, jnp.int32))
  digest = datasets.digest(dataset)
  with workdirs.held(workdir) as path:
    workdirs.open_workdir(config, path)
    fingerprints.check_workdir(path, {**digest, **(made_from or {})})
    if (path / "transfer.json").exists():
      print(f"{path} holds the finished result of this config:", file=sys.stderr)
      return json.loads((path / "transfer.json").read_text())
    rows = workdirs.reopen_lines(path / "rows.jsonl", "accuracy_mean")
    for name, set_name in list(programs)[len(rows):]:
      key = jax.random.key(seed)  # The same networks for every set.
      accuracy = np.asarray(programs[name, set_name](key, sets[set_name], *test), np.float64)
      rows.append({"network": name, "set": set_name,
                   "num_images": int(sets[set_name].labels.shape[1]),
                   "accuracy_mean": accuracy.mean(), "accuracy_std": accuracies.std(accuracy)})
      workdirs.append_line(path / "rows.jsonl", rows[-1])
      print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {"rows": rows, "dataset": dataset.name, "distilled_with": artifact.metadata["model"],
              "num_eval_inits": training.num_inits, "wall_seconds": time.time() - started,
              "data": digest, **workdirs.provenance(config, seed)}
    workdirs.write_json(path / "transfer.json", result)
    return result


def _training_sets(artifact, dataset, seed):
  """`{name: one step of all images, with their labels}`."""
  inputs, labels = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]),
                                (artifact.distilled.inputs, artifact.distilled.labels))

  def one_step(inputs, labels):
    return DistilledData(inputs, labels, jnp.ones((1, 1)))

  sets = {"distilled": one_step(inputs, labels)}
  if labels.ndim == 3:
    sets["distilled, hard labels"] = one_step(inputs, jnp.argmax(labels, -1))
  real_bytes = 4 * dataset.num_classes * int(np.prod(inputs.shape[2:]))
  per_class = artifact.metadata["learned_bytes"] // real_bytes
  if per_class:
    arguments = artifact.normalize(in_memory(dataset.train_images)), dataset.train_labels
    options = {"num_classes": dataset.num_classes, "num_steps": 1, "images_per_class": per_class}
    classes = jnp.repeat(jnp.arange(dataset.num_classes), per_class)[None]
    for name, choice in (("random real", baselines.random_real), ("k-means", baselines.kmeans)):
      sets[name] = one_step(jnp.asarray(choice(seed, *arguments, **options)), classes)
  return sets


def _make_evaluate(model, training, settings, distilled):
  """`(key, distilled, test inputs, test labels) -> accuracies [N]`."""
  num_images = distilled.labels.shape[1]
  batch_size = min(training.batch_size, num_images)
  train = minibatches(
      training.wrap_loss(losses.classification(model.apply)),
      training.optimizer(training.num_epochs * (num_images // batch_size)),
      num_epochs=training.num_epochs, batch_size=batch_size)

  @jax.jit
  def test(key, distilled, inputs, labels):
    with jax.default_matmul_precision(settings.precision):
      return evaluate(
          key, distilled, random_init(model.init), train, model.apply, inputs, labels,
          num_inits=training.num_inits, plan=Plan(
              num_parallel(settings.num_parallel, on_accelerator=10), settings.batch_size)
      ).after.accuracy

  return test
