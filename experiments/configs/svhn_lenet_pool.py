"""LeNets trained on a small subset of SVHN, which is not the official set.

    python -m experiments.pretrain --config=experiments/configs/svhn_lenet_pool.py --workdir=DIR

`:paper` is the protocol of arXiv 1811.10959: 65 epochs of Adam at 2e-4, halved every 20.
"""

from experiments.configs import pool_default


def get_config(variant: str = ""):
  config = pool_default.get_config()
  config.data.name = "svhn_small"
  config.data.num_validation = 500
  config.pool.num_heldout = 100
  config.pool.num_epochs = 15
  config.pool.batch_size = 128
  pool_default.apply_variant(config, variant, num_epochs=65, halve_every=20,
                             learning_rate=2e-4)
  return config
