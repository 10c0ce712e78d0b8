"""Small prepared directories of tensorflow-datasets, in both formats that are read."""

import io

from PIL import Image
import tensorflow_datasets as tfds

from tests.dataset_files import write_tfrecord


class TinyMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes its attribute `arrays`: images that are encoded already need no TensorFlow."""

  name = "mnist"
  VERSION = tfds.core.Version("3.0.1")

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10)}))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split):
    for i, image in enumerate(self.arrays[f"{split}_images"]):
      yield i, {"image": _encoded(image), "label": self.arrays[f"{split}_labels"][i]}


def write_array_record(data_dir, arrays):
  """Arrays by name, images `[n, 28, 28, 1]`, as the directory `data_dir/mnist/3.0.1`."""
  builder = TinyMnist(data_dir=data_dir, file_format="array_record")
  builder.arrays = arrays
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return data_dir / "mnist" / "3.0.1"


def to_tfrecord(directory):
  """Changes the format of a directory of `write_array_record`."""
  builder = tfds.builder_from_directory(directory)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  for split in ("train", "test"):
    records = list(builder.as_data_source(split, deserialize_method=raw))
    (old,) = builder.info.splits[split].filepaths
    write_tfrecord(str(old).replace("array_record", "tfrecord"), records)
    old.unlink()
  info = directory / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def _encoded(image):
  file = io.BytesIO()
  Image.fromarray(image[..., 0]).save(file, "PNG")
  file.seek(0)
  return file
