"""Networks of every kind trained from scratch on one file of distilled data, and on real images.

How long they are trained is chosen on the validation images that the distillation set aside. The
scores are those of DD-Ranking (arXiv 2505.13300), in fractions.
"""

from collections.abc import Callable, Mapping
import functools
import math
import os
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
from dd_jax import parametrization
from dd_jax.datasets import digests
from dd_jax.datasets.rows import in_memory
from dd_jax.evaluation import Plan, draw_networks, map_networks, measure, train_networks
from dd_jax.files import reuse
from dd_jax.init_distributions import random_init
from dd_jax.pretraining import minibatches
from dd_jax.runs import accuracies
from dd_jax.runs import once
from dd_jax.runs import workdirs
from dd_jax.runs.programs import num_parallel
from dd_jax.runs.settings import Settings, check_positive, check_seed
from dd_jax.types import DistilledData


WITHOUT = "none"  # The name of training without augmentation.
_REAL_BATCH_SIZE = 128


class Training(NamedTuple):
  """How every network is trained."""
  optimizer: Callable[[int], optax.GradientTransformation]  # Of the number of its steps.
  num_epochs: tuple[int, ...] = (200,)  # One is chosen for each network and set, by validation.
  batch_size: int = 20  # At most all images of a set.
  # What a loss becomes under augmentations, by their names; WITHOUT is there by itself.
  augmentations: Mapping[str, Callable[[Callable], Callable]] = {}
  num_inits: int = 5  # Networks of each kind and set.
  real_epochs: int | None = None  # Of training on all real images; None: they are left out.


def compare_networks(artifact: dd_jax.Artifact, dataset: datasets.Dataset,
                     networks: Mapping[str, dd_jax.Model], workdir: str | os.PathLike, *,
                     training: Training, seed: int = 0, settings: Settings = Settings(),
                     config: dict[str, Any] | None = None,
                     made_from: dict[str, str] | None = None) -> dict:
  """Trains and tests; returns what transfer.json holds: accuracies by network and set, and scores.

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
  started = time.monotonic()
  check_seed("seed", seed)
  reuse.check_classes(artifact, dataset.class_names, "dataset")
  if not training.num_epochs:
    raise ValueError("train.num_epochs must hold at least one number; got ()")
  for name, values in (
      ("train.num_epochs", training.num_epochs), ("train.batch_size", (training.batch_size,)),
      ("train.real_epochs", () if training.real_epochs is None else (training.real_epochs,)),
      ("eval.num_inits", (training.num_inits,))):
    for value in values:
      check_positive(name, value)
  config = workdirs.as_json({**({"networks": list(networks), "distilled": {
      what: digests.of_array(np.asarray(getattr(artifact.distilled, what)))
      for what in ("inputs", "labels")}, "training": {
          **training._asdict(), "optimizer": None, "augmentations": [*training.augmentations]},
      "settings": settings._asdict()} if config is None else config), "seed": seed})
  digest = datasets.digest(dataset)
  dataset, *validation = _split(dataset, artifact.metadata)
  sets = _training_sets(artifact, dataset, seed, with_all=training.real_epochs is not None)
  real = [(artifact.normalize(in_memory(images)), labels) for images, labels in (
      validation, (dataset.test_images, dataset.test_labels))]
  programs = _make_programs(networks, sets, training, settings)
  for (_, _, set_name), by_epochs in programs.items():
    for program in by_epochs.values():
      jax.eval_shape(program, jax.random.key(0), sets[set_name], *real)

  def measure_one(rows, network, augmentation, set_name):
    distilled = sets[set_name]
    return {"network": network, "augmentation": augmentation, "set": set_name,
            "num_images": int(distilled.labels.shape[1]),
            **_chosen({  # The same networks for every set and length.
                num_epochs: program(jax.random.key(seed), distilled, *real)
                for num_epochs, program in programs[network, augmentation, set_name].items()})}

  def work(path):
    rows, earlier = once.rows_of([
        functools.partial(measure_one, network=network, augmentation=augmentation,
                          set_name=set_name) for network, augmentation, set_name in programs
    ], path / "rows.jsonl")
    return {"rows": rows, "scores": scores(rows), "dataset": dataset.name,
            "distilled_with": artifact.metadata.get("model"),
            "distilled_seed": artifact.metadata.get("seed"),
            "selection": "epochs by validation accuracy; test data chose nothing",
            "num_eval_inits": training.num_inits, "data": digest}, earlier

  return once.result_of(work, workdir, "transfer.json", config=config,
                        made_from={**digest, **(made_from or {})}, started=started)


def _split(dataset, metadata):
  """The validation images of the run; of a file that does not tell, a twelfth."""
  number = metadata.get("num_validation") or max(
      dataset.num_classes, len(dataset.train_labels) // 12)
  seed = metadata.get("split_seed")
  return datasets.split_validation(
      dataset, number, seed=metadata.get("seed", 0) if seed is None else seed)


def scores(rows: list[dict]) -> list[dict]:
  """The scores of each network and augmentation that the rows allow, in fractions.

  `hlr`: accuracy of all real data less that of the distilled ones with hard labels; `ior`: what
  distilled data gain over as many random real ones, trained alike; `lrs`: (e^a - 1/e) / (e - 1/e),
  where a is the mean of ior and -hlr; `ars`: the same of the mean of ior without and with the
  augmentation.
  """
  accuracy = {(row["network"], row["augmentation"], row["set"]): row["accuracy_mean"]
              for row in rows}
  found = []
  for network, augmentation in dict.fromkeys((row["network"], row["augmentation"])
                                             for row in rows):
    def of(name, *instead, augmentation=augmentation, network=network):
      return next((accuracy[network, augmentation, given] for given in (name, *instead)
                   if (network, augmentation, given) in accuracy), math.nan)

    ior = of("distilled") - of("random real")
    hlr = of("all real") - of("distilled, hard labels", "distilled")
    plain = of("distilled", augmentation=WITHOUT) - of("random real", augmentation=WITHOUT)
    every = {"hlr": hlr, "ior": ior, "lrs": _score((ior - hlr) / 2),
             "ars": math.nan if augmentation == WITHOUT else _score((ior + plain) / 2)}
    found.append({"network": network, "augmentation": augmentation, **{
        name: value for name, value in every.items() if not math.isnan(value)}})
  return found


def _score(mean):
  """From -1..1 to 0..1."""
  return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def _chosen(by_epochs):
  """The length of the best mean validation accuracy; what every length gave stands beside it."""
  measured = {num_epochs: [np.asarray(accuracy, np.float64) for accuracy in both]
              for num_epochs, both in by_epochs.items()}
  best = max(measured, key=lambda num_epochs: measured[num_epochs][0].mean())
  return {"num_epochs": best, "accuracy_mean": measured[best][1].mean(),
          "accuracy_std": accuracies.std(measured[best][1]),
          "validation_accuracy_mean": measured[best][0].mean(),
          "by_epochs": [{"num_epochs": num_epochs, "validation_accuracy_mean": validation.mean(),
                         "accuracy_mean": test.mean(), "accuracy_max": test.max()}
                        for num_epochs, (validation, test) in measured.items()]}


def _training_sets(artifact, dataset, seed, *, with_all):
  """`{name: one step of all images, with their labels}`."""
  inputs, labels = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]),
                                (artifact.distilled.inputs, artifact.distilled.labels))

  def one_step(inputs, labels):
    return DistilledData(inputs, labels, jnp.ones((1, 1)))

  sets = {"distilled": one_step(inputs, labels)}
  if labels.ndim == 3:
    sets["distilled, hard labels"] = one_step(inputs, jnp.argmax(labels, -1))
  real_bytes = 4 * dataset.num_classes * int(np.prod(inputs.shape[2:]))
  per_class = artifact.metadata.get(
      "learned_bytes", parametrization.num_bytes((inputs, labels))) // real_bytes
  if not (per_class or with_all):
    return sets
  images = artifact.normalize(in_memory(dataset.train_images)), dataset.train_labels
  if per_class:
    options = {"num_classes": dataset.num_classes, "num_steps": 1, "images_per_class": per_class}
    classes = jnp.repeat(jnp.arange(dataset.num_classes), per_class)[None]
    for name, choice in (("random real", baselines.random_real), ("k-means", baselines.kmeans)):
      sets[name] = one_step(jnp.asarray(choice(seed, *images, **options)), classes)
  if with_all:
    sets["all real"] = one_step(*jax.tree.map(lambda x: jnp.asarray(x)[None], images))
  return sets


def _make_programs(networks, sets, training, settings):
  """`{(network, augmentation, set): {epochs: program}}`, in the order of the rows."""
  augmentations = {WITHOUT: lambda loss: loss, **training.augmentations}

  def lengths(set_name):
    return (training.real_epochs,) if set_name == "all real" else training.num_epochs

  def batch_size(set_name):
    return min(_REAL_BATCH_SIZE if set_name == "all real" else training.batch_size,
               sets[set_name].labels.shape[1])

  return {(network, augmentation, set_name): {
      num_epochs: _make_evaluate(model, wrap(losses.classification(model.apply)), training,
                                 settings, sets[set_name].labels.shape[1], num_epochs,
                                 batch_size(set_name)) for num_epochs in lengths(set_name)}
          for network, model in networks.items() for augmentation, wrap in augmentations.items()
          for set_name in sets}


def _make_evaluate(model, loss, training, settings, num_images, num_epochs, batch_size):
  """`(key, distilled, validation examples, test examples) -> two accuracies [N]`."""
  train = minibatches(loss, training.optimizer(num_epochs * (num_images // batch_size)),
                      num_epochs=num_epochs, batch_size=batch_size)
  plan = Plan(num_parallel(settings.num_parallel, on_accelerator=10), settings.batch_size)
  init = random_init(model.init)

  @jax.jit
  def test(key, distilled, *splits):
    with jax.default_matmul_precision(settings.precision):
      _, trained = train_networks(key, distilled, init, train,
                                  draw_networks(key, init, training.num_inits), plan=plan)
      return map_networks(lambda params: [
          measure(model.apply, params, *split, batch_size=plan.batch_size).accuracy
          for split in splits], trained, plan)

  return test
