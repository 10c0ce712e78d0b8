"""Times whole outer steps: ours, the same in eager PyTorch and in JAX by hand, side by side.

    pip install -e '.[bench]'
    python -m experiments.measurements.bench --out=bench.json \\
      [--settings=mnist_fixed_n1,...] [--rounds=7]

Each side of a row runs in a process of its own; by hand means Flax's layers, `vmap`, `scan` and
`grad` (`plain_jax.py`). They get the same inputs and must agree in loss and hypergradient, in
float64 (a ReLU that flips on a rounding error makes float32 gradients jump), before anything is
timed; then they take turns, so that a drift of the machine's speed cancels in the ratio. A step is
timed whole: drawing the initial weights, inner trajectory, hypergradient, optimizer, waiting for
the result. Without PyTorch its columns are empty, as is that by hand where a step needs more than
half of the memory that is free. The last column, `matmul_gflops` of the row, is the rate of a 2048
product right before it: at which speed of the machine it was taken.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import time

from absl import app
from absl import flags
import numpy as np

from dd_jax.datasets import host_memory
from experiments import launcher
from experiments.measurements.jax_side import JaxSide, Setting
from dd_jax.runs import machine
from dd_jax.runs import paths
from dd_jax.runs import workdirs

_PRECISION = flags.DEFINE_enum("precision", "highest", ["highest", "high", "default"],
                               "Of float32 matrix products on an accelerator, on both sides.")

_TURN_SECONDS = .5
_TOLERANCE = 1e-4  # Relative L2 between the two sides' hypergradients.


_MNIST = functools.partial(Setting, "lenet", (28, 28, 1), chunk_size=128)
_CIFAR = functools.partial(Setting, "alexcifarnet", (32, 32, 3), num_steps=10, chunk_size=16,
                           memory="remat")
SETTINGS = {
    "mnist_fixed_n1": _MNIST(init="fixed", num_steps=1, num_inits=1),
    "mnist_random_n1": _MNIST(init="random", num_steps=10, num_inits=1),
    "mnist_random_n4": _MNIST(init="random", num_steps=10, num_inits=4),
    "mnist_random_n16": _MNIST(init="random", num_steps=10, num_inits=16),
    "cifar10_fixed_n1": _CIFAR(init="fixed", num_inits=1),
    "cifar10_random_n4": _CIFAR(init="random", num_inits=4),
}
_CHOSEN = flags.DEFINE_list(
    "settings", [name for name in SETTINGS if name != "mnist_random_n16"],
    f"Rows to time, of {', '.join(SETTINGS)}.")


class Machine:
  """What the figures are relative to."""

  def report(self, precision: str) -> dict:
    import jax
    device = jax.devices()[0]
    return {"device": f"{jax.device_count()} x {device.device_kind}", "jax": jax.__version__,
            "backend": jax.default_backend(), "platform": platform.platform(),
            "python": platform.python_version(), "precision": precision}

  def matmul_gflops(self, precision: str) -> float:
    """Median rate of a float32 matrix product of size 2048, now."""
    import jax
    import jax.numpy as jnp
    size = 2048
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: jnp.dot(x, x, precision=precision))
    product(a).block_until_ready()
    seconds = []
    for _ in range(15):
      start = time.perf_counter()
      product(a).block_until_ready()
      seconds.append(time.perf_counter() - start)
    return 2 * size ** 3 / float(np.median(seconds)) / 1e9


def _make_plain(*args):
  from experiments.measurements import plain_jax
  return plain_jax.PlainSide(*args)


def _make_torch(*args):
  from experiments.measurements import torch_reference
  return torch_reference.TorchSide(*args)


class Process:
  """An object that lives in a process of its own: `call("method", *args)`."""

  def __init__(self, make, *args):
    context = multiprocessing.get_context("spawn")
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
        target=launcher.with_one_line_errors, daemon=True,
        args=(functools.partial(_serve, theirs, make, args),))
    self._process.start()
    theirs.close()

  def call(self, method, *args):
    try:
      self._connection.send((method, args))
      return self._connection.recv()
    except (EOFError, ConnectionError):
      raise SystemExit(f"error: {method} failed in a side's process, see above") from None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._connection.close()
    self._process.join()


def _serve(connection, make, args):
  machine.keep_freed_memory()
  side = make(*args)
  try:
    while True:
      method, arguments = connection.recv()
      connection.send(getattr(side, method)(*arguments))
  except EOFError:
    pass  # The bench has what it wanted.


def time_setting(name: str, setting: Setting, precision: str, rounds: int,
                 with_torch: bool, backend: str) -> dict:
  """One row: raw samples in seconds, medians, and the ratios to ours."""
  with contextlib.ExitStack() as stack:
    def side(make, *args):
      return stack.enter_context(Process(make, *args))

    ours = side(JaxSide, setting, precision)
    expected, inputs = ours.call("hypergradient64"), ours.call("inputs")
    steps, reports = {"ours": functools.partial(ours.call, "step")}, [ours]
    plain = side(_make_plain, setting._asdict(), inputs, precision)
    reports.append(plain)
    needed = plain.call("report")["plain_temporary_bytes"]
    if backend != "cpu" or 2 * needed < (host_memory.free_bytes() or np.inf):  # In float64 twice.
      _check_agreement("by hand", plain.call("hypergradient64"), expected)
      steps["by hand"] = functools.partial(plain.call, "step")
    if with_torch:
      torch = side(_make_torch, setting._asdict(), inputs, "cuda" if backend == "gpu" else "cpu",
                   precision)
      for mode in torch.call("modes"):
        _check_agreement(mode, torch.call("hypergradient64", mode), expected)
        steps[mode] = functools.partial(torch.call, "step", mode)
      reports.append(torch)
    samples = _alternate(steps, rounds)
    return _row(name, samples, *(side.call("report") for side in reports))


def _alternate(sides, rounds):
  """Seconds of every step; a turn lasts half a second or one step, so that short steps run warm."""
  steps_per_turn = {}
  for side, step in sides.items():
    step()
    steps_per_turn[side] = max(1, round(_TURN_SECONDS / step()))
  samples = {side: [] for side in sides}
  for _ in range(rounds):
    for side, step in sides.items():
      samples[side] += [step() for _ in range(steps_per_turn[side])]
  return samples


def _check_agreement(mode, theirs, ours):
  errors = {"loss": abs(theirs[0] / ours[0] - 1)}
  for leaf, expected in ours[1].items():
    errors[leaf] = float(np.linalg.norm(theirs[1][leaf] - expected) / np.linalg.norm(expected))
  if not max(errors.values()) < _TOLERANCE:
    raise SystemExit(f"error: both sides must agree to {_TOLERANCE}; {mode}: {errors}")


def _row(name, samples, *reports):
  medians = {side: float(np.median(values)) for side, values in samples.items()}
  row = {"name": name, "seconds_ours": medians.pop("ours"), "samples": samples}
  for report in reports:
    row |= report
  row["gflops"] = row["gflop"] / row["seconds_ours"]
  if "by hand" in medians:
    row["seconds_by_hand"] = medians.pop("by hand")
    row["ratio_by_hand"] = row["seconds_by_hand"] / row["seconds_ours"]
  if medians:
    row["torch_mode"], row["seconds_torch"] = min(medians.items(), key=lambda item: item[1])
    row["ratio"] = row["seconds_torch"] / row["seconds_ours"]
  return row


def main(argv):
  del argv
  unknown = sorted(set(_CHOSEN.value) - set(SETTINGS))
  if unknown:
    raise SystemExit(f"error: settings must be of {sorted(SETTINGS)}; got {unknown}")
  out = paths.output(flags.FLAGS.out, "--out")
  with_torch = importlib.util.find_spec("torch") is not None
  if not with_torch:
    print("PyTorch is not installed: its columns stay empty")
  # The sides of a row share the memory of a device.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  with Process(Machine) as process:
    report = {"machine": process.call("report", _PRECISION.value), "settings": []}
    if with_torch:
      report["machine"]["torch"] = importlib.metadata.version("torch")
    print(f"{'setting':<18} {'ours s':>8} {'torch s':>8} {'ratio':>6} {'by hand':>7} "
          f"{'compile s':>9} {'temp MB':>8} {'peak MB':>8} {'torch MB':>8} {'GFLOP/s':>8} "
          f"{'of peak':>7} {'peak GFLOP/s':>12}")
    for name in _CHOSEN.value:
      setting = SETTINGS[name]._replace(real_batch=flags.FLAGS.real_batch)
      setting = setting._replace(num_steps=flags.FLAGS.num_steps or setting.num_steps)
      speed = process.call("matmul_gflops", _PRECISION.value)
      row = {**time_setting(name, setting, _PRECISION.value, flags.FLAGS.rounds, with_torch,
                            report["machine"]["backend"]), "matmul_gflops": speed}
      report["settings"].append(row)
      print(f"{name:<18} {row['seconds_ours']:>8.4f} {row.get('seconds_torch', np.nan):>8.4f} "
            f"{row.get('ratio', np.nan):>6.2f} {row.get('ratio_by_hand', np.nan):>7.2f} "
            f"{row['compile_seconds']:>9.1f} "
            f"{row['temporary_bytes'] / 1e6:>8.0f} {(row['peak_bytes'] or np.nan) / 1e6:>8.0f} "
            f"{(row.get('torch_peak_bytes') or np.nan) / 1e6:>8.0f} {row['gflops']:>8.1f} "
            f"{row['gflops'] / speed:>7.0%} {speed:>12.0f}", flush=True)
      workdirs.write_json(out, report)


if __name__ == "__main__":
  # Here: other commands have an --out and --rounds of their own.
  flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  flags.DEFINE_integer("rounds", 7, "Timed rounds of either side.", lower_bound=1)
  flags.DEFINE_integer("real_batch", 1024, "R, the real images of an outer step.", lower_bound=1)
  flags.DEFINE_integer("num_steps", None, "S, the steps of an epoch, where a quick look will do; "
                       "by default the row's own, 1 or 10.", lower_bound=1)
  app.run(lambda argv: launcher.with_one_line_errors(lambda: main(argv)))
