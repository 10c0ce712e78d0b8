"""What to do about outer steps that need more memory than is free."""

from collections.abc import Callable
import dataclasses

from dd_jax.inner_loop import Unroll


def advice(train: Unroll, length: int, size_of: Callable[[Unroll], int], free: int) -> str:
  """The fastest way to differentiate the same trajectory that fits, as the end of a message.

  In order of time: every activation kept, the states of all steps, and then as many states as
  there is room for, since what a number of states takes grows evenly with it.

  Args:
    train: what does not fit.
    length: T.
    size_of: bytes that the outer steps take with another `train`; it compiles them.
    free: bytes.
  """
  def size(memory, gradient="reverse"):
    return size_of(dataclasses.replace(train, memory=memory, gradient=gradient))

  def fits(memory, gradient="reverse"):
    found = size(memory, gradient)
    return found if found <= free else None

  for memory, gradient in (("plain", "reverse"), ("plain", "forward_over_reverse"),
                           ("remat", "reverse")):
    if (memory, gradient) != (train.memory, train.gradient) and (found := fits(memory, gradient)):
      return _says(memory, gradient, found)
  fewest = fits(2) if length > 2 else None
  if not fewest:
    return "no memory mode fits: lower chunk_size, num_parallel or images_per_class"
  per_state = max(1., (size(length) - fewest) / (length - 2))
  num_states = min(length, 2 + int((free - fewest) / per_state))
  while not (found := fits(num_states)):
    num_states = max(2, num_states * 3 // 4)
  return _says(num_states, "reverse", found)


def _says(memory, gradient, size):
  return f"memory={memory!r} with gradient={gradient!r} fits ({size / 1e9:.3g} GB)"
