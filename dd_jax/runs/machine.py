"""What a process asks of the machine it runs on."""

import ctypes
import platform
from typing import Any

import jax

from dd_jax.datasets import host_memory


def keep_freed_memory() -> None:
  """Has glibc keep freed memory for later use instead of returning it to the system.

  XLA's CPU backend asks for the temporaries of a program anew in every call; pages that come from
  the system each time cost a fifth of an outer step. Elsewhere than on glibc this does nothing.
  """
  if platform.libc_ver()[0] != "glibc":
    return
  trim_threshold, mmap_max = -1, -4  # Names of malloc.h.
  mallopt = ctypes.CDLL(None).mallopt
  mallopt(trim_threshold, 2 ** 31 - 1)
  mallopt(mmap_max, 0)


def peak_host_bytes() -> int | None:
  """The most memory that this process has held; None where nothing tells, as on Windows."""
  try:
    import resource
  except ImportError:
    return None
  unit = 1 if platform.system() == "Darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes() -> int | None:
  """The most memory held so far on a device; where it does not tell, as `peak_host_bytes`."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", peak_host_bytes())


def free_bytes() -> int | None:
  """Memory that a program may still take on each device; None where nothing tells."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  return host_memory.free_bytes() if device.platform == "cpu" else None


def program_bytes(compiled: Any) -> int:
  """What a compiled program takes beyond its arguments; 0 where the backend does not tell."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 0
  return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes
          - analysis.alias_size_in_bytes)
