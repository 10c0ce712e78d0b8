"""Reading the files that runs wrote, and writing cells and tables of them."""

import collections
import itertools
import json
import pathlib
from typing import Any

from dd_jax.runs.accuracies import LABELS, shown
from experiments.results import paper


def read_runs(directory: pathlib.Path, same: dict[str, str]) -> dict[str, list[dict]]:
  """`{CONFIG or CONFIG-NOTE: results by seed of the newest code}`, in the paper's order.

  Codes that are the `same_figures` are one. ValueError: a name that is no such file's.
  """
  groups = collections.defaultdict(list)
  for path in sorted(directory.glob("*.json")):
    config, _ = config_and_note(path.stem.rsplit("-seed", 1)[0])
    check_config(path, config)
    result = read(path)
    if "sources" in result:
      result["sources"] = [code for code, _ in itertools.groupby(
          same.get(code, code) for code in result["sources"])]
    groups[path.stem.rsplit("-seed", 1)[0]].append(result)
  return {name: newest_of(groups[name]) for name in sorted(groups, key=_order)}


def check_config(path: pathlib.Path, config: str) -> None:
  """A ValueError where a file is not named as those of rows are."""
  if "-seed" not in path.stem or config not in paper.ROWS:
    raise ValueError(f"{path} must be named CONFIG-seedSEED{path.suffix} or "
                     f"CONFIG-NOTE-seedSEED{path.suffix}, where results.paper.ROWS has the CONFIG; "
                     f"got {config!r}")


def read_all(directory: pathlib.Path) -> dict[str, dict]:
  """`{file stem: content}` in the order of the paper's rows."""
  files = {path.stem: read(path) for path in directory.glob("*.json")}
  return dict(sorted(files.items(), key=lambda item: _order(item[0])))


def read(path: pathlib.Path) -> dict:
  """What a run wrote there; ValueError where it is no JSON."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} must be the JSON that a run wrote: {error}") from error


def same_figures(directory: pathlib.Path) -> dict[str, str]:
  """`{code: an older code that gives the same}`, of what measurements.same_figures wrote there."""
  older: dict[str, str] = {}
  for report in sorted(read_all(directory).values(), key=lambda report: report["date"]):
    before, after = report["codes"]
    before, after = _oldest(before, older), _oldest(after, older)
    if not report["differ"] and before != after:
      older[after] = before
  return {code: _oldest(code, older) for code in older}


def _oldest(code, older):
  while code in older:
    code = older[code]
  return code


def newest_of(results: list[dict]) -> list[dict]:
  """Those that the code which ended the last of them has ended too."""
  newest = ended_by(last(results))
  return [result for result in results if ended_by(result) == newest]


def ended_by(result: dict) -> str | None:
  """The code that ended a run, which others may have begun; older files do not say it."""
  return next(reversed(result.get("sources", [])), None)


def last(results: list[dict]) -> dict:
  """The newest of them; older files have no date."""
  return max(results, key=lambda result: result.get("date", ""), default={})


def _order(name):
  config, _ = config_and_note(name)
  return (list(paper.ROWS).index(config) if config in paper.ROWS else len(paper.ROWS), name)


def config_and_note(name: str) -> tuple[str, list[str]]:
  """The two parts of a file's name."""
  config, *note = name.split("-")
  return config, note


def link(config: str, note: list[str]) -> str:
  """To the config, for experiments/README.md."""
  return ", ".join([f"[{config}](configs/{config}.py)", *note])


def percent(measure: str, value: float) -> str:
  """A share in %, anything else as it is."""
  return shown(measure, value) if measure in LABELS else f"{100 * value:.1f}"


def mean_std(figures: dict[str, Any], measure: str) -> str:
  """Nothing where there is no such figure."""
  if f"{measure}_mean" not in figures:
    return ""
  return " ± ".join(percent(measure, figures[f"{measure}_{what}"]) for what in ("mean", "std"))


def markdown(rows: list[tuple]) -> str:
  """A table; the first row is its head."""
  head, *body = (f"| {' | '.join(map(str, row))} |" for row in rows)
  return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"
