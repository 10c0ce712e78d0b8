"""The tables of experiments/README.md come from the result files, and nothing else."""

import hashlib
import json
import re
import shutil

import jax.numpy as jnp
import pytest

import dd_jax
from dd_jax.runs import workdirs
from experiments import launcher
from experiments.measurements import rounding
from experiments.names import applied
from experiments.results import paper
from experiments.results import published
from experiments.results import tables
from experiments.results import transfers

_RESULT = {"accuracy_mean": .8, "accuracy_std": .02, "accuracy_before_mean": .1,
           "num_eval_inits": 200, "num_distilled_images": 100, "outer_steps": 600,
           "wall_seconds": 90., "device": "1 x cpu", "jax_version": "0.10.2",
           "sources": ["new"], "date": "2026-11-26",
           "config": {"data": {"name": "mnist"}, "init": {}}}
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
  for directory in ("pools", "baselines", "transfers", "versions"):
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


def test_the_guide_of_evaluations_is_up_to_date():
  text = (tables._HERE.parent / "docs/five_ways.md").read_text()
  assert tables.render_ways(text) == text


def test_the_guide_of_merging_is_up_to_date(tmp_path):
  text = (tables._HERE.parent / "docs/merging.md").read_text()
  assert tables.render_merging(text) == text
  figures = {"accuracy_mean": .5, "accuracy_std": .1}
  (tmp_path / "merging.json").write_text(json.dumps({
      "num_eval_inits": 20, **{name: figures for name in ("low", "high", "all", "merged")}}))
  rendered = tables.render_merging(text, tmp_path)
  assert "| both files merged, tested on all | 50.0 ± 10.0 | 20 |" in rendered.splitlines()
  assert tables.render_merging(rendered, tmp_path) == rendered


def test_the_command_leaves_what_is_up_to_date_as_it_is(monkeypatch, tmp_path):
  """On a copy of what it writes."""
  readme = tables._HERE / "README.md"
  shutil.copytree(tables._HERE, tmp_path / "experiments",
                  ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(tables._HERE.parent / "BUILD_NOTES.md", tmp_path)
  shutil.copytree(tables._HERE.parent / "docs", tmp_path / "docs")
  monkeypatch.setattr(tables, "_HERE", tmp_path / "experiments")
  tables.main([])
  assert (tmp_path / "experiments/README.md").read_bytes() == readme.read_bytes()


def test_a_text_without_its_marks_is_refused_and_keeps_its_end():
  begin, end = (f"<!-- {mark} -->\n" for mark in (
      "bench: python -m experiments.results.tables", "end of bench"))
  assert tables._between("bench", f"a\n{begin}old\n{end}rest\n", "new") == (
      f"a\n{begin}\nnew\n{end}rest\n")
  for text in (f"a\n{begin}old\nrest\n", f"a\n{end}rest\n", "rest\n", f"{end}{begin}"):
    with pytest.raises(ValueError, match="must have the two marks of bench, <!-- bench: "):
      tables._between("bench", text, "new")
  with pytest.raises(ValueError, match="must have the mark <!-- from here on: "):
    tables.render("no mark")


@pytest.mark.parametrize("name, content, message", [
    ("none_such-seed1", "{}", "must be named CONFIG-seedSEED.json .* got 'none_such'"),
    ("mnist_fixed_init-seed1", "{", "must be the JSON that a run wrote: ")])
def test_a_file_that_is_no_result_is_named_in_one_line(tmp_path, capsys, name, content, message):
  (tmp_path / f"{name}.json").write_text(content)
  with pytest.raises(SystemExit):
    launcher.with_one_line_errors(lambda: tables.render_ways("", tmp_path))
  assert re.fullmatch(f"error: .*{name}.json {message}.*\n", capsys.readouterr().err)


def test_the_bench_s_table_is_up_to_date_and_gives_every_run_its_speed(tmp_path):
  text = (tables._HERE.parent / "BUILD_NOTES.md").read_text()
  marks = ("<!-- bench: python -m experiments.results.tables -->\n", "<!-- end of bench -->\n")
  assert all(text.count(mark) == 1 for mark in marks)
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
  (tmp_path / "bench_1.json").write_text(json.dumps({"machine": {}, "settings": [
      {"name": "mnist_fixed_n1", "seconds_ours": .03, "matmul_gflops": 466., "compile_seconds": 3.,
       "temporary_bytes": 18e6}]}))  # Of a machine without PyTorch, of one setting.
  assert ("| `mnist_fixed_n1` | 0.03 |  |  | 1.21 (198) | 6.1 | 1.5 | 3 | 3.0 | 18 | 0.072 |"
          ) in tables.render_bench(text, tmp_path).splitlines()
  head, tail = (text.partition(mark) for mark in marks)
  assert rendered.startswith(head[0]) and rendered.endswith(tail[2])


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


@pytest.mark.parametrize("day", [20, 22])  # Whichever was compared first.
def test_codes_that_give_the_same_figures_are_one(lines, day):
  def compared(codes, differ, day):
    return {"codes": codes, "differ": differ, "date": f"2026-11-{day}"}

  old, other = ({**_RESULT, "sources": [code], "date": "2026-11-20"} for code in ("old", "other"))
  rendered = lines(**{
      "mnist_random_init-seed0": {**old, "accuracy_mean": .7}, "mnist_random_init-seed1": _RESULT,
      "mnist_fixed_init-seed0": {**_RESULT, "sources": ["old", "between", "new"]},
      "digits_fixed_init-seed0": other,
      "versions/1": compared(["between", "new"], [], day),
      "versions/2": compared(["old", "between"], [], 21),
      "versions/3": compared(["other", "new"], ["mnist_random_init"], 23)})
  assert "→ **75.0** ± 2.0 (worst seed 70.0) | 2 |" in row_of(rendered, "mnist_random_init")
  assert "†" not in row_of(rendered, "mnist_fixed_init")
  assert "→ **80.0** ± 2.0 † | 1 |" in row_of(rendered, "digits_fixed_init")


def test_the_code_that_ended_a_run_is_the_last_of_its_codes(lines):
  back_again = {**_RESULT, "sources": ["new", "old", "new"], "date": "2026-11-27"}
  assert "→ **80.0** ± 2.0 (worst seed 80.0) † | 2 |" in row_of(lines(**{
      "mnist_random_init-seed0": back_again, "mnist_random_init-seed1": _RESULT}),
      "mnist_random_init")


def test_a_seed_that_older_code_had_begun_leaves_the_others_of_its_row(lines):
  begun = {**_RESULT, "sources": ["old", "new"], "date": "2026-11-27"}
  rendered = lines(**{"mnist_random_init-seed0": _RESULT, "mnist_random_init-seed1": begun,
                      "digits_fixed_init-seed0": {**_RESULT, "num_eval_inits": 1}})
  assert "→ **80.0** ± 2.0 (worst seed 80.0) † | 2 | 200 |" in row_of(
      rendered, "mnist_random_init")
  assert "†" not in row_of(rendered, "digits_fixed_init")


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
  assert ("class 0 read as 1: 1.0 → **75.0** ± 10.0; other classes right: "
          "98.0 → **90.0** ± 5.0" in row)


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


def _transfer(seed, test_chosen, **accuracies):
  """transfer.json of one seed; the same length is chosen on validation images everywhere."""
  return {"num_eval_inits": 5, "distilled_with": "lenet", "distilled_seed": seed, "scores": [
      {"network": network, "augmentation": "none", "ior": .2 + .1 * seed, "lrs": .4567}
      for network in ("lenet", "vit")], "rows": [
          {"network": network, "augmentation": "none", "set": name.replace("_", " "),
           "num_images": 100, "num_epochs": 300, "accuracy_mean": mean, "accuracy_std": .02,
           "by_epochs": [{"num_epochs": 100, "accuracy_mean": test_chosen, "accuracy_max": .9},
                         {"num_epochs": 300, "accuracy_mean": mean, "accuracy_max": .8}]}
          for network in ("lenet", "vit") for name, mean in accuracies.items()]}


def test_an_ingredient_and_a_transfer_are_a_row_each(lines):
  rendered = lines(**{f"transfers/mnist_soft_labels-seed{seed}": _transfer(
      seed, .85, distilled=.8 - .1 * seed, random_real=.6) for seed in (0, 1)})
  assert "| soft_labels | 75.0 ± 1.5 | 3 | 20 | 100 | 317720 | 200 | 1.5 |" in rendered
  *_, vit = [line for line in rendered if "(configs/mnist_soft_labels.py)" in line]
  assert vit.endswith(
      "| 2 | vit | none | 100: 75.0 ± 2.0 (300) |  | 100: 60.0 ± 2.0 (300) |  |  "
      "|  | 0.250 | 0.457 |  | 5 |")


def test_the_ways_to_evaluate_stand_side_by_side():
  table = transfers.ways_table(
      {"mnist_soft_labels": [{"seed": seed, "accuracy_mean": .7 + .1 * seed}
                             for seed in (0, 1, 2)]},
      {"mnist_soft_labels": [_transfer(seed, .85, distilled=.8, random_real=.6)
                             for seed in (0, 1)]})
  assert table.splitlines()[-1].endswith(
      "| 2 | 75.0 | 80.0 | 85.0 | 90.0 | are its labels | 80.0 | 60.0 |")
  table = transfers.ways_table({}, {"mnist_soft_labels-short": [_transfer(
      0, .85, distilled=.8, random_real=.6)]})
  assert table.splitlines()[-1].startswith(
      "| MNIST, LeNet, fixed init, soft labels, short | 1 |  | 80.0 |")


def test_a_network_with_options_is_the_file_s_own_and_sets_may_be_missing():
  other = _transfer(0, .85, distilled=.8)
  for row in other["rows"]:
    row["network"] = row["network"].replace("lenet", "lenet:width=2")
  assert transfers.ways_table({}, {"mnist_soft_labels": [other]}).splitlines()[-1].endswith(
      "| 1 |  | 80.0 | 85.0 | 90.0 | are its labels | 80.0 |  |")
  none = {**other, "distilled_with": "convnet"}
  assert len(transfers.ways_table({}, {"mnist_soft_labels": [none]}).splitlines()) == 2


def test_a_published_file_stands_with_what_checks_it(tmp_path):
  distilled = dd_jax.DistilledData(jnp.ones((2, 3, 4, 4, 1)), jnp.zeros((2, 3), jnp.int32),
                                   jnp.ones((1, 2)))
  dd_jax.files.artifacts.save(tmp_path / "mnist_fixed_init-short-seed3.npz", distilled,
                              metadata={"accuracy_mean": .9375, "num_eval_inits": 1})
  digest = hashlib.blake2b((tmp_path / "mnist_fixed_init-short-seed3.npz").read_bytes(),
                           digest_size=8).hexdigest()
  assert published.table(tmp_path).splitlines()[-1] == (
      "| [mnist_fixed_init-short-seed3](results/distilled/mnist_fixed_init-short-seed3.npz) "
      f"| MNIST, LeNet, fixed init, short | 6 | 2 | `{digest}` | 93.8 % | 1 "
      "| `--distilled=experiments/results/distilled/mnist_fixed_init-short-seed3.npz` |")


def test_a_file_that_lies_elsewhere_stands_with_its_digest(tmp_path):
  found = {"seed": 7, "distilled_bytes": 7_654_321, "distilled_blake2b": "0123456789abcdef"}
  for name, result in {"mnist_fixed_init-short-seed7": found, "mnist_fixed_init-seed7": found,
                       "mnist_random_init-seed7": {"seed": 7}}.items():
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
  (tmp_path / "distilled").mkdir()
  (tmp_path / "distilled/mnist_fixed_init-seed7.npz").touch()
  assert published.others_table(tmp_path).splitlines()[-1] == (
      "| [mnist_fixed_init](configs/mnist_fixed_init.py), short | 7 | 7654 | `0123456789abcdef` |")
  (tmp_path / "mnist_fixed_init-short-seed7.json").unlink()
  assert published.others_table(tmp_path) == ""


def test_no_result_names_a_place_of_the_machine_that_made_it():
  """Paths in a config are those of the checkout, so that the same run can be made anew."""
  for path in (tables._HERE / "results").rglob("*.json"):
    config = workdirs.flatten(json.loads(path.read_text()).get("config") or {})
    assert not [name for name, value in config.items() if str(value).startswith(("/", "~"))], path


def test_published_files_are_small():
  files = [*(tables._HERE / "results/distilled").glob("*.npz")]
  assert sum(path.stat().st_size for path in files) < 3e6


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=() if "_fixed_init" in path.stem else pytest.mark.slow, id=path.stem)
    for path in sorted((tables._HERE / "results/distilled").glob("*.npz"))
    if not path.stem.startswith("cifar10")])  # Its 200 networks take 40 minutes.
def test_a_published_file_gives_its_figure(path):
  """On all networks of its run, where the dataset is at hand."""
  metadata = dd_jax.files.artifacts.load(path).metadata
  try:
    found = applied.apply(str(path))
  except OSError:
    pytest.skip(f"{metadata['dataset']} is not here")
  measure = "r2_mean" if metadata.get("targets") else "accuracy_mean"
  assert found[measure] == pytest.approx(metadata[measure], abs=1e-3)


@pytest.mark.parametrize("name", ["digits_fixed_init", "mnist_fixed_init", "mnist_soft_labels"])
def test_a_published_file_of_one_network_does_not_depend_on_how_a_machine_rounds(name):
  """With another last bit in every weight it gives its figure to 0.1 % too."""
  (path,) = (tables._HERE / "results/distilled").glob(f"{name}-*.npz")
  artifact = dd_jax.files.artifacts.load(path)
  try:
    dataset = dd_jax.datasets.load(artifact.metadata["dataset"])
  except OSError:
    pytest.skip(f"{artifact.metadata['dataset']} is not here")
  assert rounding.accuracies(artifact, dataset, 4) == pytest.approx(
      [artifact.metadata["accuracy_mean"]] * 5, abs=1e-3)
