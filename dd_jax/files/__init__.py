"""What lies on a disk: distilled data and pools as files, and what is done with a file alone."""

from dd_jax.files.artifacts import Artifact
from dd_jax.files.pools import Pool
from dd_jax.files.reuse import network
from dd_jax.files.reuse import train_on

__all__ = ["Artifact", "Pool", "network", "train_on"]
