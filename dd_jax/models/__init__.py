"""Networks as pairs of pure functions; the one sub-package that knows Flax.

`Model` and its makers lie in `model`, the networks in `paper` and `later`.
"""

from collections.abc import Callable

from dd_jax.models.later import convnet
from dd_jax.models.later import mlp
from dd_jax.models.later import resnet18
from dd_jax.models.later import vit
from dd_jax.models.model import check_params
from dd_jax.models.model import from_flax
from dd_jax.models.model import from_nnx
from dd_jax.models.model import Model
from dd_jax.models.paper import alexcifarnet
from dd_jax.models.paper import alexnet
from dd_jax.models.paper import lenet

MODELS: dict[str, Callable[..., Model]] = {
    "lenet": lenet,
    "alexcifarnet": alexcifarnet,
    "alexnet": alexnet,
    "convnet": convnet,
    "resnet18": resnet18,
    "vit": vit,
    "mlp": mlp,
}

__all__ = [
    "MODELS", "Model", "alexcifarnet", "alexnet", "check_params", "convnet", "from_flax",
    "from_nnx", "lenet", "mlp", "resnet18", "vit",
]
