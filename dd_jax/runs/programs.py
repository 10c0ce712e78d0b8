"""From a problem to the programs of its run, laid out over the devices."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import optax

from dd_jax.distillation import make_outer_loop, run_on_minibatches, run_outer_steps
from dd_jax.evaluation import Plan, count_networks, draw_networks, evaluate_networks, train_networks
from dd_jax.hypergradient import make_outer_loss
from dd_jax.runs import checkpoints
from dd_jax.runs import feeds
from dd_jax.runs import layouts
from dd_jax.runs.bound import Bound, Evaluation, FedEvaluation, FedSteps
from dd_jax.runs.data import on_host, read_all
from dd_jax.runs.layouts import Layout
from dd_jax.runs.problem import Problem
from dd_jax.runs.settings import Settings
from dd_jax.types import DistilledData, OuterState

_KEYS = ("init", "images", "outer", "validation", "test", "warm")
_GROUP = 10  # Held-out networks of a device that are tested before a signal is looked at.


class Programs(NamedTuple):
  """What a run calls, each with the data that it goes through."""
  layout: Layout
  state: OuterState  # Before the first outer step.
  begin: Callable[[int], OuterState]  # The same, of a start; `state` is that of start 0.
  decode: Callable[[Any], DistilledData]
  steps: Bound  # steps(state) -> (state, infos [log_every]).
  validate: Evaluation | FedEvaluation  # validate(distilled) -> EvalResult.
  test: Evaluation | FedEvaluation  # test(distilled) -> EvalResult.


def make_programs(problem: Problem, *, num_steps: int, seed: int, settings: Settings,
                  layout: Layout | None = None) -> Programs:
  """Lays the problem out, and checks the whole run by tracing it.

  Raises:
    ValueError: whatever of the problem, the settings or the devices does not fit.
  """
  settings.check(num_steps, seed)
  keys = make_keys(seed)
  layout = layouts.of_devices(settings.parallel, problem.num_inits) if layout is None else layout
  building = _Building(problem, settings, num_steps, keys, layout)
  init = layout.place_train_init(problem.inits.train)
  loop = building.loop(init)

  def begin(start):
    return layout.place(building.precise(building.begin)(loop, init.state, start))

  state = begin(0)
  _check_starts(begin, settings.num_starts)
  programs = Programs(
      layout, state, begin, problem.learned.decode, building.steps(loop, init.state),
      building.evaluation("validation", problem.num_validation_inits,
                          group_size=problem.num_validation_inits),
      building.evaluation("test", problem.num_test_inits, group_size=min(
          problem.num_test_inits, max(_GROUP, settings.num_parallel or 0) * jax.device_count())))
  # Tracing meets every rule of the library before anything is written.
  distilled = programs.decode(state.trainable)
  programs.steps.trace(state)
  programs.validate.trace(distilled)
  programs.test.trace(distilled)
  return programs


class _Building(NamedTuple):
  """What the programs of one run have in common."""
  problem: Problem
  settings: Settings
  num_steps: int
  keys: dict[str, jax.Array]
  layout: Layout

  def precise(self, function):
    """One rule for training, warm starts and evaluation alike."""
    @functools.wraps(function)
    def in_precision(*args):
      with jax.default_matmul_precision(self.settings.precision):
        return function(*args)

    return in_precision

  def loop(self, init):
    """The outer loop, with networks of the init."""
    problem = self.problem
    outer_init, outer_train = init, problem.outer_train or problem.train
    if problem.warm is not None:
      outer_init, outer_train = problem.warm.init, problem.warm.train
    outer_loss = make_outer_loss(
        problem.learned.decode, outer_init, outer_train, problem.real_loss,
        num_inits=problem.num_inits, chunk_size=problem.chunk_size, split=self.layout.split,
        num_parallel=num_parallel(problem.num_parallel, on_accelerator=None))
    # The scale is a part of the state, so that a run which has halved it continues with it.
    scale = optax.inject_hyperparams(lambda rate_scale: optax.scale(rate_scale))(rate_scale=1.0)
    optimizer = (problem.optimizer(self.num_steps) if callable(problem.optimizer) else
                 problem.optimizer)

    def carry_on(key, pool, init_state, trainable):
      return problem.warm.carry_on(key, pool, init_state, problem.learned.decode(trainable))

    return make_outer_loop(outer_loss, optax.chain(optimizer, scale), augment=problem.augment,
                           carry_on=None if problem.warm is None else carry_on)

  def begin(self, loop, init_state, start):
    """The state before the first outer step."""
    problem, key = self.problem, self.keys["images"]
    trainable = problem.learned.init(jax.random.fold_in(key, start) if start else key)
    carry = () if problem.warm is None else problem.warm.begin(
        self.keys["warm"], init_state, problem.learned.decode(trainable))
    return loop.init(trainable, carry)

  def place_key(self, consumer):
    """The data of a key: an argument, so that runs of other seeds find their programs compiled."""
    return self.layout.place(jax.random.key_data(self.keys[consumer]))

  def examples(self, split):
    """Those of a split on the host, in memory unless they are streamed."""
    stays = self.settings.storage == "stream"
    return (on_host if stays else read_all)(getattr(self.problem.data, split))

  def steps(self, loop, init_state):
    """`log_every` outer steps, on data that lie where the settings say."""
    settings, layout, batch_size = self.settings, self.layout, self.problem.batch_size
    preparation, examples = self.problem.data.preparation, self.examples("train")
    arguments = self.place_key("outer"), init_state, layout.place(preparation.state)
    options = {"stop": self.num_steps}

    def step_with(prepared_by):
      def step(key, state, init_state, inputs, labels):
        inputs, labels = layout.whole((inputs, labels))
        return loop.step(key, state, init_state, preparation.apply(prepared_by, inputs), labels)

      return step

    def run(state, key_data, init_state, prepared_by, inputs, labels):
      return run_outer_steps(
          step_with(prepared_by), jax.random.wrap_key_data(key_data), state, init_state, inputs,
          labels, batch_size=batch_size, num_steps=settings.log_every, **options)

    def run_on(state, key_data, init_state, prepared_by, numbers, inputs, labels):
      return run_on_minibatches(
          step_with(prepared_by), jax.random.wrap_key_data(key_data), state, init_state, numbers,
          inputs, labels, **options)

    if settings.storage == "device":
      return Bound(layout.compile_run(self.precise(run)),
                   (*arguments, *layout.place(examples)))
    share, size = layout.share(batch_size), feeds.steps_per_piece(
        examples, batch_size, settings.log_every)
    pieces = feeds.Pieces(examples, self.keys["outer"], batch_size=batch_size, size=size,
                          num_steps=self.num_steps, chosen=share.chosen,
                          stream=settings.storage == "stream")
    return FedSteps(layout.compile_run(self.precise(run_on)), arguments, pieces, share.put,
                    settings.log_every // size)

  def evaluation(self, split, num_inits, *, group_size):
    """`distilled -> EvalResult` of the split's networks on its examples."""
    problem, settings, layout = self.problem, self.settings, self.layout
    init, examples = layout.place_test_init(getattr(problem.inits, split)), self.examples(split)
    given = self.place_key(split), init.state, layout.place(problem.data.preparation.state)

    def of(key_data, init_state, prepared_by):
      return jax.random.wrap_key_data(key_data), init._replace(state=init_state), Plan(
          num_parallel(settings.num_parallel, on_accelerator=10), settings.batch_size,
          layout.spread, functools.partial(problem.data.preparation.apply, prepared_by))

    def evaluate_group(distilled, start, key_data, init_state, prepared_by, inputs, labels):
      key, init, plan = of(key_data, init_state, prepared_by)
      if problem.data.preparation.costly:
        inputs, plan = plan.prepare(inputs), plan._replace(prepare=None)
      networks = jax.tree.map(
          lambda x: jax.lax.dynamic_slice_in_dim(x, start, group_size),
          draw_networks(key, init, num_inits))
      return evaluate_networks(key, distilled, init, problem.train, problem.apply, networks, inputs,
                               labels, plan=plan)

    if settings.storage == "device":
      return Evaluation(layout.compile(self.precise(evaluate_group)),
                        (*given, *layout.place(examples)), num_inits, group_size)

    def draw(given):
      key, init, _ = of(*given)
      return draw_networks(key, init, num_inits)

    def train(distilled, given, networks):
      key, init, plan = of(*given)
      return train_networks(key, distilled, init, problem.train, networks, plan=plan)

    def count_both(both, given, inputs, labels):
      return count_networks(problem.apply, both, inputs, labels, num_examples=len(examples[1]),
                            plan=of(*given)[-1])

    return FedEvaluation(
        *(layout.compile(self.precise(function)) for function in (draw, train, count_both)),
        given, examples, layout.place, settings.batch_size, settings.storage == "stream")


def _check_starts(begin, num_starts):
  """A ValueError where several starts were one, as the key of the images changes nothing."""
  if num_starts > 1 and checkpoints.digest(begin(0).trainable) == checkpoints.digest(
      begin(1).trainable):
    raise ValueError("num_starts must be 1 where the distilled data start at given values; "
                     f"got {num_starts}")


def make_keys(seed: int) -> dict[str, jax.Array]:
  """The keys of a run, by what consumes them."""
  return dict(zip(_KEYS, jax.random.split(jax.random.key(seed), len(_KEYS))))


def num_parallel(given: int | None, *, on_accelerator: int | None) -> int | None:
  """Networks side by side: as given, else one on a CPU."""
  if given is not None:
    return given
  return 1 if jax.default_backend() == "cpu" else on_accelerator
