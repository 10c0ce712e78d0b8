"""How the result depends on one thing: a run for each of its values, one table and one plot.

    python -m experiments.study --study=steps --config=experiments/configs/mnist_random_init.py \\
      --workdir=DIR

The studies: steps (S), epochs (E), images (per class and step), shape (one step of many images
against many steps of few, at 10 images a class), inits (N), epsilon (with
configs/mnist_poisoning_bounded.py), ingredients (of later work, with
configs/mnist_ingredients.py). With a poisoning config table and plot show its two figures beside
the accuracy.
DIR/STUDY.csv and DIR/STUDY.png; the runs lie in DIR/STUDY-VALUE, of several seeds in
DIR/STUDY-VALUE-seedSEED. Running the same command again continues an interrupted study.
"""

from absl import flags

from experiments import launcher
from experiments.configs import default

_STUDY = flags.DEFINE_enum(
    "study", "steps", ["steps", "epochs", "images", "shape", "inits", "epsilon", "ingredients"],
    "What varies.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds of every run; those of the config by default.")


def _run(config, workdir):
  from experiments.measurements import sweep
  seeds = [config.seed] if _SEEDS.value is None else launcher.numbers(
      "seeds", _SEEDS.value, int)
  return sweep.sweep(config, workdir, _STUDY.value, seeds)


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
