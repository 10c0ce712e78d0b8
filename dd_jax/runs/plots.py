"""Pictures of a run: the distilled images with their step sizes, and its curves."""

import io
import pathlib

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dd_jax.files import atomic
from dd_jax.files import pictures
from dd_jax.runs import accuracies

_MAX_COLUMNS = 20  # A step with more images continues on further rows.
_MAX_ROWS = 100  # Of images; what a file holds beyond them is not drawn.
_MAX_EPOCHS = 10  # Whose step sizes are written beside them.
_MAX_LETTERS = 7  # Of a name above an image that is not turned.


def distilled_images(path: pathlib.Path, pixels: np.ndarray, labels: np.ndarray,
                     step_sizes: np.ndarray, title: str, class_names: tuple[str, ...] = ()
                     ) -> None:
  """One band per distill step, the step sizes of its epochs beside it; of the first hundred rows.

  Args:
    path: PNG to write.
    pixels: `[S, B, H, W, C]` in 0..1.
    labels: `[S, B]` hard labels, or `[S, B, K]`.
    step_sizes: `[E, S]`.
    title: above the picture.
    class_names: of the labels, or empty.
  """
  batch, num_epochs = pixels.shape[1], len(step_sizes)
  columns = min(batch, _MAX_COLUMNS)
  rows = -(-batch // columns)
  num_steps = min(len(pixels), max(1, _MAX_ROWS // rows))
  if num_steps < len(pixels):
    title += f"; the first {num_steps} of {len(pixels)} steps"
  step_sizes = step_sizes[:_MAX_EPOCHS]
  classes = labels if labels.ndim == 2 else labels.argmax(-1)
  figure, axes = plt.subplots(
      num_steps, 1, squeeze=False, layout="constrained",
      figsize=(columns * .62 + 1 + .72 * len(step_sizes), num_steps * (rows * .62 + .12) + .6))
  for step, axis in enumerate(axes[:, 0]):
    padded = np.ones((rows * columns, *pixels.shape[2:]), np.float32)
    padded[:batch] = pixels[step]
    axis.imshow(pictures.image_grid(padded.reshape(rows, columns, *pixels.shape[2:])),
                interpolation="nearest")
    axis.set_yticks([])
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.set_ylabel(f"step {step}", rotation=0, ha="right", va="center", fontsize=9)
    sizes = " ".join(f"{size:<7.3g}" for size in step_sizes[:, step])
    axis.text(1.01, .5, sizes, transform=axis.transAxes, va="center", fontsize=9,
              family="monospace")
  top = axes[0, 0]
  if rows == 1:
    width = pixels.shape[3] + 1
    names = [class_name(label, class_names) for label in classes[0]]
    top.set_xticks([width * (i + .5) for i in range(columns)], names, fontsize=8,
                   rotation=90 if max(map(len, names)) > _MAX_LETTERS else 0)
    top.xaxis.tick_top()
    top.tick_params(length=0)
  epochs = "epoch 0" if len(step_sizes) == 1 else f"epochs 0 to {len(step_sizes) - 1}"
  if len(step_sizes) < num_epochs:
    epochs += f" of {num_epochs}"
  top.text(1.01, 1.02, f"step sizes, {epochs}", transform=top.transAxes, va="bottom", fontsize=8)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def curves(path: pathlib.Path, metrics: list[dict], result: dict) -> None:
  """Outer loss, what is validated and hypergradient norm against the outer step.

  Args:
    path: PNG to write.
    metrics: lines of metrics.jsonl.
    result: of the final test; its figures are those shown.
  """
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
  steps = [line["step"] for line in metrics]
  axes[0].plot(steps, [line["loss"] for line in metrics])
  axes[0].set_ylabel("outer loss (real training examples)")
  names = accuracies.of_one_axis(result)
  for i, name in enumerate(names):
    label = accuracies.label(name)
    factor, tested = accuracies.factor(name), result[f"{name}_mean"]
    validated = [line for line in metrics if f"validation_{name}" in line]
    axes[1].plot([line["step"] for line in validated],
                 [factor * line[f"validation_{name}"] for line in validated], color=f"C{i}",
                 marker="." if len(validated) < 30 else None,
                 label="validation" if len(names) == 1 else label)
    axes[1].axhline(factor * tested, color="0.5" if len(names) == 1 else f"C{i}", linestyle="--",
                    label=f"test, final: {accuracies.shown(name, tested)}{accuracies.unit(name)}")
  axes[1].set_ylabel(("validation" if len(names) > 1 else label)
                     + " (%)" * accuracies.is_share(name))
  axes[1].legend(loc="lower right" if len(names) == 1 else "best", fontsize="small")
  axes[2].plot(steps, [line["hypergradient_norm"] for line in metrics])
  axes[2].set_yscale("log")
  axes[2].set_ylabel("norm of the hypergradient")
  for axis in axes:
    axis.set_xlabel("outer step")
    axis.grid(alpha=.3)
  save(figure, path)


def study(path: pathlib.Path, axis_label: str, values: list,
          measured: dict[str, list[tuple[float, float]]], unit: str, title: str) -> None:
  """Mean and standard deviation of every figure, in one unit, against what was varied."""
  figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
  for label, means_and_stds in measured.items():
    means, stds = np.array(means_and_stds).T
    axis.errorbar(range(len(values)), means, stds, marker="o", capsize=3, label=label,
                  linestyle="-" if isinstance(values[0], (int, float)) else "none")
  axis.set_xticks(range(len(values)), values,
                  rotation=90 if max(len(str(value)) for value in values) > 7 else 0)
  axis.set_xlabel(axis_label)
  axis.set_ylabel(unit)
  axis.set_title(title, fontsize=10)
  axis.grid(alpha=.3)
  figure.legend(loc="outside lower center", ncols=3)
  save(figure, path)


def class_name(label: int, names: tuple[str, ...]) -> str:
  """What a class is called where classes have `names` or, where there are none, numbers."""
  return names[label] if label < len(names) else str(label)


def save(figure: plt.Figure, path: pathlib.Path) -> None:
  """Writes a PNG, and closes the figure."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
  plt.close(figure)
  atomic.write_bytes(path, buffer.getvalue())
