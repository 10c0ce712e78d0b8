"""Fields of a config that do not fit: named before anything is written."""

import pathlib

import jax
import numpy as np
import pytest

from experiments import problem
from experiments.configs import cifar10_fixed_init
from experiments.configs import cifar10_poisoning
from experiments.configs import mnist_lenet_pool
from experiments.configs import mnist_poisoning
from experiments.configs import mnist_random_init
from experiments.configs import mnist_random_window
from experiments.configs import mnist_soft_labels
from experiments.configs import mnist_to_usps_pretrained
from experiments.configs import usps_to_mnist_pretrained
from tests.launches import smoke

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_noise_is_on_the_weights_of_training_alone():
  inits = problem.make_problem(smoke(**{"init.noise": .01})).inits
  (train, again, validation, test) = (
      init.sample(jax.random.key(seed), 1) for init, seed in (
          (inits.train, 0), (inits.train, 1), (inits.validation, 2), (inits.test, 3)))
  jax.tree.map(np.testing.assert_array_equal, validation, test)
  for noisy in (train, again):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=.06), noisy, test)
    assert jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), noisy, test)).count(True)
  assert jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), train, again)).count(True)


@pytest.mark.parametrize("field, value, message", [
    ("data.name", "imagenet", "name must be one of digits, mnist.*; got 'imagenet'"),
    ("data.num_validation", 5, r"num_validation must lie in 10\.\..*; got 5"),
    ("init.name", "trained",
     r"init\.name must be one of \['fixed', 'fixed_pretrained', 'imagenet', "
     r"'pretrained', 'random'\]"),
    ("init.weights", "he", r"init\.weights must be one of \['kaiming_fan_in'.*; got 'he'"),
    ("model.width", 3, "model.width must be left out for mlp, which has no such option; got 3"),
    ("model.name", "alexcifarnet", r"image_shape of alexcifarnet must be 32x32 .*\(28, 28, 1\)"),
    ("distill.num_steps", 0, "num_steps must be at least 1; got 0"),
    ("distill.num_epochs", 0, "num_epochs must be at least 1; got 0"),
    ("distill.images_per_class", -1, "images_per_class must be at least 1; got -1"),
    ("distill.step_size", 0., r"distill\.step_size must be positive; got 0.0"),
    ("distill.step_size_scale", "exp", r"distill\.step_size_scale must be one of .*; got 'exp'"),
    ("distill.memory", "disk", r"memory must be one of .*; got 'disk'"),
    ("distill.gradient", "none", r"gradient must be one of .*; got 'none'"),
    ("outer.num_inits", 0, "num_inits must be at least 1; got 0"),
    ("outer.num_inits", 2, "num_inits must be 1 for a fixed init; got 2"),
    ("init.noise", -.1, r"init\.noise must be positive; got -0\.1"),
    ("outer.batch_size", 1098, r"batch_size must lie in 1\.\.1097 .*; got 1098"),
    ("outer.chunk_size", 0, "chunk_size must be at least 1; got 0"),
    ("outer.learning_rate", -.1, r"outer\.learning_rate must be positive; got -0\.1"),
    ("outer.learning_rate", float("nan"), r"outer\.learning_rate must be positive; got nan"),
    ("outer.step_size_learning_rate", 0., r"outer\.step_size_learning_rate must be positive"),
    ("outer.weight_decay", -.1, r"outer\.weight_decay must not be negative; got -0\.1"),
    ("outer.beta1", 1., r"outer\.beta1 must lie in \[0, 1\); got 1\.0"),
    ("outer.beta2", -.5, r"outer\.beta2 must lie in \[0, 1\); got -0\.5"),
    ("outer.num_parallel", 0, "num_parallel must be at least 1; got 0"),
    ("init.scale", -1., r"init\.scale must be positive; got -1\.0"),
    ("outer.clip_norm", 0., r"outer\.clip_norm must be positive; got 0\.0"),
    ("outer.schedule", "linear", r"outer\.schedule must be one of \['cosine', 'halving', 's"),
    ("outer.num_steps", 0, r"outer\.num_steps must be positive; got 0"),
    ("eval.num_inits", 200, "num_inits must be 1 for a fixed init; got 200"),
    ("eval.batch_size", 0, "batch_size must be at least 1; got 0"),
    ("checkpoint_every", 3, "checkpoint_every must be a multiple of log_every=2; got 3"),
    ("validation.every", 0, r"validation\.every must be a multiple of log_every=2; got 0"),
    ("validation.selection", "last",
     r"validation\.selection must be one of \['best', 'final'\]; got 'last'"),
    ("outer.on_nonfinite", "ignore",
     r"outer\.on_nonfinite must be one of \['halve', 'stop'\]; got 'ignore'"),
    ("parallel", "threads", r"parallel must be one of \['jit', 'pmap'\]; got 'threads'"),
    ("precision", "low", r"precision must be one of \['default', 'high', 'highest'\]; got 'low'"),
    ("checkpoints_kept", 0, "checkpoints_kept must be positive; got 0"),
    ("seed", -1, "^seed must lie in 0..4294967295; got -1$"),
    ("seed", 2 ** 32, "^seed must lie in 0..4294967295; got 4294967296$"),
])
def test_a_bad_field_is_named_before_anything_is_written(tmp_path, field, value, message):
  with pytest.raises(ValueError, match=message) as error:
    problem.distill(smoke(**{field: value}), tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("updates, message", [
    ({"data.predict": "number"}, "data.predict must be 'class' unless data.kind is 'table'; got "),
    ({"data.kind": "table", "data.name": "wine", "data.whitening": .1},
     r"data\.whitening must be left out for data\.kind='table'; got 0\.1"),
    ({"init.name": "random", "eval.num_inits": 2, "init.noise": 1e-5},
     r"init\.noise must be left out unless init\.name is one of \['fixed', .*; got 1e-05"),
    ({"init.weights": "own", "init.scale": 2.},
     r"init\.scale must be left out where init\.weights is 'own'; got 2\.0"),
])
def test_a_field_that_would_do_nothing_is_refused(tmp_path, updates, message):
  with pytest.raises(ValueError, match=message):
    problem.distill(smoke(**updates), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_paper_s_protocol_goes_with_the_paper_s_configs_alone():
  assert mnist_random_init.get_config("paper").outer.schedule == "halving"
  assert cifar10_fixed_init.get_config("paper").distill.step_size == .001
  assert usps_to_mnist_pretrained.get_config("paper").outer.num_inits == 4
  for config in (mnist_soft_labels, mnist_random_window):
    with pytest.raises(ValueError, match="variant 'paper' must go with distill.labels=hard, as th"):
      config.get_config("paper")


def test_a_smoke_run_fits_a_smoke_pool():
  for config in (mnist_poisoning, cifar10_poisoning, mnist_to_usps_pretrained):
    small = config.get_config("smoke")
    assert small.init.num_validation + small.outer.num_inits <= 3 == (
        mnist_lenet_pool.get_config("smoke").pool.num_train)
    assert small.validation.num_inits <= small.init.num_validation


def test_a_convolution_that_is_not_there_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"convolution must be one of \['fastest', .* 'winograd'\] "
                                       "or None; got 'fft'"):
    problem.distill(smoke(**{"model.name": "lenet", "model.convolution": "fft"}), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_data_files_that_cannot_be_used_are_named(tmp_path):
  for name, content, error, message in (
      ("mnist", None, FileNotFoundError, "mnist: nothing found in .*download=True"),
      (str(tmp_path / "own.npz"), b"PK\x03\x04 cut short", ValueError, "own.npz: expected a npz")):
    if content:
      pathlib.Path(name).write_bytes(content)
    with pytest.raises(error, match=message):
      problem.distill(smoke(**{"data.name": name, "data.dir": str(tmp_path)}), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_largest_seed_is_another_one_than_zero():
  drawn = [problem.make_problem(smoke(seed=seed)).inits.test.state["Dense_2"]["kernel"]
           for seed in (0, 2 ** 32 - 1)]
  assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).all()
