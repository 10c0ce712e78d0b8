"""The named sets: which files each comes in, who reads them, and what they must hold."""

from collections.abc import Callable
import functools
import string
from typing import NamedTuple

from dd_jax.datasets import cifar
from dd_jax.datasets import directories
from dd_jax.datasets import formats
from dd_jax.datasets.splits import Splits

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
             "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Benchmark(NamedTuple):
  """A set that `sources.load` knows by name."""
  image_shape: tuple[int, int, int]  # (H, W, C), of uint8 images
  # ((file names, reader of those paths), ...): original files that do, the first as downloaded.
  layouts: tuple[tuple[tuple[str, ...], Callable], ...] = ()
  npz: tuple[str, ...] = ()  # Files that do, too.
  num_classes: int = 10
  class_names: tuple[str, ...] = ()  # Where they have names that the files do not hold.
  # Of the published recipe; None: those of the training split.
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  prepared: bool = False  # Whether tensorflow-datasets prepares it under that name.
  downloaded: bool = False  # Whether it can be.
  folder: str | None = None  # Of `data_dir`; None: its name.


def _by_split(read):
  """A reader of one split per call, on the files of both splits."""
  def read_both(*paths):
    half = len(paths) // 2
    return *read(*paths[:half]), *read(*paths[half:])
  return read_both


IDX_LAYOUTS = ((tuple(f"{file}.gz" for file in IDX_FILES), _by_split(formats.read_idx)),
               (IDX_FILES, _by_split(formats.read_idx)))
# https://github.com/zalandoresearch/fashion-mnist, http://codh.rois.ac.jp/kmnist
_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                    "Sneaker", "Bag", "Ankle boot")
_KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_EMNIST_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                 "test-images-idx3-ubyte.gz", "test-labels-idx1-ubyte.gz")
_EMNIST_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
_EMNIST_CLASSES = {  # https://www.nist.gov/itl/products-and-services/emnist-dataset
    "balanced": _EMNIST_MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "bymerge": _EMNIST_MERGED,
    "digits": string.digits,
    "letters": string.ascii_uppercase,
    "mnist": string.digits,
}


def _emnist(variant):
  classes = tuple(_EMNIST_CLASSES[variant])
  first = 1 if variant == "letters" else 0

  def read(*paths):
    arrays = _by_split(functools.partial(formats.read_emnist, first=first,
                                         num_classes=len(classes)))(*paths)
    return Splits(*arrays, classes)

  files = tuple(f"emnist-{variant}-{file}" for file in _EMNIST_FILES)
  # gzip.zip, in which all variants come, unpacks to a folder gzip.
  layouts = (files, read), (tuple(f"gzip/{file}" for file in files), read)
  return Benchmark((28, 28, 1), layouts, num_classes=len(classes), folder="emnist")


def _cifar100(labels, num_classes, **options):
  read = functools.partial(cifar.read_cifar100, labels=labels)
  layouts = ((cifar.CIFAR100_ARCHIVE,), read), ((cifar.CIFAR100_DIRECTORY,), read)
  return Benchmark((32, 32, 3), layouts, num_classes=num_classes, downloaded=True,
                   folder="cifar100", **options)


BENCHMARKS = {
    "mnist": Benchmark((28, 28, 1), IDX_LAYOUTS, ("mnist.npz",), mean=(.1307,), std=(.3081,),
                       prepared=True, downloaded=True),
    "fashion_mnist": Benchmark((28, 28, 1), IDX_LAYOUTS, ("fashion_mnist.npz",),
                               class_names=_FASHION_CLASSES, prepared=True, downloaded=True),
    "kmnist": Benchmark((28, 28, 1), IDX_LAYOUTS, ("kmnist.npz",),
                        class_names=_KMNIST_CLASSES, prepared=True, downloaded=True),
    "usps": Benchmark((28, 28, 1), (
        (("usps.bz2", "usps.t.bz2"), _by_split(formats.read_usps_libsvm)),
        (("zip.train.gz", "zip.test.gz"), _by_split(formats.read_usps_text)),
        (("zip.train", "zip.test"), _by_split(formats.read_usps_text))), ("usps.npz",),
                      downloaded=True),
    # The official crops alone, so that no npz will do.
    "svhn_cropped": Benchmark((32, 32, 3), (
        (("train_32x32.mat", "test_32x32.mat"), _by_split(formats.read_svhn)),),
                              mean=(.4379, .4440, .4729), std=(.1980, .2010, .1970),
                              prepared=True, downloaded=True),
    "svhn_small": Benchmark((32, 32, 3), npz=("svhn_small.npz", "svhn_subset.npz")),
    "cifar10": Benchmark((32, 32, 3), (
        ((cifar.CIFAR10_ARCHIVE,), cifar.read_cifar10),
        ((cifar.CIFAR10_DIRECTORY,), cifar.read_cifar10)), ("cifar10.npz",),
                         class_names=cifar.CIFAR10_CLASSES, mean=(.4914, .4822, .4465),
                         std=(.247, .243, .261), prepared=True, downloaded=True),
    "cifar100": _cifar100("fine", 100, prepared=True),
    "cifar100_coarse": _cifar100("coarse", 20),
    "stl10": Benchmark((96, 96, 3), (((cifar.STL10_DIRECTORY,), cifar.read_stl10),)),
    "tiny_imagenet": Benchmark((64, 64, 3), (
        ((directories.TINY_IMAGENET_DIRECTORY,), directories.read_tiny_imagenet),),
                               num_classes=200),
    **{f"emnist_{variant}": _emnist(variant) for variant in _EMNIST_CLASSES},
    "voc": Benchmark((directories.SIZE, directories.SIZE, 3), tuple(
        ((directory,), directories.read_voc) for directory in directories.VOC_DIRECTORIES),
                     num_classes=len(directories.VOC_CLASSES),
                     mean=(.485, .456, .406), std=(.229, .224, .225)),  # of ImageNet
    "cub200": Benchmark((directories.SIZE, directories.SIZE, 3), (
        ((directories.CUB200_DIRECTORY,), directories.read_cub200),), num_classes=200,
                        mean=(.4785, .4992, .4022), std=(.2321, .2277, .2665)),
}
