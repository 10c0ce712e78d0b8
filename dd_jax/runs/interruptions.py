"""A request to stop, from a user or a scheduler, answered between two dispatches."""

import contextlib
import os
import signal
import threading
import time

# Seconds in which a signal that comes again is the same one: Linux tells of a parent's death once
# for each of its threads, and a scheduler may signal a group and its members.
_SAME = 1.


class Interrupted(Exception):
  """The run was asked to stop and has written its state."""

  def __init__(self, number: int, message: str):
    super().__init__(message)
    self.number = number  # Of the signal.


@contextlib.contextmanager
def deferred():
  """Yields a list that receives the numbers of SIGTERM and SIGINT, instead of the process ending.

  A second signal, a second or more after the first, ends it as usual. Outside the main thread
  signals stay as they are.
  """
  received, first = [], []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  signals = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in signals}

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  def receive(number, _):
    if not received:
      received.append(number)
      first.append(time.monotonic())
    elif time.monotonic() - first[0] > _SAME:
      restore()
      os.kill(os.getpid(), number)

  for number in signals:
    signal.signal(number, receive)
  try:
    yield received
  finally:
    restore()
