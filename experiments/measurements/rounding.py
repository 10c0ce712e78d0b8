"""What files of one known network owe to rounding: accuracies with the last bit of weights changed.

    python -m experiments.measurements.rounding --files=A.npz,B.npz --data_dir=DIR --out=FILE.json

Each file is applied to the weights that it holds, and `times` more to weights with a relative noise
of 1e-7, about what two kinds of CPU differ by.
"""

from absl import flags

from experiments import launcher

_NOISE = 1e-7


def accuracies(artifact, dataset, times: int) -> list[float]:
  """On the whole test set: with the weights of the file, then `times` with other last bits."""
  import jax

  from dd_jax.init_distributions import near_init
  from dd_jax.runs import application
  near = near_init(artifact.init_params, _NOISE)
  drawn = [near.make(near.state, key) for key in jax.random.split(jax.random.key(0), times)]
  return [application.apply_distilled(artifact._replace(init_params=params), dataset,
                                      init="stored")["accuracy_mean"]
          for params in (artifact.init_params, *drawn)]


def _measure():
  from dd_jax import datasets
  from dd_jax.files import artifacts
  from dd_jax.runs import paths
  from dd_jax.runs import workdirs
  from dd_jax.runs.provenance import provenance
  options = flags.FLAGS
  out, found = paths.output(options.out, "--out"), {}
  for path in options.files:
    artifact = artifacts.load(path)
    if artifact.init_params is None:
      raise ValueError(f"files must hold the weights of one network; {path} does not")
    dataset = datasets.load(artifact.field("dataset"), options.data_dir or None)
    found[path] = {"reported": artifact.metadata["accuracy_mean"],
                   "seed": artifact.metadata["seed"],
                   "accuracies": accuracies(artifact, dataset, options.times)}
  report = {"files": found, **provenance({"times": options.times}, 0)}
  workdirs.write_json(out, report)
  return report


if __name__ == "__main__":
  flags.DEFINE_list("files", None, "The distilled.npz of runs of fixed inits.", required=True)
  flags.DEFINE_string("data_dir", "", "Where the datasets' files lie; empty: $DD_JAX_DATA.")
  flags.DEFINE_integer("times", 6, "How often the last bits are changed.", lower_bound=1)
  flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  launcher.run(_measure)
