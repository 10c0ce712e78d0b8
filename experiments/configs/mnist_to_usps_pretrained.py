"""100 images that adapt unseen LeNets trained on mnist to usps (paper: 95.4 +- 1.8 %).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py \
      --workdir=pools/mnist_lenet_pool
    python -m experiments.main --config=experiments/configs/mnist_to_usps_pretrained.py \
      --workdir=DIR
"""

from experiments.configs import adaptation


def get_config(variant: str = ""):
  return adaptation.get_config(source="mnist", pool="mnist_lenet_pool", target="usps", fixed=False,
                               variant=variant)
