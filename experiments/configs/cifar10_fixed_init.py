"""100 images that teach one fixed AlexCifarNet CIFAR-10 (paper: 54.0 %, arXiv 1811.10959).

    python -m experiments.main --config=experiments/configs/cifar10_fixed_init.py --workdir=DIR

The real images are cropped and flipped as the authors do; an outer step takes a second or so on
a CPU core.

Expected: 54 to 56 % test accuracy, in two to three and a half hours on a CPU core.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "cifar10"
  config.model.name = "alexcifarnet"
  config.init.name = "fixed"
  config.distill.step_size = 0.02
  config.distill.step_size_scale = "log"
  config.distill.memory = "remat"
  config.outer.num_inits = 1
  config.outer.num_steps = 5000
  config.outer.batch_size = 128
  config.outer.augmentation = "crop,flip"
  config.outer.chunk_size = 32
  config.outer.learning_rate = 0.08
  config.outer.step_size_learning_rate = 0.02
  config.outer.weight_decay = 0.04
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.eval.num_inits = 1
  config.validation.num_inits = 1
  config.log_every = 10
  config.checkpoint_every = 100
  config.validation.every = 500
  default.apply_variant(config, variant)
  return config
