"""Whole runs from the start of their process: seconds and test accuracy over fresh seeds.

    python -m experiments.measurements.time_to_accuracy --seeds=20,21,22,23,24 --out=FILE.json \\
      --command="--config=experiments/configs/mnist_fixed_init.py --config.data.dir=DATA"

Each seed is a process of its own in an empty directory, kept with --workdir=DIR as DIR/seedN, one
after the other; the first one, with the seed before the first, only fills the compilation cache.
Seconds end when the process has: they include its start, compilation from the cache, validation,
the final test, report and pictures.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
import numpy as np

from dd_jax.runs import accuracies
from dd_jax.runs import paths
from dd_jax.runs import workdirs
from experiments import launcher


def run(arguments: list[str], seed: int, keep: str | None = None) -> dict:
  """One run; `keep` is the directory in which its own stays.

  Raises:
    FileExistsError: `keep` has one of this seed.
    ChildProcessError: it fails.
  """
  with tempfile.TemporaryDirectory() as empty:
    workdir = os.path.join(keep or empty, f"seed{seed}")
    if os.path.exists(workdir):
      raise FileExistsError(f"workdir must have no seed{seed} yet; {workdir} is there")
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "experiments.main", *arguments, f"--workdir={workdir}",
         f"--config.seed={seed}"], capture_output=True, text=True)
    seconds = time.monotonic() - started
  if process.returncode:
    raise ChildProcessError(f"seed {seed} ended with {process.returncode}: "
                            f"{process.stderr.strip().splitlines()[-1]}")
  result = json.loads(process.stdout.splitlines()[-1])
  figure = accuracies.names_of(result)[0]
  return {"seed": seed, "seconds": seconds, **{name: result[name] for name in (
      f"{figure}_mean", f"{figure}_std", f"validation_{figure}", "num_eval_inits", "outer_steps",
      "compile_seconds", "seconds_per_outer_step", "sources", "device", "jax_version")}}


def _gflops():
  """Of a float32 product of size 2048, which says how fast the machine was."""
  size = 2048
  matrix = np.ones((size, size), np.float32)
  times = []
  for _ in range(5):
    started = time.perf_counter()
    matrix @ matrix
    times.append(time.perf_counter() - started)
  return 2 * size ** 3 / statistics.median(times) / 1e9


def _measure():
  options = flags.FLAGS
  seeds = launcher.numbers("seeds", options.seeds, int)
  arguments, out = shlex.split(options.command), paths.output(options.out, "--out")
  run(arguments, seeds[0] - 1)
  speeds, runs = [_gflops()], []
  for seed in seeds:
    runs.append(run(arguments, seed, options.workdir))
    speeds.append(_gflops())
    report = {"command": options.command, "matmul_gflops": speeds, **_summary(runs)}
    workdirs.write_json(out, report)  # As far as it has come.
  return report


def _summary(runs):
  (mean,) = (name for name in runs[0] if name.endswith("_mean"))
  seconds, reached = ([row[name] for row in runs] for name in ("seconds", mean))
  return {"runs": runs, "seconds_mean": statistics.mean(seconds), "seconds_worst": max(seconds),
          mean: statistics.mean(reached), mean.replace("_mean", "_worst"): min(reached)}


if __name__ == "__main__":
  flags.DEFINE_list("seeds", None, "Seeds that chose nothing; from 1 on.", required=True)
  flags.DEFINE_string("command", None, "Flags of experiments.main, without --workdir and the seed.",
                      required=True)
  flags.DEFINE_string("out", None, "The JSON file to write.", required=True)
  flags.DEFINE_string("workdir", None, "Directory in which the runs are kept; None: nowhere.")
  launcher.run(_measure)
