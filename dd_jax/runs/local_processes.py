"""One command as several processes of this machine, each on cores of its own.

The pool of threads that XLA has in one process hardly helps networks as small as these; processes
of a core each share the networks of an outer step, or the real examples where there is one network.
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

# Seconds that processes get to end by themselves once one of them has failed, and where a signal
# was handed on: the first one then writes its checkpoint.
_GRACE, _GRACE_OF_SIGNALS = 10., 600.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PDEATHSIG = 1  # Of linux/prctl.h.


def number(wanted: str, num_inits: int, real_batch: int) -> int:
  """How many processes `wanted` means.

  Args:
    wanted: a number, or "auto": the most that the cores allow and that can share the work.
    num_inits: N.
    real_batch: R, which is shared where N is 1.

  Raises:
    ValueError: neither, more than there are cores, or a number that does not divide what is shared.
  """
  cores = len(_cores())
  shared, name = (num_inits, "outer.num_inits") if num_inits > 1 else (real_batch,
                                                                       "outer.batch_size")
  if wanted == "auto":
    return max(k for k in range(1, cores + 1) if shared % k == 0)
  if not (wanted.isdecimal() and 1 <= int(wanted) <= cores):
    raise ValueError(f"--local_processes must be auto or a number from 1 to the {cores} cores of "
                     f"this machine; got {wanted!r}")
  if shared % int(wanted):
    raise ValueError(f"--local_processes must divide {name}={shared}; got {wanted}")
  return int(wanted)


def run(command: list[str], num_processes: int) -> int:
  """Runs the command in so many processes, which get --coordinator and the like, until all ended.

  Signals that end a run are handed to all of them. Where one fails the others are ended.

  Args:
    command: of a process; it prints what it has to say in the first one.
    num_processes: from 2 to the number of cores.

  Returns:
    The exit status: 0, or that of the first process that failed.
  """
  children: list[subprocess.Popen] = []
  handed_on: list[int] = []
  errors = [None, *(tempfile.TemporaryFile() for _ in range(num_processes - 1))]

  def hand_on(signum, frame):
    del frame
    handed_on.append(signum)
    for child in children:
      with contextlib.suppress(ProcessLookupError):
        child.send_signal(signum)

  before = {signum: signal.signal(signum, hand_on) for signum in _SIGNALS}
  try:
    coordinator = f"localhost:{_free_port()}"
    for place, cores in enumerate(_shares(num_processes)):
      with _pinned(cores):  # A child has the cores of its parent, and XLA a thread for each.
        children.append(subprocess.Popen(
            ending_with_parent([*command, f"--coordinator={coordinator}",
                                f"--num_processes={num_processes}", f"--process_id={place}"]),
            stderr=errors[place],
            start_new_session=True))  # So that Ctrl-C reaches it once, from here.
      for signum in handed_on:  # What came while it was being made.
        children[-1].send_signal(signum)
    failed = _wait(children, handed_on)
    if failed is None:
      return 0
    if errors[failed] is not None:  # The first says for itself what all have to say.
      errors[failed].seek(0)
      sys.stderr.buffer.write(errors[failed].read())
    status = children[failed].returncode
    return 128 - status if status < 0 else status  # As a shell says that a signal ended it.
  finally:
    _end(children)
    for signum, handler in before.items():
      signal.signal(signum, handler)


def ending_with_parent(command: list[str]) -> list[str]:
  """The command, to which Linux sends SIGTERM when its parent is gone, however that ended."""
  if sys.platform != "linux":
    return command
  # In the child's own interpreter: nothing may run between a fork and an exec of a threaded one.
  return [sys.executable, "-S", "-c",
          "import ctypes, os, sys; "
          f"ctypes.CDLL(None).prctl({_PDEATHSIG}, {int(signal.SIGTERM)}); "
          "os.execvp(sys.argv[1], sys.argv[1:])", *command]


def _wait(children, handed_on):
  """Until all ended, or for a while after one failed; which failed first, or None."""
  failed, since = None, math.inf
  while any([child.poll() is None for child in children]) and time.monotonic() - since < (
      _GRACE_OF_SIGNALS if handed_on else _GRACE):
    time.sleep(.1)
    if failed is None and (failed := _failed(children)) is not None:
      since = time.monotonic()
  return _failed(children) if failed is None else failed


def _failed(children):
  return next((place for place, child in enumerate(children) if child.returncode), None)


def _end(children):
  for child in children:
    if child.poll() is None:
      child.kill()
    child.wait()


def _cores():
  """The cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _shares(num_processes):
  """The cores of each process, as even as can be."""
  cores = _cores()
  bounds = [len(cores) * i // num_processes for i in range(num_processes + 1)]
  return [cores[begin:end] for begin, end in zip(bounds, bounds[1:])]


@contextlib.contextmanager
def _pinned(cores):
  before = _cores()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    if hasattr(os, "sched_setaffinity"):
      os.sched_setaffinity(0, before)


def _free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]
