"""100 images with soft labels and learned momentum that teach any LeNet MNIST: 50 inner steps.

    python -m experiments.main --config=experiments/configs/mnist_random_soft_labels.py \\
      --workdir=DIR

Expected: 92 to 93 % over 200 held-out networks, in 15 to 30 minutes on a CPU core.
Continued to 10,000 steps at lower learning rates it gave 95.0 % (experiments/README.md).
"""

from experiments.configs import default
from experiments.configs import mnist_random_init


def get_config(variant: str = ""):
  config = mnist_random_init.get_config()
  config.distill.labels = "soft"
  config.distill.num_epochs = 5
  config.distill.step_size = 0.02
  config.inner.optimizer = "momentum"
  config.inner.learned = True
  config.outer.num_inits = 4
  config.outer.num_steps = 1500
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.03
  config.outer.label_learning_rate = 0.02
  config.outer.weight_decay = 0.05
  config.log_every = 20
  config.checkpoint_every = 100
  config.validation.every = 300
  default.apply_variant(config, variant)
  return config
