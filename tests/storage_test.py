"""Where the data of a run lie changes nothing: the same steps, networks and counts."""

import jax
import numpy as np
import pytest

from dd_jax import datasets
from dd_jax import distillation
from dd_jax import models
from dd_jax import runs
from dd_jax.datasets import host_memory
from dd_jax.runs import feeds
from dd_jax.runs import machine
from dd_jax.runs import storage
from tests import small_runs
from tests.dataset_files import InFile

pytestmark = pytest.mark.usefixtures("optax_promotion", "quick_runs")


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


@pytest.mark.slow  # Bits are equal with the usual compiler, which the quick tests have not.
@pytest.mark.parametrize("kind", ["host", "stream"])
@pytest.mark.parametrize("wrap", [lambda images: images, InFile])
def test_every_storage_gives_the_same_arrays_and_accuracies(on_device, tmp_path, kind, wrap,
                                                            monkeypatch):
  """10 steps in pieces of 2 of the 4 in a call: epochs of 4 steps begin within and between them."""
  monkeypatch.setattr(feeds, "_PIECE_BYTES", 2 * 64 * 24 + 600)
  found = runs.distill(make_problem(wrap), tmp_path / "run", num_steps=10,
                       settings=SETTINGS._replace(storage=kind))
  jax.tree.map(np.testing.assert_array_equal, found.artifact.distilled,
               on_device.artifact.distilled)
  for name in ("accuracy_mean", "accuracy_std", "accuracy_before_mean"):
    assert found.figures[name] == on_device.figures[name]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_pixels_of_any_kind_are_prepared_alike(tmp_path, dtype):
  found = [runs.distill(make_problem(wrap, dtype), tmp_path / kind, num_steps=4,
                        settings=SETTINGS._replace(storage=kind))
           for kind, wrap in (("device", lambda images: images), ("stream", InFile))]
  jax.tree.map(np.testing.assert_array_equal, *(result.artifact.distilled for result in found))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_networks_take_is_what_normalize_gives(dtype):
  """But for rounding: of images that are stored as integers, and normalised in every step."""
  dataset = make_dataset(dtype=dtype)
  data = runs.from_dataset(dataset, num_validation=40)
  assert data.test[0].dtype == dtype
  images, labels = runs.examples_at(data, data.test, np.array([4, 0]))
  assert images.dtype == np.float32
  np.testing.assert_allclose(images, datasets.normalize(
      dataset.test_images[[4, 0]], dataset.mean, dataset.std), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(labels, dataset.test_labels[[4, 0]])


@pytest.mark.parametrize("stream", [False, True])
def test_pieces_follow_the_step_of_the_run(stream):
  """Of 11 examples in minibatches of 4, two steps a piece; a run that goes back is followed."""
  examples = np.arange(11)[:, None], np.arange(11)
  pieces = feeds.Pieces(examples, jax.random.key(0), batch_size=4, size=2, num_steps=20,
                        chosen=np.array([0, 3]), stream=stream)
  orders = [np.asarray(distillation.epoch_order(jax.random.key(0), epoch, 11)) for epoch in (0, 1)]
  expected = np.stack([orders[0][:4], orders[0][4:8], orders[1][:4], orders[1][4:8]])[:, [0, 3]]
  for step, count in ((0, 1), (2, 1), (0, 2)):
    for i, (numbers, inputs, labels) in enumerate(pieces.following(step, count)):
      first = step + 2 * i
      assert numbers.tolist() == [first, first + 1]
      np.testing.assert_array_equal(labels, expected[first:first + 2])
      np.testing.assert_array_equal(inputs, labels[..., None])
  with pytest.raises(ValueError, match=r"batch_size must lie in 1..11 .*; got 12"):
    feeds.Pieces(examples, jax.random.key(0), batch_size=12, size=2, num_steps=20,
                 chosen=np.arange(12), stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_a_reader_reaches_the_run(stream):
  def read(i):
    if i == 3:
      raise ValueError("a/b.png: expected a whole PNG or JPEG picture; found nothing")
    return np.array(i)

  taken = []
  with pytest.raises(ValueError, match="a/b.png: expected a whole PNG"):
    for value in feeds.ahead(read, 9, size=4, stream=stream):
      taken.append(int(value))
  assert taken == [0, 1, 2]


def test_what_has_no_room_is_said_with_what_has(monkeypatch):
  data = make_problem(InFile).data
  size = storage.num_bytes(data.train) + storage.num_bytes(data.validation) + storage.num_bytes(
      data.test)
  assert size == 330 * (24 + 4)
  monkeypatch.setattr(machine, "free_bytes", lambda: size - 1)
  monkeypatch.setattr(host_memory, "free_bytes", lambda: size)
  with pytest.raises(ValueError, match=r"storage='device' needs 9.24e-06 GB for the real examples "
                     r"and .* GB are free; there is room with 'host' or 'stream'$"):
    storage.check_fits(data, "device")
  storage.check_fits(data, "host")
  monkeypatch.setattr(host_memory, "free_bytes", lambda: 0)
  with pytest.raises(ValueError, match="there is room with 'stream'$"):
    storage.check_fits(data, "host")
  storage.check_fits(data, "stream")
  storage.check_fits(make_problem().data, "host")  # Where it is already.


def test_files_that_a_container_keeps_in_memory_are_free(tmp_path, monkeypatch):
  monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
  monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
  assert host_memory.free_bytes() is None
  (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
  (tmp_path / "memory.max").write_text("max\n")
  assert host_memory.free_bytes() == 7 * 1024
  (tmp_path / "memory.max").write_text("5000\n")
  (tmp_path / "memory.current").write_text("4000\n")
  assert host_memory.free_bytes() == 1000
  (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 3000\nactive_file 400\n")
  assert host_memory.free_bytes() == 4000


def test_the_data_of_a_run_are_described_in_one_line(monkeypatch):
  monkeypatch.setattr(machine, "free_bytes", lambda: 3 * 10 ** 9)
  numbers = ("arrays: 260 train + 40 validation + 30 test examples of 3 classes, 6x4x1 uint8 in "
             "0..255, 0.00924 MB ")
  assert storage.describe(make_problem().data, "device") == (
      f"{numbers}on every device; 3 GB are free there")
  assert storage.describe(make_problem(InFile).data, "stream") == (
      f"{numbers}in files; 3 GB are free on a device")
