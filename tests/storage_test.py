"""Where the data of a run lie changes nothing: the same steps, networks and counts."""

import threading

import jax
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax import models
from dd_jax import runs
from dd_jax.runs import feeds
from tests import small_runs

pytestmark = pytest.mark.usefixtures("optax_promotion", "quick_runs")


class InFile:
  """Rows of an array, and who has read them."""

  def __init__(self, images):
    self._images, self.shape, self.dtype = images, images.shape, images.dtype
    self.readers, self.most = set(), 0

  def read(self, places):
    self.readers.add(threading.current_thread().name)
    self.most = max(self.most, len(places))
    return self._images[places]


def make_dataset(wrap=lambda images: images, dtype=np.uint8):
  draw = np.random.default_rng(0)
  labels = np.arange(330) % 3
  images = draw.integers(0, 256, (330, 6, 4, 1)).astype(dtype)
  images[..., :2, :] += (80 * labels).astype(dtype)[:, None, None, None]
  return datasets.from_arrays(wrap(images[:300]), labels[:300], wrap(images[300:]), labels[300:])


def make_problem(wrap=lambda images: images, dtype=np.uint8, init="random"):
  data = runs.from_dataset(make_dataset(wrap, dtype), num_validation=40)
  return runs.make_problem(data, models.mlp, init=init, num_steps=2)._replace(
      num_inits=2, num_validation_inits=3, num_test_inits=5, batch_size=64)


SETTINGS = small_runs.SETTINGS._replace(log_every=4, validate_every=4, checkpoint_every=4,
                                        batch_size=16)


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
  return runs.distill(make_problem(), tmp_path_factory.mktemp("device") / "run", num_steps=10,
                      settings=SETTINGS)


@pytest.mark.parametrize("storage", ["host", "stream"])
@pytest.mark.parametrize("wrap", [lambda images: images, InFile])
def test_every_storage_gives_the_same_arrays_and_accuracies(on_device, tmp_path, storage, wrap,
                                                            monkeypatch):
  """10 steps in pieces of 2 of the 4 in a call: epochs of 4 steps begin within and between them."""
  monkeypatch.setattr(feeds, "_PIECE_BYTES", 2 * 64 * 24 + 600)
  found = runs.distill(make_problem(wrap), tmp_path / "run", num_steps=10,
                       settings=SETTINGS._replace(storage=storage))
  jax.tree.map(np.testing.assert_array_equal, found.artifact.distilled,
               on_device.artifact.distilled)
  for name in ("accuracy_mean", "accuracy_std", "accuracy_before_mean"):
    assert found.figures[name] == on_device.figures[name]
