"""The tables of experiments/README.md come from the result files, and nothing else."""

import json

from experiments import results

_RESULT = {"accuracy_mean": .8, "accuracy_std": .02, "accuracy_before_mean": .1,
           "num_eval_inits": 200, "num_distilled_images": 100, "outer_steps": 600,
           "wall_seconds": 90., "device": "1 x cpu", "jax_version": "0.10.2"}


def test_the_readme_is_up_to_date():
  text = (results._HERE / "README.md").read_text()
  assert results.render(text) == text


def test_a_row_gives_mean_worst_and_spread(tmp_path):
  for seed, accuracy in enumerate((.8, .7)):
    (tmp_path / f"mnist_random_init-short-seed{seed}.json").write_text(
        json.dumps({**_RESULT, "accuracy_mean": accuracy}))
  (tmp_path / "digits_fixed_init-seed0.json").write_text(
      json.dumps({**_RESULT, "num_eval_inits": 1}))
  lines = results.table(results.read_results(tmp_path)).splitlines()
  assert "10.0 → **80.0** | 1 | 1 | 600 | 1.5 | 1 x cpu, 0.10.2 |" in lines[2]
  assert "[mnist_random_init](configs/mnist_random_init.py), short | 100 | 79.5 ± 8.1 " in lines[3]
  assert "10.0 → **75.0** ± 2.0 over networks; worst seed 70.0 | 2 | 200 |" in lines[3]
