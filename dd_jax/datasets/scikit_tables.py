"""Tables that come inside scikit-learn, and need no download."""

from dd_jax import extras
from dd_jax.datasets.columns import Columns

_LOADERS = {"breast_cancer": "load_breast_cancer", "wine": "load_wine", "diabetes": "load_diabetes"}
NAMES = tuple(_LOADERS)
LABEL = "label"  # The column of classes or targets.


def read(name: str) -> Columns:
  """The columns of a table, `LABEL` the last.

  Raises:
    ValueError: another name.
    ImportError: scikit-learn is not installed.
  """
  if name not in _LOADERS:
    raise ValueError(f"name must be one of {list(NAMES)}; got {name!r}")
  sets = extras.load("sklearn.datasets", f"{name} comes with scikit-learn", "runs")
  options = {"scaled": False} if name == "diabetes" else {}
  found = getattr(sets, _LOADERS[name])(**options)
  columns = {str(column): found.data[:, place].tolist()
             for place, column in enumerate(found.feature_names)}
  names = getattr(found, "target_names", None)
  labels = found.target.tolist() if names is None else [str(names[k]) for k in found.target]
  return {**columns, LABEL: labels}
