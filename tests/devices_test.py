"""experiments.measurements.devices as a user launches it, on two forced CPU devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.measurements import devices

_ROOT = pathlib.Path(__file__).parents[1]


def test_collectives_are_counted_by_kind():
  program = """
    %a = (f32[1,10,28,28,1]{4,3,2,1,0}, f32[3,1]{1,0}, f32[]) all-reduce(%x, %y, %z), channel_id=1
    %b = f64[4,2]{1,0} all-gather-start(%c), dimensions={0}
    %d = f32[7]{0} add(%all-reduce.1, %e)
    %f = bf16[5]{0} all-reduce(%g)
    %h = (f32[3]{0}, f32[6]{0}) all-gather-start(%i), dimensions={0}
    %j = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%k)
  """
  assert devices.communicated(program) == {
      "all-reduce": {"calls": 2, "bytes": 4 * (7840 + 3 + 1) + 2 * 5},
      "all-gather": {"calls": 2, "bytes": 8 * 8 + 4 * 6},
      "collective-permute": {"calls": 1, "bytes": 4 * 2}}


@pytest.mark.slow
def test_an_outer_step_sums_hypergradient_and_loss_over_the_devices_and_nothing_else(tmp_path):
  process = subprocess.run(
      [sys.executable, "-m", "experiments.measurements.devices", "--rounds=1",
       f"--workdir={tmp_path}",
       "--config=experiments/configs/digits_fixed_init.py:smoke", "--config.model.name=mlp",
       "--config.init.name=random", "--config.outer.num_inits=2"],
      cwd=_ROOT, capture_output=True, text=True, timeout=300,
      env={**os.environ, "JAX_PLATFORMS": "cpu",
           "XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
  assert process.returncode == 0, process.stderr
  report = json.loads((tmp_path / "devices.json").read_text())
  assert report == json.loads(process.stdout.splitlines()[-1])
  one, two = report["rows"]
  assert one["devices"] == 1 and one["communicated"] == {}
  # Ten images, three step sizes and the loss, in float32; the networks never leave their device.
  assert two["devices"] == 2
  assert set(two["communicated"]) == {"all-reduce"}
  assert two["communicated"]["all-reduce"]["bytes"] == 4 * (10 * 28 * 28 + 3 + 1)
  assert min(one["outer_steps_per_second"], two["outer_steps_per_second"]) > 0
