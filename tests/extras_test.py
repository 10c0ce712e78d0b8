"""dd_jax.extras: a package that is missing and one that is broken are two errors."""

import sys

import pytest

from dd_jax import extras
from dd_jax.files import torch_files


def test_what_is_there_is_given():
  assert extras.load("json.decoder", "reading", "export") is sys.modules["json.decoder"]


def test_what_is_not_installed_says_how_to():
  with pytest.raises(ImportError, match=r'^it needs Nothing: pip install "dd_jax\[export\]"$'):
    extras.load("nothing_of_this_name.part", "it needs Nothing", "export")


@pytest.mark.parametrize("code, reason", [
    ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
    ("raise OSError('libcublas.so.12: not found')", "libcublas.so.12: not found"),
    ("import a_part_that_is_not_there", "No module named 'a_part_that_is_not_there'"),
])
def test_what_is_installed_and_broken_says_why(tmp_path, monkeypatch, code, reason):
  (tmp_path / "torch.py").write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "torch", raising=False)
  with pytest.raises(ImportError) as caught:
    torch_files.import_torch(".pth")
  assert str(caught.value).startswith(
      "a .pth file needs PyTorch 2.6 or newer; the one installed cannot be loaded: ")
  assert reason in str(caught.value) and "\n" not in str(caught.value)

