"""Labels as people keep them become classes 0..K-1."""

import re

import numpy as np
import pytest

from dd_jax.datasets import labels


@pytest.mark.parametrize("train, test, classes, test_classes, names", [
    ([2, 0, 1, 0], [1, 0], [2, 0, 1, 0], [1, 0], ()),
    (np.array([1, 0], np.uint64), np.array([0], np.int8), [1, 0], [0], ()),
    ([1., 0.], [1], [1, 0], [1], ()),
    ([True, False], [True], [1, 0], [1], ()),
    ([[1], [0]], [[1]], [1, 0], [1], ()),
    ([[0, 1], [1, 0]], [[0, 1]], [1, 0], [1], ()),
    ([[0., 1., 0.], [1., 0., 0.], [0., 0., 1.]], [[0, 1, 0]], [1, 0, 2], [1], ()),
    ([[False, True], [True, False]], [[True, False]], [1, 0], [0], ()),
    ([1, 2, 3], [3], [0, 1, 2], [2], ("1", "2", "3")),
    ([-1, 1], [-1], [0, 1], [0], ("-1", "1")),
    ([0, 5, 10], [10, 0], [0, 1, 2], [2, 0], ("0", "5", "10")),
    (["dog", "cat"], ["cat"], [1, 0], [0], ("cat", "dog")),
    (np.array(["dog", "cat"], object), np.array(["a", "cat", "dog"])[1:], [1, 0], [0, 1],
     ("cat", "dog")),
    ([["b"], ["a"]], [["a"]], [1, 0], [0], ("a", "b")),
    ([b"b", b"a"], [b"a"], [1, 0], [0], ("a", "b")),
])
def test_as_classes(train, test, classes, test_classes, names):
  found = labels.as_classes(train, test)
  assert found[0].dtype == found[1].dtype == np.int32
  assert (found[0].tolist(), found[1].tolist(), found[2]) == (classes, test_classes, names)


@pytest.mark.parametrize("train, test, text", [
    ([0, 1], [2], "test_labels must be labels that training examples have; got 2 at index 0"),
    ([0, 1], [0, -1], "test_labels must be labels that training examples have; got -1 at index 1"),
    (["a", "b"], ["a", "c"], "labels that training examples have; got 'c' at index 1"),
    (["a", "b"], [0], "must both be strings or both be integers; got <U1 and int64"),
    ([.5, 1], [1], "train_labels must be [n] integers or strings, [n, 1], or one-hot [n, K]; got "
                   "float64 [2]"),
    ([0, 1], [np.nan], "test_labels must be [n] integers or strings"),
    ([0, np.inf], [0], "train_labels must be [n] integers or strings"),
    ([0, 1e300], [0], "train_labels must be [n] integers or strings"),
    ([], [0], "train_labels must be [n] integers or strings, [n, 1], or one-hot [n, K]; got "
              "int64 [0]"),
    (3, [0], "one-hot [n, K]; got int64 []"),
    ([b"a", b"caf\xe9"], [b"a"], "train_labels must be text in UTF-8 where they are bytes; got "
                                 "b'caf\\xe9'"),
    ([None, 1], [0], "one-hot [n, K]; got object [2]"),
    (np.zeros((2, 2, 2), int), [0], "one-hot [n, K]; got int64 [2, 2, 2]"),
    ([[1, 0], [1, 1]], [0], "train_labels must have one label for each example; got 2 labels at "
                            "index 1: keep one of them, or leave the example out"),
    ([[1, 0], [0, 1]], [[0, 0]], "test_labels must have one label for each example; got 0 labels "
                                 "at index 0"),
    ([[1, 0], [0, 3]], [0], "one label for each example; got [0, 3] at index 1"),
])
def test_labels_that_are_none(train, test, text):
  with pytest.raises(ValueError, match=rf"\A[^\n]*{re.escape(text)}[^\n]*\Z"):
    labels.as_classes(train, test)
