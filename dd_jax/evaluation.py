"""Evaluation: train networks on the distilled data and test them on real images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dd_jax import batch_independence
from dd_jax.init_distributions import InitDistribution
from dd_jax.inner_loop import inner_trajectory
from dd_jax.losses import cross_entropy
from dd_jax.pretraining import pretrain
from dd_jax.types import Array, DistilledData


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


def measure(apply: Callable, params: Any, images: Array, labels: Array, *, batch_size: int
            ) -> Metrics:
  """Loss, accuracy and confusion of one network; the fields have no N axis here.

  Args:
    apply: `(params, images) -> logits [n, K]`.
    params: its weights.
    images, labels: `[n, H, W, C]` and `[n]`; n need not divide by `batch_size`.
    batch_size: images per forward pass.

  Raises:
    ValueError: a batch size below 1, no image, or more images than `batch_size` for a network
      whose logits depend on the whole batch.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1; got {batch_size}")
  num_images = images.shape[0]
  if num_images < 1:
    raise ValueError("images must hold at least one image; got none")
  batch_size = min(batch_size, num_images)

  if batch_size < num_images:
    batch_independence.check_rows(apply, params, images, batch_size=batch_size)

  def of_batch(images, labels):
    logits = apply(params, images)
    # Losses are wide and counts are integers, whatever the network computes in.
    counts = jnp.zeros(2 * logits.shape[-1:], jnp.int32)
    return cross_entropy(logits, labels).sum(), counts.at[labels, jnp.argmax(logits, -1)].add(1)

  whole = num_images // batch_size * batch_size
  batches = jax.tree.map(lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]),
                         (images, labels))
  loss, confusion = jax.tree.map(lambda x: x.sum(0), jax.lax.map(lambda b: of_batch(*b), batches))
  if whole < num_images:
    rest = of_batch(images[whole:], labels[whole:])
    loss, confusion = loss + rest[0], confusion + rest[1]
  accuracy = jnp.trace(confusion).astype(loss.dtype) / num_images
  return Metrics(loss / num_images, accuracy, confusion)


def evaluate_from_scratch(
    key: Array, train_images: Array, train_labels: Array, init: InitDistribution, apply: Callable,
    images: Array, labels: Array, *, num_inits: int, loss: Callable,
    optimizer: optax.GradientTransformation, num_epochs: int, train_batch_size: int,
    keyed: bool = False, batch_size: int = 500, num_parallel: int = 10) -> Metrics:
  """Trains N networks on a small set as on any other, in random order, and tests each.

  The protocol of later work: a standard optimizer, many epochs, any network; of distilled data
  neither the order nor the step sizes are used.

  Args:
    key: consumed by the draw of the networks and by their training.
    train_images, train_labels: `[n, H, W, C]` and `[n]` or `[n, K]`: distilled or real.
    init, apply, images, labels, num_inits, batch_size, num_parallel: as in `evaluate`.
    loss, optimizer, num_epochs, keyed: as in `pretraining.pretrain`.
    train_batch_size: images per training step.

  Returns:
    Metrics after training, each field with a leading axis `[N]`.
  """
  init_key, train_key = jax.random.split(key)
  params = pretrain(train_key, init.sample(init.state, init_key, num_inits), loss, train_images,
                    train_labels, optimizer=optimizer, num_epochs=num_epochs,
                    batch_size=train_batch_size, keyed=keyed, num_parallel=num_parallel)
  return jax.lax.map(lambda params: measure(apply, params, images, labels, batch_size=batch_size),
                     params)


def evaluate(key: Array, distilled: DistilledData, init: InitDistribution, apply: Callable,
             images: Array, labels: Array, *, num_inits: int, inner_loss: Callable,
             optimizer: Any = None, keyed: bool = False, trajectory: Callable = inner_trajectory,
             batch_size: int = 500, num_parallel: int = 10, split: Callable | None = None
             ) -> EvalResult:
  """Trains N fresh networks on the distilled data and tests each on all images.

  Args:
    key: consumed by the draw of the networks: use one that training never saw.
    distilled: the data to train on.
    init: where the networks come from; held-out ones for a pool.
    apply: `(params, images) -> logits [n, K]`.
    images, labels: real `[n, H, W, C]` in normalised space, and `[n]`.
    num_inits: N.
    inner_loss: as in `inner_trajectory`.
    optimizer: as in `inner_trajectory`.
    keyed, trajectory: as in `make_outer_loss`.
    batch_size: images per forward pass.
    num_parallel: networks trained side by side; with `batch_size` it bounds the memory. One at a
      time is fastest on a CPU.
    split: how devices share the networks: `function(rows) -> function(rows)`, made with
      `parallel.map_over_mesh`. None: one device.

  Returns:
    Metrics before and after, each field with a leading axis `[N]`.
  """
  if num_parallel < 1:
    raise ValueError(f"num_parallel must be at least 1; got {num_parallel}")
  init_key, inner_key = jax.random.split(key) if keyed else (key, None)

  def of_one(network):
    params, row = network
    options = {"key": jax.random.fold_in(inner_key, row)} if keyed else {}
    if trajectory is inner_trajectory:
      options["memory"] = "plain"
    final_params, _ = trajectory(inner_loss, params, distilled, optimizer=optimizer, **options)
    return EvalResult(*(measure(apply, p, images, labels, batch_size=batch_size)
                        for p in (params, final_params)))

  def of_rows(rows):
    params = (init.sample(init.state, init_key, num_inits) if len(rows) == num_inits else
              init.sample(init.state, init_key, num_inits, rows))
    # One at a time without a vmap over one, which costs XLA its layout of the products.
    return jax.lax.map(of_one, (params, rows),
                       batch_size=min(num_parallel, len(rows)) if num_parallel > 1 else None)

  return (of_rows if split is None else split(of_rows))(jnp.arange(num_inits))
