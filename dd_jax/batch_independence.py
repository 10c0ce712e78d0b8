"""Whether batches may be cut: a mean over examples, a row for each, whatever stands beside it.

A network that normalises with statistics of the current batch gives another loss in chunks than
in one piece. The functions here find that out by trying two examples together and alone, with
made-up weights and images, when a program is traced; nothing of it is left in the program.
"""

from collections.abc import Callable, MutableMapping
from typing import Any
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from dd_jax.types import Array, Params

# What was found of a function, {case: whether it differs}, for as long as the function lives.
_FOUND: MutableMapping[Callable, dict[tuple, bool]] = weakref.WeakKeyDictionary()


def check_mean(loss: Callable, params: Params, inputs: Any, labels: Array, *, cut_by: str
               ) -> None:
  """Refuses to cut batches whose loss is not a mean over the examples.

  Args:
    loss: `(params, inputs, labels) -> []`.
    params, inputs, labels: of the shapes that the loss will get, `[n, ...]`; tracers will do.
    cut_by: the argument that cuts them, for the message.

  Raises:
    ValueError: the loss of two examples, of the classes 0 and 1, is not the mean of their own
      losses. One that treats two other classes otherwise is not found out.
  """
  if _differs(_of_loss, loss, params, inputs, labels):
    raise ValueError(f"real_loss must be a mean over examples for {cut_by}; got one whose value "
                     "for two examples is not the mean of their own: with batch statistics in the "
                     "network the batch must stay in one piece")


def check_rows(apply: Callable, params: Params, inputs: Any, *, batch_size: int) -> None:
  """Refuses to cut inputs into batches for a network that looks at the whole batch.

  Args:
    apply: `(params, inputs) -> logits [n, K]`.
    params, inputs: as in `check_mean`.
    batch_size: what cuts them, for the message.

  Raises:
    ValueError: the logits of an example depend on the others.
  """
  if _differs(_of_rows, apply, params, inputs):
    size = jax.tree.leaves(inputs)[0].shape[0]
    raise ValueError(f"batch_size must be at least the {size} examples for a network "
                     "whose logits depend on the rest of the batch (batch statistics); "
                     f"got {batch_size}")


def _of_loss(loss, params, *examples):
  """The loss of two examples, and the mean of their own."""
  loss = _compiled(loss)
  alone = [loss(params, *_row(examples, i)) for i in range(2)]
  return loss(params, *examples), (alone[0] + alone[1]) / 2


def _of_rows(apply, params, inputs):
  """The output of the first example beside the second, and beside itself."""
  apply = _compiled(apply)
  first = jax.tree.map(lambda x: np.concatenate([x[:1], x[:1]]), inputs)
  return apply(params, inputs)[:1], apply(params, first)[:1]


def _compiled(function):
  """Compiled apart from the program that is traced around it, and run at once."""
  def run(*args):
    with jax.disable_jit(False):
      program = jax.jit(_hashable(function), compiler_options={
          "xla_backend_optimization_level": 0}).lower(*args)
      return np.asarray(program.compile()(*args))

  return run


def _row(examples, i):
  return jax.tree.map(lambda x: x[i:i + 1], examples)


def _differs(compare, function, params, *examples):
  leaves, structure = jax.tree.flatten((params, *jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), examples)))
  shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
  case = (compare, structure, shapes, jax.config.jax_enable_x64)
  try:
    found = _FOUND.setdefault(function, {})
  except TypeError:  # It cannot be hashed, or not be referred to weakly.
    found = {}
  if case not in found:
    found[case] = _differs_at(compare, function, structure, shapes)
  return found[case]


def _differs_at(compare, function, structure, shapes):
  """Whether the two sides differ by more than rounding."""
  with jax.default_matmul_precision("highest"):
    params, *examples = structure.unflatten([_made_up(i, x) for i, x in enumerate(shapes)])
    examples = jax.tree.map(_told_apart, examples)
    for sign in (np.asarray, np.abs):  # A logarithm takes no negative numbers.
      made_up = jax.tree.map(sign, (params, *examples))
      try:
        if _closes_over_tracers(function, *made_up):
          return False
        together, alone = compare(function, *made_up)
      except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError,
              jax.errors.UnexpectedTracerError):
        return False
      if np.isfinite(together).all():
        break
    else:
      return False  # It cannot be tried on numbers like these.
  error, size = (np.abs(x.astype(float)).max() for x in (together - alone, together))
  return not error <= float(jnp.finfo(together.dtype).eps) ** .5 * max(size, 1.)


def _closes_over_tracers(function, *args):
  """Whether it needs values of a program that is being traced: then nothing can be tried."""
  return any(isinstance(value, jax.core.Tracer)
             for value in jax.make_jaxpr(_hashable(function))(*args).consts)


def _hashable(function):
  """As jax.jit asks for it; a callable object need not be so."""
  return lambda *args: function(*args)


def _made_up(seed: int, shape: Any) -> np.ndarray:
  """Kernels that keep the size of what they multiply; vectors around 1, so that none hides."""
  if not jnp.issubdtype(shape.dtype, jnp.floating):
    return np.zeros(shape.shape, shape.dtype)
  normal = np.random.default_rng(seed).standard_normal(shape.shape)
  if len(shape.shape) < 2:
    return (1 + normal / 4).astype(shape.dtype)
  return (normal / max(1, normal.size // shape.shape[-1]) ** .5).astype(shape.dtype)


def _told_apart(example: np.ndarray) -> np.ndarray:
  """Where two examples are integers, zeros and ones that differ between them: classes, tokens."""
  if jnp.issubdtype(example.dtype, jnp.floating):
    return example
  return (np.indices(example.shape).sum(0) % 2).astype(example.dtype)
