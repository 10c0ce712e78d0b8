"""No test can stand still for ever: pyproject's limit, and one for every process a test starts."""

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_WAITING = ("run", "call", "check_call", "check_output", "communicate", "wait")


def _without_timeout(source):
  """Lines of calls that wait for a process and name no timeout."""
  return [node.lineno for node in ast.walk(ast.parse(source))
          if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
          and node.func.attr in _WAITING
          and (node.func.attr in ("communicate", "wait")
               or ast.unparse(node.func.value) == "subprocess")
          and "timeout" not in [keyword.arg for keyword in node.keywords]]


@pytest.mark.parametrize("path", sorted((_ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_every_process_has_a_limit(path):
  assert _without_timeout(path.read_text()) == []


def test_a_process_without_a_limit_is_found():
  source = "subprocess.run([])\nprocess.wait()\nprocess.communicate(timeout=3)\nother.run()\n"
  assert _without_timeout(source) == [1, 2]


@pytest.mark.slow
def test_a_hang_is_a_failure_with_a_name_and_a_stack(tmp_path):
  """In native code too, and the other tests still run."""
  (tmp_path / "hang_test.py").write_text(
      "import ctypes\n"
      "def test_before(): pass\n"
      "def test_that_hangs(): ctypes.CDLL(None).pause()\n"
      "def test_after(): pass\n")
  process = subprocess.run(
      [sys.executable, "-m", "pytest", "-n", "1", "-c", str(_ROOT / "pyproject.toml"),
       "--timeout=5", "-o", "faulthandler_timeout=3", f"--rootdir={tmp_path}", str(tmp_path)],
      capture_output=True, text=True, timeout=120)
  output = process.stdout + process.stderr
  assert "2 passed" in output and "1 failed" in output, output
  assert "running 'hang_test.py::test_that_hangs'" in output, output
  assert 'hang_test.py", line 3 in test_that_hangs' in output, output
