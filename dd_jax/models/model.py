"""A network as a pair of pure functions, and how one is made of a Flax module.

A `Model` is `init(key) -> params` and `apply(params, inputs) -> outputs [n, K]`. Any pair of plain
functions of that form is as good as the networks here; `from_flax` and `from_nnx` make one of a
Flax module. Of a module with dropout or a training mode, `apply` takes a `key` too: a key means
training (the inner loop), None means evaluation (the outer loss).
"""

from collections.abc import Callable
import inspect
from typing import NamedTuple

from flax import errors as flax_errors
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from dd_jax.types import Array, Params, check_at_least

# What a Flax module may call its mode, and what it is told in training.
_MODES = {"train": True, "training": True, "is_training": True, "deterministic": False}


class Model(NamedTuple):
  """A network: `init(key) -> params`, `apply(params, inputs) -> outputs`, maybe with a `key`."""
  init: Callable[[Array], Params]
  apply: Callable[..., Array]


def from_flax(module: nn.Module, image_shape: tuple[int, ...] | dict) -> Model:
  """The `Model` of a linen module called on images `[n, *image_shape]`, or a dict of arrays.

  A module whose `__call__` takes `train`, `training` or `is_training` is told
  True when `apply` gets a key, one that takes `deterministic` is told False; the
  key also feeds its dropout. Where a key would change nothing `apply` takes none.

  Raises:
    ValueError: the module keeps state beside its parameters (batch statistics); its
      `__call__` needs other arguments, or leaves its dropout off for want of them.
  """
  name = type(module).__name__
  modes, flags = _call_arguments(module)
  images = jax.tree.map(lambda shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32), image_shape,
                        is_leaf=lambda shape: isinstance(shape, (tuple, list)))

  def call(method, variables_or_key, images, key):
    rngs = {} if key is None else {"rngs": {"dropout": key}}
    return method(variables_or_key, images, **rngs, **_tell(modes, key))

  def init(key):
    # lazy_init: the shapes of a forward pass without its arithmetic.
    return call(module.lazy_init, key, images, None).get("params", {})

  def apply(params, inputs, *, key=None):
    return call(module.apply, {"params": params}, inputs, key)

  def train(key, images):
    rngs = {"params": jax.random.key(0), "dropout": key}
    return module.init_with_output(rngs, images, **_tell(modes, key))

  with _idle_dropout_refused(modes, flags, name):
    traced, (_, variables) = jax.make_jaxpr(train, return_shape=True)(jax.random.key(0), images)
  _refuse_state(sorted(set(variables) - {"params"}), name)
  (key,) = traced.jaxpr.invars[:1]
  has_noise = any(var is key for equation in traced.eqns for var in equation.invars)
  try:
    jax.eval_shape(apply, variables.get("params", {}), images)
  except flax_errors.InvalidRngError as error:
    raise ValueError(f"module must be without noise where it gets no key; {name} needs one: "
                     f"{' '.join(str(error).split())[:200]}") from error
  return _model(init, apply, takes_key=bool(modes) or has_noise)


def from_nnx(make_module: Callable[[nnx.Rngs], nnx.Module]) -> Model:
  """The `Model` of an NNX module, made anew in every trace: `lambda rngs: Net(..., rngs=rngs)`.

  `apply` with a key puts the module into training mode and feeds its dropout; a `__call__` that
  takes its mode as an argument is told as in `from_flax`. Without mode and noise it takes no key.

  Raises:
    ValueError: the module keeps state beside its parameters (batch statistics), or its `__call__`
      needs other arguments.
  """
  module = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
  modes, _ = _call_arguments(module)
  state = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
  _refuse_state(["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)], "module")

  def init(key):
    return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key)), nnx.Param))

  def apply(params, inputs, *, key=None):
    module = make_module(nnx.Rngs(jax.random.key(0) if key is None else key))
    state = nnx.state(module, nnx.Param)
    _check_same(params, nnx.to_pure_dict(state), "params must be weights of the module",
                "what it was given")
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    module.eval() if key is None else module.train()
    return module(inputs, **_tell(modes, key))

  has_noise = bool(jax.tree.leaves(nnx.state(module, nnx.RngState)))
  module.train()
  training = nnx.graphdef(module)
  module.eval()
  return _model(init, apply,
                takes_key=bool(modes) or has_noise or training != nnx.graphdef(module))


def check_params(model: Model, params: Params, *, rule: str, where: str) -> None:
  """Raises ValueError unless `params` have the names and shapes of the network's own.

  Args:
    model: the network.
    params: nested dicts of arrays; tracers will do.
    rule: begins the message: "init_params must be weights of lenet".
    where: what the params are, in the message.
  """
  _check_same(params, jax.eval_shape(model.init, jax.random.key(0)), rule, where)


def _check_same(params, own, rule, where):
  expected, found = _leaf_shapes(own), _leaf_shapes(params)
  if found != expected:
    name = min(name for name in found.keys() | expected.keys()
               if found.get(name) != expected.get(name))
    raise ValueError(f"{rule} with {name} {expected.get(name, 'absent')}; in {where} it is "
                     f"{found.get(name, 'absent')}")


def _leaf_shapes(params):
  return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(jnp.shape(leaf))
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _call_arguments(module):
  """The names of the mode that `__call__` takes, and those of other flags."""
  _, *arguments = inspect.signature(type(module).__call__).parameters.values()
  modes = [argument.name for argument in arguments if argument.name in _MODES]
  named = [argument for argument in arguments[1:] if argument.name not in _MODES
           and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)]
  needed = [argument.name for argument in named if argument.default is argument.empty]
  if needed:
    raise ValueError(f"module must be called with images and one of {list(_MODES)}; "
                     f"{type(module).__name__} also needs {needed}")
  return modes, [argument.name for argument in named if isinstance(argument.default, bool)]


def _tell(modes, key):
  return {name: _MODES[name] == (key is not None) for name in modes}


def _model(init, apply, *, takes_key):
  return Model(init, apply if takes_key else lambda params, inputs: apply(params, inputs))


def _idle_dropout_refused(modes, flags, module_name):
  """A context in which a dropout that is off is a ValueError, of a module that takes no mode."""
  def watch(call, args, kwargs, context):
    dropout = context.module
    if (not modes and isinstance(dropout, nn.Dropout) and dropout.rate > 0
        and context.method_name == "__call__"):
      told = args[1] if len(args) > 1 else kwargs.get("deterministic")
      if dropout.deterministic if told is None else told:
        raise ValueError(f"module must be told that it trains by one of {list(_MODES)}; "
                         f"{module_name} takes {flags or 'none'} and leaves its dropout off")
    return call(*args, **kwargs)

  return nn.intercept_methods(watch)


def _refuse_state(names, module_name):
  if names:
    raise ValueError(
        f"module must keep nothing but its parameters; got {names} of {module_name}: use group or "
        "layer norm, or batch norm on the current batch alone, instead of running statistics")


def check_arguments(num_classes: int, image_shape: tuple[int, ...], name: str,
                    sizes: tuple[int, ...] | None = None) -> None:
  """A ValueError unless the network called `name` can be made for these arguments.

  Args:
    num_classes: K; 1 of a single target.
    image_shape: (H, W, C).
    name: of the network, for the message.
    sizes: what H = W may be. None: any H and W.
  """
  check_at_least(1, num_classes=num_classes)
  check_array(image_shape, name)
  if len(image_shape) != 3:
    raise ValueError(f"image_shape must be (H, W, C); got {tuple(image_shape)}")
  height, width, _ = image_shape
  if sizes and (height != width or height not in sizes):
    rule = " or ".join(f"{s}x{s}" for s in sizes)
    raise ValueError(f"image_shape of {name} must be {rule} pixels; got {tuple(image_shape)}")


def check_array(image_shape: tuple[int, ...], name: str) -> None:
  """A ValueError unless the inputs of the network called `name` are one array, not a dict."""
  if not isinstance(image_shape, (tuple, list)):
    raise ValueError(f"image_shape of {name} must be that of one array; got {image_shape}")
