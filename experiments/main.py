"""Distils a dataset and evaluates the result.

    python -m experiments.main --config=experiments/configs/digits_fixed_init.py --workdir=DIR

Any field of the config can be set on the command line: --config.outer.num_steps=100. DIR then holds
distilled.npz, result.json, pictures and checkpoints.
Running the same command again continues an interrupted run. The last line on
standard output is the content of DIR/result.json. Several processes, on one machine or many, share
a run that is started once in each, with --coordinator, --num_processes and --process_id. On a CPU
--local_processes=auto starts them itself, on cores of their own.
"""

import sys

from absl import flags

from experiments import launcher
from experiments.configs import default

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, to share the run among several processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
_LOCAL_PROCESSES = flags.DEFINE_string(
    "local_processes", "1", "Processes of this machine among which the run is shared: a number up "
    "to its cores, or auto.")


def _run(config, workdir):
  from dd_jax.runs import local_processes
  from dd_jax.runs import processes
  if _LOCAL_PROCESSES.value != "1":
    if _NUM_PROCESSES.value is not None:
      raise ValueError("--local_processes must stand without --num_processes")
    # The last of two equal flags counts.
    sys.exit(local_processes.run(
        [sys.executable, "-m", "experiments.main", *sys.argv[1:], "--local_processes=1"],
        local_processes.number(_LOCAL_PROCESSES.value, config.outer.num_inits,
                               config.outer.batch_size)))
  processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  from experiments import problem
  return problem.distill(config, workdir).figures


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config())
