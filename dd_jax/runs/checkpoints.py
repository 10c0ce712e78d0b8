"""The state of a run on disk: written beside the run, whole or not at all, checked when read back.

A checkpoint holds the whole `OuterState` (keys and the order of the data follow from its step), a
digest of its bytes, the config it belongs to and the metrics of its step; a run of more outer steps
takes it too. A damaged one is set aside, never deleted.
"""

from collections.abc import Callable
import hashlib
import itertools
import json
import math
import pathlib
import shutil
import sys
from typing import Any

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
    keep = policies.AnyPreservationPolicy([policies.LatestN(num_kept), _Best(self._score)])
    directory.mkdir(exist_ok=True)
    # One process alone writes and reads: the others hear of it through `processes`.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}")
    self._manager = ocp.CheckpointManager(
        directory.absolute(), options=ocp.CheckpointManagerOptions(
            preservation_policy=keep, create=False, multiprocessing_options=alone))
    self._scores = {step: self._stored_score(step) for step in self._manager.all_steps()}

  def __enter__(self):
    return self

  def __exit__(self, error, *_):
    try:
      self._manager.close()
    except Exception as failure:
      if error in (None, Interrupted):  # One that says that the state was kept.
        raise self._write_error(failure) from failure

  def save(self, state: dd_jax.OuterState, score: float | None, line: dict | None = None) -> None:
    """Starts writing the state.

    Args:
      state: what is kept.
      score: on validation examples; None where it was not measured.
      line: of metrics.jsonl, at its step.

    Raises:
      OSError: this checkpoint, or the one before, cannot be written; older ones are unharmed.
    """
    self._scores[int(state.step)] = -math.inf if score is None else score
    try:
      self._manager.save(
          int(state.step), args=ocp.args.Composite(
              state=ocp.args.StandardSave(state),
              run=ocp.args.JsonSave({
                  "digest": digest(state), "arrays": _arrays(state), "config": self._config,
                  _METRIC: score, "line": line})))
    except Exception as error:  # Of many kinds, by file system.
      raise self._write_error(error) from error

  def restore_newest(self, like: dd_jax.OuterState) -> dd_jax.OuterState | None:
    """The newest state that can be read whole; None where there is none.

    A damaged checkpoint is set aside with a warning, and the one before it is tried.

    Raises:
      ValueError: a checkpoint of another config, or of a state of other arrays.
      OSError: the disk does not give it, for whatever else than that it is not there.
    """
    self.wait()
    return self._restore_first(sorted(self._manager.all_steps(), reverse=True), like)

  def restore_best(self, like: dd_jax.OuterState) -> dd_jax.OuterState | None:
    """The state of the highest validation score, the latest of equals, that can be read whole.

    Those without a score come last. Damaged ones and errors as of `restore_newest`.
    """
    self.wait()
    return self._restore_first(sorted(
        self._manager.all_steps(), key=lambda step: (self._score(step), step), reverse=True), like)

  def lines(self) -> list[dict]:
    """The lines that the checkpoints hold, in the order of their steps."""
    self.wait()
    found = [run.get("line") for step in sorted(self._manager.all_steps())
             if (run := self._run_or_none(step)) is not None]
    return [line for line in found if line is not None]

  def wait(self) -> None:
    """Until what is being written is whole, and so no damaged one; errors as of `save`."""
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
      except Exception as error:
        if not _is_damage(error):
          raise
        aside = self._set_aside(step)
        print(f"warning: the checkpoint of outer step {step} in {self._directory} is damaged and "
              f"set aside as {aside}; another one is tried: {' '.join(str(error).split())[:200]}",
              file=sys.stderr)
    return None

  def _score(self, step):
    """On validation examples; the least where it was not measured or cannot be read."""
    return self._scores[step]

  def _stored_score(self, step):
    score = (self._run_or_none(step) or {}).get(_METRIC)
    return -math.inf if score is None else score

  def _restore(self, step, like):
    run = self._run(step)
    if not workdirs.continues(run["config"], self._config):
      raise _OtherConfig(f"{self._directory} must hold checkpoints of this config; that of outer "
                         f"step {step} is of another")
    for theirs, mine in itertools.zip_longest(run["arrays"], _arrays(like)):
      if theirs != mine:
        raise _OtherConfig(f"{self._directory} must hold checkpoints of this problem; that of "
                           f"outer step {step} has {theirs} where {mine} is expected")
    state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state
    if digest(state) != run["digest"]:
      raise ValueError("its content does not have the digest that was stored with it")
    return state

  def _run(self, step):
    return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run

  def _run_or_none(self, step):
    """As `_run`; None of a damaged one, of which `_restore` says so."""
    try:
      return self._run(step)
    except Exception as error:
      if not _is_damage(error):
        raise
      return None

  def _set_aside(self, step):
    """Where it lies now; an earlier one of its step gives way."""
    aside = self._directory.with_name("damaged") / str(step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    (self._directory / str(step)).rename(aside)
    self._manager.reload()
    return aside

  def _write_error(self, error):
    return OSError(f"a checkpoint cannot be written to {self._directory}: "
                   f"{' '.join(str(error).split())[:300]}; the same command continues from the "
                   "last one that could")


class _Best(policies.PreservationPolicy):
  """Preserves the checkpoint of the highest score, the latest of equals, if any has one.

  Orbax's own knows the scores of its session alone, and none of those before.
  """

  def __init__(self, score: Callable[[int], float]):
    self._score = score

  def should_preserve(self, checkpoints, *, context):
    del context
    scored = [step for step in (each.step for each in checkpoints) if self._score(step) > -math.inf]
    best = max(scored, key=lambda step: (self._score(step), step), default=None)
    return [each.step == best for each in checkpoints]


class _OtherConfig(Exception):
  """A checkpoint that this run may not continue."""


def digest(tree: Any) -> str:
  """Of the arrays of a tree, with their names and shapes."""
  found = hashlib.sha256()
  for described, leaf in zip(_arrays(tree), jax.tree.leaves(tree)):
    found.update(json.dumps(described).encode() + np.asarray(leaf).tobytes())
  return found.hexdigest()


def _arrays(tree):
  """`[place, dtype, shape]` of every array, as JSON gives it back."""
  return [[jax.tree_util.keystr(path), str(np.asarray(leaf).dtype), list(np.shape(leaf))]
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_damage(error):
  """A bad byte surfaces as nearly any exception; but what a disk or memory refuses may be whole."""
  return not isinstance(error, (OSError, MemoryError)) or isinstance(
      error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
