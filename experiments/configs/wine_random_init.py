"""3 rows that teach any MLP three kinds of wine; scikit-learn's table.

    python -m experiments.main --config=experiments/configs/wine_random_init.py --workdir=DIR

As many rows as classes; --config.distill.images_per_class=10 gives 10 rows a class. Soft labels.
"""

from experiments.configs import table_default


def get_config(variant: str = ""):
  config = table_default.get_config("wine", variant, num_validation=20)
  config.distill.labels = "soft"
  return config
