"""Checkpoints keep what they promise, and what is read back is what was written."""

import shutil

import jax
import numpy as np
import optax
import pytest

from dd_jax.runs.checkpoints import Checkpoints
from dd_jax.types import OuterState
from tests import problems
from tests.arrays import assert_identical

_CONFIG = {"outer": {"num_steps": 5}, "name": "a"}


def _state(step, seed=0):
  """A state of numpy arrays, different at every step."""
  trainable, _ = problems.trainable(seed)
  trainable = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(step), trainable)
  return OuterState(trainable, jax.tree.map(np.asarray, optax.adam(.1).init(trainable)),
                    np.array(step, np.int32))


_LIKE = jax.tree.map(np.zeros_like, _state(0))


def _save_all(directory, accuracies, num_kept=2):
  """One checkpoint per accuracy, at steps 1, 2, ..."""
  with Checkpoints(directory, _CONFIG, num_kept) as checkpoints:
    for step, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(_state(step), accuracy)


def _steps(directory):
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_the_last_ones_and_the_best_are_kept_and_read_back(tmp_path):
  _save_all(tmp_path / "c", [.5, .9, None, .9, .3, None], num_kept=2)
  assert _steps(tmp_path / "c") == [4, 5, 6]  # Of equally good ones the latest.
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert_identical(checkpoints.restore_newest(_LIKE), _state(6))
    assert_identical(checkpoints.restore_best(_LIKE), _state(4))


def test_the_best_of_an_earlier_session_is_kept(tmp_path):
  """As of a run that was interrupted, or goes on for more steps."""
  _save_all(tmp_path / "c", [.5, .9, .7, .6], num_kept=1)
  with Checkpoints(tmp_path / "c", _CONFIG, 1) as checkpoints:
    for step, accuracy in ((5, .8), (6, None), (7, .85)):
      checkpoints.save(_state(step), accuracy)
  assert _steps(tmp_path / "c") == [2, 7]
  with Checkpoints(tmp_path / "c", _CONFIG, 1) as checkpoints:
    assert_identical(checkpoints.restore_best(_LIKE), _state(2))
    checkpoints.save(_state(8), .95)
  assert _steps(tmp_path / "c") == [8]


def test_a_damaged_best_leaves_the_second_best(tmp_path, capsys):
  _save_all(tmp_path / "c", [.5, .9, None, .7], num_kept=4)
  _flip(tmp_path / "c/2")
  with Checkpoints(tmp_path / "c", _CONFIG, 4) as checkpoints:
    assert_identical(checkpoints.restore_best(_LIKE), _state(4))
  assert "the checkpoint of outer step 2 in" in capsys.readouterr().err
  assert _steps(tmp_path / "c") == [1, 3, 4]


def test_without_a_score_the_newest_is_the_best(tmp_path):
  _save_all(tmp_path / "c", [None, None])
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert_identical(checkpoints.restore_best(_LIKE), _state(2))


def test_an_empty_directory_holds_no_state(tmp_path):
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert checkpoints.restore_newest(_LIKE) is None


def _largest_file(directory):
  return max((path for path in directory.rglob("*") if path.is_file()),
             key=lambda path: path.stat().st_size)


def _truncate(step):
  path = _largest_file(step)
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def _flip(step):
  path = _largest_file(step)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    _truncate, _flip,
    lambda step: _largest_file(step).unlink(),
    lambda step: shutil.rmtree(step / "state"),
    lambda step: (step / "run" / "metadata").write_text("{"),
    lambda step: [path.write_bytes(b"") for path in step.rglob("*") if path.is_file()],
])
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, capsys, damage):
  _save_all(tmp_path / "c", [.1, .2, .3])
  damage(tmp_path / "c/3")
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert_identical(checkpoints.restore_newest(_LIKE), _state(2))
    message = capsys.readouterr().err
    assert "warning: the checkpoint of outer step 3 in" in message and "damaged" in message
    assert (tmp_path / "damaged/3").is_dir()
    checkpoints.save(_state(3, seed=1), .3)  # Its place is free again.
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert_identical(checkpoints.restore_newest(_LIKE), _state(3, seed=1))


def test_with_every_checkpoint_damaged_there_is_none(tmp_path, capsys):
  _save_all(tmp_path / "c", [.1, .2])
  for step in (1, 2):
    _truncate(tmp_path / f"c/{step}")
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert checkpoints.restore_newest(_LIKE) is None
  assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_checkpoint_of_another_config_is_refused_and_kept(tmp_path):
  _save_all(tmp_path / "c", [.1])
  with Checkpoints(tmp_path / "c", _CONFIG | {"name": "b"}, 2) as checkpoints:
    with pytest.raises(ValueError, match="must hold checkpoints of this config; .* outer step 1"):
      checkpoints.restore_newest(_LIKE)
  assert _steps(tmp_path / "c") == [1]


def test_a_state_of_other_arrays_is_refused_and_kept(tmp_path):
  """Such as an outer optimizer's that was changed by hand, which no config shows."""
  _save_all(tmp_path / "c", [.1])
  other = _LIKE._replace(opt_state=jax.tree.map(np.asarray, optax.sgd(.1, momentum=.9).init(
      _LIKE.trainable)))
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    with pytest.raises(ValueError, match="checkpoints of this problem; that of outer step 1 has .*"
                                         "opt_state.* where .* is expected"):
      checkpoints.restore_newest(other)
  assert _steps(tmp_path / "c") == [1]


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), MemoryError("no room")])
def test_what_a_disk_or_memory_refuses_is_no_damage(tmp_path, monkeypatch, error):
  _save_all(tmp_path / "c", [.1, .2])
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    def refuse(*_, **__):
      raise error
    monkeypatch.setattr(checkpoints._manager, "restore", refuse)
    for read in (lambda: checkpoints.restore_newest(_LIKE), checkpoints.lines):
      with pytest.raises(type(error), match=str(error.args[-1])):
        read()
  assert _steps(tmp_path / "c") == [1, 2]


def test_the_line_of_every_checkpoint_is_kept_with_it(tmp_path):
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(_state(step), None, {"step": step, "loss": .5 * step})
    checkpoints.save(_state(4), None)  # Of a loss that is no longer finite.
    assert checkpoints.lines() == [{"step": 3, "loss": 1.5}]
    checkpoints.save(_state(5), .5, {"step": 5, "loss": 2.5})
  _flip(tmp_path / "c/5")
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert checkpoints.lines() == [{"step": 5, "loss": 2.5}]  # Its state alone is damaged.


def test_what_cannot_be_written_is_an_error_and_harms_nothing(tmp_path, monkeypatch):
  _save_all(tmp_path / "c", [.1])
  with pytest.raises(OSError, match="checkpoint cannot be written to .*No space left"):
    with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
      def full(*_, **__):
        raise OSError(28, "No space left on device")
      monkeypatch.setattr(checkpoints._manager, "save", full)
      checkpoints.save(_state(2), .2)
  monkeypatch.undo()
  with Checkpoints(tmp_path / "c", _CONFIG, 2) as checkpoints:
    assert_identical(checkpoints.restore_newest(_LIKE), _state(1))
