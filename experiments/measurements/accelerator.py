"""What a GPU or TPU makes of the library, in one script of at most ten minutes.

    python -m experiments.measurements.accelerator --out=FILE.json [--parts=precision,rows,...]

  precision    hypergradients in float32 with products of each precision against float64
  rows         outer steps beside PyTorch and JAX by hand (as `bench`), N = 4, 16, 64
  memory       temporary bytes and seconds against T, for every memory mode
  convolution  outer steps with XLA's own convolution and with matrix products
  dispatch     outer steps a second with 1, 10 and 100 of them in one dispatch

FILE.json holds every row as soon as it is there; when --minutes are over no other is begun. On a
CPU --small proves that the script runs.
"""

from collections.abc import Iterator
import functools
import importlib.util
import itertools
import json
import os
import time

from absl import app
from absl import flags
import numpy as np

from dd_jax.runs import paths
from dd_jax.runs import workdirs
from experiments import launcher
from experiments.measurements import bench
from experiments.measurements import memory
from experiments.measurements.jax_side import JaxSide

# How far a measurement goes: on an accelerator, and with --small.
_NUM_INITS = {False: (4, 16, 64), True: (2,)}
_REAL_BATCH = {False: 1024, True: 16}
_LENGTHS = {False: (100, 1000, 10000), True: (10, 20)}
_PER_DISPATCH = {False: (1, 10, 100), True: (1, 3)}
_ROUNDS = {False: 5, True: 1}
_MNIST, _CIFAR = bench.SETTINGS["mnist_random_n4"], bench.SETTINGS["cifar10_random_n4"]


def _side(setting, precision="highest"):
  return bench.Process(JaxSide, setting, precision)


def _precision(small):
  """Relative L2 error of the whole hypergradient, and of the loss."""
  for name, setting in _settings(small):
    setting = setting._replace(num_inits=1)
    for precision in ("highest",) if small else ("highest", "high", "default"):
      with _side(setting, precision) as side:
        loss, exact = side.call("hypergradient64")
        rounded_loss, rounded = side.call("hypergradient")
      errors = {f"error_{leaf}": float(np.linalg.norm(rounded[leaf] - exact[leaf])
                                       / np.linalg.norm(exact[leaf])) for leaf in exact}
      yield {"setting": name, "precision": precision, **errors,
             "error_loss": abs(rounded_loss / loss - 1)}


def _rows(small):
  for name, setting in _settings(small):
    for num_inits in _NUM_INITS[small]:
      row = bench.time_setting(
          name, setting._replace(num_inits=num_inits), "highest", _ROUNDS[small],
          importlib.util.find_spec("torch") is not None, _backend())
      del row["samples"]
      yield {**row, "num_inits": num_inits}


def _memory(small):
  modes = (3,) if small else ("plain", "remat", "nested", 16)
  for mode, length in itertools.product(modes, _LENGTHS[small]):
    yield memory.measured("lenet", length, mode, "reverse")


def _convolution(small):
  for name, setting in _settings(small):
    for convolution in ("lax", None) if small else ("lax", "patches", None):
      with _side(setting._replace(convolution=convolution)) as side:
        seconds = [side.call("step") for _ in range(2 + 5 * _ROUNDS[small])][2:]
      yield {"setting": name, "convolution": convolution or "the backend's",
             "seconds": float(np.median(seconds))}


def _dispatch(small):
  for name, setting in _settings(small):
    with _side(setting) as side:
      for num_steps in _PER_DISPATCH[small]:
        yield {"setting": name, "steps_per_dispatch": num_steps,
               "steps_per_second": 1 / side.call("seconds_per_step", num_steps)}


PARTS = {"precision": _precision, "rows": _rows, "memory": _memory, "convolution": _convolution,
         "dispatch": _dispatch}


def _settings(small):
  settings = {"mnist_random": _MNIST} if small else {
      "mnist_random": _MNIST, "cifar10_random": _CIFAR}
  for name, setting in settings.items():
    yield name, setting._replace(real_batch=_REAL_BATCH[small],
                                 num_steps=1 if small else setting.num_steps)


@functools.cache
def _backend():
  return _machine()["backend"]


@functools.cache
def _machine():
  with bench.Process(bench.Machine) as process:
    return process.call("report", "highest")


def measure(parts: list[str], small: bool, minutes: float) -> Iterator[tuple[str, dict]]:
  """The rows of the parts, by their names, until the minutes are over."""
  until = time.monotonic() + 60 * minutes
  for part in parts:
    for row in PARTS[part](small):
      yield part, row
      if time.monotonic() > until:
        return


def main(argv):
  del argv
  options = flags.FLAGS
  unknown = sorted(set(options.parts) - set(PARTS))
  if unknown:
    raise ValueError(f"--parts must be of {list(PARTS)}; got {unknown}")
  if not options.small and _backend() == "cpu":
    raise ValueError("--small must be given where there is no accelerator; the backend is 'cpu'")
  out = paths.output(options.out, "--out")
  report = {"machine": _machine(), "small": options.small}
  for part, row in measure(options.parts, options.small, options.minutes):
    report.setdefault(part, []).append(row)
    print(part, json.dumps(row), flush=True)
    workdirs.write_json(out, report)


if __name__ == "__main__":
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Processes share the device.
  flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  flags.DEFINE_list("parts", list(PARTS), "What is measured, in this order.")
  flags.DEFINE_bool("small", False, "A moment of each, to see that it runs.")
  flags.DEFINE_float("minutes", 9., "After which no row is begun.")
  app.run(lambda argv: launcher.with_one_line_errors(lambda: main(argv)))
