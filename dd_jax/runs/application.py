"""A file of distilled data applied to networks: test accuracy before and after."""

import os
import pathlib

import jax
import numpy as np

import dd_jax
from dd_jax.files import reuse
from dd_jax.files import artifacts
from dd_jax import datasets
from dd_jax import init_distributions
from dd_jax import models
from experiments import accuracies
from experiments import paths
from experiments import problem
from experiments.choices import check_positive
from experiments.choices import check_seed
from experiments.networks import make_network

_NUM_NETWORKS = 20  # Where neither the caller nor the run says how many.


def apply_file(path: str | os.PathLike, *, network: str | None = None, init: str | None = None,
               data_dir: str | None = None, download: bool = False,
               num_networks: int | None = None, seed: int | None = None,
               batch_size: int = 250) -> dict:
  """Trains networks on the file as its run did, and tests them on all its dataset's test images.

  Args:
    path: the distilled.npz of any run.
    network: text for `make_network`. None: the network of the run.
    init: "stored", a name of `WEIGHT_INITS`, or the path of a pool (.npz). None: that of the run,
      its stored weights for its own network.
    data_dir: where the dataset's files lie, one of the user's own too; None as in `datasets.load`.
    download: whether the network may be used to fetch them.
    num_networks: how many. None: 1 of stored weights; of others as many as the run tested, at least
      20, at most the pool.
    seed: of the networks' draw. None: the run's, which tests its networks again.
    batch_size: test images per forward pass.

  Returns:
    Accuracies as fractions, and of poisoning its figures, as result.json has them; and what they
    are of.

  Raises:
    ValueError, OSError: an argument or file that does not fit.
  """
  if seed is not None:
    check_seed("--seed", seed)
  artifact = artifacts.load(paths.local(path, "--distilled"))
  dataset = load_dataset(artifact, data_dir, download=download)
  shape = artifact.distilled.images.shape[2:]
  model = (reuse.network(artifact) if network is None else reuse.network(
      artifact, lambda num_outputs: make_network(network, num_outputs, shape, "--network")))
  if init is None and network is None and artifact.init_params is not None:
    init = "stored"
  distribution, name, largest = _make_init(artifact, model, init)
  if num_networks is None:
    num_networks = min(largest, max(_NUM_NETWORKS, artifact.metadata.get("num_eval_inits", 1)))
  check_positive("--num_networks", num_networks)
  seed = artifact.metadata.get("seed", 0) if seed is None else seed

  @jax.jit
  def test(init_state, images, labels):
    return reuse.evaluate_on(
        problem.make_keys(seed)["test"], artifact, distribution._replace(state=init_state),
        model.apply, images, labels, num_inits=num_networks, batch_size=batch_size,
        num_parallel=1 if jax.default_backend() == "cpu" else 10)

  evaluated = test(distribution.state, artifact.normalize(dataset.test_images), dataset.test_labels)
  objective = artifact.metadata.get("objective", {"name": "classification"})
  return {**accuracies.summarize(jax.tree.map(np.asarray, evaluated), objective),
          "num_networks": num_networks, "network": network or artifact.metadata["model"],
          "init": name, "dataset": dataset.name, "num_test": len(dataset.test_labels),
          "seed": seed, "jax_version": jax.__version__, "dd_jax_version": dd_jax.__version__}


def load_dataset(artifact: dd_jax.Artifact, data_dir: str | None, *, download: bool
                 ) -> datasets.Dataset:
  """The dataset of the distilled data, its images of their shape.

  A file of the user's own, named by its path, is looked for in `data_dir` too.
  """
  name = artifact.field("dataset")
  if name.endswith(".npz") and data_dir:
    name = str(pathlib.Path(data_dir).expanduser() / pathlib.Path(name).name)
  dataset = datasets.load(name, data_dir, download=download)
  shape = artifact.distilled.images.shape[2:]
  return dataset if dataset.train_images.shape[1:] == shape else datasets.reframe(dataset, shape)


def _make_init(artifact, model, init):
  """The distribution, its name, and how many networks it has to draw from."""
  if init is None:
    return (reuse.init_distribution(artifact, model), artifact.metadata["init"]["weights"],
            np.inf)
  if init == "stored":
    params = reuse.stored_params(artifact)
    models.check_params(model, params, where="the file",
                        rule="--init=stored must go with the network of the run")
    return init_distributions.fixed_init(params), init, 1
  if init.endswith(".npz"):
    pool = artifacts.load_pool(paths.local(init, "--init")).params
    models.check_params(model, jax.tree.map(lambda leaf: leaf[0], pool), where=init,
                        rule="--init must be a pool of the same network")
    return init_distributions.pretrained_init(pool), init, len(jax.tree.leaves(pool)[0])
  if init not in init_distributions.WEIGHT_INITS:
    raise ValueError(f"--init must be stored, one of {sorted(init_distributions.WEIGHT_INITS)}, or "
                     f"the path of a pool (.npz); got {init!r}")
  return (init_distributions.random_init(model.init, init_distributions.WEIGHT_INITS[init]()),
          init, np.inf)


def describe(result: dict) -> str:
  """A line for each figure of `apply_file`, in percent."""
  figures = [name.removesuffix("_before_mean") for name in result if name.endswith("_before_mean")]
  return "\n".join(
      "{}: {:.1f} ± {:.1f} % before, {:.1f} ± {:.1f} % after, of {} networks".format(
          name.replace("_", " "), *(100 * result[f"{name}{suffix}"] for suffix in (
              "_before_mean", "_before_std", "_mean", "_std")), result["num_networks"])
      for name in figures)
