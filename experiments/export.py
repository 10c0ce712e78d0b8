"""Writes a file of distilled data in the layout of another project.

    python -m experiments.export --distilled=runs/NAME/distilled.npz --to=png --out=FOLDER

safetensors and tensors (.pt) hold everything; steps (.pth) what the authors' release saves;
dd_ranking a folder for that loader; png a folder of pictures that Hugging Face's datasets load as
an imagefolder. dd_jax/files/exports.py describes them, and reads them back.
"""

from absl import flags

from dd_jax.runs import paths
from experiments import launcher

_FORMATS = ("dd_ranking", "png", "safetensors", "steps", "tensors")


def _run():
  from dd_jax.files import artifacts
  from dd_jax.files import exports
  options = flags.FLAGS
  out = paths.output(options.out, "--out")
  artifact = artifacts.load(paths.local(options.distilled, "--distilled"))
  exports.save(out, artifact, options.to)
  num_steps, batch = artifact.distilled.labels.shape[:2]
  return {"out": str(out), "format": options.to, "num_distilled_images": num_steps * batch}


if __name__ == "__main__":
  # Here: other commands have a --distilled and an --out of their own.
  flags.DEFINE_string("distilled", None, "The distilled.npz of any run.", required=True)
  flags.DEFINE_enum("to", None, _FORMATS, "The layout.", required=True)
  flags.DEFINE_string("out", None, "The file or folder to write.", required=True)
  launcher.run(_run)
