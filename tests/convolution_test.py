"""dd_jax.models.convolution: the same numbers as lax, to any order of derivative."""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax.models import convolution
from tests.arrays import assert_close
from tests.arrays import jit
from tests.arrays import normal

NHWC = ("NHWC", "HWIO", "NHWC")
OWN = {name: function for name, function in convolution.CONVOLUTIONS.items() if name != "lax"}

# Images [n, H, W, C], kernel [h, w, C, O], strides, padding.
CASES = [
    ((2, 7, 5, 1), (3, 3, 1, 2), (1, 1), "SAME"),
    ((2, 9, 6, 3), (5, 5, 3, 4), (1, 1), "VALID"),
    ((1, 8, 8, 3), (1, 1, 3, 2), (1, 1), "VALID"),
    ((2, 5, 5, 1), (5, 5, 1, 3), (1, 1), "VALID"),
    ((2, 6, 7, 6), (5, 5, 6, 3), (1, 1), ((2, 2), (2, 2))),
    ((2, 5, 3, 16), (3, 3, 16, 2), (1, 1), "SAME"),
    ((1, 5, 4, 64), (3, 3, 64, 2), (1, 1), "SAME"),
    ((2, 7, 6, 1), (3, 5, 1, 2), (1, 1), ((0, 3), (2, 1))),
    ((2, 6, 7, 3), (2, 4, 3, 2), (1, 1), "SAME"),
    ((1, 9, 8, 6), (3, 3, 6, 2), (1, 1), ((-2, 0), (1, -1))),
    ((2, 9, 9, 3), (5, 5, 3, 2), (2, 2), "SAME"),
    ((1, 13, 11, 3), (5, 5, 3, 2), (4, 4), ((2, 1), (0, 3))),
    ((2, 7, 6, 16), (3, 3, 16, 2), (2, 1), "VALID"),
    ((64, 5, 6, 1), (3, 3, 1, 2), (1, 1), ((1, 1), (1, 1))),
]
SECOND_ORDER = [CASES[0], CASES[8], CASES[11], CASES[13]]


def scalar(convolve, case):
  """`(images, kernel) -> []`, with derivatives of every order."""
  def value(images, kernel):
    return jnp.sum(jnp.sin(convolve(images, kernel, *case[2:], dimension_numbers=NHWC)))
  return value


@functools.cache
def first_order(convolve, case):
  """The convolution, and the gradient of a scalar of it by images and kernel."""
  @jit
  def both(images, kernel):
    return (convolve(images, kernel, *case[2:], dimension_numbers=NHWC),
            jax.grad(scalar(convolve, case), (0, 1))(images, kernel))

  return both(normal(*case[0]), normal(*case[1], seed=1))


@functools.cache
def second_order(convolve, case):
  """The gradient, by images and kernel, of the squared norm of that gradient."""
  @jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def of_gradient(images, kernel):
    gradients = jax.grad(scalar(convolve, case), (0, 1))(images, kernel)
    return sum(jnp.sum(jnp.square(g)) for g in gradients)

  return of_gradient(normal(*case[0]), normal(*case[1], seed=1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", OWN)
def test_equals_lax(name, case):
  actual = first_order(OWN[name], case)
  assert actual[0].dtype == jnp.float64
  assert_close(actual, first_order(lax.conv_general_dilated, case))


@pytest.mark.parametrize("name", ["winograd", "fastest"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("edge", [3, 5])
def test_half_precision_is_as_good_as_its_rounding(name, dtype, edge):
  """As patches; the sums of Winograd's tiles would be wrong by 5 % and more."""
  images = normal(2, 8, 8, 64).astype(dtype)
  kernel = (normal(edge, edge, 64, 64, seed=1) / 40).astype(dtype)
  convolve = functools.partial(OWN[name], window_strides=(1, 1), padding="SAME",
                               dimension_numbers=NHWC)
  actual = np.asarray(jit(convolve)(images, kernel), np.float64)
  exact = np.asarray(jit(functools.partial(
      OWN["patches"], window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC))(
          images.astype(jnp.float32), kernel.astype(jnp.float32)), np.float64)
  assert np.linalg.norm(actual - exact) < .003 * np.linalg.norm(exact)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", SECOND_ORDER, ids=str)
@pytest.mark.parametrize("name", OWN)
def test_second_derivative_equals_lax(name, case):
  assert_close(second_order(OWN[name], case), second_order(lax.conv_general_dilated, case))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, case", [
    ("winograd", ((2, 7, 6, 6), (5, 3, 6, 2), (1, 1), "SAME")),
    ("patches", ((2, 7, 7, 16), (3, 3, 16, 2), (2, 2), "SAME")),
    ("tiled", ((2, 7, 6, 3), (3, 3, 3, 2), (1, 1), "SAME")),
    ("tiled", ((2, 5, 5, 6), (3, 3, 6, 2), (1, 1), "VALID")),
])
def test_vmap_over_kernels(name, case):
  images, kernels = normal(*case[0]), normal(3, *case[1], seed=1)

  def of_kernel(convolve):
    return jax.value_and_grad(scalar(convolve, case), (0, 1))

  actual = jit(jax.vmap(of_kernel(OWN[name]), (None, 0)))(images, kernels)
  one_by_one = jit(of_kernel(lax.conv_general_dilated))
  expected = [one_by_one(images, kernel) for kernel in kernels]
  assert_close(actual, jax.tree.map(lambda *x: jnp.stack(x), *expected))


@functools.cache
def through_descent(convolve, channels):
  """Gradient descent on a kernel in a scan, differentiated by the images."""
  loss = scalar(convolve, (None, None, (1, 1), "SAME"))

  @jit
  @jax.value_and_grad
  def length_of_result(images, kernel):
    def step(kernel, _):
      return kernel - 0.1 * jax.grad(loss, 1)(images, kernel), None
    return jnp.sum(jnp.square(lax.scan(step, kernel, length=3)[0]))

  return length_of_result(normal(2, 5, 6, channels), normal(3, 3, channels, 2, seed=1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, channels", [
    ("patches", 1), ("winograd", 6), ("tiled", 1), ("tiled", 6)])
def test_inside_scan(name, channels):
  assert_close(through_descent(OWN[name], channels),
               through_descent(lax.conv_general_dilated, channels))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["fastest", "winograd"])
@pytest.mark.parametrize("images, kernel, options", [
    ((2, 7, 7, 3), (3, 3, 3, 2), {"rhs_dilation": (2, 2), "dimension_numbers": NHWC}),
    ((2, 4, 4, 3), (3, 3, 3, 2),
     {"padding": ((1, 1), (0, 2)), "lhs_dilation": (2, 1), "dimension_numbers": NHWC}),
    ((2, 5, 5, 4), (3, 3, 2, 6), {"feature_group_count": 2, "dimension_numbers": NHWC}),
    ((4, 5, 5, 3), (3, 3, 3, 2), {"batch_group_count": 2, "dimension_numbers": NHWC}),
    ((2, 3, 5, 5), (2, 3, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    ((2, 3, 5, 5), (2, 3, 3, 3), {}),
    ((2, 6, 3), (3, 3, 2), {"dimension_numbers": ("NHC", "HIO", "NHC")}),
    ((1, 4, 4, 4, 2), (3, 3, 3, 2, 2), {"dimension_numbers": ("NHWDC", "HWDIO", "NHWDC")}),
])
def test_other_convolutions_go_to_lax(name, images, kernel, options):
  images, kernel = normal(*images), normal(*kernel, seed=1)
  options = {"window_strides": (1,) * (images.ndim - 2), "padding": "VALID", **options}
  np.testing.assert_array_equal(OWN[name](images, kernel, **options),
                                lax.conv_general_dilated(images, kernel, **options))


@pytest.mark.parametrize("name", OWN)
def test_plain_convolution_is_a_matrix_product(name):
  def call(images, kernel):
    return OWN[name](images, kernel, (1, 1), "SAME", dimension_numbers=NHWC)

  program = str(jax.make_jaxpr(call)(jnp.zeros((64, 8, 8, 3)), jnp.zeros((5, 5, 3, 6))))
  assert "dot_general" in program and "conv_general_dilated" not in program


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["patches", "tiled"])
@pytest.mark.parametrize("shape, options", [
    ((2, 9, 7, 3), {"padding": 2}),
    ((9, 7, 1), {"padding": "SAME"}),
    ((2, 9, 9, 6), {"padding": "VALID", "strides": 2}),
    ((2, 6, 6, 4), {"padding": "CIRCULAR"}),
    ((2, 9, 9, 4), {"padding": "SAME", "feature_group_count": 2}),
    ((2, 9, 9, 2), {"padding": "VALID", "kernel_dilation": 2}),
])
def test_in_flax(name, shape, options):
  images = normal(*shape)
  groups = options.get("feature_group_count", 1)
  params = {"kernel": normal(3, 3, shape[-1] // groups, 4, seed=1), "bias": normal(4, seed=2)}

  def result(**convolve):
    layer = nn.Conv(4, (3, 3), **options, **convolve)
    return jit(layer.apply)({"params": params}, images)

  assert_close(result(conv_general_dilated=OWN[name]), result())


@pytest.mark.parametrize("name", ["patches", "tiled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_kept(name, dtype):
  images, kernel = jnp.ones((2, 4, 4, 1), dtype), jnp.ones((3, 3, 1, 1), dtype)
  out = jit(lambda: OWN[name](images, kernel, (1, 1), "VALID", dimension_numbers=NHWC))()
  assert out.dtype == dtype
  np.testing.assert_array_equal(out.astype(jnp.float32), np.full((2, 2, 2, 1), 9))


@pytest.mark.parametrize("name", convolution.CONVOLUTIONS)
def test_resolve(name):
  assert convolution.resolve(name) is convolution.CONVOLUTIONS[name]
  assert convolution.resolve(None) in convolution.CONVOLUTIONS.values()


def test_resolve_lists_the_choices():
  with pytest.raises(ValueError, match=r"convolution must be one of \['fastest', 'lax', 'patches', "
                                       r"'tiled', 'winograd'\] or None; got 'fft'"):
    convolution.resolve("fft")


POOLED = [
    (((2, 8, 8, 1), (5, 5, 1, 6), (1, 1), "SAME"), 2),  # Tiles of two windows of two pixels.
    (((2, 9, 6, 6), (3, 3, 6, 4), (1, 1), "VALID"), 2),  # A remainder that is in no window.
    (((2, 7, 8, 3), (3, 3, 3, 2), (1, 1), "SAME"), 3),
    (((2, 6, 6, 3), (3, 3, 3, 40), (1, 1), "SAME"), 2),  # Too wide to be tiled.
    (((1, 6, 7, 33), (3, 3, 33, 2), (1, 1), "SAME"), 2),  # By Winograd's tiles.
    (((2, 9, 9, 3), (3, 3, 3, 2), (2, 2), "SAME"), 2),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case, window", POOLED, ids=str)
def test_max_pooled_equals_convolution_then_pool(case, window):
  """In value and gradient; the second derivative where a rule of its own makes it."""
  pooled = convolution.max_pooled(convolution.fastest, window)
  expected = convolution.max_pooled(lax.conv_general_dilated, window)
  assert_close(first_order(pooled, case), first_order(expected, case))
  if (case, window) in (POOLED[0], POOLED[2], POOLED[4]):
    assert_close(second_order(pooled, case), second_order(expected, case))


@pytest.mark.usefixtures("x64")
def test_max_pooled_in_flax():
  """The bias is added after the pooling, which changes nothing."""
  (shape, kernel, strides, padding), window = POOLED[0]
  images = normal(*shape)
  params = {"kernel": normal(*kernel, seed=1), "bias": normal(kernel[-1], seed=2)}
  actual, expected = (
      jit(nn.Conv(kernel[-1], kernel[:2], strides, padding, conv_general_dilated=convolve).apply)(
          {"params": params}, images)
      for convolve in (convolution.max_pooled(convolution.fastest, window),
                       convolution.max_pooled(lax.conv_general_dilated, window)))
  assert_close(actual, expected)
