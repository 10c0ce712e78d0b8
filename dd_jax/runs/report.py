"""From the files of finished runs to one page of HTML."""

import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jinja2
import numpy as np

from dd_jax.files import artifacts
from dd_jax.files import atomic
from dd_jax.runs.charts import histogram
from dd_jax.runs.charts import line_chart
from dd_jax.runs.charts import scatter
from dd_jax.runs import accuracies
from dd_jax.runs import plots
from dd_jax.runs import paths
from dd_jax.runs import shown
from dd_jax.runs import snapshots
from dd_jax.runs import workdirs

_MAX_CLASSES = 25  # Of a confusion matrix that can still be read.
_MAX_POINTS = 1000  # Of a scatter of predictions.
_MOMENTS = ("mean", "std", "before_mean", "before_std")
_NUMBERS = ("num_eval_inits", "num_distilled_images", "outer_steps", "seed", "wall_seconds",
            "compile_seconds", "seconds_per_outer_step")
_TEXTS = ("selection", "device", "dd_jax_version", "jax_version")


class FinishedRun(NamedTuple):
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


def read_run(workdir: pathlib.Path, result: dict[str, Any] | None = None) -> FinishedRun:
  """Reads a run; `result` stands for a result.json that is not written yet.

  Raises:
    ValueError: the directory does not hold a finished run, or a file of it is damaged.
  """
  if result is None:
    if not (workdir / "result.json").is_file():
      raise ValueError(f"{workdir} must hold a finished run; it has no result.json")
    result = _read_json(workdir / "result.json")
  _check_result(workdir / "result.json", result)
  return FinishedRun(
      workdir.resolve().name, result["config"], result,
      _read_metrics(workdir / "metrics.jsonl", result["outer_steps"]),
      artifacts.load(workdir / "distilled.npz"), snapshots.load_evaluation(workdir),
      snapshots.load_images(workdir))


def write(path: pathlib.Path, runs: list[FinishedRun], usual: dict[str, Any]) -> None:
  """One page: each run by itself and, of several, how they compare."""
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  text = environment.get_template("report.html.jinja").render(
      runs=[_view(run, usual) for run in runs],
      comparison=_comparison(runs) if len(runs) > 1 else None)
  atomic.write_bytes(path, text.encode())


def _view(run, usual):
  """What the template shows of one run."""
  result = run.result
  names = run.artifact.class_names
  score, label, factor = _score(result)
  plotted = accuracies.of_one_axis(result)
  charts = [
      line_chart("Outer loss", "on real training examples",
                  {"outer loss": [(line["step"], line["loss"]) for line in run.metrics]}),
      line_chart(f"{_upper(label)} while distilling",
                 _of_validation(factor),
                 dict(itertools.chain.from_iterable(
                     _while_distilling(run, name, alone=len(plotted) == 1) for name in plotted)))]
  return {
      "name": run.name, "title": title(run.artifact.metadata), "result": result,
      "score": accuracies.mean_std(result, score), "measures": _measures(run),
      "scored": "of the test set" if score == "accuracy" else f"{label} on the test set",
      "readable": shown.readable(run.artifact, names), "scatters": _scatters(run),
      "steps": shown.distilled_steps(run.artifact, names), "has_step_sizes": not _is_ridge(run),
      "hidden": shown.num_examples(run.artifact) - shown.MOST,
      "num_images": shown.num_examples(run.artifact),
      "evolution": shown.evolution(run.artifact, run.snapshots), "charts": charts,
      "histogram": _histogram(run, score),
      "source": run.artifact.metadata.get("init", {}).get("source"),
      "confusion": _confusion(run, names), "facts": _facts(run),
      "changed": _changed(run.config, usual), "config": json.dumps(run.config, indent=2)}


def title(metadata: dict[str, Any]) -> str:
  """What a run is, in a few words: the names of its data, network and init, where they have any."""
  init = (metadata.get("init") or {}).get("name")
  names = metadata.get("dataset"), metadata.get("model"), init and f"{init} init"
  return ", ".join(name for name in names if name)


def _score(result):
  """The figure that a run is known by: its name, what it is called, and 100 of a share."""
  name = accuracies.names_of(result)[0]
  return name, accuracies.label(name), accuracies.factor(name)


def _histogram(run, name):
  """Of several networks the figure of each, where it was kept."""
  if run.evaluation is None or f"after_{name}" not in run.evaluation or (
      len(run.evaluation["after_loss"]) < 2):
    return None
  return histogram(run.evaluation, name,
                   f"test {accuracies.label(name)}{', %' * accuracies.is_share(name)}",
                   accuracies.factor(name))


def _of_validation(factor):
  return "% of validation examples" if factor == 100 else "on validation examples"


def _upper(text):
  return text[0].upper() + text[1:]


def _validated(run, name):
  """`[(outer step, its validation figure)]`."""
  return [(line["step"], accuracies.factor(name) * line[f"validation_{name}"])
          for line in run.metrics if f"validation_{name}" in line]


def _while_distilling(run, name, *, alone):
  """Two lines of a chart, by name: the validation figure, and where the final test ended."""
  validated, label = _validated(run, name), accuracies.label(name)
  tested = accuracies.factor(name) * run.result[f"{name}_mean"]
  prefix = "" if alone else f"{label}, "
  return ((f"{prefix}validation", validated),
          (f"{prefix}test, at the end: {accuracies.shown(name, run.result[f'{name}_mean'])}"
           f"{accuracies.unit(name)}",
           [(step, tested) for step, _ in validated]))


def _measures(run):
  """Rows of name, before, after; of an adaptation, before is no adaptation."""
  first, *others = accuracies.names_of(run.result)
  return [(label, *(accuracies.mean_std(run.result, name, when) for when in ("_before", "")))
          for name, label in ((first, f"test {accuracies.label(first)}"),
                              *((name, accuracies.label(name)) for name in others))]


def _scatters(run):
  """Of each target, the test examples' against what the first network tested predicts."""
  if run.evaluation is None or "predictions" not in run.evaluation:
    return []
  targets = run.artifact.metadata["targets"]
  return [scatter(f"{name}, test examples", [
      (float(known), float(found)) for known, found in zip(
          std * run.evaluation["targets"][:_MAX_POINTS, d] + mean,
          std * run.evaluation["predictions"][:_MAX_POINTS, d] + mean)],
                  x_label="target", unit="prediction of one network")
          for d, (name, mean, std) in enumerate(zip(*(targets[field] for field in (
              "names", "mean", "std"))))]


def _facts(run):
  result = run.result
  return [("images", result["num_distilled_images"]),
          *([] if _is_ridge(run) else [("inner steps", run.artifact.distilled.step_sizes.size)]),
          ("learned bytes", f"{result.get('learned_bytes', 0):,}"),
          ("outer steps", f"{result['outer_steps']:,}"),
          *([("pixels, black to white", "{:.6g} to {:.6g}".format(*run.artifact.pixel_range))]
            if shown.has_pictures(run.artifact) else []),
          ("networks tested", result["num_eval_inits"]),
          ("selection", result["selection"]), ("seed", result["seed"]),
          ("device", result["device"]),
          ("wall time", f"{result['wall_seconds'] / 60:.1f} minutes, compilation "
                        f"{result['compile_seconds']:.0f} s"),
          ("an outer step", f"{1000 * result['seconds_per_outer_step']:.1f} ms"),
          ("peak memory", "not known" if result.get("peak_memory_bytes") is None else
           f"{result['peak_memory_bytes'] / 1e9:.2f} GB"),
          ("versions", f"dd_jax {result['dd_jax_version']}, JAX {result['jax_version']}")]


def _is_ridge(run):
  """Whether no step is taken, and step sizes have no part in what is trained."""
  return run.artifact.metadata.get("inner_algorithm") == "ridge"


def _changed(config, usual):
  """`(field, value, usual value)` of what differs from the usual config."""
  usual = workdirs.flatten(usual)
  return [(name, value, usual.get(name)) for name, value in workdirs.flatten(config).items()
          if value != usual.get(name)]


def _confusion(run, names):
  """`[(class, [share, ...]), ...]`: of each true class by predicted class, in %, mean over the
  networks tested.
  """
  if (run.evaluation is None or "after_confusion" not in run.evaluation
      or run.evaluation["after_confusion"].shape[-1] > _MAX_CLASSES):
    return None
  counts = run.evaluation["after_confusion"].sum(0)
  shares = (100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).tolist()
  return [(plots.class_name(label, names), row) for label, row in enumerate(shares)]


def _comparison(runs):
  """The table and the charts that several runs share."""
  configs = [workdirs.flatten(run.config) for run in runs]
  fields = list(dict.fromkeys(name for config in configs for name in config))
  names = [run.name if [r.name for r in runs].count(run.name) == 1 else f"{run.name} ({i + 1})"
           for i, run in enumerate(runs)]
  return {
      "names": names,
      "rows": [(accuracies.label(name), [
          accuracies.mean_std(run.result, name) if f"{name}_mean" in run.result else ""
          for run in runs]) for name in dict.fromkeys(itertools.chain.from_iterable(
              accuracies.names_of(run.result) for run in runs))]
              + [(label, [dict(_facts(run)).get(label, "") for run in runs])
                 for label in ("images", "inner steps", "outer steps", "networks tested",
                               "wall time", "device")],
      "differing": [(field, [config.get(field) for config in configs]) for field in fields
                    if len({json.dumps(config.get(field)) for config in configs}) > 1],
      "charts": [
          line_chart("Outer loss", "on real training examples", {
              name: [(line["step"], line["loss"]) for line in run.metrics]
              for name, run in zip(names, runs)}),
          *(line_chart(f"{_upper(label)} while distilling", _of_validation(factor), {
              name: _validated(run, score) for name, run in zip(names, runs)
              if _score(run.result)[0] == score})
            for score, label, factor in dict.fromkeys(_score(run.result) for run in runs))]}


def _check_result(path, result):
  if not isinstance(result, dict):
    raise ValueError(f"{path} must be that of a run; got {type(result).__name__}")
  missing = [] if isinstance(result.get("config"), dict) else ["config"]
  scores = accuracies.names_of(result) or ["accuracy"]
  missing += [name for name in (*(f"{scores[0]}_{moment}" for moment in _MOMENTS), *_NUMBERS)
              if not isinstance(result.get(name), (int, float))]
  if not isinstance(result.get("peak_memory_bytes"), (int, float, type(None))):
    missing.append("peak_memory_bytes")
  missing += [name for name in _TEXTS if not isinstance(result.get(name), str)]
  if missing:
    raise ValueError(f"{path} must be that of a run; missing, or of another type: {missing}")


def _read_metrics(path, last_step):
  """The lines, which end at the last outer step; of each, what the charts need."""
  lines = workdirs.read_lines(path, "step")
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
