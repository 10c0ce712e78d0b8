"""10 rows that teach any linear network diabetes in one step of gradient descent (section 3.3).

    python -m experiments.main --config=experiments/configs/diabetes_linear.py --workdir=DIR

D columns need M = D rows: the step then ends at the least-squares solution of all real rows from
whatever weights.
"""

from experiments.configs import default
from experiments.configs import table_default


def get_config(variant: str = ""):
  config = table_default.get_config("diabetes", "", num_validation=60, predict="number")
  config.model.name = "linear"
  config.distill.images_per_class = 10
  config.distill.num_epochs = 1
  config.distill.labels = "soft"
  config.distill.step_size = 1.0
  config.outer.num_inits = 8
  config.outer.num_steps = 3000
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.05
  default.apply_variant(config, variant)
  return config
