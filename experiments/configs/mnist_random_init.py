"""100 images that teach any randomly initialised LeNet MNIST."""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "mnist"
  config.init.name = "random"
  config.distill.step_size = 0.1
  config.distill.step_size_scale = "log"
  config.distill.memory = "plain"
  config.outer.num_inits = 4
  config.outer.num_steps = 700
  config.outer.batch_size = 256
  config.outer.chunk_size = 64
  config.outer.learning_rate = 0.05
  config.outer.step_size_learning_rate = 0.02
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.log_every = 20
  config.checkpoint_every = 100
  config.validation.every = 100
  default.apply_variant(config, variant)
  return config
