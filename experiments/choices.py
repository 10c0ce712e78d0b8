"""From a config's field to what it names, with an error that names the field."""


def choose(choices, name, field):
  """The entry `name`; a ValueError that names the config's field lists the choices."""
  check_choice(choices, name, field)
  return choices[name]


def check_choice(choices, name, field):
  """A ValueError that names the config's field and lists the choices."""
  if name not in choices:
    raise ValueError(f"{field} must be one of {sorted(choices)}; got {name!r}")


def check_seed(field, value):
  """A ValueError that names the config's field, unless the value is a seed: JAX takes 32 bits."""
  if not 0 <= value < 2 ** 32:
    raise ValueError(f"{field} must lie in 0..{2 ** 32 - 1}; got {value}")


def check_positive(field, value):
  """A ValueError that names the config's field, unless the value is positive."""
  if not value > 0:
    raise ValueError(f"{field} must be positive; got {value}")
