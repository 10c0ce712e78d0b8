"""100 images that adapt one LeNet trained on digits to mnist.

    python -m experiments.pretrain --config=experiments/configs/digits_lenet_pool.py \
      --workdir=pools/digits_lenet_pool
    python -m experiments.main --config=experiments/configs/digits_to_mnist_fixed_pretrained.py \
      --workdir=DIR
"""

from experiments.configs import adaptation


def get_config(variant: str = ""):
  return adaptation.get_config(source="digits", pool="digits_lenet_pool", target="mnist",
                               fixed=True, variant=variant)
