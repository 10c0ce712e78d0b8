"""Tables as the data of a run: those of scikit-learn, which classes, what does not fit."""

import numpy as np
import pytest

from dd_jax import runs
from dd_jax.datasets import scikit_tables
from dd_jax.runs import table_data


@pytest.mark.parametrize("name, shape", [("breast_cancer", (30,)), ("wine", (13,)),
                                         ("diabetes", (10,))])
def test_tables_of_scikit_learn(name, shape):
  columns = scikit_tables.read(name)
  data = table_data.from_columns(columns, label=scikit_tables.LABEL, num_validation=20,
                                 predict="number" if name == "diabetes" else "class")
  assert runs.input_shapes(data) == shape
  readable = data.readable(data.test[0][None, :2])
  assert readable["columns"] == [*columns][:-1]
  # In the table's own units: every test row is one of the table.
  rows = np.stack([columns[column] for column in readable["columns"]], 1)
  for row in np.array(readable["rows"][0], float):
    assert np.isclose(rows, row, rtol=2e-3, atol=1e-3).all(1).any()


@pytest.mark.parametrize("options, message", [
    (dict(label="z"), r"label must name a column of \['size', 'y'\]; got 'z'"),
    (dict(predict="numbers"), "predict must be one of"),
    (dict(num_validation=9), r"num_validation must lie in"),
    (dict(label=["y", "size"]), "label must be one column where classes are predicted")])
def test_a_table_that_does_not_fit_is_one_line(options, message):
  columns = {"size": [1., 2., 3., 4., 5., 6.], "y": ["a", "b"] * 3}
  with pytest.raises(ValueError, match=message) as error:
    runs.from_columns(columns, **{"label": "y", "num_validation": 2, **options})
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("train, test, names", [
    (["1", "0"], ["1", "0"], ()), (["10", "9"], ["9", "10"], ("9", "10")),
    (["007", "7"], ["7", "007"], ("007", "7")), (["--5", "1"], ["1", "--5"], ("--5", "1")),
    (["1", "none"], ["1", "1"], ("1", "none"))])
def test_classes_are_integers_where_all_of_them_are_written_so(train, test, names):
  x = [1., 2.] * 3
  data = runs.from_columns({"x": x, "y": train * 3}, {"x": x, "y": test * 3}, label="y",
                           num_validation=2)
  assert (data.num_classes, data.class_names) == (2, names)
  kinds = names or ("0", "1")
  np.testing.assert_array_equal(data.test[1], [kinds.index(label) for label in test * 3])


def test_a_row_without_a_label_is_named():
  with pytest.raises(ValueError, match="label must have a value in every row; column 'y' has none "
                     "in row 2"):
    runs.from_columns({"x": [1., 2., 3.], "y": ["a", None, "b"]}, label="y", num_validation=1)


def test_columns_are_of_one_length():
  with pytest.raises(ValueError, match="test must hold as many values in every column; got"):
    runs.from_columns({"x": [1., 2.], "y": ["a", "b"]}, {"x": [1.], "y": ["a", "b"]}, label="y",
                      num_validation=1)


@pytest.mark.parametrize("options, message", [
    ({"test_fraction": 1.}, r"test_fraction must lie in \(0, 1\); got 1.0"),
    ({}, r"the test rows, one of every class, must lie in 1\.\.19; got 20")])
def test_rows_to_test_on_that_cannot_be_set_aside_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    table_data.from_columns({"a": [*range(20)], "id": [*range(20)]}, label="id", num_validation=2,
                            **options)


def test_targets_that_are_all_alike_are_named():
  """Also where their computed deviation is not exactly 0."""
  rows = {"a": list(range(100)), "y": 100 * [.1]}
  with pytest.raises(ValueError, match="targets must differ; column 'y' is constant"):
    table_data.from_columns(rows, label="y", predict="number", num_validation=10)


def test_targets_that_are_not_finite_are_one_line():
  with pytest.raises(ValueError, match="targets must be finite numbers; column 'y' has 'inf' in"):
    runs.from_columns({"x": [1., 2., 3.], "y": [1., "inf", 2.]}, label="y", predict="number",
                      num_validation=1)
  with pytest.raises(ValueError, match="targets must differ; column 'y' is constant"):
    runs.from_columns({"x": [1., 2., 3.], "y": [1., 1., 1.]}, label="y", predict="number",
                      num_validation=1)


def test_a_category_that_only_a_test_row_has_is_one_line():
  train = {"x": ["a", "b", "a", "b"], "y": ["0", "1", "0", "1"]}
  test = {"x": ["c"], "y": ["1"]}
  with pytest.raises(ValueError, match="column 'x' must hold categories of the training split"):
    runs.from_columns(train, test, label="y", num_validation=2)


@pytest.mark.parametrize("seed", range(3))
def test_a_category_of_one_row_fits_any_split(seed):
  columns = {"x": ["rare", *["a", "b"] * 10], "y": ["0", *["0", "1"] * 10]}
  data = runs.from_columns(columns, label="y", num_validation=6, seed=seed)
  assert sum(len(labels) for _, labels in (data.train, data.validation, data.test)) == 21


def test_a_column_of_nan_is_one_of_numbers():
  x = np.array([1., np.nan, 2., np.nan, 4., 5., np.nan, 7.])
  columns = {"x": x, "y": ["a", "b"] * 4}
  test = {"x": np.array([3., np.nan]), "y": ["a", "b"]}
  data = runs.from_columns(columns, test, label="y", num_validation=2)
  assert data.train[0].shape == (6, 2)  # The number, and whether there is none.
  assert data.train[0][:, 1].sum() in (1, 2, 3) and data.test[0][:, 1].tolist() == [0, 1]
