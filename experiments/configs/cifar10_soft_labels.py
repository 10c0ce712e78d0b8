"""100 images with learned soft labels that teach any AlexCifarNet CIFAR-10, on a budget of a CPU.

    python -m experiments.main --config=experiments/configs/cifar10_soft_labels.py --workdir=DIR

Expected: 41 % over 50 held-out networks, in two hours on a CPU core; continued, with a fourth
epoch, 46.2 % (experiments/README.md).
"""

from experiments.configs import cifar10_random_init
from experiments.configs import default


def get_config(variant: str = ""):
  config = cifar10_random_init.get_config()
  config.distill.labels = "soft"
  config.outer.num_steps = 2000
  config.checkpoint_every = 50
  config.eval.num_inits = 50
  default.apply_variant(config, variant)
  return config
