"""Files that are written whole or not at all."""

from collections.abc import Callable
import os
import pathlib
import tempfile
from typing import Any, BinaryIO


_UMASK = os.umask(0)  # Which is asked for by setting it.
os.umask(_UMASK)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """As `write`, of what is known before."""
  write(path, lambda file: file.write(content))


def write(path: str | os.PathLike, into: Callable[[BinaryIO], Any]) -> None:
  """Calls `into(file)` on a temporary neighbour of `path`, then puts it in place.

  Of a symbolic link the file that it names is written.

  Raises:
    OSError: it cannot be written; a file that was there stays as it is.
  """
  path = pathlib.Path(os.path.realpath(path))
  try:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        into(file)
        file.flush()
        os.fsync(file.fileno())  # Else a power failure may leave zeros under its name.
      os.chmod(temporary, 0o666 & ~_UMASK)
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise
  except OSError as error:
    raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
