"""100 images that adapt one LeNet trained on mnist to usps (paper: 97.9 %).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py \
      --workdir=pools/mnist_lenet_pool
    python -m experiments.main --config=experiments/configs/mnist_to_usps_fixed_pretrained.py \
      --workdir=DIR
"""

from experiments.configs import adaptation


def get_config(variant: str = ""):
  return adaptation.get_config(source="mnist", pool="mnist_lenet_pool", target="usps", fixed=True,
                               variant=variant)
