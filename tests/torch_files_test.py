"""PyTorch's files where PyTorch cannot be used: what is missing and what is broken."""

import sys

import pytest

from dd_jax.files import exports
from dd_jax.files import torch_files


@pytest.mark.parametrize("content, message", [
    ("raise OSError('libcudart.so.12: cannot open\\nshared object file')",
     r"a \.pt file needs PyTorch 2\.6 or newer; the one installed cannot be loaded: "
     r"libcudart\.so\.12: cannot open shared object file$"),
    ("import torch_part_that_is_missing", "cannot be loaded: No module named 'torch_part_that"),
    ("raise ImportError('libcublas.so.12: cannot open')", "cannot be loaded: libcublas"),
    ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
     r'newer: pip install "dd_jax\[export\]"$'),
])
def test_a_pytorch_that_cannot_be_loaded_is_not_called_missing(
    tmp_path, monkeypatch, content, message):
  (tmp_path / "torch.py").write_text(content)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "torch", raising=False)
  with pytest.raises(ImportError, match=message):
    torch_files.import_torch(".pt")
  (tmp_path / "file.pt").write_bytes(b"nothing")
  with pytest.raises(ImportError, match=message):
    exports.load(tmp_path / "file.pt", "tensors")
