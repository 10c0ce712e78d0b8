"""The tables of experiments/README.md come from the result files, and nothing else."""

import json
import shutil

import pytest

from experiments.results import paper
from experiments.results import tables

_RESULT = {"accuracy_mean": .8, "accuracy_std": .02, "accuracy_before_mean": .1,
           "num_eval_inits": 200, "num_distilled_images": 100, "outer_steps": 600,
           "wall_seconds": 90., "device": "1 x cpu", "jax_version": "0.10.2",
           "sources": ["new"], "date": "2026-11-26", "config": {"data": {"name": "mnist"}, "init": {}}}
_POOL = {"heldout_accuracy_mean": .95, "heldout_accuracy_std": .01, "num_heldout": 200,
         "train_accuracy_mean": .94, "train_accuracy_std": .02, "num_train": 50,
         "train_seconds": 120., "device": "1 x cpu", "jax_version": "0.10.2",
         "config": {"pool": {"num_epochs": 3}}}

_STUDY = """ingredient,accuracy_mean,accuracy_std,num_seeds,num_eval_inits,num_distilled_images,\
learned_bytes,outer_steps,wall_seconds
soft_labels,0.75,0.015,3,20,100,317720,200,90.0
"""


@pytest.fixture
def lines(tmp_path):
  """`write(path, content)` some files, then the rendered lines."""
  for directory in ("pools", "baselines", "transfers"):
    (tmp_path / directory).mkdir()
  (tmp_path / "mnist_ingredients-ingredients.csv").write_text(_STUDY)

  def render(**files):
    for name, content in files.items():
      (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tables.render(tables._MARK, tmp_path, tmp_path).splitlines()

  return render


def row_of(lines, config):
  (row,) = [line for line in lines if f"[{config}](configs/{config}.py)" in line]
  return row


def test_the_readme_is_up_to_date():
  text = (tables._HERE / "README.md").read_text()
  assert tables.render(text) == text


def test_the_command_leaves_what_is_up_to_date_as_it_is(monkeypatch, tmp_path):
  """On a copy of what it writes."""
  readme = tables._HERE / "README.md"
  shutil.copytree(tables._HERE, tmp_path / "experiments",
                  ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(tables._HERE.parent / "BUILD_NOTES.md", tmp_path)
  monkeypatch.setattr(tables, "_HERE", tmp_path / "experiments")
  tables.main([])
  assert (tmp_path / "experiments/README.md").read_bytes() == readme.read_bytes()


def test_the_bench_s_table_is_up_to_date_and_gives_every_run_its_speed(tmp_path):
  text = (tables._HERE.parent / "BUILD_NOTES.md").read_text()
  assert all(text.count(mark) == 1 for mark in tables._BENCH_MARKS)
  assert tables.render_bench(text) == text
  for run, ratio, speed in ((1, 1.56, 466.), (2, 1.21, 198.)):
    (tmp_path / f"bench_{run}.json").write_text(json.dumps({"machine": {}, "settings": [
        {"name": name, "seconds_ours": .0276, "seconds_torch": .0430, "ratio": ratio,
         "ratio_by_hand": 6.1, "matmul_gflops": speed, "compile_seconds": 2.9,
         "temporary_bytes": 18e6}
        for name in paper.BENCH_ROWS]}))
  rendered = tables.render_bench(text, tmp_path)
  assert ("| `mnist_fixed_n1` | 0.0276 | 0.043 | 1.56 (466) | 1.21 (198) | 6.1, 6.1 | 1.5 | 3 "
          "| 2.9 | 18 | 0.072 |") in rendered.splitlines()
  head, tail = (text.partition(mark) for mark in tables._BENCH_MARKS)
  assert rendered.startswith(head[0]) and rendered.endswith(tail[2])
  assert tables.render_bench(rendered, tmp_path) == rendered


def test_a_row_gives_mean_worst_and_spread(lines):
  rendered = lines(**{
      "mnist_random_init-short-seed0": _RESULT,
      "mnist_random_init-short-seed1": {**_RESULT, "accuracy_mean": .7},
      "digits_fixed_init-seed0": {**_RESULT, "num_eval_inits": 1}})
  assert "10.0 → **80.0** | 1 | 1 | 600 | 1.5 | 1 x cpu, 0.10.2 |" in row_of(
      rendered, "digits_fixed_init")
  row = row_of(rendered, "mnist_random_init")
  assert "[mnist_random_init](configs/mnist_random_init.py), short | 100 | 79.5 ± 8.1 " in row
  assert "10.0 → **75.0** ± 2.0 (worst seed 70.0) | 2 | 200 |" in row


def test_the_runs_of_the_newest_code_count_and_others_are_marked(lines):
  old = {**_RESULT, "accuracy_mean": .9, "sources": ["old"], "date": "2026-11-20"}
  unknown = {name: old[name] for name in old if name not in ("sources", "date")}
  mixed = {**_RESULT, "sources": ["old", "new"]}
  rendered = lines(**{"mnist_random_init-seed0": old, "mnist_random_init-seed1": unknown,
                      "mnist_random_init-seed2": _RESULT, "mnist_fixed_init-seed0": old,
                      "cifar10_random_init-seed0": unknown, "cifar10_fixed_init-seed0": mixed})
  assert "→ **80.0** ± 2.0 | 1 | 200 |" in row_of(rendered, "mnist_random_init")
  assert "→ **90.0** ± 2.0 † | 1 |" in row_of(rendered, "mnist_fixed_init")
  assert "→ **90.0** ± 2.0 † | 1 |" in row_of(rendered, "cifar10_random_init")
  assert "→ **80.0** ± 2.0 † | 1 |" in row_of(rendered, "cifar10_fixed_init")


def test_an_adaptation_gives_the_share_of_the_gap_closed(lines):
  adapted = {**_RESULT, "accuracy_before_mean": .55, "accuracy_mean": .85,
             "config": {"data": {"name": "mnist"}, "init": {"source": "usps"}}}
  rendered = lines(**{"usps_to_mnist_pretrained-seed0": adapted,
                      "pools/mnist_lenet_pool": _POOL})
  row = row_of(rendered, "usps_to_mnist_pretrained")
  assert "55.0 → **85.0** ± 2.0; full target 95.0: 0.75 of the gap closed" in row
  row = row_of(rendered, "mnist_lenet_pool")
  assert "| 50: 94.0 ± 2.0 | 200: 95.0 ± 1.0 | 3 | 2 | 1 x cpu" in row


def test_poisoning_gives_both_figures(lines):
  poisoned = {**_RESULT, "attack_success_mean": .75, "attack_success_std": .1,
              "attack_success_before_mean": .01, "others_accuracy_mean": .9,
              "others_accuracy_std": .05, "others_accuracy_before_mean": .98}
  row = row_of(lines(**{"mnist_poisoning-seed0": poisoned}), "mnist_poisoning")
  assert ("class 0 read as 1: 1.0 → **75.0** ± 10.0; other classes right: 98.0 → **90.0** ± 5.0"
          in row)


def test_baselines_stand_beside_the_distilled_data(lines):
  figures = {"accuracy_mean": .5, "accuracy_std": .1, "nearest_neighbor_mean": .7,
             "nearest_neighbor_std": .02}
  baselines = {"baselines": {name: figures for name in tables._BASELINES},
               "num_eval_inits": 200, "num_distilled_images": 100}
  rendered = lines(**{"mnist_random_init-seed0": _RESULT,
                      "baselines/mnist_random_init": baselines})
  text = "\n".join(rendered)
  cells = " | ".join(["50.0 ± 10.0"] * 4 + [""] * 3 + ["70.0 ± 2.0"] * 2)
  assert f"| 100 | **80.0 ± 2.0** | {cells} | 200 |" in text
  assert "| the paper |  | 79.5 ± 8.1 | 68.6 ± 9.8 |" in text

  # Where there is no full run, a reduced one of as many images.
  few = {**_RESULT, "num_distilled_images": 10, "accuracy_mean": .3}
  text = "\n".join(lines(**{"cifar10_random_init-10_images-seed0": few,
                            "cifar10_random_init-300_steps-seed0": _RESULT,
                            "baselines/cifar10_random_init": baselines,
                            "baselines/cifar10_fixed_init": baselines}))
  assert f"| 100 | **80.0 ± 2.0**, 300_steps | {cells} | 200 |" in text
  assert f"(configs/cifar10_fixed_init.py) | 100 | not run | {cells} | 200 |" in text


def test_an_ingredient_and_a_transfer_are_a_row_each(lines):
  sets = {"distilled": .8, "random real": .6, "k-means": .7}
  rendered = lines(**{"transfers/mnist_soft_labels": {
      "num_eval_inits": 5, "scores": [
          {"network": "vit", "augmentation": "none", "ior": .2, "lrs": .4567}], "rows": [
          {"network": "vit", "augmentation": "none", "set": name, "num_images": 100,
           "num_epochs": 300, "accuracy_mean": mean, "accuracy_std": .02}
          for name, mean in sets.items()]}})
  assert "| soft_labels | 75.0 ± 1.5 | 3 | 20 | 100 | 317720 | 200 | 1.5 |" in rendered
  assert row_of(rendered, "mnist_soft_labels").endswith(
      "| vit | none | 100: 80.0 ± 2.0 (300) |  | 100: 60.0 ± 2.0 (300) | 100: 70.0 ± 2.0 (300) |  "
      "|  | 0.200 | 0.457 |  | 5 |")
