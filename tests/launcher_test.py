"""The commands as a user meets them: processes on real digits, their files, their errors."""

import functools
import importlib
import json
import re
import signal
import subprocess
import sys
import time

import jax
from matplotlib import image as mpl_image
import numpy as np
import pytest

import dd_jax
from dd_jax import datasets
from dd_jax import losses
from dd_jax import models
from dd_jax.files import artifacts
from dd_jax.runs import paths
from dd_jax.runs import workdirs
from experiments import launcher
from experiments.configs import default
from experiments.configs import pool_default
from experiments.configs import transfer
from tests.launches import ROOT, SMOKE, error_of, launch, start_anew

_MLP = (SMOKE, "--config.model.name=mlp")
_CONFIGS = sorted(path.stem for path in (ROOT / "experiments/configs").glob("*.py")
                  if path.stem not in (
                      "default", "pool_default", "table_default", "adaptation", "transfer"))
_RESULT_FIELDS = {
    "accuracy_mean", "accuracy_std", "accuracy_before_mean", "num_eval_inits",
    "num_distilled_images", "outer_steps", "wall_seconds", "compile_seconds",
    "seconds_per_outer_step", "peak_memory_bytes", "selection", "device", "jax_version", "seed",
    "distilled_bytes", "distilled_blake2b", "config"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished smoke run: its directory and its process."""
  workdir = tmp_path_factory.mktemp("run")
  process = start_anew("experiments.main", *_MLP, f"--workdir={workdir}")
  assert process.returncode == 0, process.stderr
  return workdir, process


def test_a_run_leaves_what_its_contract_says(finished):
  workdir, process = finished
  result = json.loads(process.stdout.splitlines()[-1])
  assert result == json.loads((workdir / "result.json").read_text())
  assert _RESULT_FIELDS <= result.keys()
  assert result["outer_steps"] == 6 and result["num_distilled_images"] == 10
  assert result["num_eval_inits"] == 1 and result["config"]["data"]["name"] == "digits"
  assert result["wall_seconds"] > result["compile_seconds"] > 0
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [2, 4, 6]
  assert json.loads((workdir / "config.json").read_text()) == result["config"]
  assert "validation" in process.stderr and "step/s" in process.stderr
  for name in ("distilled.png", "curves.png"):
    picture = mpl_image.imread(workdir / name)
    assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > .05


def test_the_file_gives_the_reported_accuracy(finished):
  """Everything needed lies in distilled.npz: weights, order, step sizes, normalisation."""
  workdir, process = finished
  distilled, params, metadata, _ = artifacts.load(workdir / "distilled.npz")
  assert distilled.inputs.shape == (1, 10, 28, 28, 1) and distilled.step_sizes.shape == (3, 1)
  model = models.MODELS[metadata["model"]](num_classes=metadata["num_classes"],
                                           image_shape=distilled.inputs.shape[2:])
  train = dd_jax.unroll(losses.classification(model.apply))
  trained, _ = train(jax.random.key(0), params, distilled)
  data = datasets.load(metadata["dataset"])
  images = datasets.normalize(data.test_images, metadata["mean"], metadata["std"])
  predicted = np.argmax(model.apply(trained, images), -1)
  accuracy = json.loads(process.stdout.splitlines()[-1])["accuracy_mean"]
  np.testing.assert_allclose(np.mean(predicted == data.test_labels), accuracy, atol=1e-6)


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(finished):
  workdir, process = finished
  before = (workdir / "result.json").stat().st_mtime_ns
  again = launch("experiments.main", *_MLP, f"--workdir={workdir}")
  assert again.stdout == process.stdout
  assert (workdir / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_images(finished, tmp_path):
  """Killed once its first checkpoint lies there, then run again: bit for bit the same result."""
  arguments = [*_MLP, f"--workdir={tmp_path / 'run'}"]
  with subprocess.Popen([sys.executable, "-m", "experiments.main", *arguments], cwd=ROOT,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
    while process.poll() is None and not (tmp_path / "run/checkpoints/4").exists():
      time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
  # Whether or not the kill came before the end, the command completes the run.
  process = start_anew("experiments.main", *arguments)
  assert process.returncode == 0, process.stderr
  with np.load(tmp_path / "run/distilled.npz") as actual, \
      np.load(finished[0] / "distilled.npz") as expected:
    for name in ("images", "step_sizes", "init/Dense_0/kernel"):
      np.testing.assert_array_equal(actual[name], expected[name])
  steps = [json.loads(line)["step"]
           for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert steps == [2, 4, 6]


@pytest.mark.slow
def test_the_main_job_of_the_readme_reaches_85_percent(tmp_path):
  process = start_anew("experiments.main", SMOKE.removesuffix(":smoke"),
                       f"--workdir={tmp_path / 'run'}")
  assert process.returncode == 0, process.stderr
  result = json.loads(process.stdout.splitlines()[-1])
  assert result["accuracy_mean"] >= .85 and result["num_distilled_images"] == 10
  assert result["accuracy_before_mean"] < .3


@pytest.mark.parametrize("arguments, message", [
    ([SMOKE, "--config.outer.num_stepz=3"],
     r"config\.outer\.num_stepz must be one of config\.\{.*outer\.num_steps.*\}"),
    ([SMOKE, "--config.outer.num_steps=many"], r"outer\.num_steps=many: invalid literal"),
    ([SMOKE, "--config.model.name=resnet"],
     r"model\.name must be one of \['alexcifarnet', 'alexnet', .*, 'vit'\]; got 'resnet'"),
    ([SMOKE, "--config.outer.on_nonfinite=ignore"],
     r"outer\.on_nonfinite must be one of \['halve', 'stop'\]; got 'ignore'"),
    ([SMOKE.replace("smoke", "tiny")], "config variant must be '', 'smoke' or 'paper'; got 'tiny'"),
    ([SMOKE, "now"], "every argument must be a flag; got 'now'"),
    ([SMOKE, "--workdir=gs://bucket/run"], "workdir must be a local path; got 'gs://bucket/run'"),
    *(([SMOKE, f"--config.{field}=None"], f"{field}.*None") for field in (
        "seed", "data.dir", "outer.learning_rate", "inner.learned")),
])
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_nothing(
    tmp_path, arguments, message):
  line = error_of(launch("experiments.main", f"--workdir={tmp_path / 'run'}", *arguments))
  assert re.search(message, line), line
  assert not (tmp_path / "run").exists() and not (ROOT / "gs:").exists()


def test_a_path_that_is_an_address_names_its_flag():
  with pytest.raises(ValueError, match="--out must be a local path; got 's3://a/b'"):
    paths.local("s3://a/b", "--out")


@pytest.mark.slow
def test_the_home_directory_is_expanded(finished, tmp_path):
  (tmp_path / "x").symlink_to(finished[0])
  for module, arguments in (
      ("main", [*_MLP, "--workdir=~/x"]),
      ("export", ["--distilled=~/x/distilled.npz", "--to=png", "--out=~/png"]),
      ("report", ["~/x", "--out=~/page.html"]),
      ("apply", ["--distilled=~/x/distilled.npz"])):
    process = launch(f"experiments.{module}", *arguments, HOME=str(tmp_path))
    assert process.returncode == 0, process.stderr
  assert (tmp_path / "png").is_dir() and (tmp_path / "page.html").exists()
  assert not (ROOT / "~").exists()


# Configs


@pytest.mark.parametrize("name", _CONFIGS)
def test_every_config_is_documented_and_has_the_default_fields(name):
  module = importlib.import_module(f"experiments.configs.{name}")
  is_pool = name.endswith("_pool")
  fields = launcher.field_names((pool_default if is_pool else default).get_config())
  for variant in ("", "smoke"):
    config = module.get_config(variant)
    assert launcher.field_names(config) == fields
    if not is_pool:
      assert config.validation.every % config.log_every == 0
      assert config.checkpoint_every % config.log_every == 0
    if not is_pool and config.init.pool:
      pool = importlib.import_module(f"experiments.configs.{config.init.pool.split('/')[-1]}")
      assert pool.get_config().data.name == (config.init.source or config.data.name)
      assert f"--config=experiments/configs/{pool.__name__.split('.')[-1]}.py" in module.__doc__
  assert f"--config=experiments/configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("file", [default, pool_default, transfer])
def test_every_empty_field_can_be_set_and_emptied_again(tmp_path, file):
  fields = file.get_config()
  values = {float: .5, int: 3, str: "'some'", tuple: (3, 2)}
  empty = [name for name in launcher.field_names(fields)
           if launcher.value_of(fields, name) is None]
  assert empty
  setting = "\n".join(
      f"  config.{name} = {values[_type_of(fields, name)]}" for name in empty)
  (tmp_path / "filled.py").write_text(
      f"from {file.__name__} import get_config as empty\ndef get_config():\n"
      f"  config = empty()\n{setting}\n  return config\n")

  def run(*arguments):
    process = launch(functools.partial(_print_config, file.__name__),
                     f"--config={tmp_path / 'filled.py'}", "--workdir=none", *arguments)
    assert process.returncode == 0, process.stderr
    return workdirs.flatten(json.loads(process.stdout.splitlines()[-1]))

  filled, emptied = run(), run(*(f"--config.{name}=None" for name in empty))
  assert all(filled[name] is not None and emptied[name] is None for name in empty)
  assert emptied == workdirs.flatten(json.loads(fields.to_json()))


def _print_config(file):
  launcher.run_config(lambda config, workdir: json.loads(config.to_json()),
                      importlib.import_module(file).get_config())


def _type_of(config, name):
  *sections, field = name.split(".")
  for section in sections:
    config = config[section]
  return config.get_type(field)


def test_no_command_defines_a_flag_of_another():
  """All of them in one process, as a test suite imports them."""
  for path in sorted((ROOT / "experiments").glob("*.py")):
    importlib.import_module(f"experiments.{path.stem}")
  for path in sorted((ROOT / "experiments/measurements").glob("*.py")):
    if path.stem != "torch_reference":
      importlib.import_module(f"experiments.measurements.{path.stem}")


# Machines


@pytest.mark.parametrize("platform, module, arguments", [
    ("cuda", "main", [SMOKE]),
    pytest.param("cuda", "measurements.linear", [], marks=pytest.mark.slow),
    pytest.param("unheard", "main", [SMOKE], marks=pytest.mark.slow)])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platform, module, arguments):
  if platform == "cuda" and jax.default_backend() == "gpu":
    pytest.skip("This machine has one.")
  where = "--workdir" if module == "main" else "--out"
  process = start_anew(f"experiments.{module}", *arguments, f"{where}={tmp_path / 'run'}",
                       JAX_PLATFORMS=platform)
  assert process.returncode == 1
  (line,) = process.stderr.splitlines()  # linear has printed the head of its table before.
  assert line.startswith("error: JAX_PLATFORMS must name platforms that this machine has; got "
                         f"'{platform}'")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_needs_no_module_of_unix_alone(tmp_path):
  """As on Windows, but for the lock, which is another module's there."""
  script = ("import runpy, sys\nsys.modules['resource'] = None\n"
            "runpy.run_module('experiments.main', run_name='__main__', alter_sys=True)")
  process = subprocess.run(
      [sys.executable, "-c", script, *_MLP, f"--workdir={tmp_path / 'run'}"], cwd=ROOT,
      capture_output=True, text=True, timeout=300)
  assert process.returncode == 0, process.stderr
  result = json.loads(process.stdout.splitlines()[-1])
  assert result["peak_memory_bytes"] is None or jax.default_backend() == "gpu"
  assert (tmp_path / "run/report.html").exists()
