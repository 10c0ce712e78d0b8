"""100 images within epsilon of real ones that make networks take 0 for 1 (section 3.6).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py \
      --workdir=pools/mnist_lenet_pool
    python -m experiments.main --config=experiments/configs/mnist_poisoning_bounded.py --workdir=DIR

10 real images a class, each changed by at most 16 of 255 grey levels, and as many left as they are
beside them; --config.distill.epsilon sets another bound.
"""

from experiments.configs import default
from experiments.configs import mnist_poisoning


def get_config(variant: str = ""):
  config = mnist_poisoning.get_config()
  config.distill.images = "perturbed"
  config.distill.epsilon = 16 / 255
  config.distill.images_per_class = 10
  config.distill.real_per_class = 10
  config.outer.learning_rate = 0.01
  config.outer.weight_decay = 0.0
  default.apply_variant(config, variant)
  return config
