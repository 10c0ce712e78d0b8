"""What `dd_jax.datasets.load` fetches, by a stand-in for the download manager."""

import bz2
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from dd_jax import datasets
from dd_jax.datasets import tfds_source
from tests.dataset_files import IDX_FILES
from tests.dataset_files import assert_holds
from tests.dataset_files import tiny
from tests.dataset_files import write_idx
from tests.one_line import raises

pytestmark = pytest.mark.usefixtures("offline")


class FakeManager:
  """Serves the files of `remote`, `{base name of the url: bytes}`, as tfds' manager would."""

  remote = {}
  error = None
  urls = []

  def __init__(self, *, download_dir, manual_dir, url_infos):
    self.download_dir, self.manual_dir, self.url_infos = download_dir, manual_dir, url_infos

  def download(self, url):
    if self.error:
      raise self.error
    self.urls.append(url)
    path = f"{self.download_dir}/mangled"
    with open(path, "wb") as file:
      file.write(self.remote[url.rpartition("/")[2]])
    return path


@pytest.fixture
def manager(monkeypatch):
  class Manager(FakeManager):
    remote, urls = {}, []

  monkeypatch.setattr(tfds.download, "DownloadManager", Manager)
  return Manager


@pytest.mark.parametrize("name, host", [
    ("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    ("fashion_mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    ("kmnist", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
])
def test_download_once(tmp_path, manager, name, host):
  arrays = tiny()
  write_idx(tmp_path / "remote", arrays)
  manager.remote = {path.name: path.read_bytes() for path in (tmp_path / "remote").iterdir()}
  assert_holds(datasets.load(name, tmp_path / "data", download=True), arrays)
  assert manager.urls == [host + file for file in IDX_FILES]
  assert {path.name for path in (tmp_path / "data" / name).iterdir()} == set(IDX_FILES)
  assert_holds(datasets.load(name, tmp_path / "data"), arrays)
  assert len(manager.urls) == 4


@pytest.mark.parametrize("name, files", [
    ("cifar10", ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]),
    ("cifar100", ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]),
    ("svhn_cropped", ["http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                      "http://ufldl.stanford.edu/housenumbers/test_32x32.mat"]),
])
def test_download_asks_for_these(tmp_path, manager, name, files):
  manager.remote = {file.rpartition("/")[2]: b"<html>" for file in files}
  with raises(ValueError, f"{tmp_path / name}/"):  # what came is no such file
    datasets.load(name, tmp_path, download=True)
  assert manager.urls == files


@pytest.mark.filterwarnings("ignore:.* channels are constant")
def test_download_usps_checks_md5(tmp_path, manager, monkeypatch):
  arrays = tiny((16, 16, 1), fill=0)
  for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
    lines = [f"{label + 1} " + " ".join(f"{i}:-1" for i in range(1, 257))
             for label in arrays[f"{split}_labels"]]
    manager.remote[file] = bz2.compress("\n".join(lines).encode())
  with raises(ValueError, "multiclass/usps.bz2: expected a file with md5 "
                          "ec16c51db3855ca6c91edd34d0e9b197; found "):
    datasets.load("usps", tmp_path, download=True)
  assert not list((tmp_path / "usps").iterdir())
  monkeypatch.setattr(tfds_source, "_USPS_MD5", {
      file: hashlib.md5(raw).hexdigest() for file, raw in manager.remote.items()})
  dataset = datasets.load("usps", tmp_path, download=True)
  np.testing.assert_array_equal(dataset.train_labels, arrays["train_labels"])
  assert dataset.train_images.shape == (20, 28, 28, 1) and not dataset.train_images.any()


@pytest.mark.parametrize("error", [OSError("no route\nto host"),
                                   tfds.download.DownloadError("HTTP code: 404.")])
def test_download_fails(tmp_path, manager, error):
  manager.error = error
  with raises(ConnectionError, f"{IDX_FILES[0]}: could not be fetched (put {IDX_FILES[0]} into "
                               f"{tmp_path / 'mnist'} by hand); {type(error).__name__}: "):
    datasets.load("mnist", tmp_path, download=True)
  assert not list((tmp_path / "mnist").iterdir())


def test_download_differs_from_the_record(tmp_path, manager):
  manager.error = NonMatchingChecksumError("Artifact\n* Expected")
  with raises(ValueError, f"{tmp_path / 'mnist' / IDX_FILES[0]}: NonMatchingChecksumError: "):
    datasets.load("mnist", tmp_path, download=True)


def test_download_compares_what_lies_there(tmp_path):
  """With tensorflow-datasets' own manager: a wrong file is found before any download."""
  (tmp_path / "mnist").mkdir()
  (tmp_path / "mnist" / IDX_FILES[0]).write_bytes(b"something else")
  with raises(ValueError, f"{IDX_FILES[0]}: NonMatchingChecksumError"):
    datasets.load("mnist", tmp_path, download=True)
