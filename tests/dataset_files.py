"""Small files in the formats of the original sets, for the tests of their readers."""

import io
import struct
import tarfile

import numpy as np
from PIL import Image

from dd_jax.datasets import tfds_source

CIFAR10_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def random_bytes(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx_bytes(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  return header + array.tobytes()


def cifar10_batches(labels=np.arange(12) % 10, seed=0):
  """`{file name: bytes}`, and the images and labels they hold, in the order of the files."""
  images, labels = random_bytes((12, 32, 32, 3), seed), np.array(labels, np.uint8)
  records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(12, -1)], 1)
  batches = {name: records[2 * i:2 * i + 2].tobytes() for i, name in enumerate(CIFAR10_BATCHES)}
  return batches, images, labels


def write_cifar10_archive(path, batches):
  with tarfile.open(path, "w:gz") as archive:
    for name, raw in batches.items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      member.size = len(raw)
      archive.addfile(member, io.BytesIO(raw))


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
