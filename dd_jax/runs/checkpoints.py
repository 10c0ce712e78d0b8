"""The state of a run on disk: written beside the run, whole or not at all, checked when read back.

A checkpoint holds the whole `OuterState` (keys and the order of the data follow from its step), a
digest of its bytes and the config it belongs to; a run of more outer steps takes it too.
"""

import hashlib
import json
import math
import pathlib
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

import dd_jax
from dd_jax.runs import workdirs
from dd_jax.runs.interruptions import Interrupted

_METRIC = "validation"


class Checkpoints:
  """The checkpoints of one directory; a context that waits for what is being written."""

  def __init__(self, directory: pathlib.Path, config: dict, num_kept: int):
    """Keeps the last `num_kept`, and the best by validation."""
    self._directory, self._config = directory, config
    keep = policies.AnyPreservationPolicy([
        policies.LatestN(num_kept),
        policies.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=1,
                       keep_checkpoints_without_metrics=False)])
    directory.mkdir(exist_ok=True)
    # One process alone writes and reads: the others hear of it through `processes`.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}")
    self._manager = ocp.CheckpointManager(
        directory.absolute(), options=ocp.CheckpointManagerOptions(
            preservation_policy=keep, create=False, multiprocessing_options=alone))

  def __enter__(self):
    return self

  def __exit__(self, error, *_):
    try:
      self._manager.close()
    except Exception as failure:
      if error in (None, Interrupted):  # One that says that the state was kept.
        raise self._write_error(failure) from failure

  def save(self, state: dd_jax.OuterState, score: float | None) -> None:
    """Starts writing the state; `score` is on validation examples, None where not measured.

    Raises:
      OSError: this checkpoint, or the one before, cannot be written; older ones are unharmed.
    """
    try:
      self._manager.save(
          int(state.step), metrics=None if score is None else {_METRIC: score},
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(state),
              run=ocp.args.JsonSave({"digest": _digest(state), "config": self._config,
                                     _METRIC: score})))
    except Exception as error:  # Of many kinds, by file system.
      raise self._write_error(error) from error

  def restore_newest(self, like: dd_jax.OuterState) -> dd_jax.OuterState | None:
    """The newest state that can be read whole; None where there is none.

    A damaged checkpoint is removed with a warning, and the one before it is tried.

    Raises:
      ValueError: a checkpoint of another config.
    """
    self._wait()
    return self._restore_first(sorted(self._manager.all_steps(), reverse=True), like)

  def restore_best(self, like: dd_jax.OuterState) -> dd_jax.OuterState | None:
    """The state of the highest validation score, the latest of equals, that can be read whole.

    Those without a score come last. Damaged ones and errors as of `restore_newest`.
    """
    self._wait()
    return self._restore_first(sorted(
        self._manager.all_steps(), key=lambda step: (self._score(step), step), reverse=True), like)

  def _wait(self):
    """Until what is being written is whole, and so no damaged one."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._write_error(error) from error

  def _restore_first(self, steps, like):
    for step in steps:
      try:
        return self._restore(step, like)
      except _OtherConfig as error:
        raise ValueError(str(error)) from error
      except Exception as error:  # A bad byte surfaces as nearly any exception.
        print(f"warning: the checkpoint of outer step {step} in {self._directory} is damaged and "
              f"removed; another one is tried: {' '.join(str(error).split())[:200]}",
              file=sys.stderr)
        self._remove(step)
    return None

  def _score(self, step):
    """On validation examples; the least where it was not measured or cannot be read."""
    try:
      score = self._run(step)[_METRIC]
    except Exception:  # As above; `_restore` will say so.
      score = None
    return -math.inf if score is None else score

  def _restore(self, step, like):
    run = self._run(step)
    if not workdirs.continues(run["config"], self._config):
      raise _OtherConfig(f"{self._directory} must hold checkpoints of this config; that of outer "
                         f"step {step} is of another")
    state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state
    if _digest(state) != run["digest"]:
      raise ValueError("its content does not have the digest that was stored with it")
    return state

  def _run(self, step):
    return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run

  def _remove(self, step):
    try:
      self._manager.delete(step)
    except Exception:  # Too damaged for that as well.
      shutil.rmtree(self._directory / str(step), ignore_errors=True)
      self._manager.reload()

  def _write_error(self, error):
    return OSError(f"a checkpoint cannot be written to {self._directory}: "
                   f"{' '.join(str(error).split())[:300]}; the same command continues from the "
                   "last one that could")


class _OtherConfig(Exception):
  """A checkpoint that this run may not continue."""


def _digest(state):
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    leaf = np.asarray(leaf)
    digest.update(json.dumps([jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape]).encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()
