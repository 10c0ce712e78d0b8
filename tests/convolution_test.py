"""dd_jax.convolution: the same numbers as lax and as the formulas, to any order of derivative."""

import functools
import itertools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from dd_jax import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
OWN = {name: function for name, function in convolution.CONVOLUTIONS.items() if name != "lax"}
# These programs run in microseconds: unoptimized, they compile in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

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


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def assert_close(actual, expected, tolerance=1e-12):
  """Relative L2 distance of every leaf, and no other shape or dtype."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", SECOND_ORDER, ids=str)
@pytest.mark.parametrize("name", OWN)
def test_second_derivative_equals_lax(name, case):
  assert_close(second_order(OWN[name], case), second_order(lax.conv_general_dilated, case))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name, case", [
    ("shifted", ((2, 7, 6, 16), (3, 3, 16, 2), (1, 1), "SAME")),
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
    ("patches", 1), ("shifted", 6), ("tiled", 1), ("tiled", 6)])
def test_inside_scan(name, channels):
  assert_close(through_descent(OWN[name], channels),
               through_descent(lax.conv_general_dilated, channels))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OWN)
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
  with pytest.raises(ValueError, match=r"convolution must be one of \['lax', "
                                       r"'patches', 'shifted', 'tiled'\] or None; got 'fft'"):
    convolution.resolve("fft")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case, window", [
    (((2, 8, 8, 1), (5, 5, 1, 6), (1, 1), "SAME"), 2),  # Tiles of two windows of two pixels.
    (((2, 9, 6, 6), (3, 3, 6, 4), (1, 1), "VALID"), 2),  # A remainder that is in no window.
    (((2, 7, 8, 3), (3, 3, 3, 2), (1, 1), "SAME"), 3),
    (((2, 6, 6, 3), (3, 3, 3, 40), (1, 1), "SAME"), 2),  # Too wide to be tiled.
    (((2, 9, 9, 3), (3, 3, 3, 2), (2, 2), "SAME"), 2),
], ids=str)
def test_max_pooled_equals_convolution_then_pool(case, window):
  """In value, gradient and second derivative, and through Flax, which adds the bias after it."""
  pooled = convolution.max_pooled(convolution.tiled, window)
  expected = convolution.max_pooled(lax.conv_general_dilated, window)
  assert_close(first_order(pooled, case), first_order(expected, case))
  assert_close(second_order(pooled, case), second_order(expected, case))
  images = normal(*case[0])
  actual, expected = (
      nn.Conv(case[1][-1], case[1][:2], case[2], case[3], conv_general_dilated=convolve,
              param_dtype=jnp.float64).init_with_output(jax.random.key(0), images)[0]
      for convolve in (pooled, expected))
  assert_close(actual, expected)


def reduce_window(x, window, strides, padding):
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return lax.reduce_window(x, -np.inf, lax.max, (1, *window, 1),
                           (1, *strides, 1), sides)


POOLS = [  # Images, window, strides, padding.
    ((2, 6, 8, 3), (2, 2), (2, 2), 0),
    ((2, 7, 5, 2), (2, 2), (2, 2), 0),
    ((1, 8, 8, 2), (3, 3), (2, 2), 1),
    ((1, 7, 9, 2), (3, 3), (2, 2), 1),
    ((1, 8, 7, 1), (3, 3), (2, 2), 0),
    ((1, 8, 8, 1), (3, 2), (1, 2), 0),
    ((1, 8, 9, 1), (2, 1), (3, 2), 0),
    ((1, 1, 4, 1), (2, 2), (2, 2), 1),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape, window, strides, padding", POOLS)
@pytest.mark.parametrize("shift", [0, -100], ids=["any sign", "negative"])
def test_max_pool(shape, window, strides, padding, shift):
  values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)  # No ties.
  x = jnp.asarray(values / values.size - 0.5 + shift)

  def all_of(pool):
    def loss(x):
      return jnp.sum(jnp.sin(pool(x, window, strides, padding)))
    return pool(x, window, strides, padding), jax.grad(loss)(x)

  value, gradient = jit(lambda: all_of(convolution.max_pool))()
  assert np.all(np.isfinite(value))
  assert_close((value, gradient), jit(lambda: all_of(reduce_window))())


@pytest.mark.usefixtures("x64")
def test_max_pool_second_derivative():
  """Of sum(g^2) with g the gradient of sum(sin(max)): 2 cos * -sin at each window's maximum."""
  x = normal(2, 4, 6, 3)

  @jit
  @jax.grad
  def second(x):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(convolution.max_pool(x, (2, 2), (2, 2)))))(x)
    return jnp.sum(jnp.square(gradient))

  x_max = np.repeat(np.repeat(convolution.max_pool(x, (2, 2), (2, 2)), 2, axis=1), 2, axis=2)
  assert_close(second(x), np.where(x == x_max, -2 * np.cos(x) * np.sin(x), 0))


@jit
@jax.grad
def gradient_of_max(x):
  return 3 * jnp.sum(convolution.max_pool(x, (2, 2), (2, 2)))


@jit
@jax.grad
def gradient_of_pooled_copy(x):
  """The same maximum, taken within the tile of a convolution that copies the pixels."""
  copy = convolution.tiled(x, jnp.ones((1, 1, 1, 1), x.dtype), (1, 1), "VALID",
                           dimension_numbers=NHWC, pool=2)
  return 3 * jnp.sum(copy)


@pytest.mark.parametrize("gradient_of_maximum", [gradient_of_max, gradient_of_pooled_copy])
@pytest.mark.parametrize("tied", [
    pixels for n in (2, 3, 4) for pixels in itertools.combinations(range(4), n)])
def test_max_pool_gives_one_of_tied_pixels_the_gradient(tied, gradient_of_maximum):
  x = np.zeros(4, np.float32)
  x[list(tied)] = 1
  gradient = gradient_of_maximum(x.reshape(1, 2, 2, 1)).reshape(4)
  assert sorted(gradient) == [0, 0, 0, 3]
  assert int(np.argmax(gradient)) in tied
  if tied in ((0, 1), (0, 2), (0, 1, 2, 3)):
    assert gradient[0] == 3


@pytest.mark.parametrize("shape, window, strides, padding", POOLS[:4])
def test_max_pool_conserves_the_gradient_of_constant_images(shape, window, strides, padding):
  x = jnp.full(shape, -2.0, jnp.float32)

  @jit
  def both(weights):
    out, vjp = jax.vjp(lambda x: convolution.max_pool(x, window, strides, padding), x)
    return out, vjp(weights)[0]

  out_shape = jax.eval_shape(lambda: reduce_window(x, window, strides, padding)).shape
  weights = np.random.default_rng(0).integers(1, 9, out_shape).astype(np.float32)
  out, gradient = both(weights)
  np.testing.assert_array_equal(out, np.full(out_shape, -2.0))
  np.testing.assert_array_equal(gradient.sum((1, 2)), weights.sum((1, 2)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape, window", [((2, 4, 6, 3), 2), ((2, 7, 5, 1), 2), ((1, 7, 6, 2), 3)])
def test_avg_pool(shape, window):
  x = normal(*shape)
  n, height, width, channels = shape
  expected = np.array([[[[np.mean(x[i, r:r + window, c:c + window, k]) for k in range(channels)]
                         for c in range(0, width - window + 1, window)]
                        for r in range(0, height - window + 1, window)] for i in range(n)])
  assert_close(convolution.avg_pool(x, window), expected)


def response_norm_by_loop(x, alpha):
  x = np.asarray(x)
  out = np.empty_like(x)
  for *position, c in np.ndindex(x.shape):
    window = x[(*position, slice(max(c - 2, 0), c + 2))]
    out[(*position, c)] = x[(*position, c)] / (1 + alpha / 4 * np.sum(window ** 2)) ** 0.75
  return out


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 3, 3, 1), (1, 2, 2, 2), (2, 3, 2, 6), (1, 2, 2, 64)])
@pytest.mark.parametrize("options, alpha", [({}, 0.001 / 9), ({"alpha": 2.0}, 2.0)])
def test_local_response_norm(shape, options, alpha):
  x = 10 * normal(*shape)
  assert_close(convolution.local_response_norm(x, **options), response_norm_by_loop(x, alpha))


@pytest.mark.usefixtures("x64")
def test_local_response_norm_gradient():
  x, weights, step = normal(1, 2, 1, 6), np.asarray(normal(1, 2, 1, 6, seed=1)), 1e-5

  def loss(x):
    return jnp.sum(weights * convolution.local_response_norm(x, alpha=2.0))

  def loss_by_loop(x):
    return np.sum(weights * response_norm_by_loop(x, 2.0))

  differences = np.zeros(x.shape)
  for position in np.ndindex(x.shape):
    shift = np.zeros(x.shape)
    shift[position] = step
    differences[position] = (loss_by_loop(x + shift) - loss_by_loop(x - shift)) / (2 * step)
  assert_close(jax.grad(loss)(x), differences, tolerance=1e-8)
