"""The data that `config.data` names: images, texts or a table."""

from ml_collections import ConfigDict

from dd_jax import runs
from dd_jax.datasets import scikit_tables
from dd_jax.runs import table_data
from dd_jax.runs import text_data
from dd_jax.runs.settings import check_choice
from experiments.names import parts

KINDS = ("images", "texts", "table")


def load_data(config: ConfigDict) -> runs.Data:
  """The data, their validation examples set aside.

  Raises:
    ValueError, OSError: a field that does not fit, or data that are not there.
  """
  data = config.data
  kind = data.get("kind", "images")  # Pools have images.
  check_choice("data.kind", kind, KINDS)
  if parts.is_own(data.name) or kind == "images":
    return _images(config)
  if kind == "texts":
    return text_data.from_files(
        _path(data), text=data.text, label=data.label, num_validation=data.num_validation,
        length=data.length, dim=data.dim, vectors=data.vectors, min_count=data.min_count,
        seed=config.seed, name=data.name)
  options = {"predict": data.predict, "num_validation": data.num_validation,
             "test_fraction": data.test_fraction, "seed": config.seed, "name": data.name}
  if data.name in scikit_tables.NAMES:
    return table_data.from_columns(scikit_tables.read(data.name), label=scikit_tables.LABEL,
                                   **options)
  return table_data.from_files(_path(data), label=data.label, **options)


def _images(config):
  reading = parts.reading(config)
  found = parts.dataset(config.data.name, config.data.dir, "data.name",
                        download=config.data.download, reading=reading)
  if isinstance(found, runs.Data):
    return found
  data = runs.from_dataset(
      found, num_validation=config.data.num_validation, seed=config.seed,
      whitening=config.data.whitening, image_shape=reading.image_shape)
  return data._replace(name=config.data.name)


def _path(data):
  """Of a file or folder of one's own: as it stands, or below the directory of the data."""
  return parts.path_below(data.name, data.dir)
