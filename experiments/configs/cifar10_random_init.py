"""100 images that teach any randomly initialised AlexCifarNet CIFAR-10 (paper: 36.8 +- 1.2 %).

    python -m experiments.main --config=experiments/configs/cifar10_random_init.py --workdir=DIR

Expected: 40 to 41 % over 200 held-out networks, in one to four hours on a CPU core, half of them
for the test.
"""

from experiments.configs import cifar10_fixed_init
from experiments.configs import default


def get_config(variant: str = ""):
  config = cifar10_fixed_init.get_config()
  config.init.name = "random"
  config.outer.num_steps = 2000
  config.outer.learning_rate = 0.06
  config.outer.step_size_learning_rate = 0.01
  config.outer.weight_decay = 0.1
  config.eval.num_inits = 200
  config.validation.num_inits = 4
  default.apply_variant(config, variant)
  return config
