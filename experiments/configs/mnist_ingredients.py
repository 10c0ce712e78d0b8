"""One ingredient of later work at a time, on a small budget: MNIST, random init, 100 images.

    python -m experiments.main --config=experiments/configs/mnist_ingredients.py:soft_labels \\
      --workdir=DIR
    python -m experiments.study --study=ingredients --seeds=0,1,2 \\
      --config=experiments/configs/mnist_ingredients.py --workdir=DIR

The names behind the colon are those of INGREDIENTS; without one, none of them.
"""

from experiments.configs import default
from experiments.configs import mnist_random_init

_MOMENTUM = {"inner.optimizer": "momentum", "inner.learned": True, "distill.step_size": 0.02}
_AUGMENTATION = {"inner.augmentation": "shift,scale,rotate"}

# Name -> the fields that differ from the plain config.
INGREDIENTS = {
    "none": {},
    "soft_labels": {"distill.labels": "soft"},
    "tied_labels": {"distill.labels": "tied"},
    "momentum": _MOMENTUM,
    "adam": {"inner.optimizer": "adam", "distill.step_size": 0.003},
    "tied_step_sizes": {"distill.step_size_sharing": "tied"},
    "real_start": {"distill.start": "real"},
    "bases": {"distill.images": "bases", "distill.num_bases": 50},  # Half the bytes.
    "upsampled": {"distill.images": "upsampled", "distill.images_per_class": 4},
    "augmentation": _AUGMENTATION,
    "whitening": {"data.whitening": 0.1},
    "random_window": {"window.start": "random", "window.length": 15},
    "adaptive_window": {"window.start": "adaptive", "window.length": 15},
    "warm_start": {"window.start": "warm", "window.length": 15},
    "implicit": {"inner.hypergradient": "implicit"},
    "ridge": {"inner.hypergradient": "ridge"},
    "all": {"distill.labels": "soft", "distill.images": "upsampled", "distill.images_per_class": 4,
            "data.whitening": 0.1, "window.start": "random", "window.length": 15, **_MOMENTUM,
            **_AUGMENTATION},
}


def get_config(variant: str = ""):
  config = mnist_random_init.get_config()
  config.outer.num_steps = 200
  config.outer.num_inits = 2
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.03
  config.log_every = 20
  config.checkpoint_every = config.validation.every = 100
  config.eval.num_inits = 20
  config.update_from_flattened_dict(INGREDIENTS.get(variant, {}))
  default.apply_variant(config, "" if variant in INGREDIENTS else variant)
  return config
