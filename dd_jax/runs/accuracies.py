"""What is reported of networks before and after they were trained on distilled data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dd_jax.evaluation import EvalResult, poisoning_metrics

# Figure -> what it is called, and whether it is a share, shown in percent. A run is known by the
# first that it has, one of one's own before these.
LABELS = {"attack_success": ("attack class read as target", True),
          "others_accuracy": ("accuracy on the other classes", True),
          "accuracy": ("accuracy", True), "r2": ("R2", False),
          "rmse": ("root mean squared error", False)}


class Figures(NamedTuple):
  """What a run measures."""
  of: Callable[[Any], dict[str, np.ndarray]]  # Metrics -> figures of each network [N].
  choosing: tuple[str, ...]  # By whose mean, the higher the better, is chosen.

  @property
  def headline(self) -> str:
    """The figure that a run is known by."""
    return self.choosing[0]


def summarize(evaluated: EvalResult, figures: Figures) -> dict[str, float]:
  """Mean and standard deviation over networks of every figure, after and before training."""
  found: dict[str, float] = {}
  for metrics, suffix in ((evaluated.after, ""), (evaluated.before, "_before")):
    values = figures.of(metrics)
    found |= {f"{name}{suffix}_mean": float(of_networks.mean())
              for name, of_networks in values.items()}
    found |= {f"{name}{suffix}_std": std(of_networks) for name, of_networks in values.items()}
  return found


def names_of(result: dict[str, Any]) -> list[str]:
  """The figures that the result of a finished run has, first the one that it is known by."""
  measured = [name.removesuffix("_before_mean") for name in result if name.endswith("_before_mean")]
  return [*(name for name in measured if name not in LABELS),
          *(name for name in LABELS if f"{name}_mean" in result)]


def of_one_axis(result: dict[str, Any]) -> list[str]:
  """The figures of a result that a chart can show together: all shares, or the first alone."""
  names = names_of(result)
  return [name for name in names if is_share(name)] if is_share(names[0]) else names[:1]


def label(name: str) -> str:
  """What a figure is called."""
  return LABELS[name][0] if name in LABELS else name.replace("_", " ")


def is_share(name: str) -> bool:
  """Whether a figure is shown in percent."""
  return name in LABELS and LABELS[name][1]


def factor(name: str) -> int:
  """What a figure is multiplied by to be shown: 100 of a share."""
  return 100 if is_share(name) else 1


def shown(name: str, value: float) -> str:
  """A figure to be read: a share in percent, anything else as it is."""
  return f"{factor(name) * value:.1f}" if is_share(name) else f"{value:.3g}"


def unit(name: str) -> str:
  """What stands behind a shown figure."""
  return " %" if is_share(name) else ""


def mean_std(result: dict[str, Any], name: str, when: str = "") -> str:
  """A figure of a result with its unit and, of several networks, its standard deviation.

  Args:
    result: of a finished run.
    name: of the figure.
    when: "_before" for that of networks before training.
  """
  text = shown(name, result[f"{name}{when}_mean"])
  if result["num_eval_inits"] > 1:
    text += f" ± {shown(name, result[f'{name}{when}_std'])}"
  return text + unit(name)


def chosen_by(found: dict[str, np.ndarray], figures: Figures) -> float:
  """What images on their way, sets and step sizes are compared by."""
  return float(np.mean([found[name] for name in figures.choosing]))


ACCURACY = Figures(lambda metrics: {"accuracy": np.asarray(metrics.accuracy, np.float64)},
                   ("accuracy",))


def poisoning(attack_class: int, target_class: int) -> Figures:
  """The two figures of a poisoning objective, by which is chosen, and the accuracy."""
  def figures(metrics):
    success, others = poisoning_metrics(metrics.confusion, attack_class=attack_class,
                                        target_class=target_class)
    return {**ACCURACY.of(metrics), "attack_success": np.asarray(success, np.float64),
            "others_accuracy": np.asarray(others, np.float64)}

  return Figures(figures, ("attack_success", "others_accuracy"))


def targets(scale: np.ndarray) -> Figures:
  """R2, and the root mean squared error in the targets' own units, mean over the D targets.

  Args:
    scale: what targets were divided by, `[D]`.
  """
  return Figures(lambda metrics: {
      "r2": np.asarray(metrics.r2, np.float64),
      "rmse": (np.asarray(metrics.rmse, np.float64) * scale).mean(-1)}, ("r2",))


def of(objective: Mapping[str, Any], scale: np.ndarray | None = None) -> Figures:
  """What is measured of an objective.

  Args:
    objective: its "name" and, of poisoning, "attack_class" and "target_class".
    scale: of targets, as of `targets`. None: there are classes.
  """
  if scale is not None:
    return targets(scale)
  if objective.get("name") == "poisoning":
    return poisoning(objective["attack_class"], objective["target_class"])
  return ACCURACY


def std(values: np.ndarray) -> float:
  """Unbiased standard deviation; 0 of a single value."""
  return float(values.std(ddof=1)) if len(values) > 1 else 0.0
