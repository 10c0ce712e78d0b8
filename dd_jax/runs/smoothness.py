"""Over which lengths and step sizes a problem's hypergradient can be followed: rows and a plot."""

from collections.abc import Sequence
import os

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import metasmoothness
from dd_jax.runs import plots
from dd_jax.runs import workdirs
from dd_jax.runs.problem import Problem
from dd_jax.runs.programs import make_keys
from dd_jax.runs.settings import check_positive
from dd_jax.types import DistilledData


def measure_smoothness(problem: Problem, workdir: str | os.PathLike, *, seed: int = 0,
                       num_epochs: Sequence[int] = (1, 3, 10, 30),
                       factors: Sequence[float] = (.3, 1., 3.), size: float = .01,
                       num_networks: int = 10) -> list[dict]:
  """The metasmoothness of training on the data that the problem starts from.

  Each network is trained three times, with everything that is learned moved by `size` in a random
  direction, as an outer step of Adam moves it. Lengths and step sizes are to be compared with each
  other and with those that are known to work: 1 is a straight line, -1/2 three trainings that have
  nothing to do with one another, where the hypergradient no longer tells where such a step leads.
  ReLUs and max-pools alone bring it far below 1, as some of them flip.
  Nothing is learned, and no test data are looked at.

  Args:
    problem: whose `learned` gives the data: those that a run would start from, or of a finished
      one where it starts from that one's distilled.npz.
    workdir: gets smoothness.json and smoothness.png.
    seed: of networks and directions.
    num_epochs: E of the trajectories; the step sizes of the problem's own epochs are repeated.
    factors: by which step sizes are multiplied.
    size: h, how far what is learned is moved.
    num_networks: of `problem.inits.train`; of a fixed one so many directions.

  Returns:
    For each E and factor, as in smoothness.json: T, the mean step size, the mean metasmoothness
    over the networks, its standard deviation, and how many trainings were not finite.

  Raises:
    ValueError: a number that is not positive, or a directory that another process holds.
    OSError: it cannot be written.
  """
  for name, values in (("num_epochs", num_epochs), ("factors", factors), ("size", [size]),
                       ("num_networks", [num_networks])):
    for value in values:
      check_positive(name, value)
  keys = make_keys(seed)
  start = problem.learned.init(keys["images"])
  with workdirs.held(workdir) as folder:
    rows = [row for epochs in num_epochs
            for row in _rows(problem, start, keys["outer"], epochs, factors, size, num_networks)]
    workdirs.write_json(folder / "smoothness.json", rows)
    plots.save(_plot(rows), folder / "smoothness.png")
  return rows


def _rows(problem, start, key, num_epochs, factors, size, num_networks):
  """One of each factor; compiled once for all of them."""
  @jax.jit
  def of_network(token, key, factor):
    def decode(trainable):
      return lengthened(problem.learned.decode(trainable), num_epochs, factor)

    direction_key, train_key = jax.random.split(key)
    return metasmoothness.metasmoothness(
        problem.train, decode, train_key, problem.inits.train.make(state, token), start,
        metasmoothness.random_direction(direction_key, start), size)

  state = problem.inits.train.state
  draw_key, train_key = jax.random.split(key)
  tokens = problem.inits.train.draw(
      state, draw_key, 1 if problem.keeps_network else num_networks)
  tokens = tokens[jnp.arange(num_networks) % len(tokens)]
  networks = list(zip(tokens, jax.random.split(train_key, num_networks), strict=True))
  for factor in factors:
    with jax.default_matmul_precision("highest"):
      values = np.array([of_network(*network, factor) for network in networks])
    step_sizes = lengthened(problem.learned.decode(start), num_epochs, factor).step_sizes
    yield {"num_epochs": num_epochs, "T": int(step_sizes.size), "factor": factor,
           "step_size": float(step_sizes.mean()), "size": size, "num_networks": num_networks,
           **_summary(values)}


def _summary(values):
  finite = values[np.isfinite(values)]
  return {"metasmoothness": float(finite.mean()) if finite.size else None,
          "std": float(finite.std()) if finite.size else None,
          "not_finite": int(values.size - finite.size)}


def lengthened(distilled: DistilledData, num_epochs: int, factor: float = 1.) -> DistilledData:
  """The same data for E epochs, the step sizes of its own again and again, times a factor."""
  chosen = jnp.arange(num_epochs) % distilled.step_sizes.shape[0]
  return distilled._replace(step_sizes=distilled.step_sizes[chosen] * factor)


def _plot(rows):
  figure, axes = plots.plt.subplots(figsize=(6, 4), layout="constrained")
  for factor in dict.fromkeys(row["factor"] for row in rows):
    line = [row for row in rows if row["factor"] == factor and row["metasmoothness"] is not None]
    if line:
      axes.errorbar([row["T"] for row in line], [row["metasmoothness"] for row in line],
                    [row["std"] for row in line], marker="o", capsize=3,
                    label=f"step sizes x {factor:g} (mean {line[0]['step_size']:.3g})")
  axes.axhline(0, color="black", linewidth=.8)
  axes.set(xscale="log", xlabel="inner steps T", ylabel="metasmoothness", ylim=(-1.05, 1.05),
           title="Whether the hypergradient can be followed")
  axes.grid(alpha=.3)
  axes.legend()
  return figure
