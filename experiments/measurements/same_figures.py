"""Whether two versions of the code give the same figures, by short runs of many kinds of rows.

    git worktree add --detach ../before COMMIT
    python -m experiments.measurements.same_figures --before=../before --data_dir=DIR \\
      --out=experiments/results/versions/NAME.json

Each config runs for a few outer steps in both checkouts, by the same interpreter and libraries.
What is compared is the images, labels, step sizes and weights of distilled.npz and the figure of
the test, to the last bit. The tables of results take two versions as one where a file of
results/versions says that nothing differs.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from experiments import launcher

_HERE = pathlib.Path(__file__).parents[2]
_POOL = "mnist_lenet_pool"
RUNS = {  # Config -> outer steps.
    "digits_fixed_init": 100, "wine_random_init": 40, "diabetes_linear": 40,
    "mnist_random_init": 20, "mnist_soft_labels": 20, "mnist_random_soft_labels": 5,
    "mnist_to_usps_pretrained": 20, "mnist_poisoning": 5, "cifar10_random_init": 3}
_FROM_POOL = ("mnist_to_usps_pretrained", "mnist_poisoning")


def figures(checkout: pathlib.Path, workdir: pathlib.Path, data_dir: str | None,
            runs: dict[str, int] = RUNS) -> tuple[str, dict[str, str]]:
  """The code of a checkout, and by config a digest of all that its short run gave.

  Args:
    checkout: whose `experiments` run.
    workdir: receives the runs.
    data_dir: where the datasets' files lie.
    runs: config -> outer steps.

  Raises:
    ValueError: no checkout, one that changed meanwhile, or a run that fails, with its last lines.
  """
  if not (checkout / "experiments/main.py").exists():
    raise ValueError(f"before must be a checkout of this project; got {checkout}")
  if {*runs} & {*_FROM_POOL}:
    _run(checkout, "pretrain", f"{_POOL}:smoke", workdir / _POOL, data_dir)
  found: dict[str, str] = {}
  codes = set()
  for config, num_steps in runs.items():
    of_config = workdir / config
    updates = {"outer.num_steps": num_steps, "log_every": num_steps, "eval.num_inits": 1,
               "validation.every": num_steps, "checkpoint_every": num_steps}
    if config in _FROM_POOL:
      updates |= {"init.pool": workdir / _POOL, "init.num_validation": 1,
                  "outer.num_inits": 2, "validation.num_inits": 1}
    _run(checkout, "main", config, of_config, data_dir, **updates)
    result = json.loads((of_config / "result.json").read_text())
    found[config] = _digest(of_config / "distilled.npz", result)
    codes |= {*result["sources"]}
  if len(codes) > 1:
    raise ValueError(f"{checkout} must not change while its runs are compared; got {sorted(codes)}")
  return codes.pop(), found


def _run(checkout, command, config, workdir, data_dir, **updates):
  """One command in a checkout, without what is installed of this package."""
  variables = {**os.environ, "PYTHONPATH": str(checkout),
               **({"DD_JAX_DATA": data_dir} if data_dir else {})}
  name, _, variant = config.partition(":")
  done = subprocess.run(
      [sys.executable, "-m", f"experiments.{command}",
       f"--config={checkout}/experiments/configs/{name}.py:{variant}".rstrip(":"),
       f"--workdir={workdir}",
       *(f"--config.{name}={value}" for name, value in updates.items())],
      cwd=checkout, env=variables, capture_output=True, text=True, check=False)
  if done.returncode:
    raise ValueError(f"{command} of {config} must run in {checkout}; it ended with "
                     f"{done.returncode}: {done.stderr[-500:]}")


def _digest(path, result):
  """Of every array of a distilled.npz but its metadata, and of the mean figure of the test."""
  import numpy as np

  from dd_jax.datasets import npz
  from dd_jax.runs import accuracies
  digest = hashlib.blake2b(digest_size=8)
  for name, array in sorted(npz.read(path).items()):
    if name != "metadata":
      digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(
          array).tobytes())
  digest.update(repr(result[f"{accuracies.names_of(result)[0]}_mean"]).encode())
  return digest.hexdigest()


def _measure():
  from dd_jax.runs import paths
  from dd_jax.runs import workdirs
  from dd_jax.runs.provenance import provenance
  options, found = flags.FLAGS, []
  out = paths.output(options.out, "--out")
  data_dir = options.data_dir or os.environ.get("DD_JAX_DATA")
  data_dir = data_dir and str(pathlib.Path(data_dir).resolve())
  for checkout in (pathlib.Path(options.before).resolve(), _HERE):
    with tempfile.TemporaryDirectory() as workdir:
      found.append(figures(checkout, pathlib.Path(workdir), data_dir))
  codes, digests = zip(*found)
  report = {"codes": codes, "runs": {config: [of[config] for of in digests] for config in RUNS},
            "num_steps": RUNS, **provenance({}, 0)}
  report["differ"] = [config for config, pair in report["runs"].items() if pair[0] != pair[1]]
  workdirs.write_json(out, report)
  return report


if __name__ == "__main__":
  flags.DEFINE_string("before", None, "The other checkout.", required=True)
  flags.DEFINE_string("data_dir", "", "Where the datasets' files lie; empty: $DD_JAX_DATA.")
  flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  launcher.run(_measure)
