"""100 images with learned soft labels that teach any AlexCifarNet CIFAR-10, on a budget of a CPU.

    python -m experiments.main --config=experiments/configs/cifar10_soft_labels.py --workdir=DIR

Expected: see experiments/README.md; about 70 minutes on one core.
"""

from experiments.configs import cifar10_random_init
from experiments.configs import default


def get_config(variant: str = ""):
  config = cifar10_random_init.get_config()
  config.distill.labels = "soft"
  config.distill.step_size = 0.01
  config.outer.label_learning_rate = 0.01
  config.outer.num_inits = 2
  config.outer.num_steps = 1000
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.03
  config.outer.step_size_learning_rate = 0.02
  config.outer.weight_decay = 0.05
  config.eval.num_inits = 100
  config.validation.num_inits = 2
  config.validation.every = 200
  config.checkpoint_every = 20
  default.apply_variant(config, variant)
  return config
