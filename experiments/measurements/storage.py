"""Outer steps per second with the data on the device, in memory and in files; memory of large data.

    python -m experiments.measurements.storage --workdir=DIR --gigabytes=4 \\
      --config=experiments/configs/mnist_random_init.py --config.data.name=FOLDER/ \\
      --config.outer.num_inits=4 --config.outer.batch_size=256

FOLDER holds the set as .npy files, so that it can be read as a run goes. Every storage takes the
same outer steps in turn; the median counts, and all must lead to the same state. With --gigabytes
a set of that size is written into DIR, random 32x32 RGB images, and a run of a few steps streams
it; its row is the peak memory of that process.
"""

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

from absl import flags
import ml_collections
import numpy as np

from experiments import launcher
from experiments.configs import default

_TURNS = flags.DEFINE_integer("turns", 5, "Of each storage.", lower_bound=1)
_GIGABYTES = flags.DEFINE_float("gigabytes", 0., "Of the set that is streamed; 0: none.",
                                lower_bound=0.)

_LARGE_SHAPE = (32, 32, 3)
_NUM_TEST = 1000


def measure(config: ml_collections.ConfigDict, turns: int) -> list[dict]:
  """A row for each storage, of `turns` dispatches of `config.log_every` outer steps."""
  import jax

  from dd_jax.runs import layouts
  from dd_jax.runs import programs
  from dd_jax.runs import settings
  from experiments import problem
  states, runs = [], []
  for storage in settings.STORAGES:
    config = config.copy_and_resolve_references()
    config.data.storage = storage
    built = programs.make_programs(
        problem.make_problem(config), num_steps=(turns + 1) * config.log_every, seed=config.seed,
        settings=problem.make_settings(config))
    steps = built.steps.lower(built.state).compile()
    runs.append(steps)
    states.append(jax.block_until_ready(steps(built.state))[0])
  seconds = [[] for _ in runs]
  for _ in range(turns):
    for i, steps in enumerate(runs):
      start = time.perf_counter()
      states[i], _ = jax.block_until_ready(steps(states[i]))
      seconds[i].append(time.perf_counter() - start)
  first, *others = (jax.tree.leaves(layouts.to_host(state)) for state in states)
  for other in others:
    for a, b in zip(first, other, strict=True):
      np.testing.assert_array_equal(a, b)
  return [{"storage": storage, "samples": samples,
           "outer_steps_per_second": config.log_every / statistics.median(samples)}
          for storage, samples in zip(settings.STORAGES, seconds)]


def write_large(folder: pathlib.Path, gigabytes: float) -> int:
  """A set of two classes as .npy files, written block by block; its number of training images."""
  draw, number = np.random.default_rng(0), int(gigabytes * 1e9 / np.prod(_LARGE_SHAPE))
  folder.mkdir()
  for split, size in (("train", number), ("test", _NUM_TEST)):
    labels = np.arange(size) % 2
    np.save(folder / f"{split}_labels.npy", labels)
    with open(folder / f"{split}_images.npy", "wb") as file:
      np.lib.format.write_array_header_1_0(file, {
          "descr": "|u1", "fortran_order": False, "shape": (size, *_LARGE_SHAPE)})
      for start in range(0, size, 1000):
        block = draw.integers(0, 200, (len(labels[start:start + 1000]), *_LARGE_SHAPE), np.uint8)
        block[:, :16] += (50 * labels[start:start + 1000]).astype(np.uint8)[:, None, None, None]
        file.write(block.tobytes())
  return number


def stream_large(workdir: pathlib.Path, gigabytes: float) -> dict:
  """What a run of ten steps says of itself whose data are that large."""
  folder = workdir / "large"
  try:
    number = write_large(folder, gigabytes)
    process = subprocess.run(
        [sys.executable, "-m", "experiments.main", f"--workdir={workdir / 'run'}",
         "--config=experiments/configs/digits_fixed_init.py:smoke",
         f"--config.data.name={folder}", "--config.data.storage=stream",
         "--config.data.num_validation=500", "--config.outer.num_steps=10",
         "--config.outer.batch_size=256", "--config.outer.chunk_size=16",
         "--config.eval.batch_size=50"],
        capture_output=True, text=True, check=False)
    if process.returncode:
      raise ValueError(f"the run of the large set failed: {process.stderr[-300:]}")
    result = json.loads(process.stdout.splitlines()[-1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(workdir / "run", ignore_errors=True)
  return {"num_images": number, "gigabytes": gigabytes, "peak_host_bytes": peak,
          **{name: result[name] for name in ("wall_seconds", "accuracy_mean")}}


def _run(config, workdir):
  from dd_jax.runs import workdirs
  from dd_jax.runs.provenance import provenance
  with workdirs.held(workdir) as workdir:
    report = {"rows": measure(config, _TURNS.value), "turns": _TURNS.value,
              "cpu_cores": os.cpu_count(),
              **provenance(json.loads(config.to_json()), config.seed)}
    workdirs.write_json(workdir / "storage.json", report)
    if _GIGABYTES.value:
      report["large"] = stream_large(workdir, _GIGABYTES.value)
      workdirs.write_json(workdir / "storage.json", report)
  return report


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
