"""Work that ends in one file of its directory: done once, taken up again where it stopped."""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import sys
import time
from typing import Any

from dd_jax.runs import fingerprints
from dd_jax.runs import workdirs
from dd_jax.runs.provenance import keep_source, provenance

Row = dict[str, Any]


def result_of(work: Callable[[pathlib.Path], tuple[dict[str, Any], float]],
              workdir: str | os.PathLike, name: str, *, config: dict[str, Any],
              made_from: dict[str, str], started: float) -> dict[str, Any]:
  """What the file of that name holds; where there is none, what the work gives, written there.

  Args:
    work: `directory -> (result, seconds that earlier calls took)`.
    workdir: the directory, which one process may hold at a time.
    name: of the file.
    config: with a seed; a directory of another one is refused.
    made_from: digests of the data; a directory of others is refused.
    started: `time.monotonic()` when the caller began.

  Raises:
    ValueError, OSError: an unusable directory, or one of another config or other data.
  """
  with workdirs.held(workdir) as path:
    workdirs.open_workdir(config, path)
    fingerprints.check_workdir(path, made_from)
    if (result := workdirs.read_result(path / name)) is not None:
      print(f"{path} holds the finished {name} of this config:", file=sys.stderr)
      return result
    sources = keep_source(path)
    result, earlier = work(path)
    result = {**result, "wall_seconds": earlier + time.monotonic() - started,
              **provenance(config, config["seed"]), "sources": sources}
    workdirs.write_json(path / name, result)
    return result


def rows_of(measures: Sequence[Callable[[list[Row]], Row]], path: pathlib.Path
            ) -> tuple[list[Row], float]:
  """One row of each measure, which is given those before it; rows in the file are taken from there.

  Returns:
    The rows, each with its seconds, and the seconds of those that were there.
  """
  rows = workdirs.reopen_lines(path, "seconds")
  earlier = sum(row["seconds"] for row in rows)
  for measure in measures[len(rows):]:
    started = time.monotonic()
    rows.append({**measure(rows), "seconds": time.monotonic() - started})
    workdirs.append_line(path, rows[-1])
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
  return rows, earlier
