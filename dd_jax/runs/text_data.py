"""Texts as the data of a run: tokens on the host, vectors of words where networks take them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dd_jax import losses
from dd_jax.datasets import columns as files
from dd_jax.datasets import digests
from dd_jax.datasets import texts
from dd_jax.datasets.dataset import stratified_indices
from dd_jax.datasets.labels import as_classes
from dd_jax.models import text_convolution
from dd_jax.pretraining import minibatches
from dd_jax.runs.data import Data, Preparation
from dd_jax.types import DistilledData

_EPOCHS, _BATCH_SIZE, _RATE = 5, 32, 1e-3  # Of vectors that are trained.


def from_texts(train: tuple[Sequence[str], Sequence], test: tuple[Sequence[str], Sequence], *,
               num_validation: int, length: int = 16, dim: int = 50, vectors: str = "trained",
               min_count: int = 2, seed: int = 0, name: str = "texts") -> Data:
  """The data of labelled texts; networks take {"embedded": [n, L, D], "mask": [n, L]}.

  Args:
    train, test: texts and their labels, strings or integers.
    num_validation: training texts set aside.
    length: L, tokens of each text; longer texts are cut.
    dim: D, where vectors are not read.
    vectors: of words: "random"; "trained", along with a network on the training split; or a text
      file of them, as of GloVe.
    min_count: times that a word must be in the training split to be known.
    seed: of the split, and of random vectors.
    name: of the data, for the metadata.

  Raises:
    ValueError, OSError: an argument that does not fit, or a file that is none.
  """
  train, test = _pairs(train, "train"), _pairs(test, "test")
  train_labels, test_labels, names = as_classes(train[1], test[1])
  num_classes = int(train_labels.max()) + 1
  chosen = stratified_indices(train_labels, num_validation, num_classes=num_classes, seed=seed)
  kept = np.setdiff1d(np.arange(len(train_labels)), chosen)
  words = texts.vocabulary([train[0][i] for i in kept], min_count=min_count)
  splits: list[Any] = []
  for of, labels, places in ((train[0], train_labels, kept), (train[0], train_labels, chosen),
                             (test[0], test_labels, np.arange(len(test_labels)))):
    sentences = texts.encode([of[i] for i in places], words, length)
    splits.append((sentences._asdict(), labels[places]))
  table = (texts.random_vectors(len(words), dim, seed) if vectors == "random" else
           _trained(splits[0], len(words), dim, num_classes, seed) if vectors == "trained" else
           texts.read_vectors(vectors, words, seed))

  def readable(inputs):
    found = texts.nearest_words(inputs["embedded"], inputs["mask"], table, words)
    return {"what": "the nearest words", "columns": ["text"],
            "rows": [[[text] for text in batch] for batch in found]}

  of_train, of_validation, of_test = splits
  return Data(
      of_train, of_validation, of_test, num_classes=num_classes, name=name, class_names=names,
      digest={**{f"{split}_{what}": digests.of_array(array) for split, (inputs, labels) in zip(
          ("train", "validation", "test"), splits) for what, array in (
              ("tokens", inputs["tokens"]), ("labels", labels))},
              # Trained ones follow from these, to the last bits of a machine.
              **({} if vectors == "trained" else {"vectors": digests.of_array(table)})},
      preparation=Preparation({"table": table}, _embed),
      given={"mask": np.ones(length, np.float32)}, readable=readable, seed=seed)


def from_files(path: str, *, text: str, label: str, **options: Any) -> Data:
  """The data of a folder of `datasets.columns` with both splits; arguments of `from_texts`.

  Args:
    path: the folder.
    text: the column of texts.
    label: that of labels.
  """
  train, test = files.read_splits(path)
  if test is None:
    raise ValueError(f"{path}: expected a folder with a train and a test file; found no test file")

  def of(split):
    return (files.column(path, split, text, "data.text"),
            files.column(path, split, label, "data.label"))

  return from_texts(of(train), of(test), **options)


def _pairs(split, what):
  """Texts and labels by the order of their rows, whatever holds them."""
  of, labels = map(list, split)
  for row, text in enumerate(of, start=1):
    if not isinstance(text, str):
      raise ValueError(f"{what} must hold texts; got {type(text).__name__} in row {row}")
  for row, label in enumerate(labels, start=1):
    if files.is_missing(label):
      raise ValueError(f"{what} must hold a label for each text; got none in row {row}")
  if len(of) != len(labels):
    raise ValueError(f"{what} must hold a label for each text; got {len(of)} texts and "
                     f"{len(labels)} labels")
  return of, labels


def _embed(state, inputs):
  """Vectors of the words; those of the padding are zeros."""
  return {"embedded": state["table"][inputs["tokens"]] * inputs["mask"][..., None],
          "mask": inputs["mask"]}


def _trained(split, num_words, dim, num_classes, seed):
  """Vectors `[V, D]` of unit variance that a network of one convolution was trained with."""
  inputs, labels = split
  model = text_convolution(num_classes=num_classes, image_shape={
      "embedded": (inputs["tokens"].shape[1], dim), "mask": inputs["tokens"].shape[1:]})
  init_key, train_key = jax.random.split(jax.random.key(seed))
  params = {"network": model.init(init_key),
            "table": jnp.asarray(texts.random_vectors(num_words, dim, seed))}

  def apply(params, inputs):
    return model.apply(params["network"], _embed(params, inputs))

  train = minibatches(losses.classification(apply), optax.adam(_RATE), num_epochs=_EPOCHS,
                      batch_size=min(_BATCH_SIZE, len(labels)))
  examples = jax.tree.map(lambda x: jnp.asarray(x)[None], (inputs, labels))
  trained, _ = jax.jit(train)(train_key, params, DistilledData(*examples, jnp.ones((1, 1))))
  table = np.asarray(trained["table"])
  return table / np.std(table[texts.UNKNOWN:])
