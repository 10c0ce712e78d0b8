"""2 rows that teach any MLP which tumours are malignant; scikit-learn's table.

    python -m experiments.main --config=experiments/configs/breast_cancer_random_init.py \\
      --workdir=DIR

As many rows as classes; --config.distill.images_per_class=10 gives 10 rows a class. Soft labels.
"""

from experiments.configs import table_default


def get_config(variant: str = ""):
  config = table_default.get_config("breast_cancer", variant, num_validation=60)
  config.distill.labels = "soft"
  return config
