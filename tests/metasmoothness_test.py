"""Metasmoothness: its definition, a smooth and a chaotic training, the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax import metasmoothness
from dd_jax.runs import smoothness
from dd_jax.runs import workdirs
from tests import launches
from tests import problems

_KEY = jax.random.key(0)


def _measure(train, trainable, direction, size):
  return metasmoothness.metasmoothness(train, lambda w: w, _KEY, None, trainable, direction, size)


def test_a_random_direction_has_a_sign_for_every_number():
  found = metasmoothness.random_direction(
      jax.random.key(0), {"a": jnp.zeros(100), "b": jnp.zeros((10, 10))})
  for leaf in found.values():
    assert set(np.unique(leaf)) == {-1, 1} and abs(leaf.mean()) < .5
  assert not np.array_equal(found["a"], found["b"].ravel())


def test_it_is_its_definition():
  """Differences (1, 2, -3) and (2, -1, -5): (1 - 2 + 3) / 6."""
  def train(key, params, data):
    del key, params
    table = jnp.array([[0., 0., 0.], [1., 2., -3.], [3., 1., -8.]])
    return {"weights": table[jnp.round(data).astype(int)]}, None

  np.testing.assert_allclose(_measure(train, jnp.zeros(()), jnp.ones(()), 1.), 2 / 6, rtol=1e-6)


def test_a_training_that_is_not_finite_gives_none():
  def train(key, params, data):
    del key, params
    return jnp.where(data > 1.5, jnp.inf, data), None

  assert np.isnan(_measure(train, jnp.zeros(2), jnp.ones(2), 1.))


def test_trainings_that_have_nothing_to_do_with_one_another_agree_by_minus_a_half():
  def train(key, params, data):
    del key, params
    return jax.random.normal(jax.random.key(jnp.round(data).astype(int)), (100_000,)), None

  np.testing.assert_allclose(_measure(train, jnp.zeros(()), jnp.ones(()), 1.), -.5, atol=.02)


def test_a_linear_training_is_smooth_and_one_that_bends_back_is_not():
  assert _measure(lambda key, params, w: (3 * w, None), jnp.ones(4), jnp.ones(4), .1) == 1
  assert _measure(lambda key, params, w: (jnp.abs(w), None), jnp.full(4, -.1), jnp.ones(4),
                  .1) == -1


@pytest.mark.slow
def test_step_sizes_that_are_too_large_end_it(x64):
  """Gradient descent within its stable range is smooth; far beyond it, it is not."""
  trainable, decode = problems.trainable()
  params = problems.init(jax.random.key(1))
  train = dd_jax.unroll(problems.inner_loss)

  def of(factor):
    return np.mean([metasmoothness.metasmoothness(
        train, lambda w: smoothness.lengthened(decode(w), 40, factor), _KEY, params, trainable,
        metasmoothness.random_direction(jax.random.key(i), trainable), 1e-3) for i in range(3)])

  assert of(.1) > .9
  assert of(300.) < .6


def test_data_are_lengthened_by_their_own_epochs():
  trainable, decode = problems.trainable()
  distilled = decode(trainable)
  longer = smoothness.lengthened(distilled, 5, 2.)
  np.testing.assert_array_equal(longer.step_sizes,
                                2 * distilled.step_sizes[np.array([0, 1, 0, 1, 0])])
  np.testing.assert_array_equal(smoothness.lengthened(distilled, 1).step_sizes,
                                distilled.step_sizes[:1])


def test_the_command_writes_rows_and_a_plot(tmp_path):
  process = launches.launch(
      "experiments.smoothness", launches.SMOKE, "--config.model.name=mlp", "--epochs=1,4",
      "--factors=0.5,1e30", "--networks=2", "--size=0.0001", f"--workdir={tmp_path}")
  assert process.returncode == 0, process.stderr
  rows = json.loads((tmp_path / "smoothness.json").read_text())
  assert json.loads(process.stdout.splitlines()[-1]) == {"rows": rows}
  assert [(row["num_epochs"], row["factor"]) for row in rows] == [
      (1, .5), (1, 1e30), (4, .5), (4, 1e30)]
  assert rows[2]["T"] == 4 * rows[0]["T"]
  assert .9 < rows[0]["metasmoothness"] <= 1 and rows[0]["not_finite"] == 0
  assert rows[3]["metasmoothness"] is None and rows[3]["not_finite"] == 2
  assert (tmp_path / "smoothness.png").read_bytes()[:4] == b"\x89PNG"
  assert "not finite" in process.stderr


@pytest.mark.parametrize("argument, message", [
    ("--epochs=1,x", "--epochs must be integers with commas between them; got 'x'"),
    ("--epochs=0", "num_epochs must be positive; got 0"),
    ("--size=-1", "size must be positive; got -1.0")])
def test_mistakes_are_one_line(tmp_path, argument, message):
  process = launches.launch("experiments.smoothness", launches.SMOKE, argument,
                            f"--workdir={tmp_path / 'run'}")
  assert launches.error_of(process) == f"error: {message}"
  assert not (tmp_path / "run").exists()


def test_a_directory_is_written_by_one_process(tmp_path):
  with workdirs.held(tmp_path):
    process = launches.launch("experiments.smoothness", launches.SMOKE, f"--workdir={tmp_path}")
  assert f"{tmp_path} is held by process" in launches.error_of(process)
  assert not (tmp_path / "smoothness.json").exists()
