"""dd_jax.optimizers: what they compute, and hypergradients through them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dd_jax
from dd_jax import optimizers
from dd_jax import losses
from dd_jax import parametrization
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_HYPER = {name: {**values, "weight_decay": .05}
          for name, values in optimizers.DEFAULTS.items()}


def _learned(name):
  hard = jnp.asarray([[0, 1, 2, 1]] * problems.NUM_STEPS)
  return parametrization.join(
      parametrization.pixels((*hard.shape, *problems.IMAGE_SHAPE)),
      parametrization.fixed_labels(hard),
      parametrization.step_sizes(problems.NUM_EPOCHS, problems.NUM_STEPS, .1, scale="log"),
      parametrization.shares(_HYPER[name]), dtype=float)


def _outer_loss(learned, apply, init, optimizer, **options):
  loss = losses.classification(apply)
  return dd_jax.make_outer_loss(learned.decode, dd_jax.random_init(init).sample, loss, loss,
                                num_inits=2, optimizer=optimizer, **options)


@pytest.mark.parametrize("gradient", ["reverse", "forward_over_reverse"])
@pytest.mark.parametrize("name", optimizers.INNER_OPTIMIZERS)
def test_hypergradient_by_images_step_sizes_and_hyper_parameters(x64, name, gradient):
  """Along a random direction in all that is learned, weight decay and momenta included."""
  learned = _learned(name)
  outer_loss = jax.jit(_outer_loss(learned, problems.apply, problems.init,
                                   optimizers.INNER_OPTIMIZERS[name], gradient=gradient))
  trainable, rest = learned.init(jax.random.key(1)), ((), jax.random.key(5), *problems.real())
  assert set(trainable["hyper"]) == set(_HYPER[name])
  slope = problems.check_hypergradient(outer_loss, trainable, *rest, rtol=1e-5)
  assert all(jnp.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("name", optimizers.INNER_OPTIMIZERS)
def test_weights_without_a_gradient_do_not_spoil_the_hypergradient(name):
  """A dead unit and a last layer of zeros: gradients that are exactly zero."""
  def init(key):
    params = problems.init(key)
    return {**params, "first": params["first"].at[:, 0].set(0.),
            "second": jnp.zeros_like(params["second"])}

  def apply(params, images, *, key=None):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ params["first"])
    return hidden @ params["second"] + params["bias"][None]

  learned = _learned(name)
  gradient = jax.grad(_outer_loss(learned, apply, init, optimizers.INNER_OPTIMIZERS[name]))(
      learned.init(jax.random.key(1)), (), jax.random.key(5), *problems.real())
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert jnp.abs(gradient["images"]).max() > 1e-6


def test_adam_is_that_of_optax_with_decoupled_weight_decay(x64):
  params = problems.init(jax.random.key(0))
  gradient = jax.tree.map(jnp.sin, params)
  hyper = {"b1": .8, "b2": .99, "weight_decay": .1}
  ours = optimizers.adam(hyper)
  reference = optax.adamw(1., b1=.8, b2=.99, weight_decay=.1)
  states = [optimizer.init(params) for optimizer in (ours, reference)]
  for _ in range(3):
    updates = []
    for index, optimizer in enumerate((ours, reference)):
      update, states[index] = optimizer.update(gradient, states[index], params)
      updates.append(update)
    for actual, negative in zip(*map(jax.tree.leaves, updates)):
      np.testing.assert_allclose(actual, -negative, rtol=1e-4)  # eps_root is ours alone.


@pytest.mark.parametrize("name", optimizers.INNER_OPTIMIZERS)
def test_every_optimizer_of_ours_can_be_differentiated(name):
  optimizers.check_differentiable(optimizers.INNER_OPTIMIZERS[name](_HYPER[name]))


def test_an_optimizer_that_cannot_be_differentiated_is_named_before_any_compilation():
  def opaque_update(updates, state, params=None):
    del params
    return jax.tree.map(lambda u: u * float(u.sum()), updates), state

  for optimizer, found in (
      (optax.scale_by_adam(), r"not finite at a gradient of 0 \(Adam needs eps_root > 0\)"),
      (optax.GradientTransformation(lambda params: (), opaque_update), "ConcretizationTypeError")):
    message = f"optimizer must have an update .* got .*{found}"
    with pytest.raises(ValueError, match=message) as error:
      _outer_loss(_learned("adam"), problems.apply, problems.init, optimizer)
    assert "\n" not in str(error.value)
