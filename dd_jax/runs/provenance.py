"""Where a result comes from: code, machine, day, seed and config."""

import datetime
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax

import dd_jax
from dd_jax.runs import workdirs


# What work that was begun has left: a run, a comparison, pools.
_BEGUN = ("metrics.jsonl", "rows.jsonl", "blocks")


def provenance(config: dict, seed: int) -> dict[str, Any]:
  """The fields of every result that say where it comes from."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
          "jax_version": jax.__version__, "dd_jax_version": dd_jax.__version__,
          "sources": [source()], "date": now,
          "seed": seed, "config": config}


@functools.cache
def source() -> str:
  """A digest of the package's code: of every Python file's path and text."""
  package = pathlib.Path(dd_jax.__file__).parent
  digest = hashlib.blake2b(digest_size=8)
  for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
    text = path.read_bytes().replace(b"\r\n", b"\n")
    digest.update(f"{path.relative_to(package).as_posix()} {len(text)}\n".encode() + text)
  return digest.hexdigest()


def keep_source(workdir: pathlib.Path) -> list[str]:
  """Every code that has written into a directory, this one the last; kept in sources.json."""
  path, this = workdir / "sources.json", source()
  earlier = ["unknown"] if any((workdir / name).exists() for name in _BEGUN) else []
  if path.exists():
    try:
      earlier = [str(digest) for digest in json.loads(path.read_text())]
    except (ValueError, TypeError):  # Damaged: the run is not lost for it.
      earlier = ["unknown"]
  if earlier[-1:] != [this]:
    workdirs.write_json(path, [*earlier, this])
  return json.loads(path.read_text())
