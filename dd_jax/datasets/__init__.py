"""Real image sets as numpy arrays, read from disk and, when asked, from the network.

`load` finds a set by name or path, `from_arrays` takes the user's own arrays; both give a
`Dataset`.
"""

from dd_jax.datasets.dataset import Dataset
from dd_jax.datasets.dataset import from_arrays
from dd_jax.datasets.dataset import reframe
from dd_jax.datasets.dataset import split_validation
from dd_jax.datasets.digests import digest
from dd_jax.datasets.normalization import denormalize
from dd_jax.datasets.normalization import normalize
from dd_jax.datasets.normalization import pictures
from dd_jax.datasets.rows import Rows
from dd_jax.datasets.sources import NAMES
from dd_jax.datasets.sources import load
from dd_jax.datasets.splits import Reading

__all__ = [
    "NAMES",
    "Dataset",
    "Reading",
    "Rows",
    "denormalize",
    "digest",
    "from_arrays",
    "load",
    "normalize",
    "pictures",
    "reframe",
    "split_validation",
]
