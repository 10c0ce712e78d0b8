"""Dataset distillation in JAX: a training set condensed into a few synthetic images.

The modules, in the order in which data flows through them.
"""

from dd_jax import types
from dd_jax import datasets
from dd_jax.models import convolution
from dd_jax import models
from dd_jax.files import imagenet_weights
from dd_jax import init_distributions
from dd_jax import parametrization
from dd_jax import augmentation
from dd_jax import whitening
from dd_jax import losses
from dd_jax import inner_loop
from dd_jax import optimizers
from dd_jax import truncation
from dd_jax import implicit
from dd_jax import parallel
from dd_jax import outer_objective
from dd_jax import hypergradient
from dd_jax import distillation
from dd_jax import pretraining
from dd_jax import evaluation
from dd_jax import baselines
from dd_jax import linear
from dd_jax.files import artifacts
from dd_jax.files import reuse
from dd_jax.files import exports
from dd_jax.types import DistilledData, OuterInfo, OuterState
from dd_jax.models import Model, from_flax, from_nnx
from dd_jax.init_distributions import InitDistribution, fixed_init, pretrained_init, random_init
from dd_jax.inner_loop import inner_step, inner_trajectory
from dd_jax.outer_objective import make_outer_loss
from dd_jax.hypergradient import value_and_hypergrad
from dd_jax.distillation import (
    init_outer_state, make_outer_step, run_outer_steps)
from dd_jax.pretraining import pretrain
from dd_jax.evaluation import (
    EvalResult, Metrics, evaluate, evaluate_from_scratch, poisoning_metrics)
from dd_jax.files.artifacts import Artifact, Pool
from dd_jax.files.reuse import network, train_on

__version__ = "0.1.0"

__all__ = [
    "types", "datasets", "convolution", "models", "imagenet_weights", "init_distributions",
    "parametrization", "augmentation", "whitening", "losses", "inner_loop", "inner_optimizers",
    "truncation", "implicit", "parallel", "outer_objective", "hypergradient",
    "distillation", "pretraining", "evaluation", "baselines", "linear", "artifacts",
    "application", "exports",
    "DistilledData", "OuterInfo", "OuterState", "Model", "from_flax", "from_nnx",
    "InitDistribution", "fixed_init", "pretrained_init", "random_init", "inner_step",
    "inner_trajectory", "make_outer_loss", "value_and_hypergrad", "init_outer_state",
    "make_outer_step", "run_outer_steps", "EvalResult", "Metrics",
    "evaluate", "evaluate_from_scratch", "poisoning_metrics", "pretrain", "Artifact", "Pool",
    "network", "train_on",
]
