"""The data that `config.data` names: images, texts or a table."""

from typing import Any

from ml_collections import ConfigDict

from dd_jax import runs
from dd_jax.datasets import own_files
from dd_jax.datasets import scikit_tables
from dd_jax.runs import table_data
from dd_jax.runs import text_data
from dd_jax.runs.settings import check_choice
from experiments.names import parts

# What says how texts and tables are read, beside their name: fields of `config.data`.
FIELDS = {"texts": ("text", "label", "num_validation", "length", "dim", "vectors", "min_count"),
          "table": ("label", "predict", "num_validation", "test_fraction")}
KINDS = ("images", *FIELDS)


def load_data(config: ConfigDict) -> runs.Data:
  """The data, their validation examples set aside.

  Raises:
    ValueError, OSError: a field that does not fit, or data that are not there.
  """
  data = config.data
  found = reading(config)
  if data.predict != "class" and found.get("kind") != "table":
    raise ValueError(f"data.predict must be 'class' unless data.kind is 'table'; "
                     f"got {data.predict!r}")
  if "kind" not in found:
    return _images(config)
  return load_texts_or_table(data.name, data.dir, seed=config.seed, **found)


def reading(config: ConfigDict) -> dict[str, Any]:
  """How what is no image is read, for `load_texts_or_table`; of picture files `Reading`'s fields.

  Empty where the name says it all.
  """
  data = config.data
  kind = data.kind
  check_choice("data.kind", kind, KINDS)
  if kind != "images" and not parts.is_own(data.name):
    _check_no_images(config, f"data.kind={kind!r}")
    return {"kind": kind, **{field: data[field] for field in FIELDS[kind]}}
  return parts.reading(config)._asdict() if own_files.is_path(data.name) else {}


def load_texts_or_table(name: str, data_dir: str | None, *, kind: str, seed: int, **fields: Any
                        ) -> runs.Data:
  """Texts or a table by their name and what `reading` gives.

  Args:
    name: of a table of scikit-learn, or a path, which may lie below `data_dir`.
    data_dir: where data lie. None or "": $DD_JAX_DATA.
    kind: one of `FIELDS`.
    seed: of the split into training and validation examples, and of vectors that are trained.
    **fields: those of `FIELDS[kind]`.

  Raises:
    ValueError, OSError: other fields, one that does not fit, or data that are not there.
  """
  if kind not in FIELDS or set(fields) != set(FIELDS[kind]):
    raise ValueError(f"reading must be of a kind of {FIELDS}, with its fields; "
                     f"got {kind!r} with {sorted(fields)}")
  options = {**fields, "seed": seed, "name": name}
  if kind == "texts":
    return text_data.from_files(parts.path_below(name, data_dir), **options)
  if name in scikit_tables.NAMES:
    return table_data.from_columns(scikit_tables.read(name),
                                   **{**options, "label": scikit_tables.LABEL})
  return table_data.from_files(parts.path_below(name, data_dir), **options)


def _images(config):
  framed = parts.reading(config)
  found = parts.dataset(config.data.name, config.data.dir, "data.name",
                        download=config.data.download, reading=framed)
  if isinstance(found, runs.Data):
    _check_no_images(config, f"data.name={config.data.name!r}, which gives runs.Data")
    return found
  data = runs.from_dataset(
      found, num_validation=config.data.num_validation, seed=config.seed,
      whitening=config.data.whitening, image_shape=framed.image_shape)
  return data._replace(name=config.data.name)


def _check_no_images(config, where):
  """A ValueError where a field is set that only images have."""
  for field in ("whitening", "image_shape"):
    if config.data[field] is not None:
      raise ValueError(f"data.{field} must be left out for {where}; got {config.data[field]}")
