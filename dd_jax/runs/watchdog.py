"""A line on stderr where the device takes suspiciously long. It ends nothing."""

import collections
from collections.abc import Callable, Collection, Iterator
import contextlib
import statistics
import sys
import threading
import time

from tqdm import tqdm

RATIO, SECONDS = 10, 120
_ADVICE = ("if it never ends: kill -9 this process and run the same command again, it continues "
           "from its last checkpoint; where it stops again, set outer.num_parallel=1 or run it on "
           "more cores, and report it with what `py-spy dump --native` says of the process")


def limit(earlier: Collection[float], *, ratio: float = RATIO, seconds: float = SECONDS
          ) -> float | None:
  """Seconds after which a dispatch is suspicious, from those that earlier ones took; None: never.

  Args:
    earlier: seconds of those that have ended; of none, nothing can be said of the next.
    ratio: times their median.
    seconds: at least so many.
  """
  return max(ratio * statistics.median(earlier), seconds) if earlier else None


class Watchdog:
  """`with watchdog.watching("the outer steps from 300 on"):` around every dispatch of one kind.

  Args:
    ratio, seconds: as of `limit`.
    say: what is done with the line; None: it goes to stderr, above a bar of progress.
  """

  def __init__(self, *, ratio: float = RATIO, seconds: float = SECONDS,
               say: Callable[[str], None] | None = None):
    self._options = {"ratio": ratio, "seconds": seconds}
    self._say = say or (lambda line: tqdm.write(line, file=sys.stderr))
    self._earlier: collections.deque[float] = collections.deque(maxlen=1000)

  @contextlib.contextmanager
  def watching(self, what: str) -> Iterator[None]:
    """Says one line if what is done inside takes too long; from a thread that keeps nothing up."""
    after = limit(self._earlier, **self._options)
    timer = None
    if after is not None:
      timer = threading.Timer(after, lambda: self._say(
          f"warning: no end after {after:.3g} s of {what}; before, such work took "
          f"{statistics.median(self._earlier):.3g} s; {_ADVICE}"))
      timer.daemon = True
      timer.start()
    begun = time.monotonic()
    try:
      yield
    finally:
      if timer:
        timer.cancel()
    self._earlier.append(time.monotonic() - begun)
