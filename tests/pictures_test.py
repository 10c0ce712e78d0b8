"""dd_jax.files.pictures: grids; folders of pictures are tested with the other exports."""

import numpy as np
import pytest

from dd_jax.files import pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_image_grid(channels, gap):
  images = np.random.default_rng(0).random((2, 3, 4, 5, channels), np.float32)
  grid = pictures.image_grid(images, gap=gap)
  assert grid.shape == (2 * 4 + 3 * gap, 3 * 5 + 4 * gap, 3)
  white = np.ones(grid.shape[:2], bool)
  for row in range(2):
    for column in range(3):
      y, x = gap + row * (4 + gap), gap + column * (5 + gap)
      white[y:y + 4, x:x + 5] = False
      for channel in range(3):
        np.testing.assert_array_equal(grid[y:y + 4, x:x + 5, channel],
                                      images[row, column, :, :, min(channel, channels - 1)])
  assert np.all(grid[white] == 1)
  assert white.sum() == white.size - 6 * 20


def test_image_grid_has_a_gap_of_one_pixel():
  np.testing.assert_array_equal(
      pictures.image_grid(np.zeros((1, 2, 1, 1, 1)))[..., 0], [[1] * 5, [1, 0, 1, 0, 1], [1] * 5])


@pytest.mark.parametrize("channels", [2, 4])
def test_image_grid_channels(channels):
  with pytest.raises(ValueError, match=f"must have 1 or 3 channels to be shown; got {channels}"):
    pictures.image_grid(np.zeros((1, 1, 2, 2, channels)))
