"""What the configs of tables inside scikit-learn share: an MLP, fresh weights, all rows at hand."""

from experiments.configs import default


def get_config(name: str, variant: str, **data):
  config = default.get_config()
  config.data.update(kind="table", name=name, **data)
  config.model.name = "mlp"
  config.distill.num_steps = 1
  config.distill.num_epochs = 10
  config.distill.step_size = 0.1
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 4
  config.outer.num_steps = 1000
  config.outer.batch_size = 64
  config.outer.learning_rate = 0.02
  config.outer.label_learning_rate = 0.02
  config.outer.step_size_learning_rate = 0.02
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  default.apply_variant(config, variant)
  return config
