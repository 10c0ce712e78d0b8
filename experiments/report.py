"""One page about a run, or about several side by side; a single file that needs no network.

    python -m experiments.report runs/digits
    python -m experiments.report runs/one runs/two --out=two.html

Every finished run has its report.html already; this makes it anew, or compares runs.
"""

from absl import flags

from experiments import launcher
from experiments.configs import default


def _parse_flags(argv):
  program, *_directories[:] = launcher.parse_flags(argv)
  return [program]


def _run():
  from dd_jax.runs import report
  return report.report(_directories, flags.FLAGS.out, default.get_config().to_dict())


_directories: list[str] = []

if __name__ == "__main__":
  # Here: other commands have an --out of their own.
  flags.DEFINE_string("out", None,
                      "The file to write; report.html in the directory of a single run.")
  launcher.run(_run, _parse_flags)
