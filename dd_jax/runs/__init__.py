"""A distillation that cannot be lost: checkpoints, signals, devices, guards, metrics, a report.

`make_problem` puts data and a network together with good defaults, `distill` runs it in a
directory. Needs `pip install dd_jax[runs]`.
"""

from dd_jax.runs.accuracies import Figures
from dd_jax.runs.application import apply_distilled
from dd_jax.runs.comparison import compare_baselines
from dd_jax.runs.data import Data
from dd_jax.runs.data import examples_at
from dd_jax.runs.data import from_dataset
from dd_jax.runs.data import input_shapes
from dd_jax.runs.data import prepared
from dd_jax.runs.data import spread_places
from dd_jax.runs.data import start_labels
from dd_jax.runs.interruptions import Interrupted
from dd_jax.runs.pools import PoolSettings
from dd_jax.runs.pools import pretrain_pools
from dd_jax.runs.pools import pretrained_inits
from dd_jax.runs.problem import Inits
from dd_jax.runs.problem import make_problem
from dd_jax.runs.problem import Problem
from dd_jax.runs.run import distill
from dd_jax.runs.run import Result
from dd_jax.runs.settings import Settings
from dd_jax.runs.smoothness import measure_smoothness
from dd_jax.runs.table_data import from_columns
from dd_jax.runs.text_data import from_texts
from dd_jax.runs.transfer import Training
from dd_jax.runs.transfer import compare_networks

__all__ = [
    "Data", "Figures", "Inits", "Interrupted", "PoolSettings", "Problem", "Result", "Settings",
    "Training", "apply_distilled", "compare_baselines", "compare_networks", "distill",
    "examples_at", "from_columns", "from_dataset", "from_texts", "input_shapes", "make_problem",
    "measure_smoothness", "prepared", "pretrain_pools", "pretrained_inits", "spread_places",
    "start_labels",
]
