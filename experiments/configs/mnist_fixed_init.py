"""10 images that teach one fixed LeNet MNIST (paper: 93.8 %, arXiv 1811.10959, section 4.1).

    python -m experiments.main --config=experiments/configs/mnist_fixed_init.py --workdir=DIR

Expected: 92 to 95 % test accuracy, depending on seed and machine, in one to four minutes on a CPU;
with --config.distill.num_starts=3 --config.init.noise=1e-5 93.7 to 95 %, in three times as long.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "mnist"
  config.init.name = "fixed"
  config.distill.num_steps = 1
  config.distill.step_size = 0.3
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 1
  config.outer.num_steps = 7000
  config.outer.batch_size = 128
  config.outer.chunk_size = 64
  config.outer.learning_rate = 0.06
  config.outer.step_size_learning_rate = 0.01
  config.outer.weight_decay = 0.04
  config.outer.schedule = "squared_cosine"
  config.outer.clip_norm = 0.5
  config.eval.num_inits = 1
  config.validation.num_inits = 1
  default.apply_variant(config, variant)
  return config
