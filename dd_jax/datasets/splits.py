"""What readers of one's own files are told, and what they give."""

from typing import Any, NamedTuple

import numpy as np

from dd_jax.datasets.rows import Rows


class Reading(NamedTuple):
  """How files of one's own are read, where they leave a choice."""
  image_shape: tuple[int, int, int] | None = None  # (H, W, C). None: that of the first picture.
  # What brings a picture to it: "border" adds one and nothing else; "stretch" resizes, whatever the
  # proportions; "crop" resizes to cover it and takes the centre.
  resize: str = "border"
  label: str = "label"  # The column of labels in CSV and parquet.
  # Of every class, where the files have no test split: which examples, the labels alone decide.
  test_fraction: float = 1 / 6
  in_files: bool = False  # Images that can be read one by one stay where they are, as `Rows`.


class Splits(NamedTuple):
  """What a reader gives; `labels.as_classes` makes classes of the labels."""
  train_images: np.ndarray | Rows  # [n, H, W, C] uint8, uint16, float32 or float64
  train_labels: np.ndarray  # [n], of any kind
  test_images: np.ndarray | Rows | None  # None: one split, of which a fraction is for testing.
  test_labels: np.ndarray | None
  class_names: tuple[str, ...] = ()  # Of the labels 0..K-1, where the files name them.


def check_shape(image_shape: Any) -> None:
  """A ValueError unless it is (H, W, C)."""
  if not (isinstance(image_shape, (tuple, list)) and len(image_shape) == 3 and all(
      isinstance(size, (int, np.integer)) and size > 0 for size in image_shape)):
    raise ValueError("image_shape must be three positive integers (H, W, C); "
                     f"got {image_shape}")
