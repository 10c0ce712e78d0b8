"""How well distilled data train networks from scratch: any network, any order, many epochs.

    python -m experiments.transfer --config=experiments/configs/transfer.py \\
      --config.distilled=runs/NAME/distilled.npz --config.data.dir=DIR --workdir=DIR

For each network: the distilled images with their labels, the same with hard labels, random real
images and k-means centres of at most as many bytes, and with --config.train.real_epochs=E all real
images; with --config.train.augmentation=crop all of it once more. The number of epochs is chosen on
validation images. DIR/transfer.json, with the scores HLR, IOR, LRS and ARS; the same command
continues an interrupted comparison.
"""

from experiments import launcher
from experiments.configs import transfer as config_file


def _run(config, workdir):
  from experiments.names import applied
  return applied.compare_networks(config, workdir)


if __name__ == "__main__":
  launcher.run_config(_run, config_file.get_config())
