"""Dataset distillation in JAX: a training set condensed into a few synthetic examples.

The modules, in the order in which data flows through them. All before `dd_jax.datasets` are the
pure core: nothing in it touches a disk. `dd_jax.runs`, a distillation that cannot be lost, needs
`pip install dd_jax[runs]` and is imported by itself.
"""

from dd_jax import types
from dd_jax import adapters
from dd_jax import step_sizes
from dd_jax import parametrization
from dd_jax import perturbations
from dd_jax import models
from dd_jax import init_distributions
from dd_jax import losses
from dd_jax import augmentation
from dd_jax import whitening
from dd_jax import optimizers
from dd_jax import checkpointing
from dd_jax import inner_loop
from dd_jax import metasmoothness
from dd_jax import truncation
from dd_jax import implicit_gradients
from dd_jax import ridge_regression
from dd_jax import parallel
from dd_jax import hypergradient
from dd_jax import distillation
from dd_jax import pretraining
from dd_jax import evaluation
from dd_jax import baselines
from dd_jax import linear
from dd_jax import datasets
from dd_jax import files
from dd_jax.types import DistilledData, OuterInfo, OuterState
from dd_jax.models import Model, from_flax, from_nnx
from dd_jax.init_distributions import (
    InitDistribution, fixed_init, near_init, pretrained_init, random_init)
from dd_jax.inner_loop import inner_step, unroll
from dd_jax.truncation import warm_start, window
from dd_jax.implicit_gradients import implicit
from dd_jax.ridge_regression import ridge
from dd_jax.hypergradient import make_outer_loss, value_and_hypergrad
from dd_jax.distillation import OuterLoop, make_outer_loop, run_outer_steps
from dd_jax.pretraining import minibatches, pretrain
from dd_jax.evaluation import EvalResult, Metrics, Plan, evaluate, poisoning_metrics
from dd_jax.files import Artifact, Pool, network, train_on

__version__ = "0.1.0"

__all__ = [
    "types", "adapters", "step_sizes", "parametrization", "perturbations", "models",
    "init_distributions", "losses", "augmentation", "whitening", "optimizers", "checkpointing",
    "inner_loop", "metasmoothness", "truncation", "implicit_gradients", "ridge_regression",
    "parallel", "hypergradient", "distillation", "pretraining", "evaluation", "baselines", "linear",
    "datasets", "files",
    "DistilledData", "OuterInfo", "OuterState", "Model", "from_flax", "from_nnx",
    "InitDistribution", "fixed_init", "near_init", "pretrained_init", "random_init", "inner_step",
    "unroll", "window", "warm_start", "implicit", "ridge", "make_outer_loss", "value_and_hypergrad",
    "OuterLoop", "make_outer_loop", "run_outer_steps", "minibatches", "pretrain",
    "EvalResult", "Metrics", "Plan", "evaluate", "poisoning_metrics", "Artifact", "Pool", "network",
    "train_on",
]
