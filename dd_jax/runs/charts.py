"""Charts of a report as numbers for its template, in units of their view box."""

from matplotlib.ticker import MaxNLocator
import numpy as np

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 240, 50, 26, 12, 42


def _axes(x_range, y_range):
  """Functions from values to the view box, and the ticks of both axes."""
  (x_low, x_high), (y_low, y_high) = x_range, y_range
  x_ticks = MaxNLocator(6, integer=True).tick_values(*x_range)
  y_ticks = MaxNLocator(5).tick_values(*y_range)
  y_low, y_high = y_ticks[0], y_ticks[-1]

  def x(value):
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - x_low) / ((x_high - x_low) or 1)

  def y(value):
    height = _HEIGHT - _TOP - _BOTTOM
    return _HEIGHT - _BOTTOM - height * (value - y_low) / ((y_high - y_low) or 1)

  ticks = {"x_ticks": [(x(tick), f"{tick:g}") for tick in x_ticks if x_low <= tick <= x_high],
           "y_ticks": [(y(tick), f"{tick:g}") for tick in y_ticks],
           "width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _WIDTH - _RIGHT,
           "bottom": _HEIGHT - _BOTTOM}
  return x, y, ticks


def line_chart(title, unit, series):
  """Lines through points against the outer step; `series` is `{name: [(x, y)]}`."""
  points = [point for line in series.values() for point in line if np.isfinite(point).all()]
  xs, ys = zip(*(points or [(0, 0)]))
  x, y, ticks = _axes((min(xs), max(xs)), (min(ys), max(ys)))
  lines = [(name, " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line if np.isfinite((a, b)).all()))
           for name, line in series.items()]
  return {"title": title, "unit": unit, "x_label": "outer step", **ticks, "bars": [], "points": [],
          "lines": lines}


def scatter(title, points, x_label, unit):
  """Points `[(x, y)]` on one scale, and the line of equals."""
  everything = [value for point in points for value in point if np.isfinite(value)]
  ends = min(everything), max(everything)
  x, y, ticks = _axes(ends, ends)
  return {"title": title, "unit": unit, "x_label": x_label, **ticks, "bars": [],
          "points": [(x(a), y(b)) for a, b in points if np.isfinite((a, b)).all()],
          "lines": [("equal", " ".join(f"{x(end):.1f},{y(end):.1f}" for end in ends))]}


def histogram(evaluation, name, label, factor):
  """How many networks reach which value of a figure, before and after."""
  values = {"before": factor * evaluation[f"before_{name}"].astype(float),
            "after training on distilled data": factor * evaluation[f"after_{name}"].astype(float)}
  everything = np.concatenate(list(values.values()))
  finite = everything[np.isfinite(everything)]
  low, high = (finite.min(), finite.max()) if finite.size else (0., 1.)
  if factor == 100:
    low, high = np.floor(low), np.ceil(high) or 1
  edges = np.linspace(low, high if high > low else low + 1, 41)
  counts = [np.histogram(of, edges)[0] for of in values.values()]
  x, y, ticks = _axes((edges[0], edges[-1]), (0, max(map(np.max, counts))))
  bars = [(i, x(low), y(count), x(high) - x(low), y(0) - y(count))
          for i, of in enumerate(counts) for low, high, count in zip(edges, edges[1:], of) if count]
  lost = everything.size - finite.size
  return {"title": "Networks never seen in training",
          "unit": "networks" + (f", without {lost} figures that are not finite" if lost else ""),
          **ticks,
          "bars": bars, "points": [], "x_label": label, "lines": [(name, "") for name in values]}
