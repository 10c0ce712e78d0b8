"""200 images that take an AlexNet from ImageNet to CUB-200 (paper: 38.76 %, arXiv 1811.10959).

    python -m experiments.main --config=experiments/configs/cub200_alexnet.py --workdir=DIR \
      --config.init.checkpoint=alexnet.safetensors

The protocol of voc_alexnet.py. An epoch has 5 minibatches of 1024 of the 5,394 pictures that
validation leaves. It needs an accelerator, and has not been run.
"""

from experiments.configs import default
from experiments.configs import voc_alexnet


def get_config(variant: str = ""):
  config = voc_alexnet.get_config(steps_per_epoch=5)
  config.data.name = "cub200"
  config.data.num_validation = 600
  default.apply_variant(config, variant)
  return config
