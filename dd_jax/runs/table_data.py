"""Tables of numbers and categories as the data of a run, with classes or targets."""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from dd_jax.datasets import columns as files
from dd_jax.datasets import digests
from dd_jax.datasets import records
from dd_jax.datasets.columns import Columns
from dd_jax.datasets.dataset import stratified_indices
from dd_jax.datasets.labels import as_classes
from dd_jax.runs.data import Data, Targets
from dd_jax.runs.settings import check_choice

PREDICTED = ("class", "number")
# 7 is a number; 007, which is another class, a code, and so is what no int64 holds.
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")


def from_columns(train: Columns, test: Columns | None = None, *, label: str | Sequence[str],
                 predict: str = "class", num_validation: int, test_fraction: float = 1 / 6,
                 seed: int = 0, name: str = "columns") -> Data:
  """The data of a table; its rows become numbers by the rules of `datasets.records`.

  Args:
    train: columns by name, `[n]` numbers or texts, None or NaN where a value is missing; a
      DataFrame is one.
    test: of the same names. None: a part of every class, or of all rows, is set aside.
    label: the column of classes, or one or more of numbers.
    predict: "class" or "number"; numbers are standardised too.
    num_validation: training rows set aside.
    test_fraction: of the rows, where there is no test split.
    seed: of the split into training and validation rows.
    name: of the data, for the metadata.

  Raises:
    ValueError: columns of several lengths, one that is not there, a target that is not finite, a
      column of which no category was ever seen, or too few rows to set aside.
  """
  check_choice("predict", predict, PREDICTED)
  if not 0 < test_fraction < 1:
    raise ValueError(f"test_fraction must lie in (0, 1); got {test_fraction}")
  labels = [label] if isinstance(label, str) else list(label)
  splits = [files.listed(split, what) for split, what in ((train, "train"), (test, "test"))
            if split is not None]
  known = [_labels(split, labels, predict) for split in splits]
  if predict == "class":
    known = _integers_or_texts(known)
    *classes, names = as_classes(known[0], known[-1])
    known = classes[:len(splits)]
  if test is None:
    of_test = _aside(known[0], _test_size(known[0], test_fraction, predict), predict, 0,
                     "the test rows, one of every class,")
    splits, known = 2 * splits, 2 * known
  else:
    of_test = np.arange(len(known[1]))
  kept = np.setdiff1d(np.arange(len(known[0])), of_test if test is None else [])
  of_validation = kept[_aside(known[0][kept], num_validation, predict, seed)]
  places = [np.setdiff1d(kept, of_validation), of_validation, of_test]
  splits, known = [splits[0], *splits], [known[0], *known]
  parts = [{column: [values[i] for i in where] for column, values in split.items()
            if column not in labels} for split, where in zip(splits, places)]
  known = [of[where] for of, where in zip(known, places)]
  fields = records.fit(parts[0])
  rows = [records.encode(fields, part) for part in parts]
  targets = None
  if predict == "number":
    mean, std = known[0].mean(0), known[0].std(0)
    constant = (known[0] == known[0][0]).all(0)  # Whose computed deviation may be another than 0.
    if constant.any():
      raise ValueError(f"targets must differ; column {labels[constant.argmax()]!r} is constant")
    targets = Targets(tuple(labels), mean, std)
    known = [((of - mean) / std).astype(np.float32) for of in known]
  train_rows, validation_rows, test_rows = zip(rows, known)
  return Data(
      train_rows, validation_rows, test_rows,
      num_classes=len(labels) if targets else int(known[0].max()) + 1, name=name,
      digest={f"{split}_{what}": digests.of_array(array) for what, arrays in (
          ("inputs", rows), ("labels", known))
              for split, array in zip(("train", "validation", "test"), arrays)},
      class_names=() if targets else names, targets=targets,
      readable=lambda inputs: {"what": "in the table's own units", "columns": [
          field.name for field in fields], "rows": records.decode(fields, inputs)}, seed=seed)


def from_files(path: str, *, label: str, **options: Any) -> Data:
  """The data of a file or folder of `datasets.columns`; arguments and errors of `from_columns`."""
  train, test = files.read_splits(path)
  return from_columns(train, test, label=label.split(","), **options)


def _labels(split, labels, predict):
  """Labels as they are written, n of them, or numbers `[n, D]`."""
  for label in labels:
    if label not in split:
      raise ValueError(f"label must name a column of {list(split)}; got {label!r}")
  if predict == "number":
    return np.stack([records.numbers(label, split[label]) for label in labels], 1)
  if len(labels) > 1:
    raise ValueError(f"label must be one column where classes are predicted; got {labels}")
  missing = [row for row, value in enumerate(split[labels[0]], start=1) if value is None]
  if missing:
    raise ValueError(f"label must have a value in every row; column {labels[0]!r} has none in row "
                     f"{missing[0]}")
  return [str(value) for value in split[labels[0]]]


def _integers_or_texts(splits):
  """Classes of every split: integers where all of them are written as such."""
  whole = all(_WHOLE.fullmatch(value) for split in splits for value in split)
  return [np.array([int(value) for value in split] if whole else split) for split in splits]


def _test_size(labels, fraction, predict):
  """Rows to test on, of every class one at least."""
  number, least = len(labels), 1 if predict == "number" else len(np.unique(labels))
  return int(np.clip(round(fraction * number), least, max(least, number - least)))


def _aside(labels, number, predict, seed, what="num_validation"):
  """Indices of rows to set aside, of every class its share."""
  if not 1 <= number < len(labels):
    raise ValueError(f"{what} must lie in 1..{len(labels) - 1}; got {number}")
  if predict == "number":
    return np.sort(np.random.default_rng(seed).permutation(len(labels))[:number])
  classes, _, _ = as_classes(labels, labels)
  return stratified_indices(classes, number, num_classes=int(classes.max()) + 1, seed=seed)
