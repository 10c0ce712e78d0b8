"""LeNets trained on USPS.

    python -m experiments.pretrain --config=experiments/configs/usps_lenet_pool.py --workdir=DIR

`:paper` is the protocol of arXiv 1811.10959: 130 epochs of Adam at 2e-4, halved every 40.
"""

from experiments.configs import pool_default


def get_config(variant: str = ""):
  config = pool_default.get_config()
  config.data.name = "usps"
  config.data.num_validation = 500
  config.pool.num_train = 400
  config.pool.num_heldout = 100
  config.pool.num_epochs = 8
  config.pool.batch_size = 128
  pool_default.apply_variant(config, variant, num_epochs=130, halve_every=40,
                             learning_rate=2e-4)
  return config
