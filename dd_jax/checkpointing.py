"""A trajectory that is differentiated with a fixed number of its states in memory.

Binomial checkpointing: of T states only c are kept at a time, the others are computed again from
the last kept one before them. Where the c states lie follows Griewank and Walther, "Algorithm 799:
Revolve" (2000): with C(c + r, c) >= T no step is taken more than r times beside the backward
pass itself, the fewest that c states allow. So r grows with the c-th root of T: at T = 3,000 it is
4 for 16 states, 6 for 8. The schedule is a table, and one loop in the program goes through it, so
that compile time does not depend on T.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import closures
from dd_jax.leaves import is_floating, split_off, split_off_floating
from dd_jax.types import Array


class Schedule(NamedTuple):
  """Which states are kept when, as tables of int32; the states lie in slots 0..c-1.

  The backward pass is a row of events: a kept state is taken, moved on, and kept as well, or the
  pass goes back by the step that begins there.
  """
  kept: np.ndarray  # [k] positions of the states that the forward pass keeps, in slots 0..k-1.
  slot: np.ndarray  # [n] where an event takes its state.
  begin: np.ndarray  # [n] the position of that state.
  end: np.ndarray  # [n] the position that it is moved to.
  target: np.ndarray  # [n] the slot that keeps it there, or c where the pass goes back.


@functools.lru_cache(maxsize=16)
def schedule(length: int, num_states: int) -> Schedule:
  """The fewest steps for a trajectory of that length with so many states."""
  kept, events = [0], []
  while len(kept) < num_states and length - kept[-1] > 1:
    kept.append(kept[-1] + _first_part(length - kept[-1], num_states - len(kept)))
  stack, last = list(kept), length - 1
  while last >= 0:
    slot, begin = len(stack) - 1, stack[-1]
    if begin < last and len(stack) < num_states:
      end = begin + _first_part(last + 1 - begin, num_states - len(stack))
      events.append((slot, begin, end, len(stack)))
      stack.append(end)
    else:
      events.append((slot, begin, last, num_states))
      if begin == last:
        stack.pop()
      last -= 1
  return Schedule(np.array(kept, np.int32), *np.array(events, np.int32).T)


def _first_part(length, num_free):
  """How far to move before the next of the free states is kept, so that the fewest steps follow."""
  repeats = 1
  while _reach(num_free + 1, repeats) < length:
    repeats += 1
  return max(_reach(num_free + 1, repeats - 2), length - _reach(num_free, repeats), 1)


def _reach(num_states, repeats):
  """The longest trajectory that needs no step more often."""
  return math.comb(num_states + repeats, num_states) if repeats >= 0 else 0


def scan(step: Callable, constants: Any, rows: Any, state: Any, inputs: Any, places: Array,
         num_states: int) -> tuple[Any, Array]:
  """`lax.scan` of a step whose backward pass holds `num_states` states at a time.

  Reverse mode alone, and once.

  Args:
    step: `(constants, row, state, input) -> (state, output)`.
    constants: what every step shares.
    rows: leaves `[S, ...]`; a step gets one of them.
    state: what a step changes.
    inputs: leaves `[T, ...]`, an entry for each step.
    places: `[T]` int32, the row of each step.
    num_states: from 2 to T.

  Returns:
    The state after the last step, and the outputs `[T]`.
  """
  table = schedule(len(places), num_states)
  converted, closed = closures.hoist(step, constants, _at(rows, 0), state, _at(inputs, 0))
  constants = closed, constants

  def take(constants, rows, state, inputs, places, position):
    return converted(*constants, _at(rows, places[position]), state, _at(inputs, position))

  @jax.custom_vjp
  def run(constants, rows, state, inputs, places):
    return jax.lax.scan(
        lambda state, position: take(constants, rows, state, inputs, places, position),
        state, jnp.arange(len(places)))

  def forward(constants, rows, state, inputs, places):
    def move(carry, position):
      state, outputs = carry
      state, output = take(constants, rows, state, inputs, places, position)
      return state, outputs.at[position].set(output)

    def to_next(carry, bounds):
      begin, end = bounds
      moved = jax.lax.fori_loop(begin, end, lambda position, carry: move(carry, position), carry)
      return moved, carry[0]

    output = jax.eval_shape(take, constants, rows, state, inputs, places, 0)[1]
    bounds = jnp.asarray(table.kept), jnp.asarray(np.append(table.kept[1:], np.int32(len(places))))
    (state, outputs), kept = jax.lax.scan(
        to_next, (state, jnp.zeros((len(places), *output.shape), output.dtype)), bounds)
    return (state, outputs), (constants, rows, kept, inputs, places)

  def backward(residuals, cotangents):
    constants, rows, kept, inputs, places = residuals
    # One slot more: what is not kept is written there.
    slots = jax.tree.map(lambda x: jnp.concatenate(
        [x, jnp.zeros((num_states + 1 - len(table.kept), *x.shape[1:]), x.dtype)]), kept)
    state_bars, output_bars = cotangents
    state_bar = split_off(state_bars, jax.tree.map(is_floating, kept))[0]
    floating = [split_off_floating(tree)[0] for tree in (constants, rows, inputs)]
    constants_bar, row_bars, input_bars = jax.tree.map(jnp.zeros_like, floating)

    def go_back(bars, state, position):
      some, join = split_off_floating(
          (constants, _at(rows, places[position]), state, _at(inputs, position)))

      def of_floating(some):
        constants, *others = join(some)
        state, output = converted(*constants, *others)
        return split_off_floating(state)[0], output

      state_bar, constants_bar = bars
      pullback = jax.vjp(of_floating, some)[1]
      by_constants, by_row, by_state, by_input = pullback(
          (state_bar, output_bars[position]))[0]
      return (by_state, jax.tree.map(jnp.add, constants_bar, by_constants)), by_row, by_input

    def handle(carry, event):
      slots, bars, row_bars, input_bars = carry
      slot, begin, end, target = event
      state = jax.lax.fori_loop(
          begin, end, lambda position, state: take(
              constants, rows, state, inputs, places, position)[0], _at(slots, slot))
      slots = jax.tree.map(lambda x, new: x.at[target].set(new), slots, state)
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), (row_bars, input_bars))
      bars, by_row, by_input = jax.lax.cond(
          target == num_states, go_back, lambda bars, state, position: (bars, *nothing),
          bars, state, end)
      row_bars = jax.tree.map(lambda x, new: x.at[places[end]].add(new), row_bars, by_row)
      input_bars = jax.tree.map(lambda x, new: x.at[end].add(new), input_bars, by_input)
      return (slots, bars, row_bars, input_bars), None

    events = jax.tree.map(jnp.asarray, (table.slot, table.begin, table.end, table.target))
    carry = slots, (state_bar, constants_bar), row_bars, input_bars
    (_, (state_bar, constants_bar), row_bars, input_bars), _ = jax.lax.scan(handle, carry, events)
    return constants_bar, row_bars, state_bar, input_bars, None

  run.defvjp(forward, backward)
  return run(constants, rows, state, inputs, places)


def _at(tree, place):
  return jax.tree.map(lambda x: x[place], tree)
