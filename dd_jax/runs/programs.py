"""From a problem to the programs of its run, laid out over the devices."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import optax

from dd_jax.distillation import make_outer_loop, run_outer_steps
from dd_jax.evaluation import Plan, evaluate
from dd_jax.hypergradient import make_outer_loss
from dd_jax.runs import layouts
from dd_jax.runs.layouts import Layout
from dd_jax.runs.problem import Inits, Problem
from dd_jax.runs.settings import Settings
from dd_jax.types import DistilledData, OuterState

_KEYS = ("init", "images", "outer", "validation", "test", "warm")


class Programs(NamedTuple):
  """What a run calls; everything lies on its devices."""
  layout: Layout
  inits: Inits
  data: dict[str, Any]  # Split -> (inputs, labels).
  state: OuterState  # Before the first outer step.
  decode: Callable[[Any], DistilledData]
  run: Any  # run(state, inits.train.state, *train) -> (state, infos [log_every])
  validate: Any  # validate(distilled, inits.validation.state, *validation) -> EvalResult
  test: Any  # test(distilled, inits.test.state, *test) -> EvalResult


def make_programs(problem: Problem, *, num_steps: int, seed: int, settings: Settings,
                  layout: Layout | None = None) -> Programs:
  """Lays the problem out, and checks the whole run by tracing it.

  Raises:
    ValueError: whatever of the problem, the settings or the devices does not fit.
  """
  settings.check(num_steps, seed)
  keys = make_keys(seed)
  layout = layouts.of_devices(settings.parallel, problem.num_inits) if layout is None else layout
  inits = Inits(layout.place_train_init(problem.inits.train),
                *map(layout.place_test_init, problem.inits[1:]))
  data = {split: layout.place(getattr(problem.data, split))
          for split in ("train", "validation", "test")}
  outer_init, outer_train = inits.train, problem.outer_train or problem.train
  if problem.warm is not None:
    outer_init, outer_train = problem.warm.init, problem.warm.train
  outer_loss = make_outer_loss(
      problem.learned.decode, outer_init, outer_train, problem.real_loss,
      num_inits=problem.num_inits, chunk_size=problem.chunk_size, split=layout.split,
      num_parallel=num_parallel(problem.num_parallel, on_accelerator=None))
  # The scale is a part of the state, so that a run which has halved it continues with it.
  scale = optax.inject_hyperparams(lambda rate_scale: optax.scale(rate_scale))(rate_scale=1.0)

  def carry_on(key, pool, init_state, trainable):
    return problem.warm.carry_on(key, pool, init_state, problem.learned.decode(trainable))

  optimizer = (problem.optimizer(num_steps) if callable(problem.optimizer) else
               problem.optimizer)
  loop = make_outer_loop(outer_loss, optax.chain(optimizer, scale), augment=problem.augment,
                         carry_on=None if problem.warm is None else carry_on)
  precise = functools.partial(_with_precision, precision=settings.precision)

  @precise
  def begin():
    trainable = problem.learned.init(keys["images"])
    carry = () if problem.warm is None else problem.warm.begin(
        keys["warm"], inits.train.state, problem.learned.decode(trainable))
    return loop.init(trainable, carry)

  @precise
  def run(state, init_state, inputs, labels):
    return run_outer_steps(loop.step, keys["outer"], state, init_state, inputs, labels,
                           batch_size=problem.batch_size, num_steps=settings.log_every,
                           stop=num_steps)

  def test_on(key, init, num_inits):
    @precise
    def test(distilled, init_state, inputs, labels):
      return evaluate(
          key, distilled, init._replace(state=init_state), problem.train, problem.apply, inputs,
          labels, num_inits=num_inits, plan=Plan(
              num_parallel(settings.num_parallel, on_accelerator=10), settings.batch_size,
              layout.spread))
    return jax.jit(test)

  programs = Programs(
      layout, inits, data, layout.place(begin()), problem.learned.decode,
      run=layout.compile_run(run),
      validate=test_on(keys["validation"], inits.validation, problem.num_validation_inits),
      test=test_on(keys["test"], inits.test, problem.num_test_inits))
  # Tracing meets every rule of the library before anything is written.
  distilled = programs.decode(programs.state.trainable)
  jax.eval_shape(programs.run, programs.state, inits.train.state, *data["train"])
  jax.eval_shape(programs.validate, distilled, inits.validation.state, *data["validation"])
  jax.eval_shape(programs.test, distilled, inits.test.state, *data["test"])
  return programs


def make_keys(seed: int) -> dict[str, jax.Array]:
  """The keys of a run, by what consumes them."""
  return dict(zip(_KEYS, jax.random.split(jax.random.key(seed), len(_KEYS))))


def num_parallel(given: int | None, *, on_accelerator: int | None) -> int | None:
  """Networks side by side: as given, else one on a CPU."""
  return given or (1 if jax.default_backend() == "cpu" else on_accelerator)


def _with_precision(function, precision):
  """One rule for training, warm starts and evaluation alike."""
  @functools.wraps(function)
  def precise(*args):
    with jax.default_matmul_precision(precision):
      return function(*args)

  return precise
