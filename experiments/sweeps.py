"""Runs of one config with one thing varied, their table and their plot."""

import csv
import io
import os
import pathlib

from ml_collections import ConfigDict

from dd_jax import artifacts
from experiments import figures
from experiments import train

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
}
_FIGURES = {"accuracy": "accuracy", "attack_success": "attack class read as target",
            "others_accuracy": "accuracy of the other classes"}


def sweep(config: ConfigDict, workdir: str | os.PathLike, study: str) -> dict:
  """Runs the study; returns its rows, as DIR/STUDY.csv holds them.

  Raises:
    ValueError, OSError, FloatingPointError: as of `train.distill_and_evaluate`.
  """
  workdir = pathlib.Path(workdir)
  axis, values = STUDIES[study]
  rows = []
  for value, fields in values.items():
    varied = config.copy_and_resolve_references()
    varied.update_from_flattened_dict(fields)
    result = train.distill_and_evaluate(
        varied, workdir / f"{study}-{str(value).replace(' ', '')}")
    measured = {f"{name}_{suffix}": result[f"{name}_{suffix}"] for name in _FIGURES
                for suffix in ("mean", "std") if f"{name}_{suffix}" in result}
    rows.append({axis: value, **measured, "num_eval_inits": result["num_eval_inits"],
                 "num_distilled_images": result["num_distilled_images"],
                 "outer_steps": result["outer_steps"], "wall_seconds": result["wall_seconds"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    artifacts.write_atomically(workdir / f"{study}.csv",
                               lambda file, text=text: file.write(text.getvalue().encode()))
  figures.study(workdir / f"{study}.png", axis, [row[axis] for row in rows], {
      label: [(row[f"{name}_mean"], row[f"{name}_std"]) for row in rows]
      for name, label in _FIGURES.items() if f"{name}_mean" in rows[0]},
      f"{config.data.name}, {config.model.name}, {config.init.name} init, "
      f"{rows[0]['num_eval_inits']} held-out networks")
  return {"study": study, "rows": rows}
