"""MNIST distilled in two halves of five classes, and the two files merged.

    python -m experiments.measurements.merging --data_dir=DIR --workdir=DIR --out=FILE.json

Four figures, each over the same held-out networks and the whole test set: the halves' own (of
their five classes alone), the merged file's, and those of a file distilled for all classes at once
with twice as many images and as many outer steps. The runs in the workdir are resumed.
"""

import json
import pathlib

from absl import flags

from experiments import launcher

_HALVES = {"low": range(5), "high": range(5, 10)}


def _measure():
  import jax.numpy as jnp
  import numpy as np

  from dd_jax import files
  from dd_jax import parametrization
  from dd_jax import runs
  from dd_jax.evaluation import Plan
  from dd_jax.files import reuse
  from dd_jax.runs import paths
  from dd_jax.runs import workdirs
  from dd_jax.runs.programs import make_keys
  from dd_jax.runs.provenance import provenance
  from experiments import problem as problems
  from experiments.configs import mnist_random_init

  options = flags.FLAGS
  out = paths.output(options.out, "--out")
  config = mnist_random_init.get_config(options.variant)
  config.data.dir, config.seed = options.data_dir, options.seed
  whole = problems.make_problem(config)

  def distil(name, classes):
    def only(split):
      chosen = np.isin(split[1], classes)
      return split[0][chosen], split[1][chosen]

    data = whole.data._replace(**{split: only(getattr(whole.data, split))
                                  for split in ("train", "validation", "test")})
    labels = jnp.tile(jnp.array(classes), (config.distill.num_steps, 1))
    learned = parametrization.paper(
        labels, runs.input_shapes(data), num_epochs=config.distill.num_epochs,
        step_size=config.distill.step_size, step_size_scale=config.distill.step_size_scale)
    return runs.distill(
        whole._replace(data=data, learned=learned), pathlib.Path(options.workdir) / name,
        num_steps=config.outer.num_steps, seed=config.seed,
        settings=problems.make_settings(config))

  results = {name: distil(name, classes) for name, classes in _HALVES.items()}
  merged = files.merge([result.artifact for result in results.values()])
  results["all"] = distil("all", range(10))
  accuracy = reuse.evaluate_on(  # The networks of the runs' own tests.
      make_keys(config.seed)["test"], merged, whole.inits.test, whole.apply,
      *runs.prepared(whole.data, whole.data.test),
      num_inits=config.eval.num_inits, plan=Plan(1, config.eval.batch_size)).after.accuracy
  report = {**{name: {field: result.figures[field] for field in ("accuracy_mean", "accuracy_std")}
               for name, result in results.items()},
            "merged": {"accuracy_mean": float(accuracy.mean()),
                       "accuracy_std": float(accuracy.std(ddof=1))},
            "num_eval_inits": config.eval.num_inits, "outer_steps": config.outer.num_steps,
            **provenance(json.loads(config.to_json()), config.seed)}
  workdirs.write_json(out, report)
  return report


if __name__ == "__main__":
  flags.DEFINE_string("data_dir", "", "Where MNIST's files lie; empty: $DD_JAX_DATA.")
  flags.DEFINE_string("workdir", None, "Directory of the three runs.", required=True)
  flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  flags.DEFINE_string("variant", "", "Of the config; smoke: a few seconds of work.")
  flags.DEFINE_integer("seed", 0, "Of the runs.")
  launcher.run(_measure)
