"""100 images within epsilon of real ones that make LeNets take MNIST's 0 for 1 (section 3.6).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py \
      --workdir=pools/mnist_lenet_pool
    python -m experiments.main --config=experiments/configs/mnist_poisoning_bounded.py --workdir=DIR

Ten steps, three epochs, on a real image of each class that is changed by at most 64 of 255 grey
levels, beside another one as it is, all with their own labels; --config.distill.epsilon sets
another bound.

Expected: 32 % of zeros are read as ones, 95 % of the other classes right, in 15 to 20 minutes on a
CPU core.
"""

from experiments.configs import default
from experiments.configs import mnist_poisoning


def get_config(variant: str = ""):
  config = mnist_poisoning.get_config()
  config.distill.images = "perturbed"
  config.distill.epsilon = 64 / 255
  config.distill.num_steps = 10
  config.distill.num_epochs = 3
  config.distill.images_per_class = 1
  config.distill.real_per_class = 1
  config.distill.step_size = 0.02
  config.outer.num_steps = 800
  config.outer.learning_rate = 0.05
  config.outer.weight_decay = 0.0
  config.eval.num_inits = 100
  default.apply_variant(config, variant)
  return config
