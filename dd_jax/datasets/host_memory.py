"""How much main memory is left."""

import os
import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
  """Main memory that this process may still take; None where nothing tells."""
  limits = [_available_bytes(), _cgroup_bytes()]
  return min((limit for limit in limits if limit is not None), default=None)


def check(where: str | os.PathLike, needed: int, instead: str = "") -> None:
  """Refuses to take memory that is not there, where that is known.

  Args:
    where: the images lie, for the message.
    needed: bytes.
    instead: what may help, the end of the message.

  Raises:
    ValueError: more than is free.
  """
  free = free_bytes()
  if free is not None and needed > free:
    raise ValueError(f"{where}: {needed / 1e9:.3g} GB of images and {free / 1e9:.3g} GB of memory "
                     f"are free{instead}")


def _available_bytes():
  """Of the whole host, as Linux tells it."""
  for line in _read(_MEMINFO).splitlines():
    if line.startswith("MemAvailable:"):
      return 1024 * int(line.split()[1])
  return None


def _cgroup_bytes():
  """Of a container, as version 2 of control groups tells it; files it keeps in memory are free."""
  limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
  if not limit.strip().isdigit() or not used:
    return None
  kept = dict(line.split() for line in _read(_CGROUP / "memory.stat").splitlines())
  return int(limit) - int(used) + int(kept.get("inactive_file", 0))


def _read(path):
  return path.read_text() if path.exists() else ""
