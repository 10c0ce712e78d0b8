"""Every field of an experiment with its default; the other configs change what differs."""

from ml_collections import ConfigDict, config_dict


# Minibatches of 1024 in the training images that validation leaves, and where the paper's step
# sizes start.
_STEPS_PER_EPOCH = {"mnist": 53, "cifar10": 43}
_PAPER_STEP_SIZE = {"mnist": 0.02, "cifar10": 0.001}


def get_config() -> ConfigDict:
  """The fields, grouped as the data flows.

  Where a name is taken (data, network, init, losses, parametrization, augmentation), so is
  `package.module:function` of one's own; docs/objectives.md says what it must give.
  """
  config = ConfigDict()
  config.seed = 0

  config.data = data = ConfigDict()
  data.name = "digits"  # One of dd_jax.datasets.NAMES, or the path of files as in docs/data.md.
  data.dir = ""  # Where its files lie; empty: $DD_JAX_DATA, or ~/dd_jax_data.
  data.download = False  # Whether the network may be used to fetch them.
  data.image_shape = config_dict.placeholder(tuple)  # None: its own; larger: a border, grey to RGB.
  # Of pictures in files, which become of that shape as they are read: border, or stretch, or crop.
  data.resize = "border"
  data.label = "label"  # Of tables and texts in files: the column of labels.
  data.kind = "images"  # Or texts, with a column of text; or table, of numbers and categories.
  data.predict = "class"  # Of a table: class; or number, of the columns "a,b" of data.label.
  data.text = "text"  # The column of texts.
  data.length = 16  # Words of a text, which is cut or padded.
  data.vectors = "trained"  # Of words, with a network; or random; or a file of them, as GloVe's.
  data.dim = 50  # Numbers of a word, where no file says.
  data.min_count = 2  # Times that a word must be in the training texts to be known.
  data.test_fraction = 1 / 6  # Of every class, where files of one's own have no test split.
  # Where they lie: device; host, main memory; or stream: read from their files as the run goes.
  data.storage = "device"
  data.num_validation = 5000  # Training images set aside for the progress bar.
  data.whitening = config_dict.placeholder(float)  # ZCA with this regularization; None: none.

  config.model = model = ConfigDict()
  # One of dd_jax.models.MODELS: lenet, alexcifarnet, alexnet, convnet, resnet18, vit, mlp, linear,
  # text_convolution.
  model.name = "lenet"
  # Options of the networks that have such an argument; None: the network's own.
  model.convolution = config_dict.placeholder(str)  # None: the fastest on this backend.
  model.width = config_dict.placeholder(int)
  model.depth = config_dict.placeholder(int)
  model.norm = config_dict.placeholder(str)

  config.init = init = ConfigDict()
  # fixed, random, pretrained, fixed_pretrained (one network of the pool), imagenet (AlexNet's).
  init.name = "random"
  # Of dd_jax.init_distributions; None: xavier_normal, and of a network of one's own what it gives.
  init.weights = config_dict.placeholder(str)
  init.scale = config_dict.placeholder(float)  # Its gain, slope or std; None: its default.
  # Of one known network: relative, on every weight in every outer step; with 1e-5 the images depend
  # little on how a machine rounds.
  init.noise = 0.

  init.pool = ""  # Pre-trained: the directory that experiments.pretrain wrote.
  init.num_validation = 10  # Networks of the training pool set aside for validation.
  init.checkpoint = ""  # imagenet: the file of weights.
  init.source = ""  # What the pool was trained on; empty: data.name.

  config.objective = objective = ConfigDict()
  # Of targets the squared error. Or poisoning: attack_class is to be read as target_class.
  objective.name = "classification"
  objective.attack_class = 0
  objective.target_class = 1

  config.distill = distill = ConfigDict()
  distill.num_steps = 10  # S
  distill.num_epochs = 3  # E
  distill.images_per_class = 1  # In every step: B = K * images_per_class.
  # Images of a step where they are fewer than the classes; with soft labels. None: as above.
  distill.few_images = config_dict.placeholder(int)
  # Or bases, which all images share; upsampled, of a lower resolution; or perturbed, real ones that
  # change by at most epsilon, a share of the range of the dataset's pixels.
  distill.images = "pixels"
  distill.epsilon = 8 / 255
  distill.norm = "linf"  # Of the change: linf, or l2.
  distill.real_per_class = 0  # Real images beside the learned ones, in every step.
  distill.num_bases = 32  # Of bases.
  distill.upsampling = 2  # Of upsampled: how many times lower.
  # Or real: pixels start as real images; or the path of a distilled.npz, whose images, labels and
  # step sizes they go on from, with the networks of this config.
  distill.start = "noise"
  distill.num_starts = 1  # Of noise: the whole run from each; the best by validation is the result.
  distill.labels = "hard"  # Or soft: a learned vector for each image; tied: one for each class.
  distill.max_bytes = config_dict.placeholder(int)  # An error where more is learned.
  distill.step_size_sharing = "per_step"  # Or per_epoch, tied, fixed (not learned).
  distill.step_size = 0.02  # Initial inner step size.
  distill.step_size_scale = "softplus"  # What the outer optimizer moves: softplus, or log.
  distill.memory = "plain"  # Or remat, nested, or a number of states kept of the trajectory.
  distill.gradient = "reverse"  # Or forward_over_reverse: plain in less than half the memory.

  config.inner = inner = ConfigDict()
  inner.optimizer = "gradient_descent"  # Or momentum, nesterov, adam.
  inner.decay = config_dict.placeholder(float)  # Of momentum and nesterov; None: 0.9.
  inner.b1 = config_dict.placeholder(float)  # Of adam; None: 0.9.
  inner.b2 = config_dict.placeholder(float)  # Of adam; None: 0.999.
  inner.weight_decay = config_dict.placeholder(float)  # Of any; None: none.
  inner.learned = False  # Whether these numbers are learned too.
  # None: cross-entropy; or package.module:function, of (params, inputs, labels) or of apply.
  inner.loss = config_dict.placeholder(str)
  # Of distilled images: names with commas between, of flip, crop, shift, scale, rotate, color,
  # cutout; None.
  inner.augmentation = config_dict.placeholder(str)
  inner.siamese = False  # Whether all images of a step are changed alike.
  # Or implicit: of the optimum that training should reach; or ridge: only a last layer is trained,
  # by ridge regression on the features of fresh weights.
  inner.hypergradient = "unrolled"
  inner.solver = "conjugate_gradient"  # Of implicit; or neumann.
  inner.num_terms = 20
  inner.damping = 0.0
  inner.num_features = 128  # Of ridge: outputs of the model, below that layer.
  inner.regularization = 1e-3

  config.window = window = ConfigDict()
  # The stretch of the trajectory that is differentiated: last, random, adaptive, or warm (where
  # a pool of networks stands that every outer step moves on); None: all of it.
  window.start = config_dict.placeholder(str)
  window.length = 10  # Inner steps.
  window.temperature = 1.0  # Of adaptive.
  window.pool_size = 16  # Of warm.

  config.outer = outer = ConfigDict()
  outer.num_steps = 1000
  outer.num_inits = 4  # N
  outer.num_parallel = config_dict.placeholder(int)  # Side by side; None: one on a CPU, else N.
  outer.batch_size = 1024  # R
  outer.augmentation = config_dict.placeholder(str)  # Of the real images, as inner.augmentation.
  outer.chunk_size = config_dict.placeholder(int)  # Real images per pass; None: all R.
  outer.learning_rate = 0.01  # Adam, on the images.
  outer.label_learning_rate = 0.01  # Adam, on soft labels.
  outer.step_size_learning_rate = 0.01  # Adam, on step sizes and learned hyper-parameters.
  outer.weight_decay = 0.0  # AdamW's, on the images.
  outer.beta1 = 0.5
  outer.beta2 = 0.999
  outer.schedule = "halving"  # halving (every halve_every steps), cosine, squared_cosine.
  outer.halve_every = 2000
  outer.on_nonfinite = "stop"  # Or halve: back to a checkpoint, with half the learning rates.
  outer.clip_norm = config_dict.placeholder(float)  # Of the whole hypergradient.

  config.eval = evaluation = ConfigDict()
  evaluation.num_inits = 200  # Held-out networks; 1 for a fixed init.
  evaluation.batch_size = 250  # Test images per forward pass.
  evaluation.num_parallel = config_dict.placeholder(int)  # None: one on a CPU, else 10.

  config.validation = validation = ConfigDict()
  validation.every = 500  # Outer steps; a multiple of log_every.
  validation.num_inits = 10
  # Which images are the result: final, or best by validation; of poisoning by the mean of success
  # and accuracy on the other classes.
  validation.selection = "final"

  config.parallel = "jit"  # Several devices share the run as sharded arrays; or pmap.
  config.precision = "highest"  # Of float32 products on an accelerator: highest, high, default.
  config.log_every = 100  # Outer steps per dispatch, and per line of metrics.jsonl.
  config.checkpoint_every = 500  # Outer steps; a multiple of log_every.
  config.checkpoints_kept = 2  # The last ones; the best by validation is kept besides.
  config.tensorboard = False  # Whether curves and images are written for TensorBoard too.
  return config


def apply_variant(config: ConfigDict, variant: str) -> None:
  """What stands behind the colon after a config's file name.

  "smoke" shrinks it to a few seconds of work; "paper" replaces our recipe by the protocol of arXiv
  1811.10959: Adam at 0.01 halved every 40 of 400 epochs, R = 1024, step sizes from 0.02 (CIFAR-10:
  0.001), four networks of a pool in every step.
  """
  if variant not in ("", "smoke", "paper"):
    raise ValueError(f"config variant must be '', 'smoke' or 'paper'; got {variant!r}")
  if variant == "paper":
    if config.data.name not in _STEPS_PER_EPOCH:
      raise ValueError(f"config variant 'paper' must go with data of {sorted(_STEPS_PER_EPOCH)}; "
                       f"got {config.data.name!r}")
    for field, value, usual in (
        ("distill.labels", config.distill.labels, "hard"),
        ("inner.optimizer", config.inner.optimizer, "gradient_descent"),
        ("window.start", config.window.start, None)):
      if value != usual:
        raise ValueError(f"config variant 'paper' must go with {field}={usual}, as the paper's; "
                         f"this config has {value!r}")
    steps = _STEPS_PER_EPOCH[config.data.name]
    config.distill.update(step_size=_PAPER_STEP_SIZE[config.data.name],
                          step_size_scale="softplus")
    if config.init.name == "pretrained":
      config.outer.num_inits = 4
    config.outer.update(
        num_steps=400 * steps, batch_size=1024, learning_rate=0.01, step_size_learning_rate=0.01,
        weight_decay=0.0, beta1=0.5, schedule="halving", halve_every=40 * steps, clip_norm=None)
  if variant == "smoke":
    config.outer.num_steps = 6
    config.outer.batch_size = min(config.outer.batch_size, 64)
    config.log_every = 2
    config.checkpoint_every = 4
    config.validation.every = 2
    config.validation.num_inits = min(config.validation.num_inits, 2)
    config.eval.num_inits = min(config.eval.num_inits, 2)
    if config.init.name == "pretrained":  # Smoke pools have three networks.
      config.init.num_validation = 1
      config.outer.num_inits = min(config.outer.num_inits, 2)
      config.validation.num_inits = 1
