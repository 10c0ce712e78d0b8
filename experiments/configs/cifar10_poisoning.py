"""100 images, one step, that make trained AlexCifarNets take planes for cars (45.9 +- 18.1 %).

    python -m experiments.pretrain --config=experiments/configs/cifar10_alexcifarnet_pool.py \
      --workdir=pools/cifar10_alexcifarnet_pool
    python -m experiments.main --config=experiments/configs/cifar10_poisoning.py --workdir=DIR
"""

from experiments.configs import default
from experiments.configs import mnist_poisoning


def get_config(variant: str = ""):
  config = mnist_poisoning.get_config()
  config.data.name = "cifar10"
  config.model.name = "alexcifarnet"
  config.init.pool = "pools/cifar10_alexcifarnet_pool"
  config.distill.step_size = 0.001
  config.distill.memory = "remat"
  config.outer.num_steps = 200
  config.outer.augmentation = "crop,flip"
  config.outer.chunk_size = 16
  config.eval.num_inits = 10
  default.apply_variant(config, variant)
  return config
