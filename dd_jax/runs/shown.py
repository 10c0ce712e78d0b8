"""Distilled examples as a report shows them: pictures, or what they are in words and numbers."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dd_jax.files import pictures
from dd_jax.files.artifacts import Artifact
from dd_jax.runs import plots

MOST = 400  # Shown of one run; a page of more is slow.
_MAX_EVOLVING = 10


def num_examples(artifact: Artifact) -> int:
  """S times B."""
  return int(artifact.distilled.labels.shape[0] * artifact.distilled.labels.shape[1])


def has_pictures(artifact: Artifact) -> bool:
  """Whether the inputs are images that can be shown."""
  return "mean" in artifact.metadata and artifact.distilled.inputs.shape[-1] in (1, 3)


def distilled_steps(artifact: Artifact, names: tuple[str, ...]) -> list[dict[str, Any]]:
  """Of each distill step: its step sizes by epoch, and its images with their labels."""
  if not has_pictures(artifact):
    return []
  pixels = np.round(255 * artifact.pictures()).astype(np.uint8)
  labels = np.asarray(artifact.distilled.labels)
  steps, shown = [], 0
  for s, (batch, batch_labels) in enumerate(zip(pixels, labels)):
    batch = batch[:max(0, MOST - shown)]
    shown += len(batch)
    if len(batch):
      steps.append({
          "sizes": [f"{size:.3g}" for size in np.asarray(artifact.distilled.step_sizes)[:, s]],
          "images": [(_png(image), *_label(label, names))
                     for image, label in zip(batch, batch_labels)]})
  return steps


def _label(label, names):
  """Its class, and all of a soft label in words."""
  if label.ndim == 0:
    return plots.class_name(label, names), f"class {plots.class_name(label, names)}"
  order = np.argsort(-label)[:3]
  return plots.class_name(order[0], names), "soft label, largest: " + ", ".join(
      f"{plots.class_name(k, names)} ({label[k]:.2f})" for k in order)


def evolution(artifact: Artifact, snapshots: dict[int, dict]) -> list[tuple[int, str]]:
  """Rows of outer step and one picture of a few images."""
  if not snapshots or not has_pictures(artifact):
    return []
  return [(step, _png(pictures.image_grid(
      found["pixels"].reshape(1, -1, *found["pixels"].shape[2:])[:, :_MAX_EVOLVING] / 255.)))
          for step, found in snapshots.items()]


def _png(pixels):
  """A data URI; pixels `[H, W, C]` as uint8, or floats in 0..1."""
  if pixels.dtype != np.uint8:
    pixels = np.round(255 * pixels).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
      buffer, "png", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def readable(artifact: Artifact, names: tuple[str, ...]) -> dict[str, Any] | None:
  """What the distilled inputs are in words: columns, and rows of step, label and values."""
  found = artifact.metadata.get("readable")
  if not found:
    return None
  labels, rows = np.asarray(artifact.distilled.labels), []
  for s, batch in enumerate(found["rows"]):
    for b, values in enumerate(batch):
      of_targets = artifact.metadata.get("targets")
      rows.append((s, *(_label(labels[s, b], names) if not of_targets else
                        _target(labels[s, b], of_targets)), values))
  return {"what": found["what"], "columns": found["columns"], "rows": rows[:MOST]}


def _target(label, targets):
  """Targets in their own units, and their names."""
  values = label * np.asarray(targets["std"]) + np.asarray(targets["mean"])
  text = ", ".join(f"{value:.4g}" for value in values)
  return text, ", ".join(targets["names"])
