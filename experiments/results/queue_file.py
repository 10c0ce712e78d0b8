"""The list of runs that experiments.queue works on, from a TOML file."""

import pathlib
import sys
import tomllib

from dd_jax.runs import queues
from dd_jax.runs.settings import check_seed

_CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
_FIELDS = {"config": str, "seeds": list, "num_steps": int, "note": str, "flags": list}


def read(path: str, workdir: pathlib.Path) -> list[queues.Entry]:
  """One entry for each seed of each run, in directories that are named as its result is.

  Args:
    path: of a file with tables `[[runs]]`; experiments/queue.py says what one holds.
    workdir: of all runs.

  Raises:
    ValueError: something in the file that is no such list, named with its rule.
    OSError: it cannot be read.
  """
  try:
    content = tomllib.loads(pathlib.Path(path).read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} must be a TOML file; {error}") from None
  runs = content.pop("runs", [])
  if content or not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
    raise ValueError(f"{path} must hold tables [[runs]] and nothing else; got {[*content]}")
  entries = [entry for place, run in enumerate(runs, start=1)
             for entry in _entries(f"{path}: run {place}", run, workdir)]
  names = [entry.name for entry in entries]
  if len({*names}) < len(names) or not names:
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(f"{path} must hold one run or more, and each once (a note tells two of one "
                     f"config and seed apart); got {twice} twice")
  return entries


def _entries(where, run, workdir):
  for field, value in run.items():
    if field not in _FIELDS or not isinstance(value, _FIELDS[field]):
      rules = ", ".join(f"{name} ({kind.__name__})" for name, kind in _FIELDS.items())
      raise ValueError(f"{where} must have the fields {rules}; got {field} = {value!r}")
  config, _, variant = run.get("config", "").partition(":")
  path = _CONFIGS / f"{config}.py"
  if not config or not path.exists():
    raise ValueError(f"{where}: config must be the name of a file of {_CONFIGS}; got {config!r}")
  note = run.get("note", "")
  if {*note} & {"/", "\\"}:
    raise ValueError(f"{where}: note must be a part of a directory's name, without / and \\; "
                     f"got {note!r}")
  name = "-".join(part for part in (config, variant, note) if part)
  flags = run.get("flags", [])
  if not all(isinstance(flag, str) for flag in flags):
    raise ValueError(f"{where}: flags must be texts; got {flags!r}")
  if flags and not note:
    raise ValueError(f"{where} must have a note, which names what its flags change; got "
                     f"flags = {flags!r}")
  for seed in run.get("seeds", [0]):
    check_seed(f"{where}: seeds", seed)
    directory, num_steps = workdir / f"{name}-seed{seed}", run.get("num_steps")
    yield queues.Entry(directory.name, [
        sys.executable, "-m", "experiments.main", f"--config={path}:{variant}".rstrip(":"),
        f"--workdir={directory}", f"--config.seed={seed}", *flags,
        *([] if num_steps is None else [f"--config.outer.num_steps={num_steps}"])],
                       directory, num_steps)
