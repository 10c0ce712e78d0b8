"""Memory and time of the hypergradient against the number of inner steps T, for memory modes.

    python -m experiments.measurements.memory --out=experiments/measurements/memory.json
    python -m experiments.measurements.memory --out=experiments/measurements/budgets.json \\
      --memory=nested,32,16,8 --gradient=reverse --lengths=100,1000,3000,10000,30000 --fit_from=1000

LeNet, MNIST's shapes, S = 10, E = T / S, N = 1, R = 256. Each row is a process of its own: the
compiler's temporary bytes, the most memory that the process held above what it held before
the first call, and seconds of compiling and of the call. Writes a table to the screen, after every
row all of them to FILE.json, and plots to FILE.png. A FILE.json that is there is gone on with.
"""

import itertools
import json
import multiprocessing
import pathlib
import platform
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

from experiments import launcher
from dd_jax.runs import machine
from dd_jax.runs import paths
from dd_jax.runs import workdirs

_NUM_STEPS = 10  # S
_REAL_BATCH = 256


def measured(*args: Any) -> dict:
  """`measure` in a process of its own, because the peak of a process never falls."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(measure, args)


def measure(network: str, length: int, memory: str | int, gradient: str) -> dict:
  """One row: compiles a hypergradient and computes it once."""
  import jax
  import jax.numpy as jnp

  import dd_jax
  from dd_jax import losses
  from dd_jax import models
  from dd_jax import parametrization
  image_shape = (28, 28, 1) if network == "lenet" else (32, 32, 3)
  model = models.MODELS[network](num_classes=10, image_shape=image_shape)
  init = dd_jax.random_init(model.init, dd_jax.init_distributions.xavier_normal())
  labels = parametrization.class_labels(_NUM_STEPS, 10, 1)
  learned = parametrization.paper(labels, image_shape, step_size=.001,
                                  num_epochs=length // _NUM_STEPS)
  real = (jax.random.normal(jax.random.key(1), (_REAL_BATCH, *image_shape)),
          jax.random.randint(jax.random.key(2), (_REAL_BATCH,), 0, 10, jnp.int32))
  loss = losses.classification(model.apply)
  outer_loss = dd_jax.make_outer_loss(
      learned.decode, init, dd_jax.unroll(loss, memory=memory, gradient=gradient), loss,
      num_inits=1, chunk_size=32)
  arguments = learned.init(jax.random.key(0)), init.state, jax.random.key(3), *real
  start = time.perf_counter()
  with jax.default_matmul_precision("highest"):
    compiled = jax.jit(dd_jax.value_and_hypergrad(outer_loss)).lower(*arguments).compile()
  compile_seconds = time.perf_counter() - start
  before = machine.peak_host_bytes()
  if before is None:
    raise OSError("the peak of a process must be told by the system; this one tells none")
  start = time.perf_counter()
  jax.block_until_ready(compiled(*arguments))
  return {"network": network, "T": length, "memory": memory, "gradient": gradient,
          "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
          "peak_bytes_of_call": machine.peak_host_bytes() - before,
          "peak_bytes": machine.peak_host_bytes(),
          "compile_seconds": compile_seconds, "seconds": time.perf_counter() - start,
          "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
          "jax": jax.__version__, "python": platform.python_version()}


def exponent(rows: list[dict]) -> float:
  """Slope of log temporary bytes against log T."""
  lengths, sizes = zip(*((row["T"], row["temporary_bytes"]) for row in rows))
  return float(np.polyfit(np.log(lengths), np.log(sizes), 1)[0])


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Temporary bytes and seconds against T, one line for each mode."""
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import pyplot
  figure, (of_bytes, of_time) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
  modes = list(dict.fromkeys(row["memory"] for row in rows))
  for (memory, gradient), group in _by_mode(rows):
    name = f"{memory} states" if isinstance(memory, int) else memory
    style = dict(marker="o", linestyle="-" if gradient == "reverse" else "--",
                 color=f"C{modes.index(memory)}", label=f"{name}, {gradient}")
    lengths = [row["T"] for row in group]
    of_bytes.loglog(lengths, [row["temporary_bytes"] / 1e6 for row in group], **style)
    of_time.loglog(lengths, [row["seconds"] for row in group], **style)
  of_bytes.set(xlabel="inner steps T", ylabel="temporary memory (MB)",
               title=f"{rows[0]['network']}, N = 1, R = {_REAL_BATCH}")
  of_time.set(xlabel="inner steps T", ylabel="seconds of one hypergradient",
              title=rows[0]["device"])
  for axes in (of_bytes, of_time):
    axes.grid(alpha=.3)
  of_bytes.legend()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _by_mode(rows):
  return [(mode, list(group)) for mode, group in itertools.groupby(
      rows, lambda row: (row["memory"], row["gradient"]))]


def main(argv):
  del argv
  options = flags.FLAGS
  out = paths.output(options.out, "--out")
  rows = json.loads(out.read_text())["rows"] if out.exists() else []
  if others := {row["network"] for row in rows} - {options.network}:
    raise ValueError(f"--out must be of one network; {out} has rows of {', '.join(others)}, and "
                     f"--network is {options.network}")
  there = {(row["memory"], row["gradient"], row["T"]) for row in rows}
  lengths = launcher.numbers("lengths", options.lengths, int)
  if wrong := [length for length in lengths if length < 1 or length % _NUM_STEPS]:
    raise ValueError(f"--lengths must be multiples of {_NUM_STEPS} (S); got {wrong}")
  print(f"{'memory':<8} {'gradient':<22} {'T':>5} {'temporary MB':>12} {'call MB':>9} "
        f"{'compile s':>9} {'seconds':>8}")
  for memory, gradient, length in itertools.product(map(_memory, options.memory), options.gradient,
                                                    lengths):
    if (memory, gradient, length) in there:
      continue
    row = measured(options.network, length, memory, gradient)
    rows.append(row)
    print(f"{memory:<8} {gradient:<22} {length:>5} {row['temporary_bytes'] / 1e6:>12.1f} "
          f"{row['peak_bytes_of_call'] / 1e6:>9.1f} {row['compile_seconds']:>9.1f} "
          f"{row['seconds']:>8.2f}", flush=True)
    _write(sorted(rows, key=lambda row: (str(row["memory"]), row["gradient"], row["T"])), out,
           options.fit_from)


def _memory(name):
  return int(name) if name.isdecimal() else name


def _write(rows, out, fit_from):
  report = {"rows": rows, "exponents_from": fit_from, "exponents": {
      ", ".join(map(str, mode)): exponent(long) for mode, group in _by_mode(rows)
      if len(long := [row for row in group if row["T"] >= fit_from]) > 1}}
  workdirs.write_json(out, report)
  plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
  # Here: other commands have an --out and a --network of their own.
  flags.DEFINE_string("out", None, "JSON file to write; the plot lies beside it.", required=True)
  flags.DEFINE_list("lengths", [30, 100, 300, 1000, 3000], "T: multiples of 10.")
  flags.DEFINE_integer("fit_from", 100, "Shortest T that exponents of the memory are fitted to.")
  flags.DEFINE_enum("network", "lenet", ["lenet", "alexcifarnet"],
                    "Whose trajectory is measured.")
  flags.DEFINE_list("memory", ["plain", "remat", "nested"], "Memory modes, or numbers of states.")
  flags.DEFINE_list("gradient", ["reverse", "forward_over_reverse"], "Gradient modes.")
  app.run(lambda argv: launcher.with_one_line_errors(lambda: main(argv)))
