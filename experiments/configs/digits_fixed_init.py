"""10 images that teach one fixed LeNet the 8x8 digits inside scikit-learn.

    python -m experiments.main --config=experiments/configs/digits_fixed_init.py --workdir=DIR

Expected: about 90 % test accuracy in a minute or two on two CPU cores.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "digits"
  config.data.num_validation = 200
  config.init.name = "fixed"
  config.distill.num_steps = 1
  config.distill.step_size = 0.1
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 1
  config.outer.num_steps = 2600
  config.outer.batch_size = 128
  config.outer.learning_rate = 0.05
  config.outer.step_size_learning_rate = 0.01
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.eval.num_inits = 1
  config.validation.num_inits = 1
  default.apply_variant(config, variant)
  return config
