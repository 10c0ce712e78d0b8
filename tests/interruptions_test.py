"""Signals that end a run: the first is deferred, the same again is none, a later one ends it."""

import signal
import subprocess
import sys

from tests.launches import ROOT


def test_the_same_signal_twice_is_one_and_a_later_one_ends_the_process():
  process = subprocess.run([sys.executable, "-c", """
import os, signal, types
from dd_jax.runs import interruptions
clock = iter([0., .1, 5.])
interruptions.time = types.SimpleNamespace(monotonic=lambda: next(clock))
with interruptions.deferred() as received:
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGTERM)
  print(received, flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print("alive", flush=True)
"""], cwd=ROOT, capture_output=True, text=True, timeout=100)
  assert process.returncode == -signal.SIGTERM, process.stderr
  assert process.stdout == "[15]\n"
