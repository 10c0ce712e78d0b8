"""What is reported of networks before and after they were trained on distilled data."""

from collections.abc import Callable

import numpy as np

from dd_jax.evaluation import EvalResult, Metrics, poisoning_metrics

Figures = Callable[[Metrics], dict[str, np.ndarray]]  # Figures of each network [N].


def summarize(evaluated: EvalResult, figures: Figures) -> dict[str, float]:
  """Mean and standard deviation over networks of every figure, after and before training."""
  found: dict[str, float] = {}
  for metrics, suffix in ((evaluated.after, ""), (evaluated.before, "_before")):
    values = {"accuracy": np.asarray(metrics.accuracy, np.float64), **figures(metrics)}
    found |= {f"{name}{suffix}_mean": float(of_networks.mean())
              for name, of_networks in values.items()}
    found |= {f"{name}{suffix}_std": std(of_networks) for name, of_networks in values.items()}
  return found


def poisoning(attack_class: int, target_class: int) -> Figures:
  """The figures that a poisoning objective adds."""
  def figures(metrics):
    success, others = poisoning_metrics(metrics.confusion, attack_class=attack_class,
                                        target_class=target_class)
    return {"attack_success": np.asarray(success, np.float64),
            "others_accuracy": np.asarray(others, np.float64)}

  return figures


def no_more(metrics: Metrics) -> dict[str, np.ndarray]:
  """None beside the accuracy."""
  del metrics
  return {}


def std(values: np.ndarray) -> float:
  """Unbiased standard deviation; 0 of a single value."""
  return float(values.std(ddof=1)) if len(values) > 1 else 0.0
