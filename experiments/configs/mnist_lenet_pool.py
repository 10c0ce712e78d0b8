"""LeNets trained on MNIST (paper: 98.6 +- 0.5 %).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py --workdir=DIR

`:paper` is the protocol of arXiv 1811.10959: 40 epochs of Adam at 2e-4, halved every 20.
"""

from experiments.configs import pool_default


def get_config(variant: str = ""):
  config = pool_default.get_config()
  config.data.name = "mnist"
  pool_default.apply_variant(config, variant, num_epochs=40, halve_every=20,
                             learning_rate=2e-4)
  return config
