"""Outer steps per second against the number of devices: 1, 2, 4, ... of those there are.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.measurements.devices \\
      --config=experiments/configs/mnist_random_init.py --config.data.dir=DATA \\
      --config.outer.num_inits=8 --workdir=DIR

Every number of devices takes the same outer steps in turn; the median counts. Each row of
DIR/devices.json also says what its compiled outer step communicates: calls and bytes of each kind
of collective. Forced CPU devices share the cores of the machine: with them the seconds show only
that every layout works.
"""

import collections
import json
import math
import os
import re
import statistics
import time

from absl import flags
from ml_collections import ConfigDict

from experiments import launcher
from experiments.configs import default

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each number of devices takes.",
                               lower_bound=1)
_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
_ARRAY = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")


def measure(config: ConfigDict, rounds: int) -> list[dict]:
  """A row for each number of devices, of `rounds` dispatches of `config.log_every` outer steps."""
  import jax

  from dd_jax.runs import layouts
  from dd_jax.runs import programs
  from experiments import problem
  devices = jax.devices()
  described, settings = problem.make_problem(config), problem.make_settings(config)
  rows, runs = [], []
  for count in (2 ** power for power in range(len(devices).bit_length())):
    layout = (layouts.one_device() if count == 1 else
              layouts.jit_over_mesh(config.outer.num_inits, devices[:count]))
    built = programs.make_programs(described, num_steps=config.outer.num_steps, seed=config.seed,
                                   settings=settings, layout=layout)
    program = built.steps.lower(built.state).compile()
    state, _ = program(built.state)
    runs.append((program, state))
    rows.append({"devices": count, "communicated": communicated(program.as_text())})
  seconds = [[] for _ in runs]
  for _ in range(rounds):
    for index, (program, state) in enumerate(runs):
      start = time.perf_counter()
      state, _ = jax.block_until_ready(program(state))
      seconds[index].append(time.perf_counter() - start)
      runs[index] = program, state
  for row, measured in zip(rows, seconds):
    row["outer_steps_per_second"] = config.log_every / statistics.median(measured)
  return rows


def communicated(program: str) -> dict[str, dict[str, int]]:
  """Collectives in the text of a compiled program: calls and bytes received, by kind."""
  totals = collections.defaultdict(lambda: {"calls": 0, "bytes": 0})
  for shapes, kind, begun in _COLLECTIVE.findall(program):
    arrays = [int(bits) // 8 * math.prod(int(size) for size in sizes.split(",") if size)
              for bits, sizes in _ARRAY.findall(shapes)]
    if begun and kind == "all-gather":  # What is sent comes first, then what is received.
      arrays = arrays[len(arrays) // 2:]
    if begun and kind == "collective-permute":  # Two counters of some backends come last.
      arrays = arrays[1:2] or arrays
    totals[kind]["calls"] += 1
    totals[kind]["bytes"] += sum(arrays)
  return dict(totals)


def _run(config, workdir):
  from dd_jax.runs import workdirs
  from dd_jax.runs.provenance import provenance
  with workdirs.held(workdir) as workdir:
    rows = measure(config, _ROUNDS.value)
    report = {"rows": rows, "rounds": _ROUNDS.value, "cpu_cores": os.cpu_count(),
              **provenance(json.loads(config.to_json()), config.seed)}
    workdirs.write_json(workdir / "devices.json", report)
  return report


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
