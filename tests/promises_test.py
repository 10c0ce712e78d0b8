"""What the README and the design promise: blocks that run, imports one way, no TensorFlow."""

import ast
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import dd_jax
from tests import problems

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = pathlib.Path(dd_jax.__file__).parent
_README = (_ROOT / "README.md").read_text()
# Modules in data order; each may import those before it.
_ORDER = ["extras", "types", "adapters", "step_sizes", "parametrization", "perturbations", "models",
          "init_distributions", "losses", "augmentation", "whitening", "optimizers", "leaves",
          "closures", "checkpointing", "inner_loop", "metasmoothness", "truncation",
          "implicit_gradients", "ridge_regression", "parallel", "batch_independence",
          "hypergradient", "distillation", "pretraining", "evaluation", "baselines", "linear",
          "datasets", "files", "__init__", "runs"]


def _run(code):
  return subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True,
                        timeout=300)


@pytest.mark.slow
def test_the_readme_s_python_blocks_run_and_say_the_right_shapes():
  arrays, functions, _, parts = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
  assert len(arrays.splitlines()) <= 10
  process = _run(functions + "\nprint(distilled.inputs.shape, distilled.step_sizes.shape, "
                 "state.step)\n" + parts)
  assert process.returncode == 0, process.stderr
  assert process.stdout == "(2, 10, 28, 28, 1) (3, 2) 5\n63124\n"


@pytest.mark.slow
def test_the_readme_s_first_block_distils_the_reader_s_arrays(tmp_path):
  first = re.search(r"```python\n(.*?)```", _README, re.DOTALL)[1]
  small = first.replace("num_steps=500", "num_steps=1").replace("runs/first", str(tmp_path))
  small = small.replace("models.lenet)", "models.mlp)")
  process = _run(small + "\nprint(result.artifact.images.shape)\n")
  assert process.returncode == 0, process.stderr
  assert process.stdout == "(1, 10, 32, 32, 1)\n"
  assert (tmp_path / "report.html").exists() and "1/1" in process.stderr


def test_the_readme_names_files_that_exist_and_has_its_two_marked_commands():
  for path in re.findall(r"\]\(([\w/]+\.\w+)\)", _README) + re.findall(
      r"--config=(\S+\.py)", _README):
    assert (_ROOT / path).is_file(), path
  for mark in ("main job", "tests"):
    assert f"<!-- {mark} -->\n```bash\n" in _README


def test_imports_point_one_way():
  """Down the order in which data flows; and nothing in the library knows experiments."""
  seen = set()
  for path in _PACKAGE.glob("**/*.py"):
    module = path.relative_to(_PACKAGE).parts[0].removesuffix(".py")
    seen.add(module)
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = ([node.module] if node.module != "dd_jax"
                 else [f"dd_jax.{alias.name}" for alias in node.names])
      for name in names:
        assert not name.startswith(("experiments", "absl", "ml_collections")), (path, name)
        if name.startswith("dd_jax.") and module != name.split(".")[1]:
          assert _ORDER.index(name.split(".")[1]) < _ORDER.index(module), (path, name)
  assert seen == set(_ORDER)


def test_public_names_exist():
  assert all(hasattr(dd_jax, name) for name in dd_jax.__all__)


def test_importing_touches_no_device_and_needs_no_tensorflow():
  process = _run("""
import sys
import dd_jax, jax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
dd_jax.datasets.load("digits")
loaded = {"tensorflow", "tensorflow_datasets", "torch", "safetensors", "matplotlib"} & set(
    sys.modules)
assert not loaded, loaded
""")
  assert process.returncode == 0, process.stderr


def test_numpy_arrays_and_no_jit_change_nothing():
  """As in a notebook: data as they were loaded, functions called as they are."""
  trainable, decode = problems.trainable()
  loss, init, optimizer = problems.inner_loss, dd_jax.random_init(problems.init), optax.sgd(.1)
  train = dd_jax.unroll(loss)
  loop = dd_jax.make_outer_loop(
      dd_jax.make_outer_loss(decode, init, train, loss, num_inits=2), optimizer)
  params = init.sample(jax.random.key(0), 2)

  def run(trainable, params, images, labels):
    key, distilled = jax.random.key(1), decode(trainable)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    return (
        train(key, one, distilled)[0],
        dd_jax.evaluate(key, distilled, init, train, problems.apply, images, labels,
                        num_inits=2).after.loss,
        dd_jax.pretrain(key, params, loss, images, labels, optimizer=optimizer, num_epochs=1,
                        batch_size=4),
        dd_jax.run_outer_steps(loop.step, key, loop.init(trainable), init.state, images, labels,
                               batch_size=4, num_steps=3)[0].trainable)

  arguments = trainable, params, *problems.real()
  expected, actual = jax.jit(run)(*arguments), run(*jax.tree.map(np.asarray, arguments))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual,
               expected)
