"""What lies on a disk: distilled data and pools as files, and what is done with a file alone."""

from dd_jax.files import artifacts
from dd_jax.files import exports
from dd_jax.files import imagenet_weights
from dd_jax.files import merging
from dd_jax.files import pools
from dd_jax.files import reuse
from dd_jax.files.artifacts import Artifact
from dd_jax.files.merging import merge
from dd_jax.files.pools import Pool
from dd_jax.files.reuse import network
from dd_jax.files.reuse import train_on

__all__ = [
    "artifacts", "exports", "imagenet_weights", "merging", "pools", "reuse", "Artifact", "Pool",
    "merge", "network", "train_on",
]
