"""100 images by random truncation that teach a ConvNet MNIST, towards the 98.9 % of later work.

    python -m experiments.main --config=experiments/configs/mnist_random_window.py --workdir=DIR

The recipe of cifar10_random_window.py for digits: no flips, no whitening, small shifts, scales and
rotations. For a GPU; `--config.model.width=16` and fewer outer steps fit a CPU.
"""

from experiments.configs import cifar10_random_window
from experiments.configs import default


def get_config(variant: str = ""):
  config = cifar10_random_window.get_config()
  config.data.name = "mnist"
  config.data.whitening = None
  config.inner.augmentation = "shift,scale,rotate"
  config.outer.augmentation = None
  default.apply_variant(config, variant)
  return config
