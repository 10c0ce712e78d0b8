"""10 images with soft labels that teach one known LeNet MNIST, by 20 steps with learned momentum.

    python -m experiments.main --config=experiments/configs/mnist_soft_labels.py --workdir=DIR

Expected: 96 to 97 % test accuracy in ten minutes on one CPU core.
"""

from experiments.configs import default
from experiments.configs import mnist_fixed_init


def get_config(variant: str = ""):
  config = mnist_fixed_init.get_config()
  config.distill.labels = "soft"
  config.distill.num_epochs = 20
  config.distill.step_size = 0.01
  config.inner.optimizer = "momentum"
  config.inner.learned = True
  config.outer.num_steps = 6000
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.03
  config.outer.step_size_learning_rate = 0.003
  config.outer.weight_decay = 0.08
  config.outer.label_learning_rate = 0.01
  default.apply_variant(config, variant)
  return config
