"""Small files in the formats of the original sets, for the tests of their readers."""

import csv
import gzip
import io
import json
import struct
import tarfile

import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet

from dd_jax.datasets import tfds_source

IDX_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
             "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CIFAR10_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


class InFile:
  """Rows of an array, as if they lay in a file."""

  def __init__(self, images):
    self._images, self.shape, self.dtype = images, images.shape, images.dtype

  def read(self, places):
    return self._images[places]


def random_bytes(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx_bytes(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  return header + array.tobytes()


def tiny(image_shape=(28, 28, 1), *, fill=None, num_train=20, num_test=10):
  """`train_images train_labels test_images test_labels` with ten classes, by name."""
  images = random_bytes((num_train + num_test, *image_shape))
  if fill is not None:
    images[:] = fill
  labels = np.arange(num_train + num_test) % 10
  return {"train_images": images[:num_train], "train_labels": labels[:num_train],
          "test_images": images[num_train:], "test_labels": labels[num_train:]}


def write_idx(directory, arrays):
  """The four files of MNIST's form."""
  directory.mkdir(parents=True, exist_ok=True)
  for name, array in zip(IDX_FILES, arrays.values()):
    array = array.reshape(array.shape[:3]).astype(np.uint8)
    (directory / name).write_bytes(gzip.compress(idx_bytes(array)))


def assert_holds(dataset, arrays):
  for name, array in arrays.items():
    np.testing.assert_array_equal(getattr(dataset, name), array)


def cifar10_batches(labels=np.arange(12) % 10, seed=0):
  """`{file name: bytes}`, and the images and labels they hold, in the order of the files."""
  images, labels = random_bytes((12, 32, 32, 3), seed), np.array(labels, np.uint8)
  records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(12, -1)], 1)
  batches = {name: records[2 * i:2 * i + 2].tobytes() for i, name in enumerate(CIFAR10_BATCHES)}
  return batches, images, labels


def write_cifar10_archive(path, batches):
  write_tar(path, "cifar-10-batches-bin", batches)


def write_tar(path, directory, contents):
  with tarfile.open(path, "w:gz") as archive:
    for name, raw in contents.items():
      member = tarfile.TarInfo(f"{directory}/{name}")
      member.size = len(raw)
      archive.addfile(member, io.BytesIO(raw))


def cifar100_files(num_train=100, num_test=20):
  """`{file name: bytes}`, and the images, coarse and fine labels they hold, train before test."""
  num = num_train + num_test
  images, fine = random_bytes((num, 32, 32, 3)), np.arange(num, dtype=np.uint8) % 100
  coarse = fine // 5
  records = np.concatenate([coarse[:, None], fine[:, None],
                            images.transpose(0, 3, 1, 2).reshape(num, -1)], 1)
  names = {f"{kind}_label_names.txt": "".join(f"{kind}_{i}\n" for i in range(number)) + "\n"
           for kind, number in (("coarse", 20), ("fine", 100))}
  return {"train.bin": records[:num_train].tobytes(), "test.bin": records[num_train:].tobytes(),
          **{name: text.encode() for name, text in names.items()}}, images, coarse, fine


def write_stl10(root, num_train=10, num_test=4):
  """The directory, and the images and labels 0..9 that it holds, train before test."""
  root = root / "stl10_binary"
  root.mkdir(parents=True)
  images, labels = random_bytes((num_train + num_test, 96, 96, 3)), np.arange(14) % 10
  for split, part in (("train", slice(None, num_train)), ("test", slice(num_train, None))):
    (root / f"{split}_X.bin").write_bytes(images[part].transpose(0, 3, 2, 1).tobytes())
    (root / f"{split}_y.bin").write_bytes((labels[part] + 1).astype(np.uint8).tobytes())
  (root / "class_names.txt").write_text("".join(f"class_{i}\n" for i in range(10)))
  return root, images, labels


def write_tiny_imagenet(root, wnids, train, validation):
  """`train`, `validation`: `[(WordNet id, pixels), ...]`; PNG keeps every value."""
  root = root / "tiny-imagenet-200"
  (root / "val").mkdir(parents=True)
  (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
  for i, (wnid, pixels) in enumerate(train):
    write_picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels)
  for i, (wnid, pixels) in enumerate(validation):
    write_picture(root / "val" / "images" / f"val_{i}.JPEG", pixels)
  (root / "val" / "val_annotations.txt").write_text("".join(
      f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n" for i, (wnid, _) in enumerate(validation)))
  return root


def write_emnist(root, variant, images, labels, num_train):
  """The images as they look; EMNIST's files hold them with rows and columns swapped."""
  root.mkdir(parents=True, exist_ok=True)
  for split, part in (("train", slice(None, num_train)), ("test", slice(num_train, None))):
    for kind, array in (("images-idx3", images.swapaxes(1, 2)), ("labels-idx1", labels)):
      (root / f"emnist-{variant}-{split}-{kind}-ubyte.gz").write_bytes(
          gzip.compress(idx_bytes(np.ascontiguousarray(array[part])), 1))


def write_tfrecord(path, payloads):
  with open(path, "wb") as file:
    for payload in payloads:
      length = struct.pack("<Q", len(payload))
      for part in (length, payload):
        file.write(part + struct.pack("<I", tfds_source.masked_crc32c(part)))


def write_picture(path, pixels, file_format="PNG"):
  """The readers look at the content of a file; PNG under the name .jpg keeps every value."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path, file_format)


def random_picture(height=6, width=8, seed=0):
  return random_bytes((height, width, 3), seed)


def object_xml(name, box, extra=""):
  sides = dict(zip(("xmax", "xmin", "ymax", "ymin"), (box[2], box[0], box[3], box[1])))
  return (f"<object><name>{name}</name>{extra}<bndbox>"
          + "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
          + "</bndbox></object>")


def write_voc(root, split, pictures, year=2007):
  """`pictures`: `{name: (pixels, [object XML, ...])}`."""
  root = root / "VOCdevkit" / f"VOC{year}"
  for directory in ("Annotations", "ImageSets/Main"):
    (root / directory).mkdir(parents=True, exist_ok=True)
  (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(pictures) + "\n")
  for name, (pixels, objects) in pictures.items():
    write_picture(root / "JPEGImages" / f"{name}.jpg", pixels)
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename>{''.join(objects)}</annotation>")
  return root


def write_cub200(root, pictures):
  """`pictures`: `[(name, pixels, class 1..200, 1 for training), ...]`."""
  root = root / "CUB_200_2011"
  root.mkdir(parents=True)
  columns = ([name for name, _, _, _ in pictures], [label for _, _, label, _ in pictures],
             [is_training for _, _, _, is_training in pictures])
  for file, column in zip(("images", "image_class_labels", "train_test_split"), columns):
    (root / f"{file}.txt").write_text(
        "".join(f"{i} {value}\n" for i, value in enumerate(column, 1)))
  for name, pixels, _, _ in pictures:
    write_picture(root / "images" / name, pixels)
  return root


def csv_text(columns, numbers, labels, place=0, label="label"):
  """A table with a column of labels at `place`."""
  buffer = io.StringIO()
  writer = csv.writer(buffer)
  for names, value in zip([columns, *numbers.tolist()], [label, *labels]):
    writer.writerow([*names[:place], value, *names[place:]])
  return buffer.getvalue()


def encoded(pixels, file_format="PNG"):
  """The bytes of a picture file."""
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, file_format)
  return buffer.getvalue()


def write_parquet(path, columns, class_names=None, label="label", **options):
  """`columns`: `{name: values}`; `class_names` as datasets of Hugging Face keeps them."""
  table = pyarrow.table(columns)
  if class_names is not None:
    feature = {"names": list(class_names), "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, label: feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(table, path, **options)
