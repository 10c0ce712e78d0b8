"""Files are written whole, with the permissions that a user asks for, through symbolic links."""

import os
import subprocess
import sys

import pytest

from dd_jax.files import atomic
from dd_jax.files import pictures


def test_a_symbolic_link_stays_one(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "real/a.txt").write_text("old")
  (tmp_path / "a.txt").symlink_to(tmp_path / "real/a.txt")
  atomic.write_bytes(tmp_path / "a.txt", b"new")
  assert (tmp_path / "a.txt").is_symlink() and (tmp_path / "real/a.txt").read_text() == "new"
  assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("umask, mode", [("077", 0o600), ("022", 0o644), ("002", 0o664)])
def test_permissions_are_those_of_the_user_s_mask(tmp_path, umask, mode):
  code = "import sys; from dd_jax.files import atomic; atomic.write_bytes(sys.argv[1], b'x')"
  subprocess.run(["sh", "-c", f"umask {umask}; exec \"$0\" -c \"$1\" \"$2\"", sys.executable, code,
                  str(tmp_path / "a")], check=True, timeout=100)
  assert os.stat(tmp_path / "a").st_mode & 0o777 == mode


def test_a_link_to_an_empty_folder_is_filled(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "out").symlink_to(tmp_path / "real")
  with pictures.new_folder(tmp_path / "out", "png") as folder:
    (folder / "a.png").touch()
  assert (tmp_path / "out").is_symlink() and (tmp_path / "real/a.png").exists()
