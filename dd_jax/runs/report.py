"""From the files of finished runs to one page of HTML."""

import base64
import io
import json
import pathlib
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from dd_jax.files import artifacts
from dd_jax.files import pictures
from dd_jax.datasets import npz
from dd_jax.runs.charts import histogram
from dd_jax.runs.charts import line_chart
from dd_jax.runs import figures
from dd_jax.runs import paths
from dd_jax.runs import snapshots
from dd_jax.runs import workdirs

_MAX_IMAGES = 400  # Shown of one run; a page of more is slow.
_MAX_EVOLVING = 10
_MAX_CLASSES = 25  # Of a confusion matrix that can still be read.
_MEASURES = {"accuracy": "test accuracy", "attack_success": "attack class read as target",
             "others_accuracy": "accuracy on the other classes"}
_NUMBERS = ("accuracy_mean", "accuracy_std", "accuracy_before_mean", "accuracy_before_std",
            "num_eval_inits", "num_distilled_images", "outer_steps", "seed", "wall_seconds",
            "compile_seconds", "seconds_per_outer_step")
_TEXTS = ("selection", "device", "dd_jax_version", "jax_version")


class Run(NamedTuple):
  """What a finished run left in its directory."""
  name: str
  config: dict[str, Any]
  result: dict[str, Any]
  metrics: list[dict[str, Any]]
  artifact: artifacts.Artifact
  evaluation: dict[str, np.ndarray] | None
  snapshots: dict[int, dict[str, np.ndarray]]


def report(directories: list[str], out: str | None, usual: dict[str, Any]) -> dict[str, str]:
  """Writes the page about the runs in the directories; returns where it is.

  `usual` is a config whose values go without saying.

  Raises:
    ValueError, OSError: no directory, one without a finished run, or a damaged file.
  """
  if not directories:
    raise ValueError("at least one directory of a finished run must be given; got none")
  if out is None and len(directories) > 1:
    raise ValueError("--out must be given for several runs; got none")
  runs = [paths.local(directory, "a run's directory") for directory in directories]
  path = runs[0] / "report.html" if out is None else paths.local(out, "--out")
  write(path, [read_run(run) for run in runs], usual)
  return {"report": str(path)}


def read_run(workdir: pathlib.Path, result: dict[str, Any] | None = None) -> Run:
  """Reads a run; `result` stands for a result.json that is not written yet.

  Raises:
    ValueError: the directory does not hold a finished run, or a file of it is damaged.
  """
  if result is None:
    if not (workdir / "result.json").is_file():
      raise ValueError(f"{workdir} must hold a finished run; it has no result.json")
    result = _read_json(workdir / "result.json")
  _check_result(workdir / "result.json", result)
  return Run(workdir.resolve().name, result["config"], result,
             _read_metrics(workdir / "metrics.jsonl", result["outer_steps"]),
             artifacts.load(workdir / "distilled.npz"), snapshots.load_evaluation(workdir),
             snapshots.load_images(workdir))


def write(path: pathlib.Path, runs: list[Run], usual: dict[str, Any]) -> None:
  """One page: each run by itself and, of several, how they compare."""
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  text = environment.get_template("report.html.jinja").render(
      runs=[_view(run, usual) for run in runs],
      comparison=_comparison(runs) if len(runs) > 1 else None)
  npz.write_atomically(path, lambda file: file.write(text.encode()))


def _view(run, usual):
  """What the template shows of one run."""
  result = run.result
  names = run.artifact.class_names
  validated = [line for line in run.metrics if "validation_accuracy" in line]
  charts = [
      line_chart("Outer loss", "on real training images",
                  {"outer loss": [(line["step"], line["loss"]) for line in run.metrics]}),
      line_chart("Accuracy while distilling", "% of validation images",
                  {"validation": [(line["step"], 100 * line["validation_accuracy"])
                                  for line in validated],
                   f"test, at the end: {_percent(result['accuracy_mean'])} %":
                       [(line["step"], 100 * result["accuracy_mean"]) for line in validated]})]
  return {
      "name": run.name, "title": title(run.artifact.metadata), "result": result,
      "accuracy": _mean_std(result, "accuracy"), "measures": _measures(run),
      "steps": _distilled_steps(run, names), "hidden": _num_images(run) - _MAX_IMAGES,
      "num_images": _num_images(run), "evolution": _evolution(run), "charts": charts,
      "histogram": None if run.evaluation is None or len(run.evaluation["after_accuracy"]) < 2
                   else histogram(run.evaluation),
      "source": run.artifact.metadata.get("init", {}).get("source"),
      "confusion": _confusion(run, names), "facts": _facts(run),
      "changed": _changed(run.config, usual), "config": json.dumps(run.config, indent=2)}


def title(metadata: dict[str, Any]) -> str:
  """What a run is, in a few words: the names of its data, network and init, where they have any."""
  init = (metadata.get("init") or {}).get("name")
  names = metadata.get("dataset"), metadata.get("model"), init and f"{init} init"
  return ", ".join(name for name in names if name)


def _percent(fraction):
  return f"{100 * fraction:.1f}"


def _mean_std(result, name):
  text = _percent(result[f"{name}_mean"])
  return (text if result["num_eval_inits"] == 1 else
          f"{text} ± {_percent(result[f'{name}_std'])}")


def _measures(run):
  """Rows of name, before, after; of an adaptation, before is no adaptation."""
  return [(label, _mean_std(run.result, f"{name}_before"), _mean_std(run.result, name))
          for name, label in _MEASURES.items() if f"{name}_mean" in run.result]


def _facts(run):
  result = run.result
  return [("images", result["num_distilled_images"]),
          ("inner steps", run.artifact.distilled.step_sizes.size),
          ("learned bytes", f"{result.get('learned_bytes', 0):,}"),
          ("outer steps", f"{result['outer_steps']:,}"),
          *([("pixels, black to white", "{:.6g} to {:.6g}".format(*run.artifact.pixel_range))]
            if _has_pictures(run) else []),
          ("networks tested", result["num_eval_inits"]),
          ("selection", result["selection"]), ("seed", result["seed"]),
          ("device", result["device"]),
          ("wall time", f"{result['wall_seconds'] / 60:.1f} minutes, compilation "
                        f"{result['compile_seconds']:.0f} s"),
          ("an outer step", f"{1000 * result['seconds_per_outer_step']:.1f} ms"),
          ("peak memory", "not known" if result.get("peak_memory_bytes") is None else
           f"{result['peak_memory_bytes'] / 1e9:.2f} GB"),
          ("versions", f"dd_jax {result['dd_jax_version']}, JAX {result['jax_version']}")]


def _changed(config, usual):
  """`(field, value, usual value)` of what differs from the usual config."""
  usual = workdirs.flatten(usual)
  return [(name, value, usual.get(name)) for name, value in workdirs.flatten(config).items()
          if value != usual.get(name)]


# Images


def _num_images(run):
  return int(run.artifact.distilled.labels.shape[0] * run.artifact.distilled.labels.shape[1])


def _has_pictures(run):
  return "mean" in run.artifact.metadata and run.artifact.distilled.inputs.shape[-1] in (1, 3)


def _distilled_steps(run, names):
  """Of each distill step: its step sizes by epoch, and its images with their labels."""
  if not _has_pictures(run):
    return []
  pixels = np.round(255 * run.artifact.pictures()).astype(np.uint8)
  labels = np.asarray(run.artifact.distilled.labels)
  steps, shown = [], 0
  for s, (batch, batch_labels) in enumerate(zip(pixels, labels)):
    batch = batch[:max(0, _MAX_IMAGES - shown)]
    shown += len(batch)
    if len(batch):
      steps.append({
          "sizes": [f"{size:.3g}" for size in np.asarray(run.artifact.distilled.step_sizes)[:, s]],
          "images": [(_png(image), *_label(label, names))
                     for image, label in zip(batch, batch_labels)]})
  return steps


def _label(label, names):
  """Its class, and all of a soft label in words."""
  if label.ndim == 0:
    return figures.class_name(label, names), f"class {figures.class_name(label, names)}"
  order = np.argsort(-label)[:3]
  return figures.class_name(order[0], names), "soft label, largest: " + ", ".join(
      f"{figures.class_name(k, names)} ({label[k]:.2f})" for k in order)


def _evolution(run):
  """Rows of outer step and one picture of a few images."""
  if not run.snapshots or not _has_pictures(run):
    return []
  return [(step, _png(pictures.image_grid(
      found["pixels"].reshape(1, -1, *found["pixels"].shape[2:])[:, :_MAX_EVOLVING] / 255.)))
          for step, found in run.snapshots.items()]


def _png(pixels):
  """A data URI; pixels `[H, W, C]` as uint8, or floats in 0..1."""
  if pixels.dtype != np.uint8:
    pixels = np.round(255 * pixels).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
      buffer, "png", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _confusion(run, names):
  """`[(class, [share, ...]), ...]`: of each true class by predicted class, in %, mean over the
  networks tested.
  """
  if run.evaluation is None or run.evaluation["after_confusion"].shape[-1] > _MAX_CLASSES:
    return None
  counts = run.evaluation["after_confusion"].sum(0)
  shares = (100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).tolist()
  return [(figures.class_name(label, names), row) for label, row in enumerate(shares)]


def _comparison(runs):
  """The table and the charts that several runs share."""
  configs = [workdirs.flatten(run.config) for run in runs]
  fields = list(dict.fromkeys(name for config in configs for name in config))
  names = [run.name if [r.name for r in runs].count(run.name) == 1 else f"{run.name} ({i + 1})"
           for i, run in enumerate(runs)]
  return {
      "names": names,
      "rows": [(label, [_mean_std(run.result, name) if f"{name}_mean" in run.result else ""
                        for run in runs])
               for name, label in _MEASURES.items()
               if any(f"{name}_mean" in run.result for run in runs)]
              + [(label, [dict(_facts(run))[label] for run in runs])
                 for label in ("images", "inner steps", "outer steps", "networks tested",
                               "wall time", "device")],
      "differing": [(field, [config.get(field) for config in configs]) for field in fields
                    if len({json.dumps(config.get(field)) for config in configs}) > 1],
      "charts": [
          line_chart("Outer loss", "on real training images", {
              name: [(line["step"], line["loss"]) for line in run.metrics]
              for name, run in zip(names, runs)}),
          line_chart("Accuracy while distilling", "% of validation images", {
              name: [(line["step"], 100 * line["validation_accuracy"]) for line in run.metrics
                     if "validation_accuracy" in line] for name, run in zip(names, runs)})]}


def _check_result(path, result):
  if not isinstance(result, dict):
    raise ValueError(f"{path} must be that of a run; got {type(result).__name__}")
  missing = [] if isinstance(result.get("config"), dict) else ["config"]
  missing += [name for name in _NUMBERS if not isinstance(result.get(name), (int, float))]
  if not isinstance(result.get("peak_memory_bytes"), (int, float, type(None))):
    missing.append("peak_memory_bytes")
  missing += [name for name in _TEXTS if not isinstance(result.get(name), str)]
  if missing:
    raise ValueError(f"{path} must be that of a run; missing, or of another type: {missing}")


def _read_metrics(path, last_step):
  """The lines, which end at the last outer step; of each, what the charts need."""
  lines = figures.read_metrics(path)
  found = lines[-1]["step"] if lines else "nothing"
  if found != last_step:
    raise ValueError(f"{path} must end at outer step {last_step}; it ends at {found}")
  if not all(isinstance(line.get("loss"), float) for line in lines):
    raise ValueError(f"{path} must have a loss in every line")
  return lines


def _read_json(path):
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} must be JSON; it is damaged: {error}") from error
