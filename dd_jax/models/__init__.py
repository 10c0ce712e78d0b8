"""Networks as pairs of pure functions; the one sub-package that knows Flax.

`Model` and its makers lie in `model`, every network in the file of its name, its layers in
`convolution`, `pooling` and `norm`.
"""

from collections.abc import Callable

from dd_jax.models import convolution
from dd_jax.models import pooling
from dd_jax.models.alexcifarnet import alexcifarnet
from dd_jax.models.alexnet import alexnet
from dd_jax.models.convnet import convnet
from dd_jax.models.lenet import lenet
from dd_jax.models.linear import linear
from dd_jax.models.mlp import mlp
from dd_jax.models.model import Model, check_params, from_flax, from_nnx
from dd_jax.models.resnet import resnet18
from dd_jax.models.text_convolution import text_convolution
from dd_jax.models.vit import vit

MODELS: dict[str, Callable[..., Model]] = {
    "lenet": lenet,
    "alexcifarnet": alexcifarnet,
    "alexnet": alexnet,
    "convnet": convnet,
    "resnet18": resnet18,
    "vit": vit,
    "mlp": mlp,
    "linear": linear,
    "text_convolution": text_convolution,
}

__all__ = [
    "convolution", "pooling", "MODELS", "Model", "alexcifarnet", "alexnet", "check_params",
    "convnet", "from_flax", "from_nnx", "lenet", "linear", "mlp", "resnet18", "text_convolution",
    "vit",
]
