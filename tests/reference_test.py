"""The public API is documented: docstrings, annotations, and the pages built of both."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import dd_jax
from docs import reference

_ROOT = pathlib.Path(__file__).parent.parent
# A function may send its reader to another one for arguments that mean the same there.
_ELSEWHERE = re.compile(r"(?i)(other )?arguments (are )?(as in|those of) `")


def _public(module):
  """The functions and classes that a module shows: those of `__all__`, else its own."""
  names = getattr(module, "__all__", None) or [
      name for name, value in vars(module).items()
      if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__]
  return {f"{module.__name__}.{name}": getattr(module, name) for name in names
          if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))}


_PUBLIC = dict(item for module in [*reference.modules(), dd_jax]
               for item in _public(module).items())
# Those of `convolution` wrap a function in the signature of `lax.conv_general_dilated`.
_FUNCTIONS = [name for name, value in _PUBLIC.items()
              if inspect.isfunction(value) and not hasattr(value, "__wrapped__")]
_RECORDS = [name for name, value in _PUBLIC.items() if hasattr(value, "_fields")]


@pytest.mark.parametrize("name", _PUBLIC)
def test_everything_public_has_a_docstring(name):
  first = (inspect.getdoc(_PUBLIC[name]) or "").split("\n\n")[0]
  assert len(first) > 15 and not first.startswith(_PUBLIC[name].__name__ + "(")


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_a_function_explains_and_annotates_its_arguments(name):
  function = _PUBLIC[name]
  doc, signature = inspect.getdoc(function), inspect.signature(function)
  parameters = list(signature.parameters.values())
  assert signature.return_annotation is not inspect.Signature.empty
  for parameter in parameters:
    assert parameter.annotation is not inspect.Parameter.empty, parameter
    if len(parameters) > 2 and not _ELSEWHERE.search(" ".join(doc.split())):
      assert re.search(rf"\b{parameter.name}\b", doc), parameter
  if len(parameters) > 3 and not _ELSEWHERE.search(" ".join(doc.split())):
    assert "Args:\n" in doc


@pytest.mark.parametrize("name", _RECORDS)
def test_the_fields_of_a_record_are_explained(name):
  comments = reference.field_comments(_PUBLIC[name])
  assert list(comments) == list(_PUBLIC[name]._fields)
  doc = inspect.getdoc(_PUBLIC[name])
  unexplained = [field for field, comment in comments.items()
                 if not comment and not re.search(rf"\b{field}\b", doc)]
  assert set(unexplained) <= {"name", "train", "test", "metadata", "distilled", "params"}


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
  process = subprocess.run(
      [sys.executable, "-m", "docs.reference", f"--out={tmp_path}"], cwd=_ROOT,
      capture_output=True, text=True, timeout=500)
  assert process.returncode == 0 and "arning" not in process.stderr, process.stderr
  pages = {".".join(path.relative_to(tmp_path).with_suffix("").parts): path.read_text()
           for path in tmp_path.glob("dd_jax/**/*.html")}
  named = {module.__name__ for module in reference.modules()}
  networks = {f"dd_jax.models.{name}" for name in dd_jax.models.MODELS}  # Each has a file.
  assert named <= pages.keys() <= named | networks
  for name in _FUNCTIONS:
    module, _, function = name.rpartition(".")
    if module != "dd_jax":
      assert f'id="{function}"' in pages[module], name
  assert "Alias for field number" not in pages["dd_jax.types"]
  assert "images are [S, B, H, W, C]." in pages["dd_jax.types"]
