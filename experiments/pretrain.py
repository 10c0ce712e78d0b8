"""Trains two pools of networks in the ordinary way: one to distil with, one to test on.

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py --workdir=DIR

DIR then holds train.npz and heldout.npz, for --config.init.pool=DIR of experiments.main, and
result.json with their test accuracies. Running the same command again continues an interrupted
run. The last line on standard output is the content of DIR/result.json.
"""

from experiments import launcher
from experiments.configs import pool_default


def _run(config, workdir):
  from experiments import problem
  return problem.pretrain(config, workdir)


if __name__ == "__main__":
  launcher.run_config(_run, pool_default.get_config())
