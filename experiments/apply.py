"""Trains networks on a file of distilled data and tests them: accuracy before and after.

    python -m experiments.apply --distilled=runs/NAME/distilled.npz
    python -m experiments.apply --distilled=FILE --network=convnet:width=32 --init=kaiming_fan_in

The order, the step sizes, the optimizer and the normalisation are those of the file; without
--network and --init, so are the networks. Of a poisoning file, its success too. The last line on
standard output is all of it as JSON, accuracies as fractions of the whole test set.
"""

from absl import flags

from experiments import launcher

_DISTILLED = flags.DEFINE_string("distilled", None, "The distilled.npz of any run.", required=True)
_NETWORK = flags.DEFINE_string(
    "network", None, "NAME or NAME:option=value:..., of dd_jax.models, or package.module:function; "
    "the network of the run.")
_DATA = flags.DEFINE_string(
    "data", None, "package.module:function or the path of files; the dataset of the run.")
_LOSS = flags.DEFINE_string(
    "loss", None, "package.module:function, where the run had an inner loss of its own.")
_INIT = flags.DEFINE_string(
    "init", None, "stored (the weights in the file), a distribution such as xavier_normal, or the "
    "path of a pool (.npz) of trained networks; the init of the run.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the dataset's files lie; $DD_JAX_DATA, or ~/dd_jax_data.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Whether the network may be used to fetch them.")
_NUM_NETWORKS = flags.DEFINE_integer(
    "num_networks", None,
    "How many; 1 of stored weights, else as many as the run tested, and at least 20.")
_SEED = flags.DEFINE_integer(
    "seed", None, "Of the networks; the run's, which tests its networks again.")


def _run():
  from dd_jax.runs import application
  from experiments.names import applied
  result = applied.apply(
      _DISTILLED.value, network=_NETWORK.value, data=_DATA.value, loss=_LOSS.value,
      data_dir=_DATA_DIR.value, download=_DOWNLOAD.value, init=_INIT.value,
      num_networks=_NUM_NETWORKS.value, seed=_SEED.value)
  print(application.describe(result))
  return result


if __name__ == "__main__":
  launcher.run(_run)
