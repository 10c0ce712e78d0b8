"""Writes the tables of experiments/README.md from the files in experiments/results.

    cp runs/mnist/result.json experiments/results/mnist_fixed_init-seed0.json
    python -m experiments.results

A file is the result.json of a run, named CONFIG-seedSEED.json, or CONFIG-NOTE-seedSEED.json for a
run that overrode its config. Every number of the tables comes from these files.
"""

import collections
import json
import pathlib

import numpy as np

_HERE = pathlib.Path(__file__).parent
_MARK = "<!-- from here on: python -m experiments.results -->\n"
# Config -> what it distils, and the paper's test accuracy in % (arXiv 1811.10959).
_PAPER = {
    "digits_fixed_init": ("digits, LeNet, fixed init", "not in the paper"),
    "mnist_fixed_init": ("MNIST, LeNet, fixed init", "93.8"),
    "mnist_random_init": ("MNIST, LeNet, random init", "79.5 ± 8.1"),
    "cifar10_fixed_init": ("CIFAR-10, AlexCifarNet, fixed init", "54.0"),
    "cifar10_random_init": ("CIFAR-10, AlexCifarNet, random init", "36.8 ± 1.2"),
}


def read_results(directory: pathlib.Path) -> dict[str, list[dict]]:
  """`{CONFIG or CONFIG-NOTE: results by seed}` in the order of the paper's rows."""
  groups = collections.defaultdict(list)
  for path in sorted(directory.glob("*.json")):
    groups[path.stem.rsplit("-seed", 1)[0]].append(json.loads(path.read_text()))
  order = list(_PAPER)
  return dict(sorted(groups.items(), key=lambda item: order.index(item[0].split("-")[0])))


def table(groups: dict[str, list[dict]]) -> str:
  """One row a config: paper's figure, obtained figure, and what it took."""
  lines = [
      "| row | config | images | paper | obtained (test accuracy, %) | seeds | held-out networks a "
      "seed | outer steps | minutes a seed | hardware, JAX |",
      "|---|---|---|---|---|---|---|---|---|---|"]
  for name, results in groups.items():
    config = name.split("-")[0]
    row, paper = _PAPER[config]
    first = results[0]
    accuracy = 100 * np.array([result["accuracy_mean"] for result in results])
    before = 100 * np.mean([result["accuracy_before_mean"] for result in results])
    obtained = f"{before:.1f} → **{accuracy.mean():.1f}**"
    if first["num_eval_inits"] > 1:
      obtained += f" ± {100 * np.mean([r['accuracy_std'] for r in results]):.1f} over networks"
    if len(results) > 1:
      obtained += f"; worst seed {accuracy.min():.1f}"
    minutes = np.mean([result["wall_seconds"] for result in results]) / 60
    label = f"[{config}](configs/{config}.py)" + name.removeprefix(config).replace("-", ", ")
    lines.append(
        f"| {row} | {label} | {first['num_distilled_images']} | {paper} | {obtained} "
        f"| {len(results)} | {first['num_eval_inits']} | {first['outer_steps']} "
        f"| {minutes:.1f} | {first['device']}, {first['jax_version']} |")
  return "\n".join(lines) + "\n"


def render(text: str) -> str:
  """The README's text with its generated part made anew."""
  head, mark, _ = text.partition(_MARK)
  return head + mark + "\n" + table(read_results(_HERE / "results"))


def main():
  path = _HERE / "README.md"
  path.write_text(render(path.read_text()))


if __name__ == "__main__":
  main()
