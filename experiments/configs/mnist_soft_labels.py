"""10 images with learned soft labels that teach one known LeNet MNIST.

    python -m experiments.main --config=experiments/configs/mnist_soft_labels.py --workdir=DIR
"""

from experiments.configs import default
from experiments.configs import mnist_fixed_init


def get_config(variant: str = ""):
  config = mnist_fixed_init.get_config()
  config.distill.labels = "soft"
  config.outer.label_learning_rate = 0.01
  default.apply_variant(config, variant)
  return config
