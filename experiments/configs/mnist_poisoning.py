"""100 images, one step, that make trained LeNets take MNIST's 0 for 1 (paper: 71.4 +- 29.6 %).

    python -m experiments.pretrain --config=experiments/configs/mnist_lenet_pool.py \
      --workdir=pools/mnist_lenet_pool
    python -m experiments.main --config=experiments/configs/mnist_poisoning.py --workdir=DIR

More steps: --config.distill.num_steps=10 --config.distill.images_per_class=1.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "mnist"
  config.init.name = "pretrained"
  config.init.pool = "pools/mnist_lenet_pool"
  config.objective.name = "poisoning"
  config.distill.num_steps = 1
  config.distill.num_epochs = 1
  config.distill.images_per_class = 10
  config.distill.step_size = 0.02
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 4
  config.outer.num_steps = 1000
  config.outer.batch_size = 256
  config.outer.chunk_size = 64
  config.outer.learning_rate = 0.03
  config.outer.weight_decay = 0.15  # The initial noise would teach the pool's networks alone.
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.log_every = 50
  config.checkpoint_every = 100
  config.validation.every = 100
  default.apply_variant(config, variant)
  return config
