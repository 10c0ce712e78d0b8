"""Evaluation: train networks on the distilled data and test them on real images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dd_jax import batch_independence
from dd_jax.init_distributions import InitDistribution
from dd_jax.losses import cross_entropy
from dd_jax.types import Array, DistilledData, Train

_TRAINING = 2 ** 32 - 1  # Folded into a key whose draws number the networks from 0 on.


class Metrics(NamedTuple):
  """Of N networks on one set of real images."""
  loss: Array  # [N] mean cross-entropy.
  accuracy: Array  # [N] fraction.
  confusion: Array  # [N, K, K] int32 counts, true class by predicted class.


class EvalResult(NamedTuple):
  """The same networks before the first inner step and after the last."""
  before: Metrics
  after: Metrics


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
  """
  success = confusion[:, attack_class, target_class] / confusion[:, attack_class].sum(-1)
  others = jnp.delete(confusion, attack_class, axis=1)
  correct = jnp.trace(confusion, axis1=1, axis2=2) - confusion[:, attack_class, attack_class]
  return success, correct / others.sum((1, 2))


def measure(apply: Callable, params: Any, inputs: Any, labels: Array, *, batch_size: int
            ) -> Metrics:
  """Loss, accuracy and confusion of one network; the fields have no N axis here.

  Args:
    apply: `(params, inputs) -> logits [n, K]`.
    params: its weights.
    inputs, labels: `[n, ...]` and `[n]`; n need not divide by `batch_size`.
    batch_size: examples per forward pass.

  Raises:
    ValueError: a batch size below 1, no example, or more than `batch_size` for a network whose
      logits depend on the whole batch.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1; got {batch_size}")
  num_examples = labels.shape[0]
  if num_examples < 1:
    raise ValueError("labels must hold at least one example; got none")
  batch_size = min(batch_size, num_examples)

  if batch_size < num_examples:
    batch_independence.check_rows(apply, params, inputs, batch_size=batch_size)

  def of_batch(batch):
    inputs, labels = batch
    logits = apply(params, inputs)
    # Losses are wide and counts are integers, whatever the network computes in.
    counts = jnp.zeros(2 * logits.shape[-1:], jnp.int32)
    return cross_entropy(logits, labels).sum(), counts.at[labels, jnp.argmax(logits, -1)].add(1)

  whole = num_examples // batch_size * batch_size
  batches = jax.tree.map(lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]),
                         (inputs, labels))
  loss, confusion = jax.tree.map(lambda x: x.sum(0), jax.lax.map(of_batch, batches))
  if whole < num_examples:
    rest = of_batch(jax.tree.map(lambda x: x[whole:], (inputs, labels)))
    loss, confusion = loss + rest[0], confusion + rest[1]
  accuracy = jnp.trace(confusion).astype(loss.dtype) / num_examples
  return Metrics(loss / num_examples, accuracy, confusion)


class Plan(NamedTuple):
  """How much of an evaluation is computed at once, which bounds its memory, and where."""
  num_parallel: int = 10  # Networks side by side. One at a time is fastest on a CPU.
  batch_size: int = 500  # Real examples per forward pass.
  spread: Callable | None = None  # `parallel.map_over_mesh` of a mesh; None: one device.


def evaluate(key: Array, distilled: DistilledData, init: InitDistribution, train: Train,
             apply: Callable, inputs: Any, labels: Array, *, num_inits: int, plan: Plan = Plan()
             ) -> EvalResult:
  """Trains N fresh networks on the distilled data and tests each on all real examples.

  Args:
    key: consumed by the draw of the networks and by their training: use one that the distillation
      never saw.
    distilled: the data to train on.
    init: where the networks come from; held-out ones for a pool.
    train: the inner algorithm, or `pretraining.minibatches`, the protocol of later work.
    apply: `(params, inputs) -> logits [n, K]`.
    inputs, labels: real `[n, ...]`, images in normalised space, and `[n]`.
    num_inits: N.
    plan: how much is computed at once, and on which devices.

  Returns:
    Metrics before and after, each field with a leading axis `[N]`.

  Raises:
    ValueError: a number of the plan below 1.
  """
  if plan.num_parallel < 1:
    raise ValueError(f"num_parallel must be at least 1; got {plan.num_parallel}")
  train_key = jax.random.fold_in(key, _TRAINING)

  def of_one(network):
    token, row = network
    params = init.make(init.state, token)
    trained, _ = train(jax.random.fold_in(train_key, row), params, distilled)
    return EvalResult(*(measure(apply, p, inputs, labels, batch_size=plan.batch_size)
                        for p in (params, trained)))

  def of_networks(networks):
    # One at a time without a vmap over one, which costs XLA its layout of the products.
    return jax.lax.map(of_one, networks, batch_size=(
        min(plan.num_parallel, len(networks[1])) if plan.num_parallel > 1 else None))

  spread = of_networks if plan.spread is None else plan.spread(of_networks)
  return spread((init.draw(init.state, key, num_inits), jnp.arange(num_inits)))
