"""100 images that teach any randomly initialised LeNet MNIST (paper: 79.5 +- 8.1 %).

    python -m experiments.main --config=experiments/configs/mnist_random_init.py --workdir=DIR

Expected: 85 +- 3 % over 200 held-out networks, in a minute and a half on two CPU cores.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "mnist"
  config.init.name = "random"
  config.distill.step_size = 0.05
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 1
  config.outer.num_steps = 1300
  config.outer.batch_size = 128
  config.outer.chunk_size = 64
  config.outer.learning_rate = 0.06
  config.outer.step_size_learning_rate = 0.01
  config.outer.weight_decay = 0.15
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.log_every = 50
  config.checkpoint_every = 650
  config.validation.every = 650
  default.apply_variant(config, variant)
  return config
