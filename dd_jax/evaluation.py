"""Evaluation: train networks on the distilled data and test them on real images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_jax import batch_independence
from dd_jax import types
from dd_jax.init_distributions import InitDistribution
from dd_jax.losses import cross_entropy, squared_error
from dd_jax.types import Array, DistilledData, Train, check_at_least, wide

_TRAINING = 2 ** 32 - 1  # Folded into a key whose draws number the networks from 0 on.


class Metrics(NamedTuple):
  """Of N networks on one set of real images."""
  loss: Array  # [N] mean cross-entropy.
  accuracy: Array  # [N] fraction.
  # [N, K, K] int32 counts, true class by predicted class; NaN predicts class 0, as argmax does.
  confusion: Array


class TargetMetrics(NamedTuple):
  """Of N networks on one set of real examples with targets, which lie about 0 as `runs` has them.

  Their variance is a difference of sums in float32: far from 0 nothing would be left of it.
  """
  loss: Array  # [N] of `losses.regression`.
  r2: Array  # [N] share of the targets' variance that is explained, mean over the D targets.
  rmse: Array  # [N, D] root mean squared error of each target.


class EvalResult(NamedTuple):
  """The same networks before the first inner step and after the last."""
  before: Metrics | TargetMetrics
  after: Metrics | TargetMetrics


def poisoning_metrics(confusion: Array, *, attack_class: int, target_class: int
                      ) -> tuple[Array, Array]:
  """How well networks are poisoned, from their confusion matrices (section 3.6).

  Args:
    confusion: counts `[N, K, K]`, true class by predicted class.
    attack_class: the class that is to be mistaken.
    target_class: what for.

  Returns:
    Share of the attack class that is predicted as the target class `[N]`, and
    accuracy on all other classes `[N]`.

  Raises:
    ValueError: a class that is not in 0..K-1.
  """
  for name, value in (("attack_class", attack_class), ("target_class", target_class)):
    if not 0 <= value < confusion.shape[-1]:
      raise ValueError(f"{name} must lie in 0..{confusion.shape[-1] - 1}; got {value}")
  success = confusion[:, attack_class, target_class] / confusion[:, attack_class].sum(-1)
  others = jnp.delete(confusion, attack_class, axis=1)
  correct = jnp.trace(confusion, axis1=1, axis2=2) - confusion[:, attack_class, attack_class]
  return success, correct / others.sum((1, 2))


class Counts(NamedTuple):
  """Sums over real examples, of one network."""
  loss: Array  # [] of cross-entropies, float32 or wider.
  confusion: Array  # [K, K] int32 counts, true class by predicted class.


class TargetCounts(NamedTuple):
  """Sums over real examples with targets, of one network; float32 or wider."""
  number: Array  # [] examples.
  loss: Array  # [].
  squared_error: Array  # [D].
  target: Array  # [D].
  squared_target: Array  # [D].


def count(apply: Callable, params: Any, inputs: Any, labels: Array) -> Counts | TargetCounts:
  """Losses and predictions of one network on one batch.

  Args:
    apply: `(params, inputs) -> logits [n, K]`, or outputs `[n, D]`.
    params: its weights.
    inputs: `[n, ...]`.
    labels: classes `[n]`, or targets `[n, D]`.
  """
  outputs = apply(params, inputs)
  # Losses are wide and counts are integers, whatever the network computes in.
  if jnp.issubdtype(labels.dtype, jnp.floating):
    targets = labels.astype(wide(labels.dtype))
    return TargetCounts(
        jnp.asarray(len(targets), targets.dtype), squared_error(outputs, targets).sum(),
        ((outputs.astype(targets.dtype) - targets) ** 2).sum(0), targets.sum(0),
        (targets ** 2).sum(0))
  counts = jnp.zeros(2 * outputs.shape[-1:], jnp.int32)
  return Counts(cross_entropy(outputs, labels).sum(),
                # Unsigned, a class below 0 lies beyond the last, and is left out.
                counts.at[labels.astype(jnp.uint32), jnp.argmax(outputs, -1)].add(1))


def to_metrics(counts: Counts | TargetCounts) -> Metrics | TargetMetrics:
  """Means over the examples; of N networks where the counts have an axis N."""
  if isinstance(counts, TargetCounts):
    number = counts.number[..., None]
    variance = counts.squared_target / number - (counts.target / number) ** 2
    error = counts.squared_error / number
    return TargetMetrics(counts.loss / counts.number, (1 - error / variance).mean(-1),
                         jnp.sqrt(error))
  num_examples = counts.confusion.sum((-2, -1))
  correct = jnp.trace(counts.confusion, axis1=-2, axis2=-1)
  return Metrics(counts.loss / num_examples.astype(counts.loss.dtype),
                 correct.astype(counts.loss.dtype) / num_examples.astype(counts.loss.dtype),
                 counts.confusion)


def measure(apply: Callable, params: Any, inputs: Any, labels: Array, *, batch_size: int,
            prepare: Callable | None = None) -> Metrics | TargetMetrics:
  """Loss, accuracy and confusion, or R2 and errors, of one network; without an axis N.

  Args:
    apply: `(params, inputs) -> logits [n, K]`, or outputs `[n, D]`.
    params: its weights.
    inputs, labels: `[n, ...]`, and `[n]` or targets `[n, D]`; n need not divide by `batch_size`.
    batch_size: examples per forward pass.
    prepare: as of a `Plan`.

  Raises:
    ValueError: a batch size below 1, no example, inputs that are not as many as labels, or more
      than `batch_size` for a network whose logits depend on the whole batch; a class that is not in
      0..K-1, where the labels are no tracers: of those such a class is left out of the counts.
  """
  prepare = prepare or (lambda inputs: inputs)
  num_examples = types.num_examples(inputs, labels)
  inputs, labels = jax.tree.map(jnp.asarray, (inputs, labels))
  prepared = jax.eval_shape(prepare, inputs)
  check_batches(apply, params, prepared, batch_size=batch_size)
  types.check_labels(labels, jax.eval_shape(apply, params, prepared).shape[-1])
  batch_size = min(batch_size, num_examples)

  def of_batch(batch):
    inputs, labels = batch
    return count(apply, params, prepare(inputs), labels)

  whole = num_examples // batch_size * batch_size
  batches = jax.tree.map(lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]),
                         (inputs, labels))
  counts = jax.tree.map(lambda x: x.sum(0), jax.lax.map(of_batch, batches))
  if whole < num_examples:
    rest = of_batch(jax.tree.map(lambda x: x[whole:], (inputs, labels)))
    counts = jax.tree.map(jnp.add, counts, rest)
  return to_metrics(counts)


def check_batches(apply: Callable, params: Any, inputs: Any, *, batch_size: int) -> None:
  """Refuses batches that `measure` cannot be computed in, as it says.

  Args:
    apply, params: as of `measure`.
    inputs: arrays `[n, ...]` or their shapes.
    batch_size: examples per forward pass.
  """
  num_examples = jax.tree.leaves(inputs)[0].shape[0]
  check_at_least(1, batch_size=batch_size)
  if num_examples < 1:
    raise ValueError("labels must hold at least one example; got none")
  if batch_size < num_examples:
    batch_independence.check_rows(apply, params, inputs, batch_size=batch_size)


class Plan(NamedTuple):
  """How much of an evaluation is computed at once, which bounds its memory, and where."""
  num_parallel: int = 10  # Networks side by side. One at a time is fastest on a CPU.
  batch_size: int = 500  # Real examples per forward pass.
  spread: Callable | None = None  # `parallel.map_over_mesh` of a mesh; None: one device.
  prepare: Callable | None = None  # What networks take of stored inputs; None: they are as stored.


def evaluate(key: Array, distilled: DistilledData, init: InitDistribution, train: Train,
             apply: Callable, inputs: Any, labels: Array, *, num_inits: int, plan: Plan = Plan()
             ) -> EvalResult:
  """Trains N fresh networks on the distilled data and tests each on all real examples.

  Compiled anew at every call: where it is called again and again, `jax.jit` around it keeps it.

  Args:
    key: consumed by the draw of the networks and by their training: use one that the distillation
      never saw.
    distilled: the data to train on.
    init: where the networks come from; held-out ones for a pool.
    train: the inner algorithm, or `pretraining.minibatches`, the protocol of later work.
    apply: `(params, inputs) -> logits [n, K]`.
    inputs, labels: real `[n, ...]`, in normalised space or what `plan.prepare` brings there, and
      `[n]`.
    num_inits: N.
    plan: how much is computed at once, and on which devices.

  Returns:
    Metrics before and after, each field with a leading axis `[N]`.

  Raises:
    ValueError: a number of the plan below 1, or what `measure` refuses.
  """
  return evaluate_networks(key, distilled, init, train, apply,
                           draw_networks(key, init, num_inits), inputs, labels, plan=plan)


def evaluate_networks(key: Array, distilled: DistilledData, init: InitDistribution, train: Train,
                      apply: Callable, networks: tuple[Array, Array], inputs: Any, labels: Array, *,
                      plan: Plan) -> EvalResult:
  """What `evaluate` gives of some of its networks.

  Args:
    key, distilled, init, train, apply, inputs, labels, plan: as of `evaluate`.
    networks: n of `draw_networks`.
  """
  def of_one(before_and_after):
    return EvalResult(*(measure(apply, params, inputs, labels, batch_size=plan.batch_size,
                                prepare=plan.prepare) for params in before_and_after))

  return _map_trained(of_one, key, distilled, init, train, networks, plan)


def draw_networks(key: Array, init: InitDistribution, num_inits: int) -> tuple[Array, Array]:
  """The networks that `evaluate` trains: their tokens `[N]`, and their numbers `[N]`.

  Args:
    key, init, num_inits: as of `evaluate`.
  """
  return init.draw(init.state, key, num_inits), jnp.arange(num_inits)


def train_networks(key: Array, distilled: DistilledData, init: InitDistribution, train: Train,
                   networks: tuple[Array, Array], *, plan: Plan) -> tuple[Any, Any]:
  """Weights before and after, leaves `[n, ...]`, of some of the networks that `evaluate` trains.

  Args:
    key, distilled, init, train, plan: as of `evaluate`.
    networks: n of `draw_networks`.
  """
  return _map_trained(lambda before_and_after: before_and_after, key, distilled, init, train,
                      networks, plan)


def count_networks(apply: Callable, params: Any, inputs: Any, labels: Array, *, num_examples: int,
                   plan: Plan) -> Any:
  """`Counts` on one batch, with a leading axis `[n]`, for each tree of weights in a tuple.

  Args:
    apply, plan: as of `evaluate`.
    params: a tuple of weights of n networks, leaves `[n, ...]`.
    inputs, labels: one of the batches that all `num_examples` are cut into.
  """
  prepared = inputs if plan.prepare is None else plan.prepare(inputs)

  def of_one(params):
    check_batches(apply, params[0], jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (num_examples, *x.shape[1:]), x.dtype), prepared), batch_size=plan.batch_size)
    return tuple(count(apply, p, prepared, labels) for p in params)

  return map_networks(of_one, params, plan)


def _map_trained(of_one, key, distilled, init, train, networks, plan):
  """`of_one((params, trained))` of every network."""
  train_key = jax.random.fold_in(key, _TRAINING)

  def of_network(network):
    token, number = network
    params = init.make(init.state, token)
    trained, _ = train(jax.random.fold_in(train_key, number), params, distilled)
    return of_one((params, trained))

  return map_networks(of_network, networks, plan)


def map_networks(of_one: Callable, networks: Any, plan: Plan) -> Any:
  """`of_one` of each of n networks, leaves `[n, ...]`, as many at once and where the plan says.

  Raises:
    ValueError: a number of the plan below 1.
  """
  check_at_least(1, num_parallel=plan.num_parallel)

  def of_networks(networks):
    # One at a time without a vmap over one, which costs XLA its layout of the products.
    num_networks = jax.tree.leaves(networks)[0].shape[0]
    return jax.lax.map(of_one, networks, batch_size=(
        min(plan.num_parallel, num_networks) if plan.num_parallel > 1 else None))

  return (of_networks if plan.spread is None else plan.spread(of_networks))(networks)
