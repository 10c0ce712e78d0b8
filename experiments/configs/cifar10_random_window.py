"""100 images by random truncation, towards the 69.4 % of RaT-BPTT (arXiv 2311.07025); for a GPU.

    python -m experiments.main --config=experiments/configs/cifar10_random_window.py --workdir=DIR

Its recipe as far as it is known: ConvNet, ZCA, 200 inner steps of Adam at 0.001 on all 100 images,
a window of 60 steps drawn anew in every outer step, flips and rotations of distilled and real
images, real minibatches of 5,000, 60,000 outer steps, 8 networks to test on. Not run in full.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.name = "cifar10"
  config.data.whitening = 0.1
  config.model.name = "convnet"
  config.distill.num_steps = 1
  config.distill.num_epochs = 200
  config.distill.images_per_class = 10
  config.distill.step_size = 0.001
  config.distill.step_size_sharing = "fixed"
  config.distill.labels = "soft"
  config.distill.memory = "remat"
  config.inner.optimizer = "adam"
  config.inner.augmentation = "flip,rotate"
  config.window.start = "random"
  config.window.length = 60
  config.outer.num_steps = 60_000
  config.outer.num_inits = 1
  config.outer.batch_size = 5000
  config.outer.chunk_size = 500
  config.outer.augmentation = "flip,rotate"
  config.outer.learning_rate = 0.001
  config.outer.label_learning_rate = 0.0003
  config.outer.beta1 = 0.9
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  config.eval.num_inits = 8
  config.validation.num_inits = 4
  default.apply_variant(config, variant)
  return config
