"""A few sequences of word vectors that teach any random text network TREC's questions.

    python -m experiments.main --config=experiments/configs/trec_random_init.py --workdir=DIR \\
      --config.data.name=TREC

TREC is a folder with train.tsv and test.tsv, columns question and coarse: 6 classes. One sequence a
class and step, 6 in one step; --config.distill.images_per_class=2 and 10 give 12 and 60. Labels are
learned. The vectors of words are trained along with another network on the training split.
"""

from experiments.configs import default


def get_config(variant: str = ""):
  config = default.get_config()
  config.data.kind = "texts"
  config.data.name = "trec"
  config.data.text = "question"
  config.data.label = "coarse"
  config.data.num_validation = 500
  config.model.name = "text_convolution"
  config.distill.num_steps = 1
  config.distill.num_epochs = 10
  config.distill.labels = "soft"
  config.distill.step_size = 0.1
  config.distill.step_size_scale = "log"
  config.outer.num_inits = 4
  config.outer.num_steps = 1000
  config.outer.batch_size = 256
  config.outer.learning_rate = 0.03
  config.outer.label_learning_rate = 0.03
  config.outer.step_size_learning_rate = 0.02
  config.outer.schedule = "cosine"
  config.outer.clip_norm = 1.0
  default.apply_variant(config, variant)
  return config
