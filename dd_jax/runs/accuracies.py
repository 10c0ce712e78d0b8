"""What is reported of networks before and after they were trained on distilled data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import dd_jax


def summarize(evaluated: dd_jax.EvalResult, objective: Mapping[str, Any]) -> dict[str, float]:
  """Mean and standard deviation over networks of every figure, after and before training."""
  figures = {}
  for metrics, suffix in ((evaluated.after, ""), (evaluated.before, "_before")):
    values = {"accuracy": np.asarray(metrics.accuracy, np.float64),
              **poisoning(objective, metrics)}
    figures |= {f"{name}{suffix}_mean": float(of_networks.mean())
                for name, of_networks in values.items()}
    figures |= {f"{name}{suffix}_std": std(of_networks) for name, of_networks in values.items()}
  return figures


def poisoning(objective: Mapping[str, Any], metrics: dd_jax.Metrics) -> dict[str, np.ndarray]:
  """Figures of each network `[N]` that a poisoning objective adds; empty for the others."""
  if objective["name"] != "poisoning":
    return {}
  success, others = dd_jax.poisoning_metrics(
      metrics.confusion, attack_class=objective["attack_class"],
      target_class=objective["target_class"])
  return {"attack_success": np.asarray(success, np.float64),
          "others_accuracy": np.asarray(others, np.float64)}


def std(values: np.ndarray) -> float:
  """Unbiased standard deviation; 0 of a single value."""
  return float(values.std(ddof=1)) if len(values) > 1 else 0.0
