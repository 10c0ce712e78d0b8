"""The baselines of a problem: real images at its budget, into a directory."""

import functools
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from dd_jax import baselines
from dd_jax import losses
from dd_jax import parametrization
from dd_jax.evaluation import Plan, evaluate
from dd_jax.init_distributions import given_init
from dd_jax.inner_loop import unroll
from dd_jax.runs import accuracies
from dd_jax.runs import fingerprints
from dd_jax.runs import workdirs
from dd_jax.runs.data import prepared
from dd_jax.runs.problem import Problem
from dd_jax.runs.programs import num_parallel
from dd_jax.runs.provenance import provenance
from dd_jax.runs.settings import Settings, check_seed
from dd_jax.types import DistilledData

_NAMES = ("random_real", "optimized_real", "kmeans", "average_real")
_NUM_SETS = 10  # Sets of a random baseline; each trains its share of the held-out networks.
_NUM_CANDIDATES = 50  # Random sets of which `optimized_real` keeps the best _NUM_SETS.
_NUM_SCORING = 4  # Networks whose mean accuracy scores a set or a step size.
_STEP_SIZES = np.geomspace(1e-3, 1, 13).tolist()


def compare_baselines(problem: Problem, workdir: str | os.PathLike, *, seed: int = 0,
                      read_as: dict[int, int] | None = None, settings: Settings = Settings(),
                      config: dict[str, Any] | None = None) -> dict:
  """Measures every baseline at the problem's budget; returns what baselines.json holds.

  Step sizes and the best random sets are chosen on validation images (a part of the training set)
  and networks of the training distribution: by the accuracy; where there are other figures, by
  their mean.

  Args:
    problem: its distilled data have the same number of images of each class in every step.
    workdir: receives baselines.json.
    seed: of the sets and networks.
    read_as: class -> the class that its images are labelled as, of poisoning.
    settings: its batch_size, num_parallel and precision.
    config: what is compared before it goes on. None: what follows from the arguments.

  Raises:
    ValueError, OSError: an argument that does not fit, or an unusable directory; nothing is
      written.
  """
  started = time.time()
  check_seed("seed", seed)
  shape = jax.eval_shape(lambda: problem.learned.decode(problem.learned.init(jax.random.key(0))))
  config = workdirs.as_json(
      {"seed": seed, "problem": problem.metadata} if config is None else config)
  comparison = _Comparison(problem, shape, read_as or {}, settings)
  with workdirs.held(workdir) as path:
    workdirs.open_workdir(config, path)
    fingerprints.check_workdir(path, problem.made_from)
    if (path / "baselines.json").exists():
      print(f"{path} holds the finished baselines of this config:", file=sys.stderr)
      return json.loads((path / "baselines.json").read_text())
    result = {"baselines": comparison.measure(path, seed),
              "num_eval_inits": problem.num_test_inits,
              "num_distilled_images": comparison.labels.size,
              "wall_seconds": time.time() - started, "data": problem.data.digest,
              **provenance(config, seed)}
    workdirs.write_json(path / "baselines.json", result)
    return result


class _Comparison:
  """What all baselines of a problem share."""

  def __init__(self, problem: Problem, distilled: DistilledData, read_as: dict[int, int],
               settings: Settings):
    self._problem, self._evaluate = problem, _make_evaluate(problem, settings)
    self._num_epochs, num_steps = distilled.step_sizes.shape
    self._layout = {"num_classes": problem.data.num_classes, "num_steps": num_steps,
                    "images_per_class": distilled.labels.shape[1] // problem.data.num_classes}
    labels = np.asarray(parametrization.class_labels(**self._layout))
    for attacked, target in read_as.items():
      labels = np.where(labels == attacked, target, labels).astype(np.int32)
    self.labels = labels
    self._train, validation, test = (prepared(problem.data, split) for split in (
        problem.data.train, problem.data.validation, problem.data.test))
    self._validation, self._test = jax.tree.map(jax.numpy.asarray, (validation, test))

  def measure(self, workdir, seed):
    """The figures of every baseline; a row that lies in the directory is taken from there."""
    problem = self._problem
    score_key, heldout_key, set_key = jax.random.split(jax.random.key(seed + 2 ** 31), 3)
    scoring = problem.inits.validation.sample(
        score_key, min(_NUM_SCORING, problem.num_validation_inits))
    heldout = problem.inits.test.sample(heldout_key, problem.num_test_inits)
    set_seed = int(jax.random.randint(set_key, (), 0, 2 ** 31 - 1 - _NUM_SETS))

    def score(images, step_size):
      metrics = self._evaluate(scoring, self._distilled(images, step_size), *self._validation).after
      figures = problem.figures(metrics) or {"accuracy": metrics.accuracy}
      return float(np.mean(list(figures.values())))

    finished = workdirs.reopen_lines(workdir / "rows.jsonl", "baseline")
    rows = {line.pop("baseline"): line for line in finished}
    for name in _NAMES[len(rows):]:
      sets, step_size = self._sets(name, set_seed, score, rows)
      rows[name] = {**self._figures(sets, step_size, heldout), "step_size": step_size,
                    "num_sets": len(sets)}
      line = {"baseline": name, **rows[name]}
      workdirs.append_line(workdir / "rows.jsonl", line)
      print(json.dumps(line), file=sys.stderr, flush=True)
    return rows

  def _distilled(self, images, step_size):
    return baselines.with_step_size(images, self.labels, step_size=step_size,
                                    num_epochs=self._num_epochs)

  def _sets(self, name, seed, score, rows):
    """The sets `[S, B, H, W, C]` of one baseline and its step size, given those before it."""
    images, labels = self._train
    if name == "optimized_real":
      step_size = rows["random_real"]["step_size"]
      sets, _ = baselines.optimized_real(
          seed + _NUM_SETS, images, labels, **self._layout, num_sets=_NUM_CANDIDATES,
          num_best=_NUM_SETS, score=functools.partial(score, step_size=step_size))
      return sets, step_size
    if name == "average_real":
      sets = [baselines.average_real(images, labels, **self._layout)]
    else:
      choice = {"random_real": baselines.random_real, "kmeans": baselines.kmeans}[name]
      sets = [choice(seed + i, images, labels, **self._layout) for i in range(_NUM_SETS)]
    return sets, baselines.search_step_size(functools.partial(score, sets[0]), _STEP_SIZES)[0]

  def _figures(self, sets, step_size, heldout):
    """Mean and standard deviation over the networks of all sets."""
    results = [self._evaluate(networks, self._distilled(images, step_size), *self._test)
               for images, networks in zip(sets, _shares(heldout, len(sets)), strict=True)]
    metrics = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(r.after for r in results))
    more = self._problem.figures(metrics)
    values = {"accuracy": np.asarray(metrics.accuracy, np.float64), **more}
    if not more:
      values["nearest_neighbor"] = np.array([baselines.nearest_neighbors(
          images, self.labels, *self._test, num_neighbors=1,
          num_classes=self._problem.data.num_classes) for images in sets])
    return {f"{name}_{suffix}": statistic(value) for name, value in values.items()
            for suffix, statistic in (("mean", np.mean), ("std", accuracies.std))}


def _make_evaluate(problem, settings):
  """`evaluate(networks, distilled, inputs, labels) -> EvalResult`: gradient descent of these."""
  train = unroll(losses.classification(problem.apply), memory="plain")

  @jax.jit
  def evaluate_these(networks, distilled, inputs, labels):
    init = given_init(networks)
    with jax.default_matmul_precision(settings.precision):
      return evaluate(
          jax.random.key(0), distilled, init, train, problem.apply, inputs, labels,
          num_inits=jax.tree.leaves(networks)[0].shape[0], plan=Plan(
              num_parallel(settings.num_parallel, on_accelerator=10), settings.batch_size))

  return evaluate_these


def _shares(networks, count):
  """The networks split among `count` sets; all of them for every set where they are too few."""
  size = jax.tree.leaves(networks)[0].shape[0]
  if size < count:
    return [networks] * count
  edges = np.linspace(0, size, count + 1).astype(int)
  return [jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], networks)
          for a, b in zip(edges[:-1], edges[1:])]
