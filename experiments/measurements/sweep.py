"""Runs of one config with one thing varied, their table and their plot."""

import csv
import io
import os

from ml_collections import ConfigDict
import numpy as np

from dd_jax.files import atomic
from dd_jax.runs import accuracies
from dd_jax.runs import plots
from dd_jax.runs import workdirs
from dd_jax.runs.settings import check_seed
from experiments import problem
from experiments.configs import mnist_ingredients

# Study -> its axis, and the fields of every run by what stands at the axis.
STUDIES = {
    "steps": ("distill steps S", {s: {"distill.num_steps": s} for s in (1, 2, 5, 10, 20)}),
    "epochs": ("distill epochs E", {e: {"distill.num_epochs": e} for e in (1, 2, 3, 5, 10)}),
    "images": ("images per class and step",
               {k: {"distill.images_per_class": k} for k in (1, 2, 5, 10)}),
    "shape": ("steps x images per class", {
        f"{s} x {10 // s}": {"distill.num_steps": s, "distill.images_per_class": 10 // s}
        for s in (1, 2, 5, 10)}),
    "inits": ("initialisations N per outer step",
              {n: {"outer.num_inits": n} for n in (1, 2, 4, 8)}),
    "epsilon": ("change of a pixel at most, of 255",
                {e: {"distill.epsilon": e / 255} for e in (8, 16, 32, 64)}),
    "ingredients": ("ingredient", mnist_ingredients.INGREDIENTS),
}


def sweep(config: ConfigDict, workdir: str | os.PathLike, study: str, seeds: list[int]) -> dict:
  """Runs the study; returns its rows, as DIR/STUDY.csv holds them.

  Of one seed a row has the mean and standard deviation over the held-out networks; of several,
  over the seeds' means.

  Raises:
    ValueError, OSError, FloatingPointError: as of `runs.distill`.
  """
  if study == "epsilon" and config.distill.images != "perturbed":
    raise ValueError("--study=epsilon must go with distill.images='perturbed', which alone has a "
                     f"bound; got {config.distill.images!r}")
  for seed in seeds:
    check_seed("--seeds", seed)
  if not seeds or len({*seeds}) < len(seeds):
    raise ValueError(f"--seeds must be one or more, each once; got {seeds}")
  with workdirs.held(workdir) as workdir:
    return _sweep(config, workdir, study, seeds)


def _sweep(config, workdir, study, seeds):
  """As `sweep`, in a directory that is held."""
  axis, values = STUDIES[study]
  rows = []
  for value, fields in values.items():
    results = []
    for seed in seeds:
      varied = config.copy_and_resolve_references()
      varied.update_from_flattened_dict({**fields, "seed": seed})
      name = f"{study}-{str(value).replace(' ', '')}"
      results.append(problem.distill(
          varied, workdir / (name if len(seeds) == 1 else f"{name}-seed{seed}")).figures)
    rows.append({axis: value, **_measured(results), "num_seeds": len(seeds), **{
        name: results[0][name] for name in (
            "num_eval_inits", "num_distilled_images", "learned_bytes", "outer_steps")},
                 "wall_seconds": sum(result["wall_seconds"] for result in results) / len(seeds)})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_bytes(workdir / f"{study}.csv", text.getvalue().encode())
  headline = accuracies.names_of(rows[0])[0]
  scale = accuracies.factor(headline)
  unit = "% of test examples" if accuracies.is_share(headline) else accuracies.label(headline)
  plots.study(workdir / f"{study}.png", axis, [row[axis] for row in rows], {
      accuracies.label(name): [
          (scale * row[f"{name}_mean"], scale * row[f"{name}_std"]) for row in rows]
      for name in accuracies.of_one_axis(rows[0])}, unit,
      f"{config.data.name}, {config.model.name}, {config.init.name} init, "
      f"{rows[0]['num_eval_inits']} held-out networks, {len(seeds)} "
      f"{'seed' if len(seeds) == 1 else 'seeds'}")
  return {"study": study, "rows": rows}


def _measured(results):
  """Means and standard deviations of one seed, or over several."""
  measured = {}
  for name in accuracies.names_of(results[0]):
    means = np.array([result[f"{name}_mean"] for result in results])
    measured |= {f"{name}_mean": means.mean(), f"{name}_std": (
        results[0][f"{name}_std"] if len(results) == 1 else means.std(ddof=1))}
  return measured
