"""Real images at the budget of a config's distilled data, on the same held-out networks.

    python -m experiments.baselines --config=experiments/configs/mnist_random_init.py --workdir=DIR

Random real images, the best of many random sets, k-means centres and class means train the
networks that the config's distilled data would be tested on, with the config's numbers of steps,
epochs and images and one step size, which is searched on validation images. DIR/baselines.json has
their figures, those of k-NN on the same sets, and the config; of a table those of gradient-boosted
trees besides, and with --real_epochs those of networks trained on all real examples, as long as
validation chooses. No finished run is needed; the same command continues an interrupted comparison.
"""

from absl import flags

from experiments import launcher
from experiments.configs import default


_REAL_EPOCHS = flags.DEFINE_list("real_epochs", [], "Epochs of training on all real examples.")


def _run(config, workdir):
  from experiments import problem
  return problem.compare_baselines(
      config, workdir, launcher.numbers("real_epochs", _REAL_EPOCHS.value, int))


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
