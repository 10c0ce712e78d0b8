"""The package as others get it: what the archives hold, its types, its citation, its help."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import pytest
import yaml

import dd_jax

_ROOT = pathlib.Path(__file__).parent.parent
_PYPROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())
_LAUNCHERS = sorted(path.stem for path in (_ROOT / "experiments").glob("*.py")
                    if "\nif __name__ ==" in path.read_text())
# From outside the checkout: two outer steps of a linear network.
_DISTILL = """
import dd_jax, jax, optax
from dd_jax import losses, parametrization

model = dd_jax.models.mlp(num_classes=3, image_shape=(4, 4, 1), hidden=())
loss = losses.classification(model.apply)
learned = parametrization.paper(
    parametrization.class_labels(1, 3, 1), (4, 4, 1), num_epochs=2, step_size=.1)
init = dd_jax.random_init(model.init)
images = jax.random.normal(jax.random.key(0), (9, 4, 4, 1))
outer_loss = dd_jax.make_outer_loss(learned.decode, init.sample, loss, loss, num_inits=2)
optimizer = optax.sgd(.1)
state, info = jax.jit(lambda state: dd_jax.run_outer_steps(
    dd_jax.make_outer_step(outer_loss, optimizer), jax.random.key(1), state, init.state, images,
    jax.numpy.arange(9) % 3, batch_size=9, num_steps=2))(
        dd_jax.init_outer_state(learned.init(jax.random.key(2)), optimizer))
assert state.step == 2 and info.finite.all() and info.loss[1] < info.loss[0], info
print(dd_jax.__file__)
"""


def _run(command, **options):
  process = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                           timeout=500, **options)
  assert process.returncode == 0, process.stdout + process.stderr
  return process.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
  """The directory of a wheel and an sdist, built from a copy of the files that belong to it."""
  source = tmp_path_factory.mktemp("source") / "checkout"
  others = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
  shutil.copytree(_ROOT, source, ignore=lambda directory, names: {
      *others(directory, names), *(("runs", "pools") if directory == str(_ROOT) else ())})
  out = tmp_path_factory.mktemp("dist")
  # Without isolation setuptools is the installed one, so that no index is needed.
  _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source])
  return out


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(archives):
  (wheel,) = archives.glob("*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  package = {str(path.relative_to(_ROOT)) for path in (_ROOT / "dd_jax").glob("**/*.py")}
  assert {name for name in names if ".dist-info/" not in name} == {*package, "dd_jax/py.typed"}
  assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_and_the_tests_of_the_sdist_work_outside_the_checkout(archives, tmp_path):
  (wheel,), (sdist,) = archives.glob("*.whl"), archives.glob("*.tar.gz")
  venv.create(tmp_path / "venv", with_pip=True)
  python = tmp_path / "venv/bin/python"
  _run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel])
  # What the package needs is that of this environment, without its links to a checkout.
  (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
  paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
  inherited = [path for path in sys.path if path.endswith("site-packages")]
  (site / "needed.pth").write_text("\n".join(dict.fromkeys([*paths, *inherited])))
  clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  where = _run([python, "-c", _DISTILL], cwd=tmp_path, env=clean)
  assert pathlib.Path(where.strip()).is_relative_to(site)

  with tarfile.open(sdist) as archive:
    archive.extractall(tmp_path, filter="data")
  (unpacked,) = tmp_path.glob("dd_jax-*")
  shutil.rmtree(unpacked / "dd_jax")
  said = _run([python, "-m", "pytest", "-p", "no:cacheprovider", "tests/losses_test.py",
               "tests/launcher_test.py::test_the_file_gives_the_reported_accuracy"],
              cwd=unpacked, env=clean)
  assert " passed" in said and "failed" not in said


@pytest.mark.slow
def test_the_sdist_holds_every_file_of_the_repository(archives):
  if not (_ROOT / ".git").exists():
    pytest.skip("not a git checkout")
  tracked = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                 cwd=_ROOT).split("\n")[:-1]
  (sdist,) = archives.glob("*.tar.gz")
  with tarfile.open(sdist) as archive:
    held = {name.partition("/")[2] for name in archive.getnames()}
  assert {name for name in tracked if not name.startswith(".")} <= held


@pytest.mark.slow
def test_the_types_of_the_package_hold():
  _run([sys.executable, "-m", "mypy"], cwd=_ROOT)


def test_the_library_declares_what_it_imports():
  """At the top of its modules: the core dependencies; within functions: those or an extra."""
  def names(requirements):
    return {re.match(r"[\w-]+", text)[0].replace("-", "_").lower() for text in requirements}

  core = names(_PYPROJECT["project"]["dependencies"])
  extra = core | names(_PYPROJECT["project"]["optional-dependencies"]["experiments"]) | {"torch"}
  distribution = {"PIL": "pillow", "sklearn": "scikit_learn"}
  for path in pathlib.Path(dd_jax.__file__).parent.glob("**/*.py"):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module] if isinstance(node, ast.ImportFrom) else [])
      for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"dd_jax"}:
        allowed = core if node in tree.body else extra
        assert distribution.get(module, module).lower() in allowed, (path, module)


def test_the_citation_is_of_this_version_and_of_the_paper():
  citation = yaml.safe_load((_ROOT / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
  assert citation["version"] == dd_jax.__version__
  assert citation["license"] == _PYPROJECT["project"]["license"]
  assert citation["title"] and citation["message"] and citation["authors"][0]["name"]
  paper = citation["preferred-citation"]
  assert paper["type"] == "article" and paper["title"] == "Dataset Distillation"
  assert paper["url"].endswith("1811.10959") and paper["year"] == 2018
  assert [author["family-names"] for author in paper["authors"]] == [
      "Wang", "Zhu", "Torralba", "Efros"]


@pytest.mark.slow
@pytest.mark.parametrize("name", _LAUNCHERS)
def test_help_says_what_a_launcher_does_and_lists_its_flags(name):
  process = subprocess.run([sys.executable, "-m", f"experiments.{name}", "--help"], cwd=_ROOT,
                           capture_output=True, text=True, timeout=100)
  source = (_ROOT / f"experiments/{name}.py").read_text()
  text = " ".join((process.stdout + process.stderr).split())
  assert ast.get_docstring(ast.parse(source)).splitlines()[0] in text
  assert "Traceback" not in text
  flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
  if "launcher.launch(" in source:
    flags += ["config", "workdir"]
  for flag in flags:
    assert re.search(rf"--(\[no\])?{flag}\b", text), flag
  assert all(len(line) <= 100 for line in process.stdout.splitlines())
