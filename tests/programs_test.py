"""The programs of a run: the precision they compute in, and what of the state leaves the device."""

import re

import jax
import numpy as np
import pytest

import dd_jax
from dd_jax import parametrization
from dd_jax import runs
from dd_jax.runs import machine
from dd_jax.runs import layouts
from dd_jax.runs import loop
from dd_jax.runs.programs import make_programs
from tests import small_runs

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.mark.parametrize("precision", [
    "highest", pytest.param("default", marks=pytest.mark.slow)])
def test_training_warm_starts_and_evaluation_have_the_precision_of_the_settings(precision):
  problem = small_runs.problem(num_steps=2, init="random")._replace(
      num_inits=2, num_validation_inits=2, num_test_inits=2)
  warm = dd_jax.warm_start(problem.inits.train, problem.train, size=3, length=2, num_inits=2)
  begun_in = []

  def begin(*args):
    begun_in.append(jax.config.jax_default_matmul_precision)
    return warm.begin(*args)

  programs = make_programs(
      problem._replace(warm=warm._replace(begin=begin)), num_steps=4, seed=0,
      settings=small_runs.SETTINGS._replace(precision=precision))
  assert begun_in == [precision]
  distilled = programs.decode(programs.state.trainable)
  for program, first in ((programs.steps, programs.state), (programs.validate, distilled),
                         (programs.test, distilled)):
    text = program.lower(first).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    found = {re.search(r"precision = \[(\w+, \w+)\]", product)[1] for product in products}
    assert len(products) >= 4 and found == {f"{precision.upper()}, {precision.upper()}"}


@pytest.mark.parametrize("init", ["fixed", "random"])
def test_runs_of_other_seeds_find_their_programs_compiled(init):
  """No key is a constant of a program."""
  texts = []
  for seed in (0, 1):
    programs = make_programs(small_runs.problem(init=init), num_steps=4, seed=seed,
                             settings=small_runs.SETTINGS)
    distilled = programs.decode(programs.state.trainable)
    texts.append([program.lower(first).as_text() for program, first in (
        (programs.steps, programs.state), (programs.validate, distilled),
        (programs.test, distilled))])
  assert texts[0] == texts[1]


def test_the_state_leaves_the_device_for_checkpoints_validation_and_snapshots_alone(
    tmp_path, monkeypatch):
  problem, num_steps = small_runs.problem(), 48
  size = parametrization.num_bytes(jax.eval_shape(problem.learned.init, jax.random.key(0)))
  fetched = {0: []}  # Outer step -> bytes of what is fetched behind it.

  def to_host(tree, original=layouts.to_host):
    found = original(tree)
    if isinstance(tree, jax.Array):  # Of every dispatch, the number of its last step.
      fetched[int(found)] = []
    else:
      fetched[max(fetched)].append(sum(leaf.nbytes for leaf in jax.tree.leaves(found)))
    return found

  monkeypatch.setattr(layouts, "to_host", to_host)
  settings = small_runs.SETTINGS._replace(log_every=1, validate_every=16, checkpoint_every=12)
  programs = make_programs(problem, num_steps=num_steps, seed=0, settings=settings)
  loop.run_outer_loop(loop.Run(problem, programs, settings, num_steps, 0, {}, tmp_path))
  assert list(fetched) == list(range(num_steps + 1))
  whole = {step for step, sizes in fetched.items() if max(sizes, default=0) >= size}
  assert whole - {0} == {*range(16, 49, 16), *range(12, 49, 12), *range(6, 49, 6)}


@pytest.mark.parametrize("warm", [False, True])
def test_a_pool_shared_over_a_mesh_gives_the_same(warm):
  """On a mesh of one device here; the shares of several are tested in parallel_test."""
  problem = small_runs.problem(init="random", num_steps=2)
  pool = dd_jax.pretrained_init(problem.inits.train.sample(jax.random.key(3), 5))
  problem = problem._replace(inits=runs.Inits(pool, pool, pool), num_inits=2,
                             num_validation_inits=2, num_test_inits=3)
  if warm:
    problem = problem._replace(
        warm=dd_jax.warm_start(pool, problem.train, size=3, length=2, num_inits=2))
  found = []
  for layout in (layouts.one_device(), layouts.jit_over_mesh(2)):
    programs = make_programs(problem, num_steps=2, seed=0, settings=small_runs.SETTINGS,
                             layout=layout)
    state, _ = programs.steps(programs.state)
    found.append(layouts.to_host((state, programs.test(programs.decode(state.trainable)))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.slow
def test_a_program_of_pmap_compiles_in_stages_as_others_do():
  """On one device here: it is lowered, asked for its memory and run as `loop` does with it."""
  problem, options = small_runs.problem(), {
      "num_steps": 2, "seed": 0, "settings": small_runs.SETTINGS}
  states = []
  for layout in (layouts.one_device(), layouts.pmap_over_devices(1)):
    built = make_programs(problem, **options, layout=layout)
    compiled = built.steps.lower(built.state).compile()
    assert machine.program_bytes(compiled) > 0
    states.append(layouts.to_host(compiled(built.state)[0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states)
