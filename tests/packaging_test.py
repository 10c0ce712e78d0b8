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
_LAUNCHERS = sorted(
    ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    for path in (_ROOT / "experiments").rglob("*.py") if "\nif __name__ ==" in path.read_text())
# From outside the checkout: a whole run of a linear network.
_DISTILL = """
import functools, sys
import numpy as np
import dd_jax
from dd_jax import datasets, models, runs

labels = np.arange(30) % 3
images = np.eye(16, dtype=np.float32)[labels].reshape(30, 4, 4, 1)
dataset = datasets.from_arrays(images, labels, images, labels)
problem = runs.make_problem(dataset, functools.partial(models.mlp, hidden=()))
result = runs.distill(problem, sys.argv[1], num_steps=100, settings=runs.Settings(50, 100, 100))
print(result.figures["accuracy_mean"], dd_jax.__file__, sep="\\n")
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
  assert {name for name in names if ".dist-info/" not in name} == {
      *package, "dd_jax/py.typed", "dd_jax/runs/report.html.jinja"}
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
  accuracy, where = _run([python, "-c", _DISTILL, "run"], cwd=tmp_path, env=clean).splitlines()
  assert float(accuracy) > .9 and pathlib.Path(where).is_relative_to(site)
  assert {"distilled.npz", "report.html", "result.json"} <= {
      path.name for path in (tmp_path / "run").iterdir()}

  with tarfile.open(sdist) as archive:
    archive.extractall(tmp_path, filter="data")
  (unpacked,) = tmp_path.glob("dd_jax-*")
  shutil.rmtree(unpacked / "dd_jax")
  said = _run([python, "-m", "pytest", "-p", "no:cacheprovider", "tests/losses_test.py",
               "tests/report_test.py::test_the_command_makes_the_page_of_a_run_anew"],
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
  """At the top of its modules: the core dependencies; in `runs` and in functions an extra too."""
  def names(requirements):
    return {re.match(r"[\w-]+", text)[0].replace("-", "_").lower() for text in requirements}

  core = names(_PYPROJECT["project"]["dependencies"])
  extra = core | names(_PYPROJECT["project"]["optional-dependencies"]["runs"]) | {"torch"}
  distribution = {"PIL": "pillow", "orbax": "orbax_checkpoint", "sklearn": "scikit_learn"}
  for path in pathlib.Path(dd_jax.__file__).parent.glob("**/*.py"):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module] if isinstance(node, ast.ImportFrom) else [])
      for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"dd_jax"}:
        allowed = extra if path.parent.name == "runs" or node not in tree.body else core
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
  process = subprocess.run([sys.executable, "-m", name, "--help"], cwd=_ROOT,
                           capture_output=True, text=True, timeout=100)
  source = (_ROOT / f"{name.replace('.', '/')}.py").read_text()
  text = " ".join((process.stdout + process.stderr).split())
  assert ast.get_docstring(ast.parse(source)).splitlines()[0] in text
  assert "Traceback" not in text
  flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
  if "launcher.run_config(" in source:
    flags += ["config", "workdir"]
  for flag in flags:
    assert re.search(rf"--(\[no\])?{flag}\b", text), flag
  assert all(len(line) <= 100 for line in process.stdout.splitlines())
