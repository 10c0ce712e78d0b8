"""20 images that take an AlexNet from ImageNet to PASCAL-VOC (paper: 70.75 %, arXiv 1811.10959).

    python -m experiments.main --config=experiments/configs/voc_alexnet.py --workdir=DIR \
      --config.init.checkpoint=alexnet.safetensors

The paper's protocol: one image per class, used three times; 200 epochs of Adam at 0.01, halved
every 30. An epoch has 14 minibatches of 1024 of the 14,662 objects of VOC2007 that validation
leaves. It needs an accelerator, and has not been run.
"""

from experiments.configs import default


def get_config(variant: str = "", *, steps_per_epoch: int = 14):
  config = default.get_config()
  config.data.name = "voc"
  config.data.num_validation = 1000
  config.model.name = "alexnet"
  config.init.name = "imagenet"
  config.distill.num_steps = 1
  config.distill.step_size = 0.001
  config.distill.memory = "remat"
  config.outer.num_inits = 1
  config.outer.num_steps = 200 * steps_per_epoch
  config.outer.chunk_size = 128
  config.outer.halve_every = 30 * steps_per_epoch
  config.eval.num_inits = 1
  config.validation.num_inits = 1
  config.log_every = steps_per_epoch
  config.checkpoint_every = 10 * steps_per_epoch
  config.validation.every = 10 * steps_per_epoch
  default.apply_variant(config, variant)
  return config
