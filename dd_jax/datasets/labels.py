"""From labels as people keep them to classes 0..K-1.

Letters: n examples, K classes.
"""

import numpy as np
from numpy.typing import ArrayLike


def as_classes(train_labels: ArrayLike, test_labels: ArrayLike
               ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Classes of both splits, and their names where the labels were others than 0..K-1.

  Strings, integers from 1 or with gaps, and booleans are numbered in the order of their values in
  the training split; a column `[n, 1]` is taken as `[n]`, one-hot rows `[n, K]` as their classes.

  Args:
    train_labels: `[n]`, `[n, 1]` or one-hot `[n, K]`.
    test_labels: of the same kind.

  Returns:
    `(train [n] int32, test [n] int32, names)`; `names` is empty where the labels are 0..K-1.

  Raises:
    ValueError: several labels for an example, labels that are neither integers nor strings, or a
      test label that no training example has; it names the argument and the first such place.
  """
  widths = [np.shape(labels)[1] for labels in (train_labels, test_labels)
            if np.ndim(labels) == 2 and np.shape(labels)[1] > 1]
  if len({*widths}) > 1:
    raise ValueError("test_labels must be one-hot rows of as many classes as train_labels; "
                     f"got {widths[1]} and {widths[0]}")
  train, test = _column("train_labels", train_labels), _column("test_labels", test_labels)
  if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
    raise ValueError("train_labels and test_labels must both be strings or both be integers; got "
                     f"{train.dtype} and {test.dtype}")
  values, classes = np.unique(train, return_inverse=True)
  places = np.minimum(np.searchsorted(values, test), len(values) - 1)
  unknown = np.flatnonzero(values[places] != test)
  if unknown.size:
    raise ValueError("test_labels must be labels that training examples have; got "
                     f"{test[unknown[0]].item()!r} at index {unknown[0]}")
  plain = values.dtype.kind != "U" and np.array_equal(values, np.arange(len(values)))
  names = () if plain else tuple(map(str, values.tolist()))
  return classes.astype(np.int32), places.astype(np.int32), names


def as_array(labels: ArrayLike) -> np.ndarray:
  """Labels as NumPy holds them; text and what is none stay apart, so that no NaN becomes "nan"."""
  array = np.asarray(labels)
  return np.array(labels, object) if array.dtype.kind == "U" and not isinstance(
      labels, np.ndarray) else array


def _column(argument, labels):
  labels = as_array(labels)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.dtype.kind == "S":
    labels = _decoded(argument, labels)
  if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
    labels = labels.astype(str)
  if labels.dtype.kind == "b" and labels.ndim == 1:
    labels = labels.astype(np.int32)
  if labels.dtype.kind == "u" and labels.max(initial=0) < 2**63:  # Else compared as float64.
    labels = labels.astype(np.int64)
  if labels.dtype.kind == "f" and (np.abs(labels) < 2**53).all() and (labels % 1 == 0).all():
    labels = labels.astype(np.int64)
  if labels.ndim == 2 and labels.dtype.kind in "iub":
    labels = _one_hot(argument, labels)
  if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuU":
    raise ValueError(f"{argument} must be [n] integers or strings, [n, 1], or one-hot [n, K]; got "
                     f"{labels.dtype} {list(labels.shape)}")
  return labels


def _decoded(argument, labels):
  try:
    return np.char.decode(labels, "utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{argument} must be text in UTF-8 where they are bytes; got "
                     f"{error.object!r}") from error


def _one_hot(argument, labels):
  wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | (labels.sum(1) != 1))
  if wrong.size:
    row = labels[wrong[0]]
    what = f"{int((row != 0).sum())} labels" if set(np.unique(row)) <= {0, 1} else str(row.tolist())
    raise ValueError(f"{argument} must have one label for each example; got {what} at index "
                     f"{wrong[0]}: keep one of them, or leave the example out")
  return labels.argmax(1)
