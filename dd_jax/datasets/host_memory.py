"""How much main memory is left."""

import pathlib


def free_bytes() -> int | None:
  """Main memory that this process may still take; None where nothing tells."""
  limits = [_available_bytes(), _cgroup_bytes()]
  return min((limit for limit in limits if limit is not None), default=None)


def _available_bytes():
  """Of the whole host, as Linux tells it."""
  for line in _read("/proc/meminfo").splitlines():
    if line.startswith("MemAvailable:"):
      return 1024 * int(line.split()[1])
  return None


def _cgroup_bytes():
  """Of a container, as version 2 of control groups tells it."""
  limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
  return int(limit) - int(used) if limit.strip().isdigit() and used else None


def _read(path):
  path = pathlib.Path(path)
  return path.read_text() if path.exists() else ""
