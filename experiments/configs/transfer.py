"""Networks of every kind trained from scratch on distilled data, beside real images.

    python -m experiments.transfer --config=experiments/configs/transfer.py \\
      --config.distilled=runs/NAME/distilled.npz --config.data.dir=DIR --workdir=DIR
"""

from ml_collections import ConfigDict, config_dict


def get_config(variant: str = ""):
  if variant not in ("", "smoke"):
    raise ValueError(f"config variant must be '' or 'smoke'; got {variant!r}")
  config = ConfigDict()
  config.seed = 0
  config.distilled = ""  # The file of a run, whose dataset is used.
  # Names of dd_jax.models, with their options.
  config.networks = "lenet,convnet:width=32,mlp"

  config.data = data = ConfigDict()
  data.name = ""  # package.module:function, where that of the file is one; empty: that of the file.
  data.dir = ""  # Where the dataset's files lie; empty: $DD_JAX_DATA, or ~/dd_jax_data.
  data.download = False  # Whether the network may be used to fetch them.

  config.train = train = ConfigDict()
  train.num_epochs = (100, 300, 1000)  # One is chosen for each network and set, by validation.
  train.batch_size = 20  # At most all images of a set.
  train.real_epochs = config_dict.placeholder(int)  # On all real images, for HLR; None: left out.
  train.optimizer = "adamw"  # Or sgd: with momentum 0.9. Both along a cosine.
  train.learning_rate = 1e-3
  train.weight_decay = 1e-2
  # As in default.py, beside training without, for ARS; None: only without.
  train.augmentation = config_dict.placeholder(str)

  config.eval = evaluation = ConfigDict()
  evaluation.num_inits = 5  # Networks of each kind and set.
  evaluation.batch_size = 250  # Test images per forward pass.
  evaluation.num_parallel = config_dict.placeholder(int)  # None: one on a CPU, else 10.
  config.precision = "highest"
  if variant == "smoke":
    config.networks = "mlp"
    train.num_epochs = (1, 2)
    evaluation.num_inits = 2
  return config
