"""dd_jax.whitening: uncorrelated pixels of equal variance, and the way back."""

import numpy as np
import pytest

from dd_jax import whitening


def _images(num_images=4000, seed=0):
  """Correlated pixels `[n, 2, 3, 1]`, one direction of which hardly varies."""
  draw = np.random.default_rng(seed)
  mixing = draw.standard_normal((6, 6))
  mixing[-1] *= 1e-4
  return (draw.standard_normal((num_images, 6)) @ mixing + 2).reshape(-1, 2, 3, 1)


def test_white_images_have_the_regularised_identity_as_covariance():
  images = _images()
  fitted = whitening.fit(images, regularization=.01)
  white = whitening.whiten(fitted, images).reshape(-1, 6)
  np.testing.assert_allclose(white.mean(0), 0, atol=1e-12)
  variances = np.linalg.eigvalsh(np.cov(images.reshape(-1, 6).T, bias=True))
  # v / (v + .01 mean): one where images vary, small where they hardly do.
  expected = variances / (variances + .01 * variances.mean())
  np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(white.T, bias=True)), np.sort(expected),
                             atol=1e-10)
  assert expected.min() < .01 and expected.max() > .99


def test_zca_is_symmetric_so_that_white_images_look_like_images():
  fitted = whitening.fit(_images())
  shifted = np.eye(6).reshape(6, 2, 3, 1) + fitted.mean.reshape(2, 3, 1)
  matrix = whitening.whiten(fitted, shifted).reshape(6, 6)
  np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 1e-3)])
def test_restore_is_the_inverse(dtype, tolerance):
  images = _images().astype(dtype)
  fitted = whitening.fit(images)
  fresh = _images(5, seed=1).astype(dtype)
  back = whitening.restore(fitted, whitening.whiten(fitted, fresh))
  assert back.dtype == dtype
  np.testing.assert_allclose(back, fresh, atol=tolerance)


def test_axes_before_those_of_an_image_are_kept():
  fitted, images = whitening.fit(_images()), _images(6, seed=1)
  np.testing.assert_array_equal(whitening.whiten(fitted, images.reshape(2, 3, 2, 3, 1)),
                                whitening.whiten(fitted, images).reshape(2, 3, 2, 3, 1))


def test_on_a_device_it_is_the_same_product():
  images = _images()
  fitted = whitening.fit(images)
  fresh = _images(5, seed=1)
  np.testing.assert_allclose(whitening.apply_product(whitening.as_product(fitted), fresh),
                             whitening.whiten(fitted, fresh), rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="regularization must be positive; got 0"):
    whitening.fit(_images(), regularization=0)
  with pytest.raises(ValueError, match="images must differ to be whitened; got 3 that are alike"):
    whitening.fit(np.ones((3, 2, 2, 1), np.float32))
  with pytest.raises(ValueError, match="got 1000 that are alike"):  # Their mean is not exact.
    whitening.fit(np.full((1000, 2, 2, 1), .1, np.float32))
  fitted = whitening.fit(_images())
  for function in (whitening.whiten, whitening.restore):
    with pytest.raises(ValueError, match="images must have H W C = 6 .*; got 4"):
      function(fitted, np.zeros((1, 2, 2, 1)))
