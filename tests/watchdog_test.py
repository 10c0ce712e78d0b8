"""dd_jax.runs.watchdog: when it speaks, what it says, and that it ends nothing."""

import threading
import time

from dd_jax.runs import watchdog


def test_suspicious_is_ten_times_the_median_and_two_minutes():
  assert watchdog.limit([]) is None
  assert watchdog.limit([1., 4., 900.]) == 120  # 40 s are too few to be said.
  assert watchdog.limit([20., 21., 22.]) == 210
  assert watchdog.limit([2., 4.], ratio=3, seconds=1) == 9


def test_a_slow_dispatch_is_told_once_while_it_runs_and_goes_on():
  lines, told = [], threading.Event()

  def say(line):
    lines.append(line)
    told.set()

  dog = watchdog.Watchdog(ratio=2, seconds=.2, say=say)
  for step in (0, 10, 20):
    with dog.watching(f"the outer steps from {step} on"):
      pass
  with dog.watching("the outer steps from 30 on"):
    assert told.wait(timeout=60)
    done = True
  assert done and len(lines) == 1
  assert lines[0].startswith("warning: no end after 0.2 s of the outer steps from 30 on; before, ")
  assert "kill -9 this process and run the same command again, it continues" in lines[0]
  assert "\n" not in lines[0]


def test_fast_dispatches_and_errors_leave_no_timer(capsys):
  dog = watchdog.Watchdog(ratio=1, seconds=60)
  before = set(threading.enumerate())
  for _ in range(3):
    with dog.watching("work"):
      pass
  try:
    with dog.watching("work"):
      raise KeyError
  except KeyError:
    pass
  for timer in set(threading.enumerate()) - before:
    assert not isinstance(timer, threading.Timer) or timer.finished.wait(timeout=60)
  assert capsys.readouterr().err == ""


def test_the_line_goes_to_stderr(capsys):
  dog = watchdog.Watchdog(ratio=1, seconds=.05)
  dog._earlier.append(0.)  # A dispatch that took no time.
  with dog.watching("work"):
    time.sleep(1)
  captured = capsys.readouterr()
  assert captured.err.startswith("warning: no end after 0.05 s of work; ") and captured.out == ""
