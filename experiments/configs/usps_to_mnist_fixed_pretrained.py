"""100 images that adapt one LeNet trained on usps to mnist (paper: 93.2 %).

    python -m experiments.pretrain --config=experiments/configs/usps_lenet_pool.py \
      --workdir=pools/usps_lenet_pool
    python -m experiments.main --config=experiments/configs/usps_to_mnist_fixed_pretrained.py \
      --workdir=DIR
"""

from experiments.configs import adaptation


def get_config(variant: str = ""):
  return adaptation.get_config(source="usps", pool="usps_lenet_pool", target="mnist", fixed=True,
                               variant=variant)
