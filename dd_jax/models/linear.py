"""A linear network."""

from flax import linen as nn

from dd_jax.models.model import Model, check_array, from_flax
from dd_jax.types import check_at_least


def linear(*, num_classes: int, image_shape: tuple[int, ...]) -> Model:
  """Logits or targets linear in the flattened input, without a constant (section 3.3).

  Args:
    num_classes: K; 1 or more of targets.
    image_shape: of one input, such as (D,).
  """
  check_at_least(1, num_classes=num_classes)
  check_array(image_shape, "linear")
  return from_flax(_Linear(num_classes), image_shape)


class _Linear(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes, use_bias=False)(x.reshape(x.shape[0], -1))
