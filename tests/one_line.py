"""Errors of one line, which is all that a user should have to read."""

import re

import pytest


def raises(error, text):
  """Expects `error` in one line that holds `text`."""
  return pytest.raises(error, match=rf"\A[^\n]*{re.escape(str(text))}[^\n]*\Z")


def raises_of_file(error, path, text):
  """Expects `error` in one line that starts with the file and holds `text`."""
  return pytest.raises(error, match=rf"\A{re.escape(str(path))}: [^\n]*{re.escape(text)}[^\n]*\Z")
