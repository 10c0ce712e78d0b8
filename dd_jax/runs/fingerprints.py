"""What a directory was made from: data that changed are refused before anything is used or lost."""

import hashlib
import json
import pathlib

from dd_jax.runs import workdirs


def of_file(path: pathlib.Path | str) -> str:
  """Of its content; of a folder, of the names and contents of all files in it."""
  path = pathlib.Path(path)
  if path.is_dir():
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
      found.update(f"{file.relative_to(path).as_posix()} {of_file(file)}\n".encode())
    return found.hexdigest()
  with path.open("rb") as content:
    return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_workdir(workdir: pathlib.Path, fingerprints: dict[str, str]) -> None:
  """Keeps them in data.json, or compares; a directory of an older version takes those of now.

  Raises:
    ValueError: the directory was made from other data; it stays as it is.
    OSError: it cannot be written.
  """
  path = workdir / "data.json"
  if not path.exists():
    workdirs.write_json(path, fingerprints)
    return
  try:
    theirs = dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"workdir must be empty or of the same data; {path} is damaged: "
                     f"{error}") from error
  if differing := workdirs.differences(theirs, fingerprints, "there", "now"):
    raise ValueError(f"workdir must be empty or of the same data; {workdir} was made before what "
                     f"data.name and data.dir (or a named file) hold had changed: {differing}. "
                     "Bring the earlier data back, or take another workdir")
