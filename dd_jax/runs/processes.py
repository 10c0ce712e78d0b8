"""Several processes, one run: each started with the same command, the first one writes."""

import atexit
from collections.abc import Callable
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

# Seconds without a sign of life after which a process is given up.
_HEARTBEAT_SECONDS = 30
_PIECE_BYTES = 2 ** 28  # That travel from the first process to the others at once.
# Variables by which a cluster tells a process how many there are; jax finds the rest itself.
_CLUSTER_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
OTHERS_ENDED = ("error: another process of this run has ended or cannot be reached; the same "
                "commands continue it from the last checkpoint")
# Waits for a word or the end of its standard input.
_WATCHER = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
_watchers: list[subprocess.Popen] = []  # One, where there are several processes.


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the other processes, where there are any; before the first use of a device.

  Args:
    coordinator: host:port of process 0. None: what the cluster's environment says.
    num_processes: how many.
    process_id: which of them this is.

  Raises:
    ValueError: some of the three without the others, or a number out of range.
  """
  given: dict[str, Any] = {"coordinator": coordinator, "num_processes": num_processes,
                           "process_id": process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    in_cluster = any(int(os.environ.get(name, 1)) > 1 for name in _CLUSTER_SIZES)
    # Hosts of a TPU slice are listed with commas between them.
    if not in_cluster and "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
      return
  elif missing:
    raise ValueError("--coordinator, --num_processes and --process_id must be given together; "
                     f"missing --{missing[0]}")
  elif not 0 <= given["process_id"] < given["num_processes"]:
    raise ValueError(f"--process_id must lie in 0..{given['num_processes'] - 1} (--num_processes="
                     f"{num_processes}); got {process_id}")
  elif ":" not in given["coordinator"]:
    raise ValueError(f"--coordinator must be host:port; got {coordinator!r}")
  _watch()
  timeouts: dict[str, Any] = {f"{name}_timeout_seconds": _HEARTBEAT_SECONDS
                              for name in ("heartbeat", "shutdown")}
  known = inspect.signature(jax.distributed.initialize).parameters  # JAX 0.7 has the first alone.
  jax.distributed.initialize(coordinator, num_processes, process_id,
                             **{name: value for name, value in timeouts.items() if name in known})
  if threading.current_thread() is threading.main_thread():
    # jax takes SIGTERM for a notice and does nothing; it ends a process again, as before.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def leave(status: int) -> None:
  """Ends this process at once, without waiting for others, which may be gone."""
  _say_goodbye()
  os._exit(status)


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> Any:
  """Calls `function` in the first process and returns what it gave, JSON, in every process.

  A ValueError or OSError of the first process is raised in all of them.
  """
  if jax.process_count() == 1:
    return function()
  outcome = {}
  if is_first():
    try:
      outcome["value"] = function()
    except (ValueError, OSError) as error:
      outcome |= {"error": str(error), "is_os_error": isinstance(error, OSError)}
  outcome = json.loads(_from_first_bytes(json.dumps(outcome).encode()))
  if "error" in outcome:
    raise (OSError if outcome["is_os_error"] else ValueError)(outcome["error"])
  return outcome["value"]


def on_first_arrays(function: Callable[[], Any], like: Any) -> Any:
  """As `on_first` for a tree of numpy arrays of the shapes of `like`, or None."""
  found = []

  def call():
    found.append(function())
    return found[0] is not None

  if not on_first(call):
    return None
  if jax.process_count() == 1:
    return found[0]
  tree: Any
  leaves, tree = jax.tree.flatten(found[0] if is_first() else like)
  # As bytes: a sum over processes, which is how values travel, would lose the sign of a zero.
  content = _from_first_bytes(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
  received, position = [], 0
  for leaf in leaves:
    received.append(np.frombuffer(content, leaf.dtype, leaf.size, position).reshape(leaf.shape))
    position += leaf.nbytes
  return tree.unflatten(received)


def any_of(flag: bool) -> bool:
  """Whether the flag is set in any process."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather_json(value: Any) -> list:
  """The value of every process, in order."""
  if jax.process_count() == 1:
    return [value]
  mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(mine.size))
  padded = multihost_utils.process_allgather(np.pad(mine, (0, sizes.max() - mine.size)))
  return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes)]


def _watch():
  """Has a small process say why, should this one end without a word.

  jax aborts a process, with nothing but a trace, when it finds that others are gone.
  """
  _watchers.append(subprocess.Popen(
      [sys.executable, "-S", "-c", _WATCHER, OTHERS_ENDED], stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL, start_new_session=True))
  atexit.register(_say_goodbye)


def _say_goodbye():
  while _watchers:
    _watchers.pop().communicate(b".")


def _from_first_bytes(content):
  # The size as bytes, too: of 2 GiB and more it is none of jax's usual integers.
  (size,) = struct.unpack("<q", _piece_from_first(struct.pack("<q", len(content))))
  pieces = [_piece_from_first(content[start:start + _PIECE_BYTES] if is_first() else
                              bytes(min(_PIECE_BYTES, size - start)))
            for start in range(0, size, _PIECE_BYTES)]
  return b"".join(pieces)


def _piece_from_first(content):
  """The first process's bytes, of which all give as many."""
  return multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8)).tobytes()
