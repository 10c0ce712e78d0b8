"""A file of distilled data applied to networks: test accuracy before and after."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import dd_jax
from dd_jax import datasets
from dd_jax import init_distributions
from dd_jax import models
from dd_jax import types
from dd_jax.datasets.rows import in_memory
from dd_jax.evaluation import Plan
from dd_jax.files import pools
from dd_jax.files import reuse
from dd_jax.runs import accuracies
from dd_jax.runs import paths
from dd_jax.runs.data import Data, prepared
from dd_jax.runs.programs import make_keys
from dd_jax.runs.settings import check_positive, check_seed

_NUM_NETWORKS = 20  # Where neither the caller nor the run says how many.


def apply_distilled(artifact: dd_jax.Artifact, data: datasets.Dataset | Data, *,
                    model: models.Model | None = None, init: str | None = None,
                    loss: Callable | None = None, num_networks: int | None = None,
                    seed: int | None = None, batch_size: int = 250) -> dict[str, Any]:
  """Trains networks on the data of a file as its run did, and tests them on all test examples.

  Args:
    artifact: the distilled.npz of any run.
    data: what to test on: a dataset, whose images are brought to the shape of the file's and into
      its space, or examples that are there.
    model: the network; for a ridge regression with its head. None: that of the run.
    init: "stored", a name of `WEIGHT_INITS`, or the path of a pool (.npz). None: that of the run,
      its stored weights for its own network.
    loss: the inner loss, where the run had one of its own.
    num_networks: how many. None: 1 of stored weights; of others as many as the run tested, at least
      20, at most the pool.
    seed: of the networks' draw. None: the run's, which tests its networks again.
    batch_size: test examples per forward pass.

  Returns:
    Accuracies as fractions, and of poisoning its figures, as result.json has them.

  Raises:
    ValueError, OSError: an argument or file that does not fit.
  """
  if seed is not None:
    check_seed("--seed", seed)
  reuse.check_classes(artifact, data.class_names, "data")
  if init is None and model is None and artifact.init_params is not None:
    init = "stored"
  model = reuse.network(artifact) if model is None else model
  distribution, name, largest = _make_init(artifact, model, init)
  if num_networks is None:
    num_networks = min(largest, max(_NUM_NETWORKS, artifact.metadata.get("num_eval_inits", 1)))
  check_positive("--num_networks", num_networks)
  seed = artifact.metadata.get("seed", 0) if seed is None else seed
  inputs, labels = (prepared(data, data.test) if isinstance(data, Data) else
                    _test_images(artifact, data))
  types.check_labels(labels, artifact.metadata.get("num_classes", np.inf))
  plan = Plan(1 if jax.default_backend() == "cpu" else 10, batch_size)

  @jax.jit
  def test(init_state, inputs, labels):
    return reuse.evaluate_on(
        make_keys(seed)["test"], artifact, distribution._replace(state=init_state), model.apply,
        inputs, labels, num_inits=num_networks, loss=loss, plan=plan)

  evaluated = test(distribution.state, inputs, labels)
  targets = artifact.metadata.get("targets")
  figures = accuracies.of(artifact.metadata.get("objective", {}),
                          np.asarray(targets["std"]) if targets else None)
  return {**accuracies.summarize(jax.tree.map(np.asarray, evaluated), figures),
          "num_networks": num_networks, "init": name, "num_test": len(labels), "seed": seed,
          "jax_version": jax.__version__, "dd_jax_version": dd_jax.__version__}


def describe(result: dict[str, Any]) -> str:
  """A line for each figure of `apply_distilled`, shares in percent."""
  figures = [name.removesuffix("_before_mean") for name in result if name.endswith("_before_mean")]
  return "\n".join(
      "{}: {} ± {}{unit} before, {} ± {}{unit} after, of {} networks".format(
          name.replace("_", " "), *(accuracies.shown(name, result[f"{name}{suffix}"])
                                    for suffix in ("_before_mean", "_before_std", "_mean", "_std")),
          result["num_networks"], unit=accuracies.unit(name))
      for name in figures)


def _test_images(artifact, dataset):
  dataset = datasets.reframe(dataset, artifact.images.shape[2:])
  return artifact.normalize(in_memory(dataset.test_images)), dataset.test_labels


def _make_init(artifact, model, init):
  """The distribution, its name, and how many networks it has to draw from."""
  if init is None:
    return (reuse.init_distribution(artifact, model), artifact.metadata["init"]["weights"], np.inf)
  if init == "stored":
    params = reuse.stored_params(artifact)
    models.check_params(model, params, where="the file",
                        rule="--init=stored must go with the network of the run")
    return init_distributions.fixed_init(params), init, 1
  if init.endswith(".npz"):
    pool = pools.load(paths.local(init, "--init")).params
    models.check_params(model, jax.tree.map(lambda leaf: leaf[0], pool), where=init,
                        rule="--init must be a pool of the same network")
    return (init_distributions.pretrained_init(pool), init, init_distributions.pool_size(pool))
  if init not in init_distributions.WEIGHT_INITS:
    raise ValueError(f"--init must be stored, one of {sorted(init_distributions.WEIGHT_INITS)}, or "
                     f"the path of a pool (.npz); got {init!r}")
  return (init_distributions.random_init(model.init, init_distributions.WEIGHT_INITS[init]()),
          init, np.inf)
