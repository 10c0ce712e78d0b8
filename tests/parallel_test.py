"""Every layout of the devices computes what one device does: loss and hypergradient, by value."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dd_jax import parallel
from tests import many_devices
from tests.launches import free_address

_ROOT = pathlib.Path(__file__).parents[1]


def _start(num_devices, *arguments):
  # Less optimised code, which is compiled sooner; it still does the arithmetic it is told to.
  flags = (f"--xla_force_host_platform_device_count={num_devices} "
           "--xla_backend_optimization_level=0")
  return subprocess.Popen(
      [sys.executable, "-m", "tests.many_devices", *map(str, arguments)], cwd=_ROOT,
      env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
  @functools.cache
  def results(names):
    path = tmp_path_factory.mktemp("eight_devices") / "results.npz"
    assert _start(8, path, ",".join(names)).wait(timeout=250) == 0
    return np.load(path)

  return results


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
  path = tmp_path_factory.mktemp("two_processes") / "results.npz"
  coordinator = free_address()
  names = ",".join(many_devices.OF_PROCESSES)
  processes = [_start(2, path, names, coordinator, index) for index in (0, 1)]
  try:
    assert [process.wait(timeout=250) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  return np.load(path)


def _assert_equal_to_one_device(results, setting, layout):
  """Every leaf within a share of its largest entry: sizes as well as directions."""
  names = [name for name in results if name.startswith(f"{setting}/{layout}/")]
  assert sum(name.endswith("/[0]") for name in names) == 1 and len(names) > 2
  tolerance = 1e-10 if many_devices.SETTINGS[setting].x64 else 1e-5
  for name in names:
    reference = results[name.replace(f"/{layout}/", "/one/")]
    assert results[name].shape == reference.shape and np.abs(reference).max() > 0
    np.testing.assert_allclose(results[name], reference, rtol=0,
                               atol=tolerance * np.abs(reference).max(), err_msg=name)


_SLOW = tuple(name for name in many_devices.SETTINGS if name not in many_devices.QUICK)


@pytest.mark.parametrize("names, setting, layout", [
    pytest.param(names, setting, layout, marks=marks)
    for names, marks in ((many_devices.QUICK, ()), (_SLOW, pytest.mark.slow))
    for setting in names for layout in many_devices.SETTINGS[setting].layouts])
def test_eight_devices_equal_one(eight_devices, names, setting, layout):
  results = eight_devices(names)
  assert results["num_devices"] == 8
  _assert_equal_to_one_device(results, setting, layout)


@pytest.mark.parametrize("num_rows", [3, 8, 21])
def test_rows_are_shared_out_over_eight_devices(eight_devices, num_rows):
  """Networks of an evaluation, as many as the devices divide and others."""
  results = eight_devices(many_devices.QUICK)
  of = {name: results[f"map/{num_rows}/{name}"] for name in ("square", "sum", "on_its_device")}
  np.testing.assert_array_equal(of["square"], np.arange(1., num_rows + 1) ** 2)
  np.testing.assert_array_equal(of["sum"], np.full(num_rows, 2.))
  np.testing.assert_array_equal(of["on_its_device"], np.full(num_rows, -(-num_rows // 8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting, layout", [(setting, layout) for setting in many_devices.OF_PROCESSES
                        for layout in many_devices.SETTINGS[setting].layouts])
def test_two_processes_of_two_devices_equal_one(two_processes, setting, layout):
  assert two_processes["num_devices"] == 4
  _assert_equal_to_one_device(two_processes, setting, layout)


def test_a_mesh_gives_devices_to_networks_first():
  devices = jax.devices("cpu") * 12  # Only counted here.
  for num_inits, shape in ((24, (12, 1)), (12, (12, 1)), (4, (4, 3)), (9, (3, 4)), (1, (1, 12))):
    assert parallel.make_mesh(num_inits, devices).devices.shape == shape


def test_what_devices_cannot_share_is_named():
  def loss(variable, examples):
    return variable * examples.mean()

  mesh = jax.sharding.AbstractMesh(
      (4, 2), (parallel.INITS, parallel.EXAMPLES),
      axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with pytest.raises(ValueError, match="num_inits must be a multiple of the 4 devices .* got 6"):
    jax.eval_shape(parallel.over_mesh(loss, mesh, parallel.INITS), 1., np.ones(6))
  with pytest.raises(ValueError, match="the real batch must be a multiple of the 2 devices .* 7"):
    jax.eval_shape(parallel.over_mesh(loss, mesh, parallel.EXAMPLES), 1., np.ones(7))
