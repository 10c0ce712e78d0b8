"""What the rows of domain adaptation share: networks trained on a source, data of a target."""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(*, source: str, pool: str, target: str, fixed: bool, variant: str) -> ConfigDict:
  """100 images of the target that adapt pre-trained networks to it (arXiv 1811.10959, 4.2).

  Args:
    source: dataset of the pool.
    pool: config of the pool; it is looked for in pools/POOL.
    target: dataset to distil.
    fixed: one known network instead of networks that distillation has not seen.
    variant: see `default.apply_variant`.
  """
  config = default.get_config()
  config.data.name = target
  config.init.name = "fixed_pretrained" if fixed else "pretrained"
  config.init.source = source
  config.init.pool = f"pools/{pool}"
  config.distill.step_size = 0.02
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 1
  config.outer.num_steps = 2000
  config.outer.batch_size = 256
  config.outer.chunk_size = 64
  config.outer.learning_rate = 0.03
  config.outer.step_size_learning_rate = 0.01
  config.outer.weight_decay = 0.1  # The initial noise would teach the pool's networks alone.
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  if not fixed:  # Another network in every step: cheaper steps, and more of them.
    config.outer.update(num_steps=3500, batch_size=128, learning_rate=0.06)
  config.eval.num_inits = 1 if fixed else 100
  config.validation.num_inits = 1 if fixed else 10
  config.validation.every = 200
  config.log_every = 50
  config.checkpoint_every = 200
  if target == "usps":
    config.data.num_validation = 500
  default.apply_variant(config, variant)
  return config
