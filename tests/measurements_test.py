"""The measuring commands: rows that agree with PyTorch's, exponents, settings that are refused."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import memory

_ROOT = pathlib.Path(__file__).parent.parent
_MEASUREMENTS = _ROOT / "experiments" / "measurements"


def _run(*arguments):
  return subprocess.run([sys.executable, "-m", *arguments], cwd=_ROOT, capture_output=True,
                        text=True, timeout=500, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def test_bench_refuses_an_unknown_setting(tmp_path):
  process = _run("experiments.bench", f"--out={tmp_path / 'bench.json'}", "--settings=mnist")
  assert process.returncode == 1
  assert "error: settings must be of ['cifar10_fixed_n1'" in process.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench_writes_a_row(tmp_path):
  """With PyTorch where it is installed, and then only if both sides agree."""
  out = tmp_path / "bench.json"
  process = _run("experiments.bench", f"--out={out}", "--settings=mnist_fixed_n1", "--rounds=2")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  (row,) = report["settings"]
  assert row["name"] == "mnist_fixed_n1"
  assert len(row["samples"]["ours"]) >= 2
  assert min(row["samples"]["ours"]) <= row["seconds_ours"] <= max(row["samples"]["ours"])
  # LeNet: 0.42 million multiplications and additions forward, two operations each.
  assert .8 < row["gflop"] / (3 * 1024 + 9 * 30) * 1e3 < 1
  assert row["gflops"] == pytest.approx(row["gflop"] / row["seconds_ours"])


@pytest.mark.slow
def test_memory_writes_rows_and_a_plot(tmp_path):
  out = tmp_path / "memory.json"
  process = _run("experiments.memory", f"--out={out}", "--lengths=100,400", "--memory=nested",
                 "--gradient=reverse")
  assert process.returncode == 0, process.stderr
  report = json.loads(out.read_text())
  assert [row["T"] for row in report["rows"]] == [100, 400]
  assert report["exponents"]["nested, reverse"] < .6  # 2 sqrt(T) sets of weights and a constant.
  assert out.with_suffix(".png").stat().st_size > 1000


def test_the_exponent_is_the_slope_of_the_logarithms():
  rows = [{"T": length, "temporary_bytes": 7 * length ** .5} for length in (10, 100, 400, 3000)]
  assert memory.exponent(rows) == pytest.approx(.5)


def test_linear_writes_rows_and_a_plot(tmp_path):
  out = tmp_path / "new" / "linear.json"
  process = _run("experiments.linear", f"--out={out}", "--dimension=2", "--seeds=2",
                 "--steps=500")
  assert process.returncode == 0, process.stderr
  rows = json.loads(out.read_text())["rows"]
  assert [(row["M"], row["seed"], row["bound"]) for row in rows] == [
      (1, 0, 1.), (1, 1, 1.), (2, 0, 0.), (2, 1, 0.), (3, 0, 0.), (3, 1, 0.)]
  assert all(abs(row["residual"] - row["bound"]) < 1e-3 < row["residual_before"] for row in rows)
  assert out.with_suffix(".png").stat().st_size > 1000


def test_the_kept_measurement_of_the_linear_case_reaches_the_bound_for_every_m():
  rows = json.loads((_MEASUREMENTS / "linear.json").read_text())["rows"]
  assert {row["M"] for row in rows} == set(range(1, 7))
  for row in rows:
    assert row["bound"] == row["sigma"] ** 2 * max(row["D"] - row["M"], 0)
    assert row["residual"] == pytest.approx(row["bound"], abs=1e-3)
