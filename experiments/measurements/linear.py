"""The linear case (section 3.3): what M points learned by the hypergradient reach, and the bound.

    python -m experiments.measurements.linear --out=experiments/measurements/linear.json

One step of least squares from theta_0 ~ N(m, sigma^2 I) in D dimensions. The points, their targets
and the step size start random and descend E ||theta_1 - theta*||^2, which no M points bring below
sigma^2 (D - M). Writes a table to the screen, the rows to FILE.json and a plot to FILE.png.
"""

import functools
import pathlib
import platform

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import optax

import dd_jax
from dd_jax import init_distributions
from dd_jax import linear
from dd_jax import step_sizes
from experiments import launcher
from dd_jax.runs import paths
from dd_jax.runs import workdirs


def distill(key: jax.Array, theta_star: jax.Array, mean: jax.Array, *, std: float,
            num_points: int, num_steps: int
            ) -> tuple[dd_jax.DistilledData, dd_jax.DistilledData]:
  """M points, targets and a step size, from N(0, 1) and 0.5: before and after the outer steps.

  The library's own hypergradient descends the exact expectation: the N = 2D weights of every outer
  step are a pool with the Gaussian's mean and covariance. Only the start is random.
  """
  dimension = theta_star.size
  points_key, targets_key, outer_key = jax.random.split(key, 3)
  start = dd_jax.DistilledData(
      jax.random.normal(points_key, (1, num_points, dimension), theta_star.dtype),
      jax.random.normal(targets_key, (1, num_points), theta_star.dtype),
      step_sizes.encode(.5, "softplus", theta_star.dtype)[None, None])
  init = init_distributions.given_init(linear.gaussian_pool(mean, std))

  def decode(learned):
    return learned._replace(step_sizes=jax.nn.softplus(learned.step_sizes))

  def squared_distance(params, inputs, labels):
    """||theta - theta*||^2 where the real inputs are the identity and the labels theta*."""
    return 2 * dimension * linear.loss(params, inputs, labels)

  outer_loss = dd_jax.make_outer_loss(decode, init, dd_jax.unroll(linear.loss),
                                      squared_distance, num_inits=2 * dimension)
  optimizer = optax.adam(optax.cosine_decay_schedule(.05, num_steps))
  loop = dd_jax.make_outer_loop(outer_loss, optimizer)
  real = jnp.eye(dimension, dtype=theta_star.dtype), theta_star
  state, _ = jax.lax.scan(lambda state, _: loop.step(outer_key, state, init.state, *real),
                          loop.init(start), length=num_steps)
  return decode(start), decode(state.trainable)


def measure(num_points: int, *, dimension: int, std: float, num_seeds: int, num_steps: int
            ) -> list[dict]:
  """One row per start, of one theta* and one mean."""
  theta_star, mean = jax.random.normal(jax.random.key(0), (2, dimension))
  run = jax.jit(jax.vmap(functools.partial(
      distill, std=std, num_points=num_points, num_steps=num_steps), (0, None, None)))
  keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
  residual = jax.vmap(lambda distilled: linear.expected_residual(
      distilled, theta_star, mean=mean, std=std))
  before, after = map(residual, run(keys, theta_star, mean))
  return [{"D": dimension, "sigma": std, "M": num_points, "seed": seed, "steps": num_steps,
           "residual_before": float(before[seed]), "residual": float(after[seed]),
           "bound": std ** 2 * max(dimension - num_points, 0)} for seed in range(num_seeds)]


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """The residual against M: the bound as a line, what was reached as points."""
  import matplotlib
  matplotlib.use("agg")
  from matplotlib import pyplot
  figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
  numbers = [row["M"] for row in rows]
  axes.plot(numbers, [row["bound"] for row in rows], color="C0",
            label=r"bound: $\sigma^2 \max(D - M,\, 0)$")
  axes.plot(numbers, [row["residual"] for row in rows], "o", color="C1", markersize=9,
            fillstyle="none",
            label=f"reached, {max(row['seed'] for row in rows) + 1} random starts each")
  axes.set(xlabel="distilled points M", ylabel=r"$E\,\|\theta_1 - \theta^*\|^2$",
           xticks=sorted(set(numbers)),
           title=f"one step of least squares, D = {rows[0]['D']}, "
                 r"$\theta_0 \sim N(m, \sigma^2 I)$, "
                 rf"$\sigma$ = {rows[0]['sigma']:g}")
  axes.grid(alpha=.3)
  axes.legend()
  figure.savefig(path, dpi=120)


def main(argv):
  del argv
  jax.config.update("jax_enable_x64", True)
  options = flags.FLAGS
  out = paths.output(options.out, "--out")
  rows = []
  print(f"{'M':>3} {'bound':>8} {'reached, worst':>15} {'above the bound':>16}")
  for num_points in range(1, options.dimension + 2):
    rows += (new := measure(num_points, dimension=options.dimension, std=options.std,
                            num_seeds=options.seeds, num_steps=options.steps))
    bound, worst = new[0]["bound"], max(row["residual"] for row in new)
    print(f"{num_points:>3} {bound:>8.4f} {worst:>15.6f} {worst - bound:>16.1e}", flush=True)
  report = {"rows": rows, "jax": jax.__version__,
            "python": platform.python_version(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
  workdirs.write_json(out, report)
  plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
  # Not on import: the tests import this module beside others that define --out.
  flags.DEFINE_string("out", None, "JSON file to write; the plot lies beside it.", required=True)
  flags.DEFINE_integer("dimension", 5, "D.", lower_bound=1)
  flags.DEFINE_float("std", 1., "sigma.", lower_bound=0.)
  flags.DEFINE_integer("seeds", 5, "Starts for every M.", lower_bound=1)
  flags.DEFINE_integer("steps", 2000, "Outer steps.", lower_bound=1)
  app.run(lambda argv: launcher.with_one_line_errors(lambda: main(argv)))
