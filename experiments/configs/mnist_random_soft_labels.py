"""100 images with soft labels and learned momentum that teach any LeNet MNIST: 50 inner steps.

    python -m experiments.main --config=experiments/configs/mnist_random_soft_labels.py \\
      --workdir=DIR

Expected: see experiments/README.md; about ten minutes on a CPU core.
"""

from experiments.configs import default
from experiments.configs import mnist_random_init


def get_config(variant: str = ""):
  config = mnist_random_init.get_config()
  config.distill.labels = "soft"
  config.distill.num_epochs = 5
  config.distill.step_size = 0.03
  config.inner.optimizer = "momentum"
  config.inner.learned = True
  config.outer.num_steps = 6000
  config.checkpoint_every = 500
  config.validation.every = 1000
  default.apply_variant(config, variant)
  return config
