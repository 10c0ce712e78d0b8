"""Times whole outer steps, ours and an eager PyTorch version of the same, side by side.

    pip install -e '.[experiments,bench]'
    python -m experiments.bench --out=bench.json [--settings=mnist_fixed_n1,...] [--rounds=7]

Both sides get the same inputs and must agree in loss and hypergradient before anything is timed.
The two alternate, so that a drift of the machine's speed cancels in the ratio. A step is timed
whole: drawing the initial weights, inner trajectory, hypergradient, optimizer, waiting for the
result. Without PyTorch, ours alone.
"""

import functools
import json
import pathlib
import platform
import time
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dd_jax
from dd_jax import artifacts
from dd_jax import losses
from dd_jax import models
from dd_jax import parametrization

_OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of either side.", lower_bound=1)
_PRECISION = flags.DEFINE_enum("precision", "highest", ["highest", "high", "default"],
                               "Of float32 matrix products on an accelerator, on both sides.")

_REAL_BATCH = 1024
_STEP_SIZE = .02
_TOLERANCE = 1e-4  # Relative L2 between the two sides' hypergradients.


class Setting(NamedTuple):
  """What one row times; E = 3 and one image per class and step throughout."""
  network: str
  image_shape: tuple[int, int, int]
  init: str
  num_steps: int  # S
  num_inits: int  # N
  chunk_size: int
  memory: str = "plain"


_MNIST = functools.partial(Setting, "lenet", (28, 28, 1), chunk_size=64)
_CIFAR = functools.partial(Setting, "alexcifarnet", (32, 32, 3), num_steps=10, chunk_size=32,
                           memory="remat")
SETTINGS = {
    "mnist_fixed_n1": _MNIST(init="fixed", num_steps=1, num_inits=1),
    "mnist_random_n1": _MNIST(init="random", num_steps=10, num_inits=1),
    "mnist_random_n4": _MNIST(init="random", num_steps=10, num_inits=4),
    "mnist_random_n16": _MNIST(init="random", num_steps=10, num_inits=16),
    "cifar10_fixed_n1": _CIFAR(init="fixed", num_inits=1),
    "cifar10_random_n4": _CIFAR(init="random", num_inits=4),
}
_CHOSEN = flags.DEFINE_list(
    "settings", [name for name in SETTINGS if name != "mnist_random_n16"],
    f"Rows to time, of {', '.join(SETTINGS)}.")


class Ours(NamedTuple):
  """Our side of a row."""
  theta_0: dict  # Weights of N networks, for the comparison.
  trainable: dict
  real: tuple[jax.Array, jax.Array]
  value_and_grad: object  # (trainable, params [N, ...], key, *real) -> (loss, hypergradient)
  step: object  # step() runs one outer step and waits for it
  compile_seconds: float
  temporary_bytes: int
  flops: float


def build_ours(setting: Setting) -> Ours:
  """Compiles the outer step of a row on random inputs."""
  model = models.MODELS[setting.network](num_classes=10, image_shape=setting.image_shape)
  random = dd_jax.random_init(model.init, dd_jax.init_distributions.xavier_normal())
  theta_0 = jax.jit(random.sample, static_argnums=2)((), jax.random.key(0), setting.num_inits)
  init = (dd_jax.fixed_init(jax.tree.map(lambda leaf: leaf[0], theta_0))
          if setting.init == "fixed" else random)
  labels = parametrization.class_labels(setting.num_steps, 10, 1)
  trainable = dd_jax.init_distilled(
      jax.random.key(1), labels=labels, image_shape=setting.image_shape, num_epochs=3,
      step_size=_STEP_SIZE)
  real = (jax.random.normal(jax.random.key(2), (_REAL_BATCH, *setting.image_shape)),
          jax.random.randint(jax.random.key(3), (_REAL_BATCH,), 0, 10, jnp.int32))
  loss = losses.classification(model.apply)
  make_outer_loss = functools.partial(
      dd_jax.make_outer_loss, parametrization.pixels(labels), inner_loss=loss, real_loss=loss,
      num_inits=setting.num_inits, chunk_size=setting.chunk_size, memory=setting.memory)
  value_and_grad = jax.jit(dd_jax.value_and_hypergrad(
      make_outer_loss(sample=lambda params, key, num_inits: params)))

  optimizer = optax.adam(.01, b1=.5)
  outer_step = dd_jax.make_outer_step(make_outer_loss(sample=init.sample), optimizer)
  state = dd_jax.init_outer_state(trainable, optimizer)
  start = time.perf_counter()
  compiled = jax.jit(outer_step, donate_argnums=1).lower(
      jax.random.key(4), jax.tree.map(jnp.copy, state), init.state, *real).compile()
  compile_seconds = time.perf_counter() - start
  holder = [jax.tree.map(jnp.copy, state)]

  def step():
    key = jax.random.fold_in(jax.random.key(5), int(holder[0].step))
    holder[0], info = compiled(key, holder[0], init.state, *real)
    jax.block_until_ready((holder[0], info))

  return Ours(theta_0, trainable, real, value_and_grad, step, compile_seconds,
              compiled.memory_analysis().temp_size_in_bytes,
              (compiled.cost_analysis() or {}).get("flops", float("nan")))


def build_torch(setting: Setting, ours: Ours):
  """`{memory layout: step()}` of PyTorch on the same inputs, after they agree with ours."""
  import torch
  from experiments import torch_reference

  device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
  torch.set_num_threads(2)
  torch.backends.cuda.matmul.allow_tf32 = _PRECISION.value != "highest"
  torch.backends.cudnn.allow_tf32 = _PRECISION.value != "highest"
  networks = [torch_reference.params_from_flax(jax.tree.map(lambda leaf: leaf[n], ours.theta_0),
                                               device) for n in range(setting.num_inits)]
  labels = np.tile(np.arange(10), (setting.num_steps, 1))
  loss, gradient = ours.value_and_grad(ours.trainable, ours.theta_0, jax.random.key(0), *ours.real)
  steps = {}
  for layout in ("contiguous", "channels_last"):
    theirs = torch_reference.OuterStep(
        setting.network, np.asarray(ours.trainable["images"]), labels,
        np.asarray(ours.trainable["step_sizes"]), device=device,
        channels_last=layout == "channels_last")
    images = theirs.to_images(np.asarray(ours.real[0]))
    real_labels = torch.tensor(np.asarray(ours.real[1]), device=device, dtype=torch.long)
    their_loss = float(theirs.hypergradient(networks, images, real_labels))
    errors = {
        "loss": abs(their_loss / float(loss) - 1),
        "images": _relative_error(theirs.images_gradient(), gradient["images"]),
        "step_sizes": _relative_error(theirs.raw.grad.cpu().numpy(), gradient["step_sizes"])}
    if not max(errors.values()) < _TOLERANCE:
      raise SystemExit(f"error: both sides must agree to {_TOLERANCE}; {layout}: {errors}")

    def step(theirs=theirs, images=images):
      drawn = networks if setting.init == "fixed" else [
          torch_reference.xavier_normal(params) for params in networks]
      theirs.hypergradient(drawn, images, real_labels)
      theirs.update()
      if device == "cuda":
        torch.cuda.synchronize()

    steps[layout] = step
  return steps


def time_setting(name: str, setting: Setting, rounds: int, with_torch: bool) -> dict:
  """One row: raw samples in seconds, medians, and the ratio PyTorch / ours."""
  ours = build_ours(setting)
  sides = {"ours": ours.step}
  if with_torch:
    sides |= build_torch(setting, ours)
  samples = {side: [] for side in sides}
  for step in sides.values():
    step()
  for _ in range(rounds):
    for side, step in sides.items():
      start = time.perf_counter()
      step()
      samples[side].append(time.perf_counter() - start)
  medians = {side: float(np.median(values)) for side, values in samples.items()}
  row = {"name": name, "seconds_ours": medians.pop("ours"), "samples": samples,
         "compile_seconds": ours.compile_seconds, "temporary_bytes": ours.temporary_bytes,
         "gflops": ours.flops / 1e9}
  if medians:
    row["torch_layout"], row["seconds_torch"] = min(medians.items(), key=lambda item: item[1])
    row["ratio"] = row["seconds_torch"] / row["seconds_ours"]
  return row


def matmul_gflops(size: int = 2048) -> float:
  """Median rate of a float32 matrix product of this size."""
  a = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(jnp.dot)
  product(a, a).block_until_ready()
  seconds = []
  for _ in range(9):
    start = time.perf_counter()
    product(a, a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size ** 3 / float(np.median(seconds)) / 1e9


def main(argv):
  del argv
  unknown = sorted(set(_CHOSEN.value) - set(SETTINGS))
  if unknown:
    raise SystemExit(f"error: settings must be of {sorted(SETTINGS)}; got {unknown}")
  try:
    import torch
    torch_version = torch.__version__
  except ImportError:
    torch_version = None
    print("PyTorch is not installed: ours alone")
  with jax.default_matmul_precision(_PRECISION.value):
    report = {"machine": {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "platform": platform.platform(), "python": platform.python_version(),
        "jax": jax.__version__, "torch": torch_version, "precision": _PRECISION.value,
        "matmul_gflops": matmul_gflops()}, "settings": []}
    print(f"{'setting':<20} {'ours s':>9} {'torch s':>9} {'ratio':>6} {'compile s':>9} "
          f"{'temp MB':>8} {'GFLOP/s':>8} {'of peak':>7}")
    for name in _CHOSEN.value:
      row = time_setting(name, SETTINGS[name], _ROUNDS.value, torch_version is not None)
      report["settings"].append(row)
      rate = row["gflops"] / row["seconds_ours"]
      print(f"{name:<20} {row['seconds_ours']:>9.4f} {row.get('seconds_torch', np.nan):>9.4f} "
            f"{row.get('ratio', np.nan):>6.2f} {row['compile_seconds']:>9.1f} "
            f"{row['temporary_bytes'] / 1e6:>8.0f} {rate:>8.1f} "
            f"{rate / report['machine']['matmul_gflops']:>7.0%}", flush=True)
      text = json.dumps(report, indent=2)
      artifacts.write_atomically(pathlib.Path(_OUT.value),
                                 lambda file, text=text: file.write(text.encode()))


def _relative_error(actual, expected):
  return float(np.linalg.norm(actual - np.asarray(expected)) / np.linalg.norm(expected))


if __name__ == "__main__":
  app.run(main)
