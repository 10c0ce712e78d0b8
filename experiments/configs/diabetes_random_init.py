"""5 rows that teach any MLP how diabetes goes on, a number; scikit-learn's table.

    python -m experiments.main --config=experiments/configs/diabetes_random_init.py --workdir=DIR

Rows and targets are learned; --config.distill.images_per_class=20 gives 20 rows.
"""

from experiments.configs import table_default


def get_config(variant: str = ""):
  config = table_default.get_config("diabetes", variant, num_validation=60, predict="number")
  config.distill.images_per_class = 5
  config.distill.labels = "soft"
  config.distill.step_size = 0.02
  return config
