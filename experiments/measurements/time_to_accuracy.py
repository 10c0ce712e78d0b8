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
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
import numpy as np

from experiments import launcher


def run(arguments: list[str], seed: int, keep: str | None = None) -> dict:
  """One run; `keep` is the directory in which its own stays. ChildProcessError where it fails."""
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
  return {"seed": seed, "seconds": seconds, **{name: result[name] for name in (
      "accuracy_mean", "accuracy_std", "validation_accuracy", "num_eval_inits", "outer_steps",
      "compile_seconds", "seconds_per_outer_step", "sources", "device", "jax_version")}}


def _gflops(size=2048):
  """Of a float32 product, which says how fast the machine was."""
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
  arguments = shlex.split(options.command)
  run(arguments, seeds[0] - 1)
  speeds, runs = [_gflops()], []
  for seed in seeds:
    runs.append(run(arguments, seed, options.workdir))
    speeds.append(_gflops())
    report = {"command": options.command, "matmul_gflops": speeds, **_summary(runs)}
    pathlib.Path(options.out).write_text(json.dumps(report, indent=2))  # As far as it has come.
  return report


def _summary(runs):
  seconds, accuracies = ([row[name] for row in runs] for name in ("seconds", "accuracy_mean"))
  return {"runs": runs, "seconds_mean": statistics.mean(seconds), "seconds_worst": max(seconds),
          "accuracy_mean": statistics.mean(accuracies), "accuracy_worst": min(accuracies)}


if __name__ == "__main__":
  flags.DEFINE_list("seeds", None, "Seeds that chose nothing; from 1 on.", required=True)
  flags.DEFINE_string("command", None, "Flags of experiments.main, without --workdir and the seed.",
                      required=True)
  flags.DEFINE_string("out", None, "The JSON file to write.", required=True)
  flags.DEFINE_string("workdir", None, "Directory in which the runs are kept; None: nowhere.")
  launcher.run(_measure)
