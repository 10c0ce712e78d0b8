"""README, guides and notebooks: every command and every code block runs, and prints what it says.

A document becomes a notebook, its Python blocks code cells and its bash blocks shell cells, and
runs from top to bottom in a fresh kernel and an empty directory. Commands run as they stand but for
what makes them small (`_SMALLER`). `print(...)  # text` says what is printed. A block after
`<!-- file NAME -->` is written to that file, one after `<!-- more of NAME -->` to its end.
"""

import os
import pathlib
import re
import shlex
import sys

import nbclient
import nbformat
import numpy as np
import pytest

from tests import prepared_sets

_ROOT = pathlib.Path(__file__).parent.parent
# These hold scripts that take an argument; tests/apply_test.py runs them.
_SCRIPTS = ("format", "pytorch")
_DOCUMENTS = [_ROOT / "README.md", *sorted(path for path in (_ROOT / "docs").glob("*.md")
                                           if path.stem not in _SCRIPTS)]
_NOTEBOOKS = sorted((_ROOT / "notebooks").glob("*.ipynb"))
_NOT_RUN = {"tests", "reference"}  # Marks of README blocks that other tests and .ci/run run.
_SMALLER = [
    (r"^.*\b(pip install|-m venv)\b.*$", ""),
    (r"^srun ", ""),
    (r"\.venv/bin/python\b", shlex.quote(sys.executable)),
    (r"(--config=\S+\.py)(?!\S)", r"\1:smoke"),
    (r"=DIR\b", "=data"),
    (r"--num_networks=\d+", "--num_networks=2"),
    (r"(-m experiments\.measurements\.bench)\b", r"\1 --settings=mnist_fixed_n1 --rounds=1"),
    (r"(-m experiments\.measurements\.memory)\b",
     r"\1 --lengths=30 --memory=remat --gradient=reverse"),
    (r"(-m experiments\.measurements\.devices)\b", r"\1 --rounds=1"),
    (r"(-m experiments\.measurements\.accelerator)\b", r"\1 --parts=dispatch"),
    (r"--epochs=[\d,]+", "--epochs=1,2 --factors=1 --networks=1"),
    (r"(--config\.train\.num_epochs)=[\d,]+", r"\1=1,2"),
    (r"--times=\d+", "--times=1"),
    (r"--gigabytes=\d+", "--gigabytes=0.03 --turns=1"),
    (r"(--study=(?s:.*?)--config=\S+)",
     r"\1 --config.distill.num_epochs=1 --config.model.name=mlp"),
]


def _cells(text):
  """The blocks of a document as code cells."""
  blocks = re.findall(r"(?:<!-- ([\w. ]+) -->\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
  for mark, language, code in blocks:
    assert language in ("python", "bash"), language
    if mark in _NOT_RUN:
      continue
    if mark.startswith(("file ", "more of ")):
      append = "-a " if mark.startswith("more") else ""
      yield nbformat.v4.new_code_cell(f"%%writefile {append}{mark.split()[-1]}\n{code}")
      continue
    if language == "bash":
      for pattern, replacement in _SMALLER:
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
      code = "%%script bash -euo pipefail\n" + code
    yield nbformat.v4.new_code_cell(code)


def _execute(notebook, directory, monkeypatch):
  """Runs the cells in a fresh kernel in `directory`; every cell must print what it says."""
  monkeypatch.setenv("PYTHONPATH", str(_ROOT))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/dd_jax/xla"))
  client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3",
                                   resources={"metadata": {"path": str(directory)}})
  client.execute()
  for cell in notebook.cells:
    if cell.cell_type == "code":
      said = re.findall(r"^ *print\(.*\)  # (.*)$", cell.source, re.MULTILINE)
      printed = "".join(output.text for output in cell.outputs
                        if output.output_type == "stream" and output.name == "stdout")
      if said and not cell.source.startswith("%%"):
        assert set(printed.splitlines()) == set(said), cell.source


@pytest.fixture
def directory(tmp_path):
  """What a reader has beside the checkout: its launchers, and a folder of data."""
  rng = np.random.default_rng(0)
  labels = {"train_labels": np.arange(5200) % 10, "test_labels": np.arange(20) % 10}
  images = {name.replace("labels", "images"):
            rng.integers(0, 256, (len(values), 28, 28, 1), dtype=np.uint8)
            for name, values in labels.items()}
  (tmp_path / "data").mkdir()
  np.savez(tmp_path / "data/mnist.npz", **images, **labels)
  (tmp_path / "experiments").symlink_to(_ROOT / "experiments")
  return tmp_path


@pytest.mark.slow(minutes=8)
@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda path: path.stem)
def test_a_document_runs(path, directory, monkeypatch):
  if path.stem == "data":
    small = {name: values[:120] for name, values in np.load(directory / "data/mnist.npz").items()}
    prepared = prepared_sets.write_array_record(directory / "tfds", small).parent
    prepared.rename(directory / "data/letters")
  notebook = nbformat.v4.new_notebook(cells=list(_cells(path.read_text())))
  assert notebook.cells
  _execute(notebook, directory, monkeypatch)


@pytest.mark.slow(minutes=8)
@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_reaches_its_accuracy(path, directory, monkeypatch):
  notebook = nbformat.read(path, as_version=4)
  notebook.cells.append(nbformat.v4.new_code_cell("print(float(accuracy))"))
  _execute(notebook, directory, monkeypatch)
  accuracy = float(notebook.cells[-1].outputs[0].text)
  assert accuracy > {"quickstart": .7, "research": .5, "devices": .5}[path.stem]


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_begins_with_its_badge_and_the_installation(path):
  notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
  nbformat.validate(notebook)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  badge, install, *_ = notebook.cells
  assert badge.cell_type == "markdown"
  assert f"/dd_jax/dd_jax/blob/main/notebooks/{path.name}" in badge.source
  assert 'find_spec("dd_jax") is None' in install.source and "%pip install" in install.source
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None
      assert all(len(line) <= 100 for line in cell.source.splitlines())


def test_three_notebooks_and_the_guides_are_there():
  assert [path.stem for path in _NOTEBOOKS] == ["devices", "quickstart", "research"]
  readme = (_ROOT / "README.md").read_text()
  for path in [*_DOCUMENTS[1:], *_NOTEBOOKS, *(_ROOT / f"docs/{name}.md" for name in _SCRIPTS)]:
    assert f"]({path.relative_to(_ROOT)})" in readme, path


@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda path: path.stem)
def test_the_files_that_a_document_names_are_there(path):
  text = path.read_text()
  for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
    assert (path.parent / link).exists(), link
  for config in re.findall(r"--config=(\S+\.py)", text):
    assert (_ROOT / config).is_file(), config
