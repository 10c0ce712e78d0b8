"""The shape of the code: who imports whom, and how long files and argument lists may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DISK = ("dd_jax.datasets", "dd_jax.files", "dd_jax.runs")
LIBRARY = sorted(ROOT.glob("dd_jax/**/*.py"))
# `dd_jax/__init__.py` is no module of the core: it names the folders too.
CORE = [path for path in LIBRARY if path.parent.name in ("dd_jax", "models")
        and path != ROOT / "dd_jax/__init__.py"]
MOST_LINES, MOST_PARAMETERS, MOST_COLUMNS = 300, 9, 100


def imported(path):
  """The dotted names of all modules that a file imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      package = path.relative_to(ROOT).with_suffix("").parts[:-node.level] if node.level else ()
      module = ".".join([*package, *([node.module] if node.module else [])])
      names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
  return names


def within(names, packages):
  return sorted(name for name in names
                if any(name == package or name.startswith(f"{package}.") for package in packages))


def parameters(function):
  arguments = function.args
  return [argument.arg for argument in
          (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
          if argument.arg not in ("self", "cls")]


def public(path):
  """Every public function and method of a module; records may have any number of fields."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from (method for method in node.body if isinstance(method, ast.FunctionDef) and (
          not method.name.startswith("_") or method.name in ("__init__", "__call__")))
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
      yield node


def name_of(path):
  return str(path.relative_to(ROOT))


def test_no_line_is_too_wide():
  for folder in ("dd_jax", "experiments", "tests"):
    for path in ROOT.glob(f"{folder}/**/*.py"):
      wide = [number for number, line in enumerate(path.read_text().splitlines(), start=1)
              if len(line) > MOST_COLUMNS]
      assert not wide, f"{path}: lines {wide}"


def test_imports_are_found(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), "ROOT", tmp_path)
  package = tmp_path / "dd_jax" / "models"
  package.mkdir(parents=True)
  file = package / "own.py"
  file.write_text("import dd_jax.files.npz as npz\nfrom dd_jax import runs\nfrom . import mlp\n"
                  "def later():\n  from ..datasets import load\n")
  assert within(imported(file), DISK) == [
      "dd_jax.datasets", "dd_jax.datasets.load", "dd_jax.files.npz", "dd_jax.runs"]
  assert "dd_jax.models.mlp" in imported(file)


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_touches_no_disk(path):
  assert not within(imported(path), DISK)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_knows_no_experiments(path):
  assert not within(imported(path), ("experiments",))


@pytest.mark.parametrize("path", [*LIBRARY, *sorted(ROOT.glob("experiments/**/*.py"))], ids=name_of)
def test_files_are_short(path):
  num_lines = len(path.read_text().splitlines())
  assert num_lines <= MOST_LINES


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_argument_lists_are_short(path):
  too_long = {node.name: len(parameters(node)) for node in public(path)
              if len(parameters(node)) > MOST_PARAMETERS}
  assert not too_long


def test_long_argument_lists_are_found(tmp_path):
  many = ", ".join(f"a{i}" for i in range(6)) + ", *, " + ", ".join(f"b{i}" for i in range(4))
  file = tmp_path / "own.py"
  file.write_text(f"def long({many}): pass\ndef _own({many}): pass\n"
                  f"class Data:\n  f: int\n  def method(self, {many}): pass\n")
  assert {node.name: len(parameters(node)) for node in public(file)} == {"long": 10, "method": 10}
