"""Over which lengths and step sizes the hypergradient of a config can be followed.

    python -m experiments.smoothness --config=experiments/configs/mnist_random_init.py --workdir=DIR

Before a night is spent on long trajectories: three trainings at w, w + h v and w + 2 h v, and how
far the weights' two differences agree in sign (1: altogether, -0.5: the three have nothing to do
with one another), for every E of --epochs and factor of --factors. Of a finished run with
--config.distill.start=RUN/distilled.npz. A table on the screen, DIR/smoothness.json and .png.
"""

import sys

from absl import flags

from experiments import launcher
from experiments.configs import default

_EPOCHS = flags.DEFINE_list("epochs", ["1", "3", "10", "30"], "E of the trajectories, T = E * S.")
_FACTORS = flags.DEFINE_list("factors", ["0.3", "1", "3"], "Of the step sizes.")
_SIZE = flags.DEFINE_float("size", .01, "h: as far as an outer step moves what is learned.")
_NETWORKS = flags.DEFINE_integer("networks", 10, "Drawn from the config's init distribution.")


def _run(config, workdir):
  from dd_jax import runs
  from experiments import problem
  rows = runs.measure_smoothness(
      problem.make_problem(config), workdir, seed=config.seed,
      num_epochs=launcher.numbers("epochs", _EPOCHS.value, int),
      factors=launcher.numbers("factors", _FACTORS.value, float), size=_SIZE.value,
      num_networks=_NETWORKS.value)
  print(f"{'T':>6} {'factor':>7} {'step size':>10} {'metasmoothness':>15}", file=sys.stderr)
  for row in rows:
    value = "not finite" if row["metasmoothness"] is None else (
        f"{row['metasmoothness']:.2f} +- {row['std']:.2f}")
    print(f"{row['T']:>6} {row['factor']:>7g} {row['step_size']:>10.3g} {value:>15}",
          file=sys.stderr)
  return {"rows": rows}


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
