"""What a process asks of the machine it runs on."""

import ctypes
import platform
import resource


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


def peak_host_bytes() -> int:
  """The most memory that this process has held."""
  unit = 1 if platform.system() == "Darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
