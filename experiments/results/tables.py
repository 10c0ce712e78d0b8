"""Writes the tables of experiments/README.md, BUILD_NOTES.md and two guides from files.

    cp runs/mnist/result.json experiments/results/mnist_fixed_init-seed0.json
    cp pools/mnist_lenet_pool/result.json experiments/results/pools/mnist_lenet_pool.json
    cp runs/baselines/baselines.json experiments/results/baselines/mnist_random_init.json
    cp runs/transfer/transfer.json \\
      experiments/results/transfers/mnist_random_soft_labels-seed0.json
    cp runs/mnist/distilled.npz experiments/results/distilled/mnist_fixed_init-seed0.npz
    cp runs/ingredients/ingredients.csv \\
      experiments/measurements/studies/mnist_ingredients-ingredients.csv
    python -m experiments.results.tables

A file of a run is its result.json, named CONFIG-seedSEED.json, or CONFIG-NOTE-seedSEED.json for a
run that overrode its config; of a row the runs of the newest code count, where versions/*.json
(experiments.measurements.same_figures) say which codes are one. Those of the bench are
measurements/bench_1.json, bench_2.json and so on. Every number of the tables comes from these.
"""

import csv
import json
import pathlib

from absl import app
import numpy as np

from experiments import launcher
from experiments.results import paper
from experiments.results import published
from experiments.results import transfers
from experiments.results.files import (config_and_note, ended_by, last, link, markdown, mean_std,
                                       percent, read_all, read_runs, same_figures)

_HERE = pathlib.Path(__file__).parent.parent
_MARK = "<!-- from here on: python -m experiments.results.tables -->\n"
_BASELINES = ("random_real", "optimized_real", "kmeans", "average_real")
_BESIDE = ("all_real", "boosted_trees_all_real", "boosted_trees_random_real")


_MERGED = {"low": "the digits 0 to 4, tested on these",
           "high": "the digits 5 to 9, tested on these",
           "merged": "both files merged, tested on all", "all": "all ten at once"}


def runs_table(runs: dict[str, list[dict]], pools: dict[str, dict]) -> str:
  """One row a config: paper's figure, obtained figure, and what it took."""
  rows = [("row", "config", "images", "paper", "obtained, % of the test set", "seeds",
           "held-out networks a seed", "outer steps", "minutes a seed", "hardware, JAX")]
  newest = ended_by(last([result for results in runs.values() for result in results]))
  for name, results in runs.items():
    config, note = config_and_note(name)
    title, published = paper.ROWS[config]
    first = results[0]
    minutes = np.mean([result["wall_seconds"] for result in results]) / 60
    rows.append((title, link(config, note), first["num_distilled_images"], published,
                 _obtained(results, pools) + _mark(results, newest), len(results),
                 first["num_eval_inits"], first["outer_steps"], f"{minutes:.1f}",
                 f"{first['device']}, {first['jax_version']}"))
  for config, reason in paper.NOT_RUN.items():
    if config not in runs and (_HERE / f"configs/{config}.py").exists():
      title, published = paper.ROWS[config]
      rows.append((title, link(config, []), "", published, reason, "", "", "", "", ""))
  return markdown(rows)


def baselines_table(baselines: dict[str, dict], runs: dict[str, list[dict]]) -> str:
  """One row a config: the distilled images and every baseline of the same budget.

  Of poisoning, the share of the attack class read as the target and the accuracy of the others; of
  targets R2.
  """
  rows = [("config", "images", "distilled", "random real", "optimized real", "k-means",
           "average real", "networks on all real", "trees on all real", "trees on random real",
           "1-NN on random real", "1-NN on k-means", "held-out networks")]
  for name, result in baselines.items():
    config, note = config_and_note(name)
    figures = result["baselines"]
    measures = (("attack_success", "others_accuracy")
                if "attack_success_mean" in figures["kmeans"] else
                ("r2",) if "r2_mean" in figures["kmeans"] else ("accuracy",))
    cells = [_of_baseline(figures[baseline], measures) if baseline in figures else ""
             for baseline in (*_BASELINES, *_BESIDE)]
    cells += [mean_std(figures[baseline], "nearest_neighbor")
              for baseline in ("random_real", "kmeans")]
    rows.append((link(config, note), result["num_distilled_images"],
                 _distilled(runs, name, result["num_distilled_images"], measures), *cells,
                 result["num_eval_inits"]))
    if config in paper.BASELINES:
      *sets, random_nn, kmeans_nn = paper.BASELINES[config]
      rows.append(("the paper", "", paper.ROWS[config][1], *sets, "", "", "", random_nn, kmeans_nn,
                   200))
  return markdown(rows)


def _of_baseline(figures, measures):
  """The measures, and the number of networks where it is another than that of the row."""
  number = figures.get("num_networks")
  return ("; ".join(mean_std(figures, measure) for measure in measures)
          + ("" if number is None else f" ({number} networks)"))


def pools_table(pools: dict[str, dict]) -> str:
  """One row a pool."""
  rows = [("pool", "networks to distil with: number, test accuracy %",
           "held-out networks: number, test accuracy %", "epochs", "minutes", "hardware, JAX")]
  for name, result in pools.items():
    rows.append((
        link(*config_and_note(name)),
        *(f"{result[f'num_{role}']}: {mean_std(result, f'{role}_accuracy')}"
          for role in ("train", "heldout")),
        result["config"]["pool"]["num_epochs"], f"{result['train_seconds'] / 60:.0f}",
        f"{result['device']}, {result['jax_version']}"))
  return markdown(rows)


def ingredients_table(path: pathlib.Path) -> str:
  """One row an ingredient of later work, alone; the last row has most of them together."""
  rows = [("ingredient", "test accuracy %, mean and deviation over seeds", "seeds",
           "held-out networks a seed", "images", "learned bytes", "outer steps", "minutes a seed")]
  with path.open() as file:
    for row in csv.DictReader(file):
      figures = {name: float(row[name]) for name in ("accuracy_mean", "accuracy_std")}
      rows.append((row["ingredient"], mean_std(figures, "accuracy"), row["num_seeds"],
                   row["num_eval_inits"], row["num_distilled_images"], row["learned_bytes"],
                   row["outer_steps"], f"{float(row['wall_seconds']) / 60:.1f}"))
  return markdown(rows)


def bench_table(runs: list[dict]) -> str:
  """One row a setting: seconds of the first run, ratio and speed of each (old runs have one)."""
  ratios = [f"ratio {i + 1} (2048 product, GFLOP/s)" for i in range(len(runs))]
  rows = [("setting", "ours s", "PyTorch s", *ratios, "by hand / ours",
           "target", "aim", "compile s", "temporary MB", "authors' release s")]
  by_name = [{row["name"]: {"matmul_gflops": run["machine"].get("matmul_gflops"), **row}
              for row in run["settings"]} for run in runs]
  for name, (target, aim, release) in paper.BENCH_ROWS.items():
    timed = [run[name] for run in by_name if name in run]
    if not timed:
      continue
    row, by_hand = timed[0], [each.get("ratio_by_hand") for each in timed]
    rows.append((f"`{name}`", f"{row['seconds_ours']:.3g}",
                 f"{row['seconds_torch']:.3g}" if "seconds_torch" in row else "",
                 *(f"{run[name]['ratio']:.2f} ({run[name]['matmul_gflops']:.0f})"
                   if "ratio" in run.get(name, {}) else "" for run in by_name),
                 ", ".join(f"{ratio:.1f}" for ratio in by_hand if ratio), target, aim,
                 f"{row['compile_seconds']:.1f}", f"{row['temporary_bytes'] / 1e6:.0f}", release))
  return markdown(rows)


def render_bench(text: str, measurements: pathlib.Path = _HERE / "measurements") -> str:
  """The build notes' text with the bench's table made anew; as it was where no run is kept."""
  runs = [json.loads(path.read_text()) for path in sorted(measurements.glob("bench_[0-9].json"))]
  return _between("bench", text, bench_table(runs)) if runs else text


def render_ways(text: str, results: pathlib.Path = _HERE / "results") -> str:
  """The text of docs/five_ways.md with its table made anew."""
  return _between("ways", text, transfers.ways_table(*_runs_and_transfers(results)))


def render_merging(text: str, measurements: pathlib.Path = _HERE / "measurements") -> str:
  """The text of docs/merging.md with its table made anew; as it was where no run is kept."""
  path = measurements / "merging.json"
  if not path.exists():
    return text
  report = json.loads(path.read_text())
  return _between("merging", text, markdown([
      ("images of", "test accuracy %", "held-out networks"),
      *((title, mean_std(report[name], "accuracy"), report["num_eval_inits"])
        for name, title in _MERGED.items())]))


def _between(name, text, table):
  """The text with the table between the marks of that name."""
  begin = f"<!-- {name}: python -m experiments.results.tables -->\n"
  end = f"<!-- end of {name} -->\n"
  if not 0 <= text.find(begin) < text.find(end):
    raise ValueError(f"the text must have the two marks of {name}, {begin.strip()} first")
  head, _, rest = text.partition(begin)
  return head + begin + "\n" + table + "\n" + end + rest.partition(end)[2]


def render(text: str, results: pathlib.Path = _HERE / "results",
           studies: pathlib.Path = _HERE / "measurements/studies") -> str:
  """The README's text with its generated part made anew."""
  head, mark, _ = text.partition(_MARK)
  if not mark:
    raise ValueError(f"the text must have the mark {_MARK.strip()}")
  (runs, transferred), pools = _runs_and_transfers(results), read_all(results / "pools")
  return (head + mark + "\n### Distilled data\n\n" + runs_table(runs, pools)
          + "\n† by an earlier version of the code than that of the newest row, which no "
            "comparison of short runs (results/versions) shows to give the same.\n"
          + "\n### Baselines of the same budget\n\n"
          + baselines_table(read_all(results / "baselines"), runs)
          + "\n### Pools of pre-trained networks\n\n" + pools_table(pools)
          + "\n### Ingredients of later work, one at a time\n\n"
          + ingredients_table(studies / "mnist_ingredients-ingredients.csv")
          + transfers.table(transferred)
          + published.table(results / "distilled") + published.others_table(results))


def _runs_and_transfers(results):
  same = same_figures(results / "versions")
  return read_runs(results, same), read_runs(results / "transfers", same)


def _mark(results, newest):
  """Where another code wrote or had begun one of them than that of the newest of all results."""
  return "" if all(result.get("sources") == [newest] for result in results) else " †"


def _obtained(results, pools):
  """Before -> after; of poisoning both figures, of an adaptation the share of the gap closed."""
  if "attack_success_mean" in results[0]:
    return (f"class 0 read as 1: {_over_seeds(results, 'attack_success', before=True)}; other "
            f"classes right: {_over_seeds(results, 'others_accuracy', before=True)}")
  if "r2_mean" in results[0]:
    return (f"R2 {_over_seeds(results, 'r2', before=True)}; root mean squared error "
            f"{_over_seeds(results, 'rmse', before=True)}")
  text = _over_seeds(results, "accuracy", before=True)
  config = results[0]["config"]
  pool = pools.get(paper.FULL_TARGET.get(config["data"]["name"], ""))
  if config["init"].get("source") and pool:
    none, adapted = (np.mean([r[f"accuracy{which}_mean"] for r in results])
                     for which in ("_before", ""))
    full = pool["heldout_accuracy_mean"]
    text += (f"; full target {100 * full:.1f}: {(adapted - none) / (full - none):.2f} of the gap "
             "closed")
  return text


def _distilled(runs, name, num_images, measures):
  """Figures of the runs of a name; where there are none, of a noted run of as many images."""
  for run, results in sorted(runs.items(), key=lambda item: item[0] != name):
    config, note = config_and_note(run)
    if run == name or config == name and results[0]["num_distilled_images"] == num_images:
      figures = "; ".join(_over_seeds(results, measure) for measure in measures)
      return ", ".join([f"**{figures}**", *(note if run != name else [])])
  return "not run"


def _over_seeds(results, measure, *, before=False):
  """Mean over seeds, mean of the standard deviations over networks, and the worst seed."""
  means = [result[f"{measure}_mean"] for result in results]
  text = percent(measure, np.mean(means))
  if before:
    begun = percent(measure, np.mean([r[f"{measure}_before_mean"] for r in results]))
    text = f"{begun} → **{text}**"
  if results[0]["num_eval_inits"] > 1:
    text += f" ± {percent(measure, np.mean([result[f'{measure}_std'] for result in results]))}"
  if len(results) > 1:
    worst = max(means) if measure == "rmse" else min(means)
    text += f" (worst seed {percent(measure, worst)})"
  return text


def main(argv):
  del argv
  launcher.with_one_line_errors(_write)


def _write():
  rendered = {path: render_file(path.read_text()) for path, render_file in (
      (_HERE / "README.md", render), (_HERE.parent / "BUILD_NOTES.md", render_bench),
      (_HERE.parent / "docs/five_ways.md", render_ways),
      (_HERE.parent / "docs/merging.md", render_merging))}
  for path, text in rendered.items():  # All of them, or none.
    path.write_text(text)


if __name__ == "__main__":
  app.run(main)
