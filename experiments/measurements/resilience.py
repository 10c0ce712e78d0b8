"""Breaks a run again and again, and compares what it ends with to the same run left in peace.

    python -m experiments.measurements.resilience --break=kill --times=30 --workdir=DIR \\
      --config=experiments/configs/mnist_fixed_init.py --config.data.dir=DATA \\
      --config.checkpoint_every=100
    python -m experiments.measurements.resilience --problem=package.module:function --workdir=DIR

The second one is of a problem of one's own: the function gives a dd_jax.runs.Problem.
What breaks it, at random moments from the start of the process to its last outer step:

* kill: SIGKILL.
* term: SIGTERM, which a run answers by a checkpoint and the exit status 143.
* truncate: SIGKILL, and the largest file of the newest checkpoint loses its second half.
* disk: its file system, a tmpfs (which needs root), is filled until the run ends by itself.

DIR/reference is the run left in peace, DIR/broken the other. DIR/report.json says how often it was
broken, how often it continued from a checkpoint, how many outer steps it took twice, and how many
bytes of distilled.npz and lines of metrics.jsonl (but for their times) are not those of the
reference in the end: the exit status is 1 unless none.
"""

from collections.abc import Callable
import contextlib
import itertools
import json
import pathlib
import random
import re
import subprocess
import sys
import time

from absl import flags

from experiments import launcher
from experiments.configs import default

_BREAK = flags.DEFINE_enum("break", "kill", ["kill", "term", "truncate", "disk"],
                           "What breaks the run.")
_TIMES = flags.DEFINE_integer("times", 30, "How often.", lower_bound=1)
_PROBLEM = flags.DEFINE_string("problem", None,
                               "package.module:function, in the place of --config.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 1000, "Outer steps of --problem.", lower_bound=1)
_DISTILL = ("import sys; from experiments.measurements import resilience; "
            "resilience.distill(sys.argv[1], int(sys.argv[2]), sys.argv[3])")
_AT_START = 0.25  # Share of the moments that come before the first outer step.
_TMPFS_BYTES = 32 << 20
_DISTILLED = "distilled.npz"


def kill(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """SIGKILL."""
  process.kill()
  process.wait()


def term(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """SIGTERM; a process that has not reached the outer loop ends without a word."""
  process.terminate()
  _check_status(process.wait(), (143, -15, 0), workdir)


def truncate(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """SIGKILL, then half of the newest checkpoint's largest file is cut off."""
  kill(process, workdir)
  steps = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
  if steps:
    newest = max(steps, key=lambda path: int(path.name))
    largest = max((path for path in newest.rglob("*") if path.is_file()),
                  key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
      file.truncate(largest.stat().st_size // 2)


def fill_disk(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """Leaves no byte of the file system free until the process ends."""
  filler = workdir / "filler"
  with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
    while True:
      file.write(b"\0" * 4096)
  _check_status(process.wait(), (1, 0), workdir)
  filler.unlink()


_BREAKS = {"kill": kill, "term": term, "truncate": truncate, "disk": fill_disk}


def distill(name: str, num_steps: int, workdir: str) -> None:
  """One run of the problem that `package.module:function` gives; ends its process as a command."""
  from dd_jax import runs
  from experiments.names import parts
  every = -(-num_steps // 50)
  launcher.with_one_line_errors(lambda: runs.distill(
      parts.load_own(name, "--problem")(), workdir, num_steps=num_steps,
      settings=runs.Settings(log_every=every, validate_every=every, checkpoint_every=every)))


def measure(command: Callable[[pathlib.Path], list[str]], workdir: pathlib.Path, num_steps: int,
            how: str, times: int) -> dict:
  """Runs both; returns the report.

  Args:
    command: of a run, by its directory.
    workdir: receives both runs.
    num_steps: outer steps of the run.
    how: an entry of `_BREAKS`.
    times: how often the run is broken.

  Raises:
    OSError: a run ended by itself where it should not, or no tmpfs can be mounted.
  """
  reference, broken = workdir / "reference", workdir / "broken"
  for path in (reference, broken):
    path.mkdir(parents=True)
  started = time.perf_counter()
  process = _start(command, reference)
  _wait_for(lambda: _last_step(reference), process)
  start_seconds = time.perf_counter() - started
  _check_status(process.wait(), (0,), reference)

  draw = random.Random(0)
  statuses, twice, reached, restores = [], 0, 0, 0
  with _tmpfs(broken) if how == "disk" else contextlib.nullcontext():
    for target in [*sorted(draw.randrange(num_steps) for _ in range(times)), None]:
      process = _start(command, broken)
      if target is None:
        _check_status(process.wait(), (0,), broken)
      else:
        if draw.random() < _AT_START:
          _sleep(draw.uniform(0, start_seconds), process)
        else:
          _wait_for(lambda target=target: _first_step(broken) is not None
                    and _last_step(broken) > target, process)
          _sleep(draw.uniform(0, 1), process)
        _BREAKS[how](process, broken)
        statuses.append(process.returncode)
      first = _first_step(broken)
      if first is not None:
        restores += first > 0
        twice += reached - first
        reached = _last_step(broken)
    lines = zip(*map(_timeless_metrics, (reference, broken)), strict=True)
    return {
        "break": how, "times": times, "statuses": statuses, "outer_steps": num_steps,
        "restores": restores, "outer_steps_taken_twice": twice,
        "lines_differing": sum(expected != found for expected, found in lines),
        "bytes": (reference / _DISTILLED).stat().st_size,
        "bytes_lost": _differing_bytes(reference / _DISTILLED, broken / _DISTILLED)}


def _start(command, workdir):
  """A run whose last words are kept beside its directory."""
  with _log(workdir).open("w") as log:
    return subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL, stderr=log)


def _log(workdir):
  return workdir.with_suffix(".log")


def _wait_for(condition, process):
  while process.poll() is None and not condition():
    time.sleep(.01)


def _sleep(seconds, process):
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(seconds)


def _check_status(status, expected, workdir):
  """A run fails, if it must, with the status that it should and one line that says why."""
  text = _log(workdir).read_text().rstrip()
  if status not in expected or status == 1 and not re.search("^error: ", text, re.M):
    raise OSError(f"the run in {workdir} must end with a status of {expected}, and a line of error "
                  f"for 1; got {status}: {' '.join(text.split()[-60:])}")


def _last_step(workdir):
  """The outer step of the last line of metrics.jsonl; 0 before the first."""
  from dd_jax.runs import workdirs
  lines = workdirs.read_lines(workdir / "metrics.jsonl", "step")
  return lines[-1]["step"] if lines else 0


def _first_step(workdir):
  """The outer step at which the last process began; None if it did not come so far."""
  found = re.search(r"begins at outer step (\d+)", _log(workdir).read_text())
  return int(found[1]) if found else None


def _timeless_metrics(workdir):
  from dd_jax.runs import workdirs
  return [{name: value for name, value in line.items() if name != "seconds"}
          for line in workdirs.read_lines(workdir / "metrics.jsonl", "step")]


def _differing_bytes(expected, found):
  expected, found = expected.read_bytes(), found.read_bytes()
  return sum(a != b for a, b in itertools.zip_longest(expected, found))


@contextlib.contextmanager
def _tmpfs(path):
  size = f"size={_TMPFS_BYTES}"
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)],
                           capture_output=True, text=True, timeout=60)
  if mounted.returncode:
    raise OSError(f"--break=disk must be able to mount a tmpfs: {mounted.stderr.strip()}")
  try:
    yield
  finally:
    subprocess.run(["umount", str(path)], check=True, timeout=60)


def _config_flags(arguments):
  """--config and those of its fields, with values behind a space or an equals sign."""
  found = []
  for argument, following in zip(arguments, [*arguments[1:], "-"]):
    if re.match("--?config([.=]|$)", argument):
      found += [argument] if "=" in argument or following.startswith("-") else [argument, following]
  return found


def _run(config, workdir):
  from dd_jax.runs import workdirs
  from dd_jax.runs.provenance import provenance
  from experiments.names import parts
  workdir = pathlib.Path(workdir)
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(f"workdir must be empty; got {workdir}")
  if config is None:
    parts.load_own(_PROBLEM.value, "--problem")  # A mistake is said before a run begins.
    num_steps, seed = _NUM_STEPS.value, 0
    described = {"problem": _PROBLEM.value, "outer": {"num_steps": num_steps}}
  else:
    if config.distill.num_starts > 1:
      raise ValueError("distill.num_starts must be 1 to be broken at an outer step; "
                       f"got {config.distill.num_starts}")
    num_steps, seed, described = config.outer.num_steps, config.seed, json.loads(config.to_json())

  def command(workdir):
    if config is None:
      return [sys.executable, "-c", _DISTILL, _PROBLEM.value, str(num_steps), str(workdir)]
    return [sys.executable, "-m", "experiments.main", f"--workdir={workdir}",
            *_config_flags(sys.argv[1:])]

  report = {**measure(command, workdir, num_steps, _BREAK.value, _TIMES.value),
            **provenance(described, seed)}
  workdirs.write_json(workdir / "report.json", report)
  if report["bytes_lost"] or report["lines_differing"]:
    raise ValueError(f"the broken run must end as the other; see {workdir / 'report.json'}")
  return report


if __name__ == "__main__":
  launcher.run_config(_run, default.get_config(), instead="problem")
