"""AlexCifarNets trained on CIFAR-10 (paper: 78.2 +- 1.1 %).

    python -m experiments.pretrain --config=experiments/configs/cifar10_alexcifarnet_pool.py \
      --workdir=DIR

Expected: 68 % on average (65 to 70), three minutes a network on a CPU core.
`:paper` is the protocol of arXiv 1811.10959: 50 epochs of Adam at 1e-3, halved every 7.
"""

from experiments.configs import pool_default


def get_config(variant: str = ""):
  config = pool_default.get_config()
  config.data.name = "cifar10"
  config.model.name = "alexcifarnet"
  config.pool.num_train = 22
  config.pool.num_heldout = 20
  config.pool.block = 1
  config.pool.num_epochs = 2
  config.pool.batch_size = 64
  config.pool.learning_rate = 1e-3
  pool_default.apply_variant(config, variant, num_epochs=50, halve_every=7,
                             learning_rate=1e-3)
  return config
