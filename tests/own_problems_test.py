"""Problems put together by hand, with nothing but what `runs.Problem` asks for."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import losses
from dd_jax import parametrization
from dd_jax import runs
from dd_jax import step_sizes
from dd_jax.runs import accuracies
from dd_jax.runs import report
from tests import small_runs

pytestmark = pytest.mark.usefixtures("optax_promotion")


def _distill(workdir, data, learned, train, **parts):
  model = dd_jax.models.mlp(num_classes=data.num_classes, image_shape=runs.input_shapes(data),
                            hidden=(5,))
  networks = dd_jax.random_init(model.init)
  loss = (losses.classification if data.targets is None else losses.regression)(model.apply)
  return runs.distill(
      runs.Problem(data, learned, runs.Inits(networks, networks, networks), train(loss),
                   model.apply, loss, optax.adam(.02), batch_size=8, num_test_inits=2, **parts),
      workdir, num_steps=2, settings=small_runs.SETTINGS)


def test_another_algorithm_on_images_needs_no_metadata(tmp_path):
  learned = parametrization.paper(parametrization.class_labels(1, 3, 1), (4, 4, 1),
                                  num_epochs=4, step_size=.1)
  found = _distill(tmp_path, small_runs.data(), learned, dd_jax.implicit)
  metadata = found.artifact.metadata
  assert metadata["inner_algorithm"] == "own" and metadata["dataset"] == "small"
  assert found.artifact.pictures().shape == (1, 3, 4, 4, 1)
  assert {"distilled.png", "curves.png", "report.html", "result.json"} <= {
      path.name for path in tmp_path.iterdir()}


def test_figures_of_ones_own_are_validated_shown_and_reported(tmp_path):
  figures = accuracies.Figures(lambda metrics: {
      **accuracies.ACCURACY.of(metrics), "worst_class": np.min(
          [metrics.confusion[:, k, k] / 10 for k in range(3)], axis=0)}, ("worst_class",))
  learned = parametrization.paper(parametrization.class_labels(1, 3, 1), (4, 4, 1),
                                  num_epochs=1, step_size=.1)
  found = _distill(tmp_path, small_runs.data(), learned, dd_jax.unroll, figures=figures).figures
  assert {"worst_class_mean", "worst_class_before_std", "validation_worst_class",
          "accuracy_mean"} <= found.keys()
  assert accuracies.names_of(found) == ["worst_class", "accuracy"]
  page = (tmp_path / "report.html").read_text()
  assert f"{found['worst_class_mean']:.3g}" in page and "test worst class" in page
  report.report([str(tmp_path), str(tmp_path)], str(tmp_path / "two.html"), {})
  assert "Worst class while distilling" in (tmp_path / "two.html").read_text()


def test_targets_need_no_metadata(tmp_path):
  x = np.linspace(-1, 1, 40)
  data = runs.from_columns({"x": x, "y": 2 * x + 5}, label="y", predict="number",
                           num_validation=6)
  learned = parametrization.join(
      parametrization.inputs((1,), 1, 4), parametrization.soft_labels(jnp.ones((1, 4, 1))),
      step_sizes.learned(1, 1, .1))
  found = _distill(tmp_path, data, learned, dd_jax.unroll,
                   figures=accuracies.targets(data.targets.std))
  assert found.artifact.metadata["targets"]["names"] == ["y"]
  assert "y, test examples" in (tmp_path / "report.html").read_text()
