"""The same outer step in eager PyTorch, to be timed beside ours: needs the extra [bench].

Full unroll as in the authors' release: the forward pass keeps the graph of every inner gradient,
the backward pass walks them in reverse with one double backward each; networks one after the other.
Arrays come in and go out as numpy in this library's layout (NHWC, HWIO, [in, out]).
"""

from collections.abc import Callable
import time

import numpy as np
import torch
from torch.nn import functional as F

from dd_jax.runs import machine

_LAYERS = ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2")


def lenet(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
  """Logits `[n, K]` of images `[n, C, H, W]`; params alternate kernels and biases."""
  x = F.max_pool2d(F.relu(F.conv2d(x, *params[:2], padding=(32 - x.shape[-1]) // 2)), 2)
  x = F.max_pool2d(F.relu(F.conv2d(x, *params[2:4])), 2)
  return _head(params, x)


def alexcifarnet(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
  """Logits `[n, K]` of images `[n, C, H, W]`."""
  norm = dict(size=4, alpha=.001 / 9, beta=.75, k=1.)
  x = F.max_pool2d(F.relu(F.conv2d(x, *params[:2], padding=2)), 3, 2, 1)
  x = F.local_response_norm(x, **norm)
  x = F.local_response_norm(F.relu(F.conv2d(x, *params[2:4], padding=2)), **norm)
  return _head(params, F.max_pool2d(x, 3, 2, 1))


NETWORKS: dict[str, Callable] = {"lenet": lenet, "alexcifarnet": alexcifarnet}


def params_from_flax(params: dict, device: str) -> list[torch.Tensor]:
  """Kernels OIHW and [out, in] with inputs in C, H, W order, and biases, layer by layer."""
  tensors, channels = [], 0
  for layer in _LAYERS:
    kernel, bias = (np.asarray(params[layer][name]) for name in ("kernel", "bias"))
    if kernel.ndim == 4:
      channels, kernel = kernel.shape[3], kernel.transpose(3, 2, 0, 1)
    elif layer == "Dense_0":
      size = int((kernel.shape[0] // channels) ** .5)
      kernel = kernel.reshape(size, size, channels, -1).transpose(3, 2, 0, 1)
      kernel = kernel.reshape(kernel.shape[0], -1)
    else:
      kernel = kernel.T
    tensors += [torch.tensor(np.ascontiguousarray(kernel), device=device),
                torch.tensor(bias, device=device)]
  return tensors


class OuterStep:
  """One outer step on images and raw step sizes, with Adam as in the release."""

  def __init__(self, network: str, images: np.ndarray, labels: np.ndarray,
               raw_step_sizes: np.ndarray, *, device: str, mode: str):
    """mode: "contiguous", "channels_last", or "vmap" over the networks (contiguous)."""
    self._apply = NETWORKS[network]
    self._format = (torch.channels_last if mode == "channels_last" else torch.contiguous_format)
    self._vmap = mode == "vmap"
    self._device = device
    self.images = [self.to_images(step).requires_grad_() for step in images]
    self._labels = [torch.tensor(step, device=device, dtype=torch.long) for step in labels]
    self.raw = torch.tensor(raw_step_sizes, device=device).requires_grad_()
    self._optimizer = torch.optim.Adam([*self.images, self.raw], lr=.01, betas=(.5, .999))

  def to_images(self, images: np.ndarray) -> torch.Tensor:
    """`[n, H, W, C]` to the device, channels first, in the chosen memory format."""
    channels_first = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return channels_first.to(self._device).contiguous(memory_format=self._format)

  def hypergradient(self, networks: list[list[torch.Tensor]], images: torch.Tensor,
                    labels: torch.Tensor) -> torch.Tensor:
    """Mean outer loss over the networks; leaves its gradient in images and raw step sizes."""
    self._optimizer.zero_grad(set_to_none=True)
    if self._vmap:
      return self._side_by_side(networks, images, labels)
    return self._one_after_the_other(networks, images, labels)

  def update(self) -> None:
    """One Adam step along the gradient that `hypergradient` left."""
    self._optimizer.step()

  def images_gradient(self) -> np.ndarray:
    """`[S, B, H, W, C]`."""
    return np.stack([x.grad.cpu().numpy().transpose(0, 2, 3, 1) for x in self.images])

  def _one_after_the_other(self, networks, images, labels):
    num_epochs, num_steps = self.raw.shape
    total = torch.zeros((), device=self._device, dtype=images.dtype)
    for params in networks:
      trajectory = []
      for t in range(num_epochs * num_steps):
        params = [p.detach().requires_grad_() for p in params]
        e, s = divmod(t, num_steps)
        loss = F.cross_entropy(self._apply(params, self.images[s]), self._labels[s])
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        step_size = F.softplus(self.raw[e, s])
        updates = [step_size * g for g in gradient]
        trajectory.append((params, updates, s))
        params = [p - u.detach() for p, u in zip(params, updates)]
      params = [p.detach().requires_grad_() for p in params]
      loss = F.cross_entropy(self._apply(params, images), labels)
      total += loss.detach()
      direction = [g / len(networks) for g in torch.autograd.grad(loss, params)]
      for params, updates, s in reversed(trajectory):
        *hessian_products, by_images, by_raw = torch.autograd.grad(
            updates, [*params, self.images[s], self.raw], [-d for d in direction])
        direction = [d + h for d, h in zip(direction, hessian_products)]
        for leaf, g in ((self.images[s], by_images), (self.raw, by_raw)):
          leaf.grad = g if leaf.grad is None else leaf.grad + g
    return total / len(networks)

  def _side_by_side(self, networks, images, labels):
    num_epochs, num_steps = self.raw.shape

    def loss_of(params, x, y):
      return F.cross_entropy(self._apply(params, x), y)

    def outer_loss_of_one(params, distilled, raw):
      for t in range(num_epochs * num_steps):
        e, s = divmod(t, num_steps)
        gradient = torch.func.grad(loss_of)(params, distilled[s], self._labels[s])
        params = [p - F.softplus(raw[e, s]) * g for p, g in zip(params, gradient)]
      return loss_of(params, images, labels)

    stacked = [torch.stack(leaves) for leaves in zip(*networks)]
    loss = torch.func.vmap(outer_loss_of_one, (0, None, None))(
        stacked, self.images, self.raw).mean()
    loss.backward()
    return loss.detach()


class TorchSide:
  """PyTorch's side of a row of the bench, in a process of its own."""

  def __init__(self, setting: dict, inputs: dict, device: str, precision: str):
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = precision != "highest"
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    self._setting, self._inputs, self._device = setting, inputs, device
    self._labels = np.tile(np.arange(10), (setting["num_steps"], 1))
    self._networks = self._make_networks(np.float32)
    self._steps = {mode: self._make_step(mode, np.float32) for mode in self.modes()}

  def modes(self) -> list[str]:
    """Ways to run the step, of which the fastest counts."""
    # Under vmap autograd keeps the graphs of all networks: over 22 GB for four AlexCifarNets.
    fits = self._device == "cuda" or self._setting["network"] == "lenet"
    return ["contiguous", "channels_last"] + (
        ["vmap"] if fits and self._setting["num_inits"] > 1 else [])

  def hypergradient64(self, mode: str) -> tuple[float, dict]:
    """Loss and hypergradient of the inputs in float64."""
    step, images, labels = self._make_step(mode, np.float64)
    loss = step.hypergradient(self._make_networks(np.float64), images, labels)
    return float(loss), {"inputs": step.images_gradient(),
                         "step_sizes": step.raw.grad.cpu().numpy()}

  def step(self, mode: str) -> float:
    """Seconds of one outer step."""
    step, images, labels = self._steps[mode]
    start = time.perf_counter()
    drawn = self._networks if self._setting["init"] == "fixed" else [
        _xavier_normal(params) for params in self._networks]
    step.hypergradient(drawn, images, labels)
    step.update()
    if self._device == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - start

  def report(self) -> dict:
    """The most memory that the process has held: of the float64 comparison too."""
    peak = (torch.cuda.max_memory_allocated() if self._device == "cuda"
            else machine.peak_host_bytes())
    return {"torch_peak_bytes": peak}

  def _make_networks(self, dtype):
    theta_0 = self._inputs["theta_0"]
    return [params_from_flax({layer: {name: leaf[n].astype(dtype) for name, leaf in leaves.items()}
                              for layer, leaves in theta_0.items()}, self._device)
            for n in range(self._setting["num_inits"])]

  def _make_step(self, mode, dtype):
    trainable = self._inputs["trainable"]
    step = OuterStep(self._setting["network"], trainable["inputs"].astype(dtype), self._labels,
                     trainable["step_sizes"].astype(dtype), device=self._device, mode=mode)
    images, labels = self._inputs["real"]
    return (step, step.to_images(images.astype(dtype)),
            torch.tensor(labels, device=self._device, dtype=torch.long))


def _xavier_normal(like):
  """A fresh network of the same shapes: Xavier normal kernels, zero biases."""
  return [torch.nn.init.xavier_normal_(torch.empty_like(p)) if p.ndim > 1 else torch.zeros_like(p)
          for p in like]


def _head(params, x):
  x = F.relu(F.linear(x.flatten(1), *params[4:6]))
  return F.linear(F.relu(F.linear(x, *params[6:8])), *params[8:10])
