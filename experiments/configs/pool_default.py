"""Every field of a pool of pre-trained networks with its default (experiments.pretrain)."""

from ml_collections import ConfigDict, config_dict

from experiments.configs import default


def get_config() -> ConfigDict:
  """The sections `data`, `model` and `init` as in default.py, and `pool`."""
  config = default.get_config()
  for section in ("objective", "distill", "inner", "window", "outer", "eval", "validation"):
    del config[section]
  for field in ("log_every", "checkpoint_every", "checkpoints_kept", "tensorboard", "parallel"):
    del config[field]
  del config.data["storage"]
  for field in ("name", "noise", "pool", "num_validation", "checkpoint", "source"):
    del config.init[field]

  config.pool = pool = ConfigDict()
  pool.num_train = 200  # Networks to distil with.
  pool.num_heldout = 200  # Networks to test on, of other seeds.
  pool.block = 10  # Networks per program, and per file until all are done.
  pool.num_parallel = config_dict.placeholder(int)  # Side by side; None: 1 on a CPU, else a block.
  pool.num_epochs = 2
  pool.batch_size = 256
  pool.learning_rate = 2e-3  # Adam.
  pool.beta1 = 0.9
  pool.schedule = "cosine"  # Or halving, every halve_every epochs.
  pool.halve_every = 20
  return config


def apply_variant(config: ConfigDict, variant: str, *, num_epochs: int, halve_every: int,
                  learning_rate: float) -> None:
  """"smoke": a few networks for one epoch; "paper": the protocol of arXiv 1811.10959.

  The paper's pools hold 2,000 networks, those of the authors' documentation 200.
  """
  if variant not in ("", "smoke", "paper"):
    raise ValueError(f"config variant must be '', 'smoke' or 'paper'; got {variant!r}")
  if variant == "smoke":
    config.pool.update(num_train=3, num_heldout=3, block=2, num_epochs=1)
  if variant == "paper":
    config.pool.update(num_train=2000, num_heldout=200, num_epochs=num_epochs,
                       batch_size=256, halve_every=halve_every, learning_rate=learning_rate,
                       beta1=0.5, schedule="halving")
