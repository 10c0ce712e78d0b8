"""dd_jax.files.merging: one file of several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import models
from dd_jax.files import artifacts
from dd_jax.whitening import Whitening

_MODEL = models.mlp(num_classes=4, image_shape=(3, 3, 1), hidden=[5])
_METADATA = {"model": "mlp", "model_options": {"hidden": [5]}, "num_classes": 4, "mean": [.25],
             "std": [.5], "pixel_scale": 255, "inner_optimizer": "gradient_descent",
             "seed": 3}
_OF_ONE_RUN = {"accuracy_mean": .9, "num_eval_inits": 10, "learned_bytes": 100, "outer_steps": 6,
               "selection": "final", "num_train": 50, "readable": {"rows": []}}


def _artifact(seed, classes, params=None, whitening=None, hyper=(), **metadata):
  images, sizes = (jax.random.normal(jax.random.key(seed), shape)
                   for shape in ((2, len(classes), 3, 3, 1), (3, 2)))
  labels = jnp.tile(jnp.asarray(classes, jnp.int32), (2, 1))
  return dd_jax.Artifact(dd_jax.DistilledData(images, labels, jax.nn.softplus(sizes), hyper),
                         params, {**_METADATA, **_OF_ONE_RUN, **metadata}, whitening)


def test_a_step_is_the_mean_of_the_files_own_steps():
  """Of batches and step sizes of one size: theta - eta * (g_1 + g_2) / 2."""
  one, two = _artifact(0, [0, 1]), _artifact(1, [2, 3])
  eta = one.distilled.step_sizes
  two = two._replace(distilled=two.distilled._replace(step_sizes=eta))
  merged = dd_jax.files.merge([one, two])
  params, loss = _MODEL.init(jax.random.key(2)), losses.classification(_MODEL.apply)
  expected = params
  for e in range(3):
    for s in range(2):
      gradients = [jax.grad(loss)(expected, each.distilled.inputs[s], each.distilled.labels[s])
                   for each in (one, two)]
      expected = jax.tree.map(lambda p, a, b, size=eta[e, s]: p - size * (a + b) / 2, expected,
                              *gradients)
  trained = dd_jax.train_on(merged, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), trained, expected)


def test_hard_labels_that_are_fewer_than_soft_ones_are_long():
  hard = _artifact(0, [0, 1])
  soft = hard._replace(distilled=hard.distilled._replace(labels=jnp.zeros((2, 2, 5))))
  with pytest.raises(ValueError, match=r"length of soft labels and num_classes; got \[4, 5\]"):
    dd_jax.files.merge([hard, soft])


def test_examples_and_what_is_known_of_them():
  one, two = _artifact(0, [0, 1], dataset="a"), _artifact(1, [2, 3, 0], dataset="b")
  merged = dd_jax.files.merge([one, two])
  assert merged.distilled.labels.tolist() == [[0, 1, 2, 3, 0]] * 2
  np.testing.assert_array_equal(merged.images[:, 2:], two.images)
  np.testing.assert_allclose(
      merged.distilled.step_sizes, (one.distilled.step_sizes + two.distilled.step_sizes) / 2)
  assert merged.metadata == {**_METADATA, "merged": 2}


def test_soft_labels_make_all_soft():
  one, two = _artifact(0, [3, 1]), _artifact(1, [2, 0])
  soft = jnp.full((2, 2, 4), .25)
  merged = dd_jax.files.merge([one, two._replace(distilled=two.distilled._replace(labels=soft))])
  np.testing.assert_array_equal(merged.distilled.labels,
                                [[[0, 0, 0, 1], [0, 1, 0, 0], *[[.25] * 4] * 2]] * 2)


def test_other_normalisations_keep_the_pixels():
  one, two = _artifact(0, [0, 1]), _artifact(1, [2, 3], mean=[.5], std=[.125])
  merged = dd_jax.files.merge([one, two])
  np.testing.assert_allclose(merged.pixels(clip=False)[:, 2:], two.pixels(clip=False), rtol=1e-5)
  assert (merged.metadata["mean"], merged.metadata["std"]) == ([.25], [.5])


def test_it_comes_back_from_a_file(tmp_path):
  params = _MODEL.init(jax.random.key(2))
  merged = dd_jax.files.merge([_artifact(seed, [0, 1, 2, 3], params) for seed in range(3)])
  artifacts.save(tmp_path / "all.npz", merged.distilled, init_params=merged.init_params,
                 metadata=merged.metadata)
  again = artifacts.load(tmp_path / "all.npz")
  jax.tree.map(np.testing.assert_array_equal, again.distilled, merged.distilled)
  jax.tree.map(np.testing.assert_array_equal, dd_jax.train_on(again), dd_jax.train_on(merged))


def _whitening(mean):
  return Whitening(np.full(9, mean, np.float32), np.eye(9, dtype=np.float32),
                   np.ones(9, np.float32))


@pytest.mark.parametrize("other, message", [
    ({"num_classes": 5}, "artifacts must agree in num_classes: 4 in the first; got 5 in number 1"),
    ({"model": "linear"}, "artifacts must agree in model: mlp in the first; got linear in n"),
    ({"objective": {"name": "poisoning"}}, "artifacts must agree in objective"),
    ({"precision": "high"}, "artifacts must agree in precision"),
    ({"inner_optimizer": "adam"},
     "artifacts must agree in inner_optimizer: gradient_descent in the first; got adam"),
    ({"params": {"w": np.ones(2)}}, "artifacts must agree in weights of a fixed init"),
    ({"hyper": {"decay": np.float32(.9)}}, "artifacts must agree in hyper"),
    ({"whitening": _whitening(0)}, "artifacts must agree in whitening")])
def test_what_does_not_go_together_is_named(other, message):
  with pytest.raises(ValueError, match=message):
    dd_jax.files.merge([_artifact(0, [0, 1]), _artifact(1, [2, 3], **other)])


@pytest.mark.parametrize("field, values", [
    ("data", ({"train": "a"}, {"train": "b"})), ("split_seed", (1, 2)),
    ("reading", ({"kind": "texts", "dim": 5}, {"kind": "texts", "dim": 6}))])
def test_tables_and_texts_are_of_the_same_data(field, values):
  """Their numbers follow from the training rows: of other rows they mean something else."""
  one, two = (_artifact(seed, [seed], **{field: value}) for seed, value in enumerate(values))
  dd_jax.files.merge([one, two])  # Images say by themselves what their numbers are.
  for each in (one, two):
    del each.metadata["mean"], each.metadata["std"]
  with pytest.raises(ValueError, match=f"artifacts must agree in {field}: "):
    dd_jax.files.merge([one, two])


def test_shapes_that_do_not_go_together_are_named():
  one, two = _artifact(0, [0, 1]), _artifact(1, [2, 3])
  with pytest.raises(ValueError, match=r"agree in \[E, S\]: \[3, 2\] in the first; got \[1, 2\]"):
    dd_jax.files.merge([one, two._replace(distilled=two.distilled._replace(
        step_sizes=jnp.ones((1, 2))))])
  with pytest.raises(ValueError, match=r"the shape of an example: \[3, 3, 1\] in the first; got"):
    dd_jax.files.merge([one, two._replace(distilled=two.distilled._replace(
        inputs=jnp.ones((2, 2, 4, 4, 1))))])
  soft = [each._replace(distilled=each.distilled._replace(labels=jnp.ones((2, 2, size))))
          for each, size in ((one, 4), (two, 5))]
  with pytest.raises(ValueError, match=r"the length of soft labels: \[4\] in the first; got \[5\]"):
    dd_jax.files.merge(soft)
  with pytest.raises(ValueError, match="artifacts must be two or more; got 1"):
    dd_jax.files.merge([one])
  with pytest.raises(ValueError, match="agree in mean and std where images are whitened"):
    dd_jax.files.merge([_artifact(0, [0], whitening=_whitening(0)),
                        _artifact(1, [1], whitening=_whitening(0), mean=[.5])])
