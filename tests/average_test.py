"""experiments.average: the file in the middle of others."""

import jax.numpy as jnp
import numpy as np
import pytest

import dd_jax
from dd_jax.files import artifacts
from experiments import average
from tests.launches import error_of, launch


def _artifact(value, labels, step_size, **metadata):
  return dd_jax.Artifact(dd_jax.DistilledData(
      jnp.full((1, 2, 3, 3, 1), value), labels, jnp.full((1, 1), step_size)), None,
      {"mean": [.5], "std": [.25], "accuracy_mean": .9, "model": "mlp", "outer_steps": 5,
       **metadata}, None)


def test_the_middle_of_soft_files():
  soft = [jnp.full((1, 2, 3), value) for value in (.2, .4)]
  found = average.average([_artifact(1., soft[0], .1), _artifact(3., soft[1], .4)])
  np.testing.assert_allclose(found.distilled.inputs, 2.)
  np.testing.assert_allclose(found.distilled.labels, .3, rtol=1e-6)
  np.testing.assert_allclose(found.distilled.step_sizes, .2, rtol=1e-6)  # (.1 * .4) ** .5
  assert found.metadata == {"mean": [.5], "std": [.25], "model": "mlp", "averaged": 2}


def test_hard_labels_stay_and_must_be_the_same(tmp_path):
  one, two, other = (_artifact(value, jnp.asarray([labels], jnp.int32), .1) for value, labels in (
      (1., [0, 1]), (2., [0, 1]), (2., [1, 0])))
  found = average.average([one, two, two])
  assert found.distilled.labels.dtype == jnp.int32
  np.testing.assert_allclose(found.distilled.inputs, 5 / 3, rtol=1e-6)
  for wrong, message in (
      ([one, other], "--files must agree in hard labels; number 1 does not"),
      ([one, two, _artifact(1., one.distilled.labels, .1, mean=[0.])], "agree in mean; number 2"),
      ([one, _artifact(1., jnp.zeros((1, 2, 3)), .1)], "agree in shapes; number 1"),
      ([one, two._replace(init_params={"w": np.ones(2)})], "agree in weights of a fixed init"),
      *(([one, _artifact(2., one.distilled.labels, .1, **{name: value})], f"agree in {name}")
        for name, value in (("data", {"train_images": "x"}), ("class_names", ["a", "b"]),
                            ("objective", {"name": "poisoning"}), ("inner_optimizer", "adam"))),
      ([one, _artifact(1., one.distilled.labels, -.1)], "positive step sizes, .*; number 1"),
      ([one], "--files must be two or more; got 1")):
    with pytest.raises(ValueError, match=message):
      average.average(wrong)


def test_the_command_writes_a_file(tmp_path):
  for name, value in (("a", 1.), ("b", 3.)):
    artifact = _artifact(value, jnp.asarray([[0, 1]], jnp.int32), .1)
    artifacts.save(tmp_path / f"{name}.npz", artifact.distilled, metadata=artifact.metadata)
  process = launch("experiments.average", f"--files={tmp_path / 'a.npz'},{tmp_path / 'b.npz'}",
                   f"--out={tmp_path / 'new/c.npz'}")
  assert process.returncode == 0, process.stderr
  np.testing.assert_allclose(artifacts.load(tmp_path / "new/c.npz").distilled.inputs, 2.)
  before = (tmp_path / "a.npz").read_bytes()
  for files, out, message in (
      ("a.npz", "d.npz", "--files must be two or more; got 1"),
      ("a.npz,b.npz", "new/../a.npz", "--out must be none of --files, which would be lost"),
      ("a.npz,b.npz", "c.safetensors", "--out must end in .npz")):
    paths = ",".join(str(tmp_path / name) for name in files.split(","))
    assert message in error_of(launch(
        "experiments.average", f"--files={paths}", f"--out={tmp_path / out}"))
  assert (tmp_path / "a.npz").read_bytes() == before and not (tmp_path / "c.safetensors").exists()
