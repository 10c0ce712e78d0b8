"""LeNets trained on MNIST at 32 pixels in three channels, the target of SVHN.

    python -m experiments.pretrain --config=experiments/configs/mnist_rgb_lenet_pool.py \
      --workdir=DIR

`:paper` is the protocol of arXiv 1811.10959: 40 epochs of Adam at 2e-4, halved every 20.
"""

from experiments.configs import pool_default


def get_config(variant: str = ""):
  config = pool_default.get_config()
  config.data.name = "mnist"
  config.data.image_shape = (32, 32, 3)
  pool_default.apply_variant(config, variant, num_epochs=40, halve_every=20,
                             learning_rate=2e-4)
  return config
