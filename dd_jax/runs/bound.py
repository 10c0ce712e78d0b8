"""Programs of a run with all that stays the same from call to call, wherever the data lie."""

import abc
from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax import evaluation
from dd_jax.evaluation import EvalResult
from dd_jax.runs import feeds
from dd_jax.runs import layouts
from dd_jax.runs.data import Examples

_GROUP_BYTES = 2 ** 30  # Weights of the networks that are tested on one passage of the data.


@dataclasses.dataclass(frozen=True)
class Bound:
  """`bound(x)` is `program(x, *arguments)`; compiled in stages as programs of JAX are."""
  program: Any
  arguments: tuple

  def __call__(self, x: Any) -> Any:
    return self.program(x, *self.arguments)

  def all_arguments(self) -> tuple:
    """Of one call, but for `x`."""
    return self.arguments

  def trace(self, x: Any) -> None:
    """Meets every rule of the library, and computes nothing."""
    jax.eval_shape(self.program, x, *self.all_arguments())

  def lower(self, x: Any) -> "Bound":
    """For what has the shapes of `x`."""
    return dataclasses.replace(self, program=self.program.lower(x, *self.all_arguments()))

  def compile(self) -> "Bound":
    """What was lowered."""
    return dataclasses.replace(self, program=self.program.compile())

  def as_text(self) -> str:
    """Of what was lowered, or compiled."""
    return self.program.as_text()

  def memory_analysis(self) -> Any:
    """Of what was compiled."""
    return self.program.memory_analysis()


@dataclasses.dataclass(frozen=True)
class FedSteps(Bound):
  """`fed(state)`: outer steps on minibatches that come to the devices in pieces.

  The program takes `(state, *arguments, numbers, inputs, labels)`.
  """
  pieces: feeds.Pieces
  put: Callable[[Any], Any]  # What this process reads of minibatches, to the devices.
  pieces_per_call: int

  def __call__(self, x: Any) -> Any:
    infos: list[Any] = []
    for piece in self.pieces.following(int(layouts.to_host(x.step)), self.pieces_per_call):
      x, info = self.program(x, *self.arguments, *self._placed(piece))
      jax.block_until_ready(infos[-1:])  # Else pieces wait on the device, too.
      infos.append(info)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos)

  def all_arguments(self) -> tuple:
    """As of `Bound`."""
    return *self.arguments, *self._placed(self.pieces.read(0))

  def _placed(self, piece):
    numbers, *examples = piece
    return numbers, *self.put(examples)


class InGroups(abc.ABC):
  """`evaluation(distilled) -> EvalResult` of all networks; or of one group after the other."""

  def __call__(self, distilled: Any) -> EvalResult:
    return together([self.of_group(distilled, start) for start in self.starts(distilled)])

  @abc.abstractmethod
  def starts(self, distilled: Any) -> range:
    """The number of every group's first network; up to that of all, in steps of a group's."""

  @abc.abstractmethod
  def of_group(self, distilled: Any, start: int) -> EvalResult:
    """Of one group, on the host."""


def together(groups: list[EvalResult]) -> EvalResult:
  """All networks of some groups."""
  return jax.tree.map(lambda *parts: np.concatenate(parts), *groups)


@dataclasses.dataclass(frozen=True)
class Evaluation(InGroups, Bound):
  """On real examples on the devices; the program takes `(distilled, start, *arguments)`."""
  num_networks: int
  group_size: int  # At most num_networks.

  def starts(self, distilled: Any) -> range:
    """As of `InGroups`."""
    del distilled
    return range(0, self.num_networks, self.group_size)

  def of_group(self, distilled: Any, start: int) -> EvalResult:
    """As of `InGroups`; a last group of fewer networks is filled up with those before it."""
    first = min(start, self.num_networks - self.group_size)
    found = layouts.to_host(self.program(distilled, np.int32(first), *self.arguments))
    return jax.tree.map(lambda x: x[start - first:], found)

  def all_arguments(self) -> tuple:
    """As of `Bound`."""
    return np.int32(0), *self.arguments


@dataclasses.dataclass(frozen=True)
class FedEvaluation(InGroups):
  """On real examples that come in batches, once for every group of networks."""
  draw: Callable  # given -> networks [N].
  train: Callable  # (distilled, given, networks) -> (params, trained), leaves [n, ...].
  count: Callable  # ((params, trained), given, inputs, labels) -> (Counts, Counts) of n networks.
  given: Any
  examples: Examples
  place: Callable[[Any], Any]  # A batch, to the devices.
  batch_size: int
  stream: bool

  def starts(self, distilled: Any) -> range:
    """As of `InGroups`: so many networks at once that the weights of all do not fill the memory."""
    networks = jax.eval_shape(self.draw, self.given)
    num_networks = jax.tree.leaves(networks)[0].shape[0]
    params = jax.eval_shape(self.train, distilled, self.given, networks)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / num_networks
    return range(0, num_networks, max(1, int(_GROUP_BYTES / size)))

  def of_group(self, distilled: Any, start: int) -> EvalResult:
    """As of `InGroups`."""
    stop = start + self.starts(distilled).step
    networks = jax.tree.map(lambda x: x[start:stop], self.draw(self.given))
    both = self.train(distilled, self.given, networks)
    batches = -(-len(self.examples[1]) // self.batch_size)
    total = None
    for batch in feeds.ahead(self._read, batches, stream=self.stream,
                             size=feeds.batch_bytes(self.examples, self.batch_size)):
      counts = self.count(both, self.given, *self.place(batch))
      jax.block_until_ready(total)
      total = counts if total is None else jax.tree.map(jnp.add, total, counts)
    return EvalResult(*map(evaluation.to_metrics, layouts.to_host(total)))

  def trace(self, distilled: Any) -> None:
    """Meets every rule of the library, and computes nothing."""
    networks = jax.eval_shape(self.draw, self.given)
    both = jax.eval_shape(self.train, distilled, self.given, networks)
    jax.eval_shape(self.count, both, self.given, *self._read(0))

  def lower(self, distilled: Any) -> "FedEvaluation":
    """Its programs are compiled when they are first called."""
    del distilled
    return self

  def compile(self) -> "FedEvaluation":
    """As `lower`."""
    return self

  def _read(self, i):
    start, size = i * self.batch_size, len(self.examples[1])
    return feeds.read(self.examples, np.arange(start, min(start + self.batch_size, size)))
