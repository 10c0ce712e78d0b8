"""The baselines of a config: from a config and a directory to one file of figures."""

import functools
import json
import os
import sys
import time

import jax
from ml_collections import ConfigDict
import numpy as np

import dd_jax
from dd_jax import baselines
from dd_jax import losses
from dd_jax import parametrization
from experiments import accuracies
from experiments import fingerprints
from experiments import inits
from experiments import problem
from experiments import workdirs

_NAMES = ("random_real", "optimized_real", "kmeans", "average_real")
_NUM_SETS = 10  # Sets of a random baseline; each trains its share of the held-out networks.
_NUM_CANDIDATES = 50  # Random sets of which `optimized_real` keeps the best _NUM_SETS.
_NUM_SCORING = 4  # Networks whose mean accuracy scores a set or a step size.
_STEP_SIZES = np.geomspace(1e-3, 1, 13).tolist()


def compare_baselines(config: ConfigDict, workdir: str | os.PathLike) -> dict:
  """Measures every baseline at the config's budget; returns what baselines.json holds.

  Step sizes and the best random sets are chosen on validation images (a part of the training set)
  and networks of the training distribution: by the accuracy; in poisoning, by the mean of its two
  figures.

  Raises:
    ValueError, OSError: a bad config, bad data or an unusable directory; nothing is written.
  """
  started = time.time()
  described = problem.build(config)
  with workdirs.held(workdir) as workdir:
    return _compare_baselines(config, workdir, described, started)


def _compare_baselines(config, workdir, described, started):
  """As `compare_baselines`, in a directory that is held."""
  workdirs.open_workdir(config, workdir)
  fingerprints.check_workdir(workdir, fingerprints.of_run(config, described.data.digest))
  path = workdir / "baselines.json"
  if path.exists():
    print(f"{workdir} holds the finished baselines of this config:", file=sys.stderr)
    return json.loads(path.read_text())

  score_key, heldout_key, set_key = jax.random.split(jax.random.key(config.seed + 2 ** 31), 3)
  evaluate = _make_evaluate(config, described)
  scoring = described.inits.validation.sample(described.inits.validation.state, score_key,
                                               min(_NUM_SCORING, config.validation.num_inits))
  heldout = described.inits.test.sample(described.inits.test.state, heldout_key,
                                        config.eval.num_inits)
  labels = np.asarray(parametrization.class_labels(
      config.distill.num_steps, described.data.dataset.num_classes,
      config.distill.images_per_class))
  if config.objective.name == "poisoning":
    labels = np.where(labels == config.objective.attack_class, config.objective.target_class,
                      labels).astype(np.int32)

  def distilled(images, step_size):
    return baselines.with_step_size(images, labels, step_size=step_size,
                                    num_epochs=config.distill.num_epochs)

  def score(images, step_size):
    metrics = evaluate(scoring, distilled(images, step_size), *described.data.validation).after
    figures = accuracies.poisoning(config.objective, metrics) or {"accuracy": metrics.accuracy}
    return float(np.mean(list(figures.values())))

  seed = int(jax.random.randint(set_key, (), 0, 2 ** 31 - 1 - _NUM_SETS))
  finished = workdirs.reopen_lines(workdir / "rows.jsonl", "baseline")
  figures = {line.pop("baseline"): line for line in finished}
  for name in _NAMES[len(figures):]:
    sets, step_size = _sets(name, config, described, seed, score, figures)
    figures[name] = _figures(config, [
        evaluate(networks, distilled(images, step_size), *described.data.test)
        for images, networks in zip(sets, _shares(heldout, len(sets)), strict=True)])
    figures[name] |= {"step_size": step_size, "num_sets": len(sets)}
    if config.objective.name == "classification":
      accuracy = np.array([baselines.nearest_neighbors(
          images, labels, *described.data.test, num_neighbors=1,
          num_classes=described.data.dataset.num_classes) for images in sets])
      figures[name] |= {"nearest_neighbor_mean": accuracy.mean(),
                        "nearest_neighbor_std": accuracies.std(accuracy)}
    line = {"baseline": name, **figures[name]}
    workdirs.append_line(workdir / "rows.jsonl", line)
    print(json.dumps(line), file=sys.stderr, flush=True)
  result = {"baselines": figures, "num_eval_inits": config.eval.num_inits,
            "num_distilled_images": labels.size, "wall_seconds": time.time() - started,
            "data": described.data.digest, **workdirs.provenance(config)}
  workdirs.write_json(path, result)
  return result


def _sets(name, config, described, seed, score, figures):
  """The sets `[S, B, H, W, C]` of one baseline and its step size, given those before it."""
  images, labels = map(np.asarray, described.data.train)
  layout = {"num_classes": described.data.dataset.num_classes,
            "num_steps": config.distill.num_steps,
            "images_per_class": config.distill.images_per_class}
  if name == "optimized_real":
    step_size = figures["random_real"]["step_size"]
    sets, _ = baselines.optimized_real(
        seed + _NUM_SETS, images, labels, **layout, num_sets=_NUM_CANDIDATES, num_best=_NUM_SETS,
        score=functools.partial(score, step_size=step_size))
    return sets, step_size
  if name == "average_real":
    sets = [baselines.average_real(images, labels, **layout)]
  else:
    choice = {"random_real": baselines.random_real, "kmeans": baselines.kmeans}[name]
    sets = [choice(seed + i, images, labels, **layout) for i in range(_NUM_SETS)]
  return sets, baselines.search_step_size(functools.partial(score, sets[0]), _STEP_SIZES)[0]


def _make_evaluate(config, described):
  """`evaluate(networks, distilled, images, labels) -> EvalResult` of exactly these networks."""
  @jax.jit
  def evaluate(networks, distilled, images, labels):
    with jax.default_matmul_precision(config.precision):
      return dd_jax.evaluate(
          jax.random.key(0), distilled, inits.these(networks), described.model.apply, images,
          labels, num_inits=jax.tree.leaves(networks)[0].shape[0],
          inner_loss=losses.classification(described.model.apply),
          batch_size=config.eval.batch_size,
          num_parallel=problem.num_parallel(config.eval, on_accelerator=10))

  return evaluate


def _shares(networks, count):
  """The networks split among `count` sets; all of them for every set where they are too few."""
  size = jax.tree.leaves(networks)[0].shape[0]
  if size < count:
    return [networks] * count
  edges = np.linspace(0, size, count + 1).astype(int)
  return [jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], networks)
          for a, b in zip(edges[:-1], edges[1:])]


def _figures(config, results):
  """Mean and standard deviation over the networks of all sets."""
  metrics = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(r.after for r in results))
  values = {"accuracy": np.asarray(metrics.accuracy, np.float64),
            **accuracies.poisoning(config.objective, metrics)}
  return {f"{name}_{suffix}": statistic(value) for name, value in values.items()
          for suffix, statistic in (("mean", np.mean), ("std", accuracies.std))}
