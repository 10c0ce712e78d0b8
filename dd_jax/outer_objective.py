"""The outer objective: how well real images are classified after the inner trajectory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dd_jax import batch_independence
from dd_jax import parallel
from dd_jax.inner_loop import inner_trajectory
from dd_jax.optimizers import check_differentiable
from dd_jax.truncation import objective_keys
from dd_jax.types import DistilledData


def make_outer_loss(decode: Callable[[Any], DistilledData], sample: Callable, inner_loss: Callable,
                    real_loss: Callable, *, num_inits: int, num_parallel: int | None = None,
                    chunk_size: int | None = None, split_inits: Callable | None = None,
                    split_images: Callable | None = None, window: Callable | None = None,
                    keyed: bool = False, trajectory: Callable = inner_trajectory,
                    optimizer: Any = None, **options: Any) -> Callable:
  """The expectation over p(theta_0) of the real loss at theta_T (section 3.2, eq. 3).

  Args:
    decode: trainable -> DistilledData.
    sample: `sample(init_state, key, num_inits, rows=None) -> params [N, ...]`; `rows` is given
      where num_parallel or split_inits divide the draw.
    inner_loss: `(params, images, labels) -> []` on distilled images.
    real_loss: `(params, images, labels) -> []` on real images: a mean over them.
    num_inits: N, drawn afresh in every call.
    num_parallel: networks side by side under `vmap`, on each device; the loss
      and its gradient are summed over blocks of them, so that memory does not
      grow with N. One at a time is fastest on a CPU. None: all at once.
    chunk_size: real images per pass; the loss and its gradient at theta_T are
      summed over chunks, so that memory does not grow with R. None: all at once.
    split_inits, split_images: how devices share the networks and the real
      images: `loss -> loss`, made with `parallel.over_mesh` or `parallel.over_pmap`.
    window: from `truncation`: the stretch of the trajectory that is differentiated. None: all.
    keyed: whether `inner_loss` takes a key, for dropout or augmentation; each network has its own.
    trajectory: what trains a network and is differentiated: `inner_trajectory`, or one of
      `implicit`.
    optimizer: as in `inner_trajectory`.
    **options: of the trajectory (memory, gradient, ...).

  Returns:
    `outer_loss(trainable, init_state, key, images, labels) -> []` for images
    `[R, H, W, C]` and labels `[R]`, to be differentiated by `trainable`.

  Raises:
    ValueError: num_inits, num_parallel or chunk_size below 1; an optimizer that cannot be
      differentiated; when traced, a real loss that is not a mean where its batch is cut.
  """
  for name, value in (("num_inits", num_inits), ("num_parallel", num_parallel),
                      ("chunk_size", chunk_size)):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")

  if optimizer is not None and not callable(optimizer):
    check_differentiable(optimizer)

  def loss_at(params, real):
    return real_loss(params, *real)

  cut_by = "chunk_size" if chunk_size is not None else "real images shared by devices"
  if chunk_size is not None:
    loss_at = parallel.in_chunks(loss_at, chunk_size)
  if split_images is not None:
    loss_at = split_images(loss_at)

  def loss_of_one(params, row, distilled, inner_key, window_key, *real):
    steps = {"optimizer": optimizer,
             **({"key": jax.random.fold_in(inner_key, row)} if keyed else {})}
    if chunk_size is not None or split_images is not None:
      batch_independence.check_mean(real_loss, params, *real, cut_by=cut_by)
    begun = {"params": params} if window is None else window(
        window_key, inner_loss, params, distilled, **steps)
    final_params, _ = trajectory(inner_loss, distilled=distilled, **begun, **steps, **options)
    return loss_at(final_params, real)

  def loss_of_rows(trainable, rows, init_state, key, *real):
    distilled = decode(trainable)
    sample_key, *keys = objective_keys(key)
    params = (sample(init_state, sample_key, num_inits) if len(rows) == num_inits else
              sample(init_state, sample_key, num_inits, rows))
    if len(rows) == 1:
      # Without the axis of length one XLA lays out its products better.
      return loss_of_one(jax.tree.map(lambda leaf: leaf[0], params), rows[0], distilled, *keys,
                         *real)
    return jnp.mean(jax.vmap(lambda params, row: loss_of_one(
        params, row, distilled, *keys, *real))(params, rows))

  if num_parallel is not None and num_parallel < num_inits:
    loss_of_rows = parallel.in_chunks(loss_of_rows, num_parallel)
  if split_inits is not None:
    loss_of_rows = split_inits(loss_of_rows)

  def outer_loss(trainable, init_state, key, images, labels):
    return loss_of_rows(trainable, jnp.arange(num_inits), init_state, key, images, labels)

  return outer_loss
