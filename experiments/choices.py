"""From a config's field to what it names, with an error that names the field."""


def choose(choices, name, field):
  """The entry `name`; a ValueError that names the config's field lists the choices."""
  check_choice(choices, name, field)
  return choices[name]


def check_choice(choices, name, field):
  """A ValueError that names the config's field and lists the choices."""
  if name not in choices:
    raise ValueError(f"{field} must be one of {sorted(choices)}; got {name!r}")


def check_positive(field, value):
  """A ValueError that names the config's field, unless the value is positive."""
  if not value > 0:
    raise ValueError(f"{field} must be positive; got {value}")
