"""Works on a list of runs for so many minutes, and goes on with it the next time.

    python -m experiments.queue FILE --budget_minutes=120 [--workdir=runs]

FILE is TOML, a table for each config:

    [[runs]]
    config = "mnist_fixed_init"  # Of experiments/configs; with :smoke or :paper.
    seeds = [10, 11, 12]         # Left out: 0.
    num_steps = 8000             # Outer steps; none: the config's. A larger number goes on.
    note = "faster"              # Where flags follow: names what they change.
    flags = ["--config.outer.learning_rate=0.1"]

The unfinished run of the fewest outer steps comes first. When the minutes are over it stops at a
checkpoint; what is left is shown. The runs lie in --workdir, under the names that their results
have in experiments/results.
"""

import sys

from absl import flags

from experiments import launcher

_BUDGET = flags.DEFINE_float("budget_minutes", None, "Minutes.", lower_bound=0., required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "Directory of the runs' directories.")


def _run(path):
  from dd_jax.runs import paths
  from dd_jax.runs import queues
  from dd_jax.runs import workdirs
  from experiments.results import queue_file
  with workdirs.held(paths.local(_WORKDIR.value, "--workdir")) as workdir:
    runs = queues.work(queue_file.read(path, workdir), 60 * _BUDGET.value)
  for run in runs:
    print(f"{run['steps']:>8} of {run['num_steps'] or 'its config'}  {run['state']:<10}  "
          f"{run['name']}", file=sys.stderr)
  if failed := [run["name"] for run in runs if run["state"].startswith("failed")]:
    raise ChildProcessError(f"the runs {failed} failed; what they said stands above")
  return {"runs": runs}


if __name__ == "__main__":
  launcher.run(_run, positional=("FILE",))
