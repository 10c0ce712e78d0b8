"""The distilled files of the results: those that lie here, how to check each, and the others."""

import hashlib
import pathlib

import numpy as np

from dd_jax import files
from dd_jax.runs import accuracies
from experiments.results import paper
from experiments.results.files import check_config, config_and_note, link, markdown, percent
from experiments.results.files import read


def table(directory: pathlib.Path) -> str:
  """One row a file: its size, digest and figure, and the command that gives this figure again."""
  paths = sorted(directory.glob("*.npz"), key=lambda path: path.stem)
  if not paths:
    return ""
  rows = [("file", "distilled data", "examples", "kB", "BLAKE2b (8 bytes)", "figure", "networks",
           "arguments of `experiments.apply`")]
  for path in paths:
    artifact = files.artifacts.load(path)
    metadata = artifact.metadata
    measure = accuracies.names_of(metadata)[0]
    content = path.read_bytes()
    config, note = config_and_note(path.stem.rsplit("-seed", 1)[0])
    check_config(path, config)
    figure = percent(measure, metadata[f"{measure}_mean"]) + accuracies.unit(measure)
    rows.append((
        f"[{path.stem}](results/distilled/{path.name})",
        ", ".join([paper.ROWS[config][0], *note]),
        int(np.prod(artifact.distilled.labels.shape[:2])),
        f"{len(content) / 1e3:.0f}", f"`{hashlib.blake2b(content, digest_size=8).hexdigest()}`",
        figure, metadata["num_eval_inits"],
        f"`--distilled=experiments/results/distilled/{path.name}`"))
  return ("\n### Files\n\nEach gives the figure beside it again, on the same test set and "
          "networks: `python -m experiments.apply --data_dir=DIR` and these arguments.\n\n"
          + markdown(rows))


def others_table(results: pathlib.Path) -> str:
  """One row a file that does not lie here: its size and digest, as its run wrote them."""
  rows = [("distilled.npz of", "seed", "kB", "BLAKE2b (8 bytes)")]
  for path in sorted(results.glob("*.json")):
    result = read(path)
    if "distilled_blake2b" in result and not (results / f"distilled/{path.stem}.npz").exists():
      rows.append((link(*config_and_note(path.stem.rsplit("-seed", 1)[0])), result["seed"],
                   f"{result['distilled_bytes'] / 1e3:.0f}", f"`{result['distilled_blake2b']}`"))
  return "\nOthers, by their digests:\n\n" + markdown(rows) if rows[1:] else ""
