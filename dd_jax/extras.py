"""Packages that only some users need, imported where they are used."""

import importlib
import types


def load(module: str, rule: str, extra: str) -> types.ModuleType:
  """The module of a package that one of dd_jax's extras installs.

  Args:
    module: its dotted name.
    rule: what needs it; begins the message: "a .pth file needs PyTorch".
    extra: of `pip install "dd_jax[extra]"`.

  Raises:
    ImportError: it is not installed, or it is and cannot be loaded, which are told apart.
  """
  package = module.split(".")[0]
  try:
    importlib.import_module(package)
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] == package:
      raise ImportError(f'{rule}: pip install "dd_jax[{extra}]"') from error
    reason = error
  except (ImportError, OSError) as error:  # A library of CUDA that is not there, say.
    reason = error
  raise ImportError(f"{rule}; the one installed cannot be loaded: "
                    f"{' '.join(str(reason).split())}") from reason
