"""Distils a dataset and evaluates the result.

    python -m experiments.main --config=experiments/configs/digits_fixed_init.py --workdir=DIR

Any field of the config can be set on the command line: --config.outer.num_steps=100.
Running the same command again continues an interrupted run. The last line on
standard output is the content of DIR/result.json.
"""

from experiments import launcher
from experiments.configs import default


def _run(config, workdir):
  from experiments import train
  return train.distill_and_evaluate(config, workdir)


if __name__ == "__main__":
  launcher.launch(_run, default.get_config())
