"""A multi-layer perceptron."""

from flax import linen as nn

from dd_jax.models.model import Model, check_array, from_flax
from dd_jax.types import check_at_least


def mlp(*, num_classes: int, image_shape: tuple[int, ...],
        hidden: tuple[int, ...] = (128, 128)) -> Model:
  """A multi-layer perceptron with ReLU on the flattened input: images, table rows, embeddings.

  Args:
    num_classes: K; 1 or more of targets.
    image_shape: (H, W, C), of any size, or (D,) for D columns of a table.
    hidden: units of every hidden layer.
  """
  check_at_least(1, num_classes=num_classes)
  check_array(image_shape, "mlp")
  return from_flax(_MLP(num_classes, tuple(hidden)), image_shape)


class _MLP(nn.Module):
  num_classes: int
  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(self.num_classes)(x)
