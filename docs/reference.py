"""Writes the reference pages of dd_jax, made of its docstrings and of the comments beside fields.

    pip install -e '.[docs,runs]'
    python -m docs.reference --out=build/reference

build/reference/index.html is the first page. A warning of pdoc ends it with an error.
"""

import inspect
import pathlib
import re
from types import ModuleType
import warnings

from absl import app
from absl import flags

import dd_jax
from dd_jax import runs
from dd_jax.runs import paths


def modules(package: ModuleType = dd_jax) -> list[ModuleType]:
  """The public modules of a package, in its order; those of dd_jax end with its runs."""
  found = []
  for name in getattr(package, "__all__", ()):
    if inspect.ismodule(module := getattr(package, name)):
      found += [module, *modules(module)]
  return found + ([runs] if package is dd_jax else [])


def describe_fields(module: ModuleType) -> None:
  """Gives every field of a NamedTuple of the module the comment that stands beside or above it."""
  for _, record in inspect.getmembers(module, inspect.isclass):
    if record.__module__.startswith(dd_jax.__name__) and hasattr(record, "_fields"):
      for name, comment in field_comments(record).items():
        getattr(record, name).__doc__ = comment


def field_comments(record: type) -> dict[str, str]:
  """The comments of a NamedTuple's fields, by name; "" where there is none."""
  comments, above = dict.fromkeys(record._fields, ""), []
  for line in inspect.getsource(record).splitlines():
    field = re.match(r"  (\w+): [^#]*(?:# (.*))?$", line)
    if line.startswith("  # "):
      above.append(line.removeprefix("  # "))
    else:
      if field and field[1] in comments:
        comments[field[1]] = " ".join([*above, field[2] or ""]).strip()
      above = []
  return comments


def write(out: pathlib.Path) -> None:
  """Writes the pages; a warning is an error."""
  import pdoc
  for module in modules():
    describe_fields(module)
  pdoc.render.configure(docformat="google")
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    warnings.simplefilter("error", RuntimeWarning)
    pdoc.pdoc(dd_jax.__name__, runs.__name__, output_directory=out)


def main(argv):
  del argv
  write(paths.local(flags.FLAGS.out, "--out"))


if __name__ == "__main__":
  # Here: other commands have an --out of their own.
  flags.DEFINE_string("out", None, "Directory of the pages.", required=True)
  app.run(main)
