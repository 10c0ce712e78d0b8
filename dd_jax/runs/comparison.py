"""The baselines of a problem: real images at its budget, into a directory."""

from collections.abc import Sequence
import functools
import os
import time
from typing import Any

import jax
import numpy as np
import optax

from dd_jax import baselines
from dd_jax import losses
from dd_jax import parametrization
from dd_jax.evaluation import Plan, TargetMetrics, evaluate
from dd_jax.init_distributions import given_init
from dd_jax.inner_loop import unroll
from dd_jax.pretraining import minibatches
from dd_jax.runs import accuracies
from dd_jax.runs import once
from dd_jax.runs import workdirs
from dd_jax.runs.data import prepared
from dd_jax.runs.problem import Problem, told_apart
from dd_jax.runs.programs import num_parallel
from dd_jax.runs.settings import Settings, check_positive, check_seed
from dd_jax.types import DistilledData

_NAMES = ("random_real", "optimized_real", "kmeans", "average_real")
_NUM_SETS = 10  # Sets of a random baseline; each trains its share of the held-out networks.
_NUM_CANDIDATES = 50  # Random sets of which `optimized_real` keeps the best _NUM_SETS.
_NUM_REAL = 20  # Networks, at most, that are trained on all real examples.
_REAL_BATCH_SIZE = 64
_NUM_SCORING = 4  # Networks whose mean accuracy scores a set or a step size.
_STEP_SIZES = np.geomspace(1e-3, 1, 13).tolist()


def compare_baselines(problem: Problem, workdir: str | os.PathLike, *, seed: int = 0,
                      read_as: dict[int, int] | None = None, real_epochs: Sequence[int] = (),
                      settings: Settings = Settings(), config: dict[str, Any] | None = None
                      ) -> dict:
  """Measures every baseline at the problem's budget; returns what baselines.json holds.

  Step sizes, epochs and the best random sets are chosen on validation examples (a part of the
  training set) and networks of the training distribution, by `problem.figures.choosing`.

  Args:
    problem: its distilled data have the same number of images of each class in every step.
    workdir: receives baselines.json.
    seed: of the sets and networks.
    read_as: class -> the class that its images are labelled as, of poisoning.
    real_epochs: how long networks may be trained by Adam on all real examples, beside the baselines
      of the budget; one is chosen.
    settings: its batch_size, num_parallel and precision.
    config: what is compared before it goes on. None: what follows from the arguments.

  Raises:
    ValueError, OSError: an argument that does not fit, or an unusable directory; nothing is
      written.
  """
  started = time.monotonic()
  check_seed("seed", seed)
  shape = jax.eval_shape(lambda: problem.learned.decode(problem.learned.init(jax.random.key(0))))
  config = workdirs.as_json({
      **({**told_apart(problem), "read_as": read_as, "settings": settings._asdict()}
         if config is None else config), "seed": seed,
      **({"real_epochs": list(real_epochs)} if real_epochs else {})})
  for num_epochs in real_epochs:
    check_positive("--real_epochs", num_epochs)
  comparison = _Comparison(problem, shape, read_as or {}, settings, real_epochs)
  comparison.check()

  def work(path):
    rows, earlier = comparison.measure(path / "rows.jsonl", seed)
    return {"baselines": rows, "num_eval_inits": problem.num_test_inits,
            "num_distilled_images": comparison.size, "data": problem.data.digest}, earlier

  return once.result_of(work, workdir, "baselines.json", config=config,
                        made_from=problem.made_from, started=started)


class _Comparison:
  """What all baselines of a problem share."""

  def __init__(self, problem: Problem, distilled: DistilledData, read_as: dict[int, int],
               settings: Settings, real_epochs: Sequence[int]):
    self._problem, self._settings, self._real_epochs = problem, settings, real_epochs
    self._loss = losses.LOSSES[problem.data.objective](problem.apply)
    self._evaluate = _make_evaluate(problem, settings, unroll(self._loss, memory="plain"))
    self._num_epochs, num_steps = distilled.step_sizes.shape
    self.size, of_targets = distilled.labels.shape[0] * distilled.labels.shape[1], (
        problem.data.targets is not None)
    num_classes = 1 if of_targets else problem.data.num_classes
    if distilled.labels.shape[1] % num_classes:
      raise ValueError("baselines need as many images of each class in a step, B divisible by the "
                       f"{num_classes} classes; got B={distilled.labels.shape[1]}")
    self._layout = {"num_classes": num_classes, "num_steps": num_steps,
                    "images_per_class": distilled.labels.shape[1] // num_classes}
    self._train, validation, test = (prepared(problem.data, split) for split in (
        problem.data.train, problem.data.validation, problem.data.test))
    self._validation, self._test = jax.tree.map(jax.numpy.asarray, (validation, test))
    inputs, labels = self._train
    # Targets are chosen, clustered and averaged with their inputs, as examples of one class.
    self._examples = ({"inputs": inputs, "labels": labels}, np.zeros(len(labels), np.int32)
                      ) if of_targets else ({"inputs": inputs}, labels)
    self._read_as = read_as
    self._labels = None if of_targets else self._as_read(
        np.asarray(parametrization.class_labels(**self._layout)))

  def check(self):
    """Meets every rule of sets and programs, and computes no network."""
    problem = self._problem
    examples = baselines.random_real(0, *self._examples, **self._layout)
    for init, number, split in (
        (problem.inits.validation, problem.num_validation_inits, self._validation),
        (problem.inits.test, problem.num_test_inits, self._test)):
      networks = jax.eval_shape(lambda init=init, number=number: init.sample(
          jax.random.key(0), number))
      jax.eval_shape(self._evaluate, networks, self._distilled(examples, _STEP_SIZES[0]), *split)

  def measure(self, path, seed):
    """The figures of every baseline by its name, and the seconds of rows that lay in the file."""
    problem = self._problem
    score_key, heldout_key, set_key = jax.random.split(jax.random.key(seed + 2 ** 31), 3)
    scoring = problem.inits.validation.sample(
        score_key, min(_NUM_SCORING, problem.num_validation_inits))
    heldout = problem.inits.test.sample(heldout_key, problem.num_test_inits)
    set_seed = int(jax.random.randint(set_key, (), 0, 2 ** 31 - 1 - _NUM_SETS))

    def score(examples, step_size):
      metrics = self._evaluate(scoring, self._distilled(examples, step_size),
                               *self._validation).after
      return accuracies.chosen_by(problem.figures.of(metrics), problem.figures)

    rest = {**({"all_real": lambda: self._all_real(scoring, heldout)} if self._real_epochs else {}),
            **({"boosted_trees_all_real": lambda: self._trees(*self._train),
                "boosted_trees_random_real": lambda: self._trees_on_random(set_seed)}
               if self._is_table() else {})}

    def measure_one(rows, name):
      if name in rest:
        return {"baseline": name, **rest[name]()}
      sets, step_size = self._sets(name, set_seed, score, rows)
      return {"baseline": name, **self._figures(sets, step_size, heldout),
              "step_size": step_size, "num_sets": len(sets)}

    rows, earlier = once.rows_of(
        [functools.partial(measure_one, name=name) for name in (*_NAMES, *rest)], path)
    return {row["baseline"]: {field: value for field, value in row.items()
                              if field not in ("baseline", "seconds")} for row in rows}, earlier

  def _distilled(self, examples, step_size):
    return baselines.with_step_size(
        examples["inputs"], examples.get("labels", self._labels), step_size=step_size,
        num_epochs=self._num_epochs)

  def _as_read(self, labels):
    """Of a poisoning the target class instead of the attacked one."""
    for attacked, target in self._read_as.items():
      labels = np.where(labels == attacked, target, labels).astype(np.int32)
    return labels

  def _sets(self, name, seed, score, rows):
    """The sets `[S, B, ...]` of one baseline and its step size, given those before it."""
    if name == "optimized_real":
      (step_size,) = (row["step_size"] for row in rows if row["baseline"] == "random_real")
      sets, _ = baselines.optimized_real(
          seed + _NUM_SETS, *self._examples, **self._layout, num_sets=_NUM_CANDIDATES,
          num_best=_NUM_SETS, score=functools.partial(score, step_size=step_size))
      return sets, step_size
    if name == "average_real":
      sets = [baselines.average_real(*self._examples, **self._layout)]
    else:
      choice = {"random_real": baselines.random_real, "kmeans": baselines.kmeans}[name]
      sets = [choice(seed + i, *self._examples, **self._layout) for i in range(_NUM_SETS)]
    return sets, baselines.search_step_size(functools.partial(score, sets[0]), _STEP_SIZES)[0]

  def _figures(self, sets, step_size, heldout):
    """Mean and standard deviation over the networks of all sets."""
    results = [self._evaluate(networks, self._distilled(examples, step_size), *self._test)
               for examples, networks in zip(sets, _shares(heldout, len(sets)), strict=True)]
    values = self._problem.figures.of(
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *(r.after for r in results)))
    if [*values] == ["accuracy"]:
      values["nearest_neighbor"] = np.array([baselines.nearest_neighbors(
          examples["inputs"], self._labels, *self._test, num_neighbors=1,
          num_classes=self._problem.data.num_classes) for examples in sets])
    return _moments(values)

  def _all_real(self, scoring, heldout):
    """Networks trained by Adam on all real examples, as long as validation chooses."""
    inputs, labels = jax.tree.map(lambda x: jax.numpy.asarray(x)[None], self._train)
    distilled = DistilledData(inputs, self._as_read(labels), jax.numpy.ones((1, 1)))
    programs = {num_epochs: _make_evaluate(self._problem, self._settings, minibatches(
        self._loss, optax.adam(1e-3), num_epochs=num_epochs,
        batch_size=min(_REAL_BATCH_SIZE, labels.shape[1]))) for num_epochs in self._real_epochs}
    figures = self._problem.figures
    scores = {num_epochs: accuracies.chosen_by(figures.of(
        program(scoring, distilled, *self._validation).after), figures)
              for num_epochs, program in programs.items()}
    best = max(scores, key=scores.get)
    networks = jax.tree.map(lambda leaf: leaf[:_NUM_REAL], heldout)
    return {**_moments(figures.of(programs[best](networks, distilled, *self._test).after)),
            "num_epochs": best, "num_networks": jax.tree.leaves(networks)[0].shape[0]}

  def _is_table(self):
    return isinstance(self._train[0], np.ndarray) and self._train[0].ndim == 2

  def _trees(self, inputs, labels):
    """What gradient-boosted trees make of such rows."""
    test_inputs, test_labels = map(np.asarray, self._test)
    found = baselines.boosted_trees(inputs, labels, test_inputs)
    if self._problem.data.targets is None:
      return _moments({"accuracy": np.array([np.mean(found == test_labels)])})
    error = ((found - test_labels) ** 2).mean(0)
    metrics = TargetMetrics(error.sum(keepdims=True), np.array(
        [(1 - error / test_labels.var(0)).mean()]), np.sqrt(error)[None])
    return _moments(self._problem.figures.of(metrics))

  def _trees_on_random(self, seed):
    found = []
    for i in range(_NUM_SETS):
      examples = baselines.random_real(seed + i, *self._examples, **self._layout)
      labels = examples.get("labels", self._labels)
      found.append(self._trees(*(x.reshape(-1, *x.shape[2:]) for x in (
          examples["inputs"], labels))))
    names = [name for name in found[0] if name.endswith("_mean")]
    return _moments({name.removesuffix("_mean"): np.array([row[name] for row in found])
                     for name in names})


def _moments(values):
  return {f"{name}_{suffix}": statistic(value) for name, value in values.items()
          for suffix, statistic in (("mean", np.mean), ("std", accuracies.std))}


def _make_evaluate(problem, settings, train):
  """`evaluate(networks, distilled, inputs, labels) -> EvalResult`: training of these."""
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
