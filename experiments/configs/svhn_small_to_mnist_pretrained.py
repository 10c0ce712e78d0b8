"""100 images that adapt unseen LeNets trained on SVHN to MNIST (paper: 85.2 +- 4.7 %).

    python -m experiments.pretrain --config=experiments/configs/svhn_lenet_pool.py \
      --workdir=pools/svhn_lenet_pool
    python -m experiments.main --config=experiments/configs/svhn_small_to_mnist_pretrained.py \
      --workdir=DIR

The source here is svhn_small, a small subset of SVHN; the paper used the official set.
"""

from experiments.configs import adaptation


def get_config(variant: str = ""):
  config = adaptation.get_config(source="svhn_small", pool="svhn_lenet_pool",
                                 target="mnist", fixed=False, variant=variant)
  config.data.image_shape = (32, 32, 3)
  return config
