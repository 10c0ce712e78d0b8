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
from dd_jax import step_sizes
from tests import problems

pytestmark = pytest.mark.usefixtures("optax_promotion")
_HYPER = {name: {**values, "weight_decay": .05}
          for name, values in optimizers.DEFAULTS.items()}


def _learned(name):
  hard = jnp.asarray([[0, 1, 2, 1]] * problems.NUM_STEPS)
  return parametrization.join(
      parametrization.pixels((*hard.shape, *problems.IMAGE_SHAPE)),
      parametrization.fixed_labels(hard),
      step_sizes.learned(problems.NUM_EPOCHS, problems.NUM_STEPS, .1, scale="log"),
      optimizers.shares(_HYPER[name]), dtype=float)


def _outer_loss(learned, apply, init, optimizer, gradient="reverse"):
  loss = losses.classification(apply)
  train = dd_jax.unroll(loss, optimizer, gradient=gradient)
  return dd_jax.make_outer_loss(learned.decode, dd_jax.random_init(init), train, loss, num_inits=2)


@pytest.mark.parametrize("name, gradient", [
    ("gradient_descent", "forward_over_reverse"),
    pytest.param("momentum", "reverse", marks=pytest.mark.slow),
    pytest.param("nesterov", "forward_over_reverse", marks=pytest.mark.slow), ("adam", "reverse")])
def test_hypergradient_by_inputs_step_sizes_and_hyper_parameters(x64, name, gradient):
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

  def apply(params, images):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ params["first"])
    return hidden @ params["second"] + params["bias"][None]

  learned = _learned(name)
  outer_loss = _outer_loss(learned, apply, init, optimizers.INNER_OPTIMIZERS[name])
  gradient = jax.jit(jax.grad(outer_loss))(
      learned.init(jax.random.key(1)), (), jax.random.key(5), *problems.real())
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert jnp.abs(gradient["inputs"]).max() > 1e-6


@pytest.mark.parametrize("name, ahead", [("momentum", False), ("nesterov", True)])
def test_momenta_by_hand(x64, name, ahead):
  """Gradients are summed up with a decay; nesterov looks one step ahead."""
  optimizer = optimizers.INNER_OPTIMIZERS[name]({"decay": .7, "weight_decay": .1})
  params, velocity = jnp.array([1., -2.]), jnp.zeros(2)
  state = optimizer.init(params)
  for gradient in jnp.array([[.3, 1.], [-2., .5], [.1, .1]]):
    update, state = optimizer.update(gradient, state, params)
    velocity = gradient + .7 * velocity
    expected = gradient + .7 * velocity if ahead else velocity
    np.testing.assert_allclose(update, -(expected + .1 * params), rtol=1e-12)


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
    for actual, expected in zip(*map(jax.tree.leaves, updates), strict=True):
      np.testing.assert_allclose(actual, expected, rtol=1e-4)  # eps_root is ours alone.


def _by_layer(params):
  return {name: "last" if name == "second" else "others" for name in params}


_OF_OPTAX = {
    "sgd": (optax.sgd(1.), .1),
    "sgd with momentum": (optax.sgd(.1, momentum=.9), .5),
    "adam": (optax.adam(.1, eps_root=1e-8), .5),
    "masked": (optax.masked(optax.sgd(1., momentum=.9), lambda params: jax.tree.map(
        lambda x: x.ndim > 1, params)), .05),
    "partition": (optax.partition(
        {"last": optax.adam(.1, eps_root=1e-8), "others": optax.sgd(.5)}, _by_layer), .5),
}


@pytest.mark.parametrize("name", [
    name if name == "partition" else pytest.param(name, marks=pytest.mark.slow)
    for name in _OF_OPTAX])
def test_transformations_of_optax_descend_and_are_differentiated(x64, name):
  """As optax writes them: what `update` returns is added, times the learned step size."""
  optimizer, step_size = _OF_OPTAX[name]
  hard = jnp.asarray([[0, 1, 2, 1]])
  learned = parametrization.join(
      parametrization.pixels((1, 4, *problems.IMAGE_SHAPE)), parametrization.fixed_labels(hard),
      step_sizes.learned(6, 1, step_size), dtype=float)
  trainable, params = learned.init(jax.random.key(1)), problems.init(jax.random.key(0))
  train = dd_jax.unroll(problems.inner_loss, optimizer)
  distilled = learned.decode(trainable)
  trained, values = train(None, params, distilled)
  assert values[-1] < .8 * values[0]
  # The loop that optax documents, its updates times the step size.
  state = optimizer.init(params)
  for _ in range(6):
    gradient = jax.grad(problems.inner_loss)(params, distilled.inputs[0], distilled.labels[0])
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, jax.tree.map(lambda u: step_size * u, updates))
  problems.assert_close(trained, params, 1e-11)
  outer_loss = jax.jit(_outer_loss(learned, problems.apply, problems.init, optimizer))
  slope = problems.check_hypergradient(outer_loss, trainable, (), jax.random.key(5),
                                       *problems.real(), rtol=1e-5)
  assert all(jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 1e-6
             for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("name", optimizers.INNER_OPTIMIZERS)
def test_every_optimizer_of_ours_can_be_differentiated(name):
  optimizers.check_differentiable(optimizers.INNER_OPTIMIZERS[name], _HYPER[name],
                                  problems.init(jax.random.key(0)))


@pytest.mark.parametrize("optimizer", [
    optax.clip_by_global_norm(1.), optax.clip_by_block_rms(1.), optax.lamb(1., eps_root=1e-8),
    optax.rmsprop(1., eps_in_sqrt=True), optax.adam(1., eps_root=1e-8), optax.sgd(1., momentum=.9)],
                         ids=["global norm", "block rms", "lamb", "rmsprop", "adam", "sgd"])
def test_usual_optimizers_of_optax_can_be_differentiated(optimizer):
  optimizers.check_differentiable(optimizer, (), problems.init(jax.random.key(0)))


def _opaque_update(updates, state, params=None):
  del params
  return jax.tree.map(lambda u: u * float(u.sum()), updates), state


@pytest.mark.parametrize("optimizer, found", [
    (optax.adam(1.), r"not finite at a gradient of 0 \(Adam needs eps_root > 0\)"),
    (lambda hyper: optax.adam(1., b1=hyper["b1"]), "not finite at a gradient of 0"),
    # In forward mode nothing would show.
    (optax.chain(optax.adaptive_grad_clip(.01), optax.sgd(1.)), "not finite at a gradient of 0"),
    # Only among the weights that this network has.
    (optax.partition({"last": optax.adam(1.), "others": optax.sgd(1.)}, _by_layer),
     r"not finite at a gradient of 0"),
    (optax.GradientTransformation(lambda params: (), _opaque_update), "ConcretizationTypeError")],
                         ids=["adam", "adam of hyper", "clip", "partition", "opaque"])
def test_an_optimizer_that_cannot_be_differentiated_is_named_before_any_compilation(
    optimizer, found):
  learned = _learned("adam")
  outer_loss = jax.jit(_outer_loss(learned, problems.apply, problems.init, optimizer))
  with pytest.raises(ValueError, match=f"optimizer must have an update .* got .*{found}") as error:
    jax.eval_shape(outer_loss, learned.init(jax.random.key(1)), (), jax.random.key(5),
                   *problems.real())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("hyper, message", [
    ((), r"hyper must hold \['decay'\] for momentum, .* got \[\]"),
    ({"decay": .9, "weight_dcay": .1}, r"got \['decay', 'weight_dcay'\]")])
def test_hyper_parameters_that_are_not_the_optimizer_s_are_named(hyper, message):
  decode = problems.trainable()[1]
  distilled = decode(problems.trainable()[0])._replace(hyper=hyper)
  train = dd_jax.unroll(problems.inner_loss, optimizers.momentum)
  with pytest.raises(ValueError, match=message):
    train(None, problems.init(jax.random.key(0)), distilled)


def test_an_optimizer_may_close_over_a_number_of_the_program_around_it(x64):
  trainable, decode = problems.trainable()

  def value(decay):
    train = dd_jax.unroll(problems.inner_loss, optax.sgd(1., momentum=decay))
    return dd_jax.make_outer_loss(
        decode, dd_jax.random_init(problems.init), train, problems.inner_loss, num_inits=1)(
            trainable, (), jax.random.key(3), *problems.real())

  np.testing.assert_allclose(jax.jit(value)(.9), value(.9), rtol=1e-12)
