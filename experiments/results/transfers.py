"""Tables of networks trained from scratch: for experiments/README.md, and docs/five_ways.md."""

import numpy as np

from experiments.results import paper
from experiments.results.files import config_and_note, link, markdown, percent

_SETS = ("distilled", "distilled, hard labels", "random real", "k-means", "all real")
_SCORES = ("hlr", "ior", "lrs", "ars")


def table(transfers: dict[str, list[dict]]) -> str:
  """One row a file of distilled data, network and augmentation; one column a set or a score.

  Args:
    transfers: what transfer.json of every seed holds, by the name of the run's result.
  """
  if not transfers:
    return ""
  rows = [("distilled data of", "seeds", "network", "augmentation",
           *(f"{name}: number, test accuracy % (epochs)" for name in _SETS),
           *(mark.upper() for mark in _SCORES), "networks of each kind and seed")]
  for name, results in transfers.items():
    for score in results[0]["scores"]:
      where = {field: score[field] for field in ("network", "augmentation")}
      scores = [_only(result["scores"], **where) for result in results]
      rows.append((
          link(*config_and_note(name)), len(results), *where.values(),
          *(_accuracy([_only(result["rows"], **where, set=s) for result in results])
            for s in _SETS),
          *(f"{np.mean([each[mark] for each in scores]):.3f}" if mark in score else ""
            for mark in _SCORES), results[0]["num_eval_inits"]))
  return ("\n### Networks trained from scratch\n\nEpochs were chosen on validation images. HLR, "
          "IOR, LRS and ARS as in DD-Ranking, in fractions.\n\n" + markdown(rows))


def ways_table(runs: dict[str, list[dict]], transfers: dict[str, list[dict]]) -> str:
  """One column a protocol: how far its choice moves the figure of one and the same file."""
  rows = [("distilled data", "seeds", "as distilled", "from scratch",
           "epochs chosen on test images", "best network and seed besides", "hard labels",
           "other networks", "random real images, from scratch")]
  for name, results in transfers.items():
    seeds = [result["distilled_seed"] for result in results]
    own = [run for run in runs.get(name, []) if run["seed"] in seeds]
    own = own if len(own) == len(results) else []
    network = results[0]["distilled_with"]
    # Its options, if any, stand behind a network's name.
    own_rows = [row["network"] for row in results[0]["rows"]
                if row["network"].partition(":")[0] == network]
    others = sorted({row["network"] for row in results[0]["rows"]} - {*own_rows})
    found = {s: [_row(result, own_rows[0] if own_rows else network, s) for result in results]
             for s in _SETS}
    if not all(found["distilled"]):  # It was not tried with its own network.
      continue
    hard = found["distilled, hard labels"]
    config, note = config_and_note(name)
    rows.append((
        ", ".join([paper.ROWS[config][0], *note]), len(results),
        _mean([run["accuracy_mean"] for run in own]),
        _mean([row["accuracy_mean"] for row in found["distilled"]]),
        _mean([_test_chosen(row)["accuracy_mean"] for row in found["distilled"]]),
        percent("accuracy", max(_test_chosen(row)["accuracy_max"] for row in found["distilled"])),
        _mean([row["accuracy_mean"] for row in hard]) if all(hard) else "are its labels",
        _mean([_row(result, other, "distilled")["accuracy_mean"] for result in results
               for other in others]),
        _mean([row["accuracy_mean"] for row in found["random real"] if row])))
  return markdown(rows)


def _row(result, network, of):
  return _only(result["rows"], network=network, augmentation="none", set=of)


def _only(rows, **fields):
  """The one of them with these fields; None where there is none."""
  found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
  return found[0] if found else None


def _test_chosen(row):
  return max(row["by_epochs"], key=lambda each: each["accuracy_mean"])


def _accuracy(rows):
  if not all(rows):
    return ""
  epochs = sorted({row["num_epochs"] for row in rows})
  return (f"{rows[0]['num_images']}: {_mean([row['accuracy_mean'] for row in rows])} ± "
          f"{_mean([row['accuracy_std'] for row in rows])} ({', '.join(map(str, epochs))})")


def _mean(values):
  return percent("accuracy", np.mean(values)) if values else ""
