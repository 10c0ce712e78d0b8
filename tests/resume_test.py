"""A run that is stopped, by whatever, continues to the same result; guards stop it in time."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments import machine
from experiments import train
from experiments.configs import digits_fixed_init
from experiments.interruptions import Interrupted

# The trees of optax's Adam need promotion; the launcher's own processes have no strict setting.
pytestmark = pytest.mark.usefixtures("optax_promotion")


def _config(**updates):
  """Forty steps of a network that compiles at once."""
  config = digits_fixed_init.get_config("smoke")
  config.update_from_flattened_dict({"model.name": "mlp", "outer.num_steps": 40, **updates})
  return config


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()
                if path.name.isdigit())


def _assert_same_run(workdir, expected):
  """Bit for bit the same distilled data, and the same measurements on the way."""
  with np.load(workdir / "distilled.npz") as actual, \
      np.load(expected / "distilled.npz") as reference:
    assert set(actual) == set(reference)
    for name in reference:
      assert actual[name].tobytes() == reference[name].tobytes(), name
  timeless = [[{name: value for name, value in line.items() if name != "seconds"}
               for line in _lines(directory)] for directory in (workdir, expected)]
  assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  with jax.numpy_dtype_promotion("standard"):
    train.distill_and_evaluate(_config(), workdir)
  return workdir


@pytest.fixture
def interrupt(monkeypatch):
  """`interrupt(config, workdir, number)`: a run that gets a signal once it has passed step 10."""
  class Bar(train.tqdm):
    def update(self, n=1):
      super().update(n)
      if self.n == 10:
        os.kill(os.getpid(), Bar.number)

  def run(config, workdir, number=signal.SIGTERM):
    Bar.number = number
    with monkeypatch.context() as patch:
      patch.setattr(train, "tqdm", Bar)
      with pytest.raises(Interrupted, match="stopped at outer step 12; the same comm") as stopped:
        train.distill_and_evaluate(config, workdir)
    assert stopped.value.number == number
    assert not (workdir / "result.json").exists()

  return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_continues(
    interrupt, tmp_path, uninterrupted, number):
  interrupt(_config(checkpoint_every=8), tmp_path, number)
  assert _steps(tmp_path)[-1] == 12  # Not one that was due: written for the signal.
  train.distill_and_evaluate(_config(checkpoint_every=8), tmp_path)
  _assert_same_run(tmp_path, uninterrupted)


def test_damaged_files_are_survived(interrupt, tmp_path, uninterrupted, capsys):
  interrupt(_config(), tmp_path)
  newest = max((tmp_path / "checkpoints/12").rglob("*"), key=lambda path: path.stat().st_size)
  os.truncate(newest, newest.stat().st_size // 2)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 14, "lo')
  train.distill_and_evaluate(_config(), tmp_path)
  assert "warning: the checkpoint of outer step 12" in capsys.readouterr().err
  _assert_same_run(tmp_path, uninterrupted)


def test_a_run_that_lost_its_result_alone_repeats_no_step(uninterrupted, tmp_path, monkeypatch):
  shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
  (tmp_path / "result.json").unlink()
  (tmp_path / "distilled.npz").unlink()
  result = train.distill_and_evaluate(_config(), tmp_path)
  assert result["outer_steps"] == 40
  _assert_same_run(tmp_path, uninterrupted)


def test_the_best_images_are_selected_on_request(tmp_path):
  # Learning rates that overshoot: the last images are not the best.
  config = _config(**{"validation.selection": "best", "outer.learning_rate": 2.,
                      "outer.step_size_learning_rate": .3, "outer.schedule": "halving"})
  result = train.distill_and_evaluate(config, tmp_path)
  accuracy = {line["step"]: line["validation_accuracy"] for line in _lines(tmp_path)}
  best = max(accuracy.values())
  assert best > accuracy[40]
  assert result["validation_accuracy"] == best
  assert result["selected_step"] == max(step for step in accuracy if accuracy[step] == best)
  assert result["selection"].startswith("best images by validation accuracy")
  assert result["outer_steps"] == 40 and result["selected_step"] in _steps(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
  config = _config(**{"outer.step_size_learning_rate": 300.})  # Step sizes explode.
  with pytest.raises(FloatingPointError, match=r"not finite at outer step \d.*\[e=\d, s=0\]"):
    train.distill_and_evaluate(config, tmp_path)
  assert 0 < _steps(tmp_path)[-1] < 40
  assert not (tmp_path / "result.json").exists()


def test_on_request_the_learning_rates_are_halved_until_the_loss_is_finite(tmp_path, capsys):
  config = _config(**{"outer.step_size_learning_rate": 300., "outer.on_nonfinite": "halve"})
  result = train.distill_and_evaluate(config, tmp_path)
  warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: loss or" in line]
  rates = [float(line.split(", with ")[1].split()[0]) for line in warnings]
  assert rates[:2] == [.5, .25] and rates == sorted(rates, reverse=True)
  assert result["outer_steps"] == 40
  assert all(np.isfinite(line["loss"]) for line in _lines(tmp_path))


def test_halving_in_vain_ends(tmp_path):
  config = _config(**{"distill.step_size": 1e30, "outer.on_nonfinite": "halve"})
  with pytest.raises(FloatingPointError, match="outer step 0; .* halved ten times in vain"):
    train.distill_and_evaluate(config, tmp_path)


@pytest.mark.slow
def test_too_little_memory_is_said_before_the_run_with_the_modes_that_fit(tmp_path, monkeypatch):
  sizes = []
  original = machine.program_bytes

  def in_gb_of_the_first(program):
    sizes.append(original(program))
    return 1e9 * sizes[-1] / sizes[0]

  monkeypatch.setattr(machine, "program_bytes", in_gb_of_the_first)
  monkeypatch.setattr(machine, "free_bytes", lambda: .99e9)
  with pytest.raises(ValueError) as error:
    train.distill_and_evaluate(_config(**{"distill.num_epochs": 30}), tmp_path)
  needed, fitting = str(error.value).split(" are free; these fit: ")
  assert needed == ("distill.memory='plain' with gradient='reverse' needs an estimated 1 GB and "
                    "0.99 GB")
  assert "remat with reverse (" in fitting and "plain with reverse" not in fitting
  assert not _lines(tmp_path)  # Not a step was taken.
