"""Files of distilled data with the networks and data that flags and configs name."""

import functools
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from dd_jax import augmentation
from dd_jax import datasets
from dd_jax import runs
from dd_jax.datasets import own_files
from dd_jax.files import artifacts
from dd_jax.files import exports
from dd_jax.files import reuse
from dd_jax.runs import application
from dd_jax.runs import fingerprints
from dd_jax.runs import paths
from dd_jax.runs import transfer
from dd_jax.runs.settings import check_positive
from experiments.names import loaded
from experiments.names import parts


def compare_networks(config: ConfigDict, workdir: str) -> dict:
  """Trains the networks of a config of experiments/configs/transfer.py from scratch."""
  if not config.distilled:
    raise ValueError("distilled must be the distilled.npz of a run; got ''")
  path = paths.local(config.distilled, "distilled")
  artifact = exports.load_any(path)
  dataset = _dataset_of(artifact, config.data.name, config.data.dir, "data.name",
                        download=config.data.download)
  if not isinstance(dataset, datasets.Dataset):
    raise ValueError("data.name must give a dd_jax.datasets.Dataset or four arrays for networks to "
                     f"be compared on; {dataset.name!r} gives {type(dataset).__name__}")
  dataset = datasets.reframe(dataset, artifact.images.shape[2:])
  networks = {text: parts.network(text, dataset.num_classes, artifact.distilled.inputs.shape[2:],
                                  "networks")
              for text in config.networks.replace(" ", "").split(",")}
  train = config.train
  check_positive("train.learning_rate", train.learning_rate)
  make_optimizer = parts.choose({
      "adamw": lambda rate: optax.adamw(rate, weight_decay=train.weight_decay),
      "sgd": lambda rate: optax.chain(optax.add_decayed_weights(train.weight_decay),
                                      optax.sgd(rate, momentum=0.9)),
  }, train.optimizer, "train.optimizer")
  augment = parts.augment(train.augmentation, "train.augmentation")
  return transfer.compare_networks(
      artifact, dataset, networks, workdir, seed=config.seed, training=transfer.Training(
          lambda steps: make_optimizer(optax.cosine_decay_schedule(train.learning_rate, steps)),
          tuple(train.num_epochs), train.batch_size,
          {} if augment is None else {
              train.augmentation: functools.partial(augmentation.augmented, augment=augment)},
          config.eval.num_inits, train.real_epochs),
      settings=runs.Settings(batch_size=config.eval.batch_size,
                             num_parallel=config.eval.num_parallel, precision=config.precision),
      config=json.loads(config.to_json()), made_from={"distilled": fingerprints.of_file(path)})


def apply(path: str, *, network: str | None = None, data: str | None = None,
          loss: str | None = None, data_dir: str | None = None, download: bool = False,
          init: str | None = None, num_networks: int | None = None, seed: int | None = None
          ) -> dict[str, Any]:
  """Applies a file to what flags name; arguments as of `runs.application.apply_distilled`.

  Args:
    path: the distilled.npz of any run.
    network: text for `parts.network`. None: the network of the run.
    data: text for `parts.dataset`. None: the dataset of the run.
    loss: `package.module:function`, where the run had an inner loss of its own.
    data_dir: where the dataset's files lie, one of the user's own too.
    download: whether the network may be used to fetch them.
  """
  artifact = artifacts.load(paths.local(path, "--distilled"))
  dataset = _dataset_of(artifact, data, data_dir, "--data", download=download)
  model = None if network is None else reuse.network(
      artifact, lambda num_outputs: parts.network(
          network, num_outputs, jax.tree.map(
              lambda x: tuple(x.shape[2:]), artifact.distilled.inputs), "--network"))
  if init is None and artifact.init_params is not None and network in (
      None, artifact.metadata.get("model")):
    init = "stored"
  inner_loss = None if loss is None else parts.loss(
      loss, (model or reuse.network(artifact)).apply, {}, "--loss")
  return {**application.apply_distilled(
      artifact, dataset, model=model, init=init, loss=inner_loss, num_networks=num_networks,
      seed=seed), "network": network or artifact.metadata["model"], "dataset": dataset.name}


def _dataset_of(artifact, name, data_dir, field, *, download):
  """The dataset that is named, else that of the file, which is looked for in `data_dir` too.

  Raises:
    ValueError: the file names a function of the user's own, which it may not import, or texts or a
      table whose rows are others now.
  """
  if _is_read_again(artifact) and not parts.is_own(name or ""):
    return _read_again(artifact, name, data_dir, field)
  reading = _reading(artifact)
  if name:
    return parts.dataset(name, data_dir, field, download=download, reading=reading)
  name = artifact.field("dataset")
  if parts.is_own(name):
    raise ValueError(f"{field} must be given: the dataset of the file is {name!r}, and a file "
                     f"never causes an import; where you trust it, use {field}={name}")
  if own_files.is_path(name) and data_dir:
    name = _moved(name, data_dir)
  return datasets.load(name, data_dir or None, download=download, reading=reading)


def _moved(name, data_dir):
  """The file of that name in the folder, where there is one."""
  moved = pathlib.Path(data_dir).expanduser() / pathlib.Path(name).name
  return str(moved) if moved.exists() else name


def _is_read_again(artifact):
  """Whether these are texts or a table whose file says how they were read."""
  found = artifact.metadata.get("reading")
  return isinstance(found, dict) and "kind" in found


def _read_again(artifact, name, data_dir, field):
  """Texts or a table as the run read them, of its own name or of another."""
  stored = artifact.field("dataset")
  if data_dir and not pathlib.Path(parts.path_below(stored, data_dir)).exists():
    stored = _moved(stored, data_dir)
  try:
    data = loaded.load_texts_or_table(
        name or stored, data_dir, seed=artifact.field("seed"), **artifact.metadata["reading"])
  except TypeError as error:
    raise ValueError(f"reading of the metadata must say how a table is read; got "
                     f"{artifact.metadata['reading']!r}") from error
  columns = [_columns(data), artifact.metadata.get("readable", {}).get("columns")]
  if None not in columns and columns[0] != columns[1]:
    raise ValueError(f"{field} must have the columns of the file, {columns[1]}; got {columns[0]}")
  # Of what is compared now: earlier files have a digest of trained word vectors besides.
  known = artifact.metadata.get("data")
  if not name and not (isinstance(known, dict) and data.digest.items() <= known.items()):
    raise ValueError(f"{field} must be given: {artifact.field('dataset')!r} has other rows than "
                     "the run had")
  return data


def _columns(data):
  """The columns of a table; None of texts."""
  rows = data.train[0]
  return None if isinstance(rows, dict) else data.readable(rows[:1][None])["columns"]


def _reading(artifact):
  """How the run read files of one's own; pictures become of the shape of the distilled ones.

  Raises:
    ValueError: metadata with anything else.
  """
  inputs, found = artifact.distilled.inputs, artifact.metadata.get("reading", {})
  if _is_read_again(artifact):
    return datasets.Reading()
  shape = tuple(inputs.shape[2:]) if isinstance(inputs, jax.Array) and inputs.ndim == 5 else None
  try:
    return datasets.Reading(**found)._replace(image_shape=shape, in_files=True)
  except TypeError as error:
    raise ValueError(f"reading of the metadata must hold {datasets.Reading._fields} alone; "
                     f"got {found!r}") from error
