"""Small line charts: where their lines lie, for charts.html.j2 to draw as inline SVG without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]
MOST_POINTS = 200
# On each line.
_MARKERS = 5


class Curve(NamedTuple):
    """One run's values of one quantity, by step."""

    label: str
    style: int
    """Number of its colour and marker."""
    values: Points
    floor: Points = ()
    """What real pairs give, drawn dashed."""


def chart(curves: Sequence[Curve], name: str, x_name: str = "step", smooth: bool = True) -> dict[str, Any]:
    """Raw values faint, smoothed ones strong, floors dashed; several curves differ in colour and marker.

    Args:
        curves: at least one, each with at least one point.
        name: what the values are, for those who cannot see it.
        x_name: what stands below.
        smooth: the values are noisy; else they are drawn as they are.

    Returns:
        What `chart` of charts.html.j2 draws.
    """
    strong = [smoothed(curve.values) if smooth else list(curve.values) for curve in curves]
    seen = [point for curve in curves for point in (*curve.values, *curve.floor) if math.isfinite(point[1])]
    low, high = _range([x for x, _ in seen] or [0.0])
    y_ticks = ticks(*_range([y for _, y in seen] or [0.0]))
    # The steps end where they end, the values at a tick.
    frame = _Frame(low, high, y_ticks[0], y_ticks[-1])
    said = "; ".join(_said(curve, averaged) for curve, averaged in zip(curves, strong, strict=True))
    return {
        "said": f"{name} by {x_name}. {said}",
        "x_name": x_name,
        "frame": frame,
        "y_ticks": [(round(frame.y(y), 1), number(y)) for y in y_ticks],
        "x_ticks": [(round(frame.x(x), 1), number(x)) for x in ticks(low, high, whole=True) if low <= x <= high],
        "curves": [
            _drawn(frame, curve, averaged, len(curves) > 1) for curve, averaged in zip(curves, strong, strict=True)
        ],
    }


def _drawn(frame: _Frame, curve: Curve, averaged: Points, marked: bool) -> dict[str, Any]:
    lines = []
    if curve.floor:
        # As noisy as the curve itself: unsmoothed, its dashes would be dots.
        lines.append(("floor", _line(frame, downsampled(smoothed(curve.floor)))))
    if averaged != list(curve.values):
        lines.append(("raw", _line(frame, downsampled(curve.values))))
    averaged = downsampled(averaged)
    lines.append(("smooth", _line(frame, averaged)))
    return {"style": curve.style, "lines": lines, "markers": _markers(frame, averaged, curve.style) if marked else []}


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A line fitted around each point, to a fifteenth of all points: a moving average that keeps slopes at the ends.

    Fewer than 30 points stay as they are. Values that are not finite are left out of the fits and stay what they are.
    """
    half = len(points) // 30
    if half == 0:
        return list(points)
    values = np.array([y for _, y in points], dtype=np.float64)
    place = np.arange(len(points), dtype=np.float64)
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    first, last = np.maximum(place - half, 0).astype(int), np.minimum(place + half + 1, len(points)).astype(int)

    def around(what: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(what)])
        return total[last] - total[first]

    count = np.maximum(around(finite * 1.0), 1)
    middle, mean = around(finite * place) / count, around(known) / count
    spread = around(finite * place**2) / count - middle**2
    slope = (around(known * place) / count - middle * mean) / np.maximum(spread, 1e-3)
    fitted = np.where(finite, mean + slope * (place - middle), values)
    return [(x, y) for (x, _), y in zip(points, fitted.tolist(), strict=True)]


def downsampled(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points, in order: of each stretch the least and the largest, and the last point of all."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    result = [points[0]]
    for n in range(stretches):
        first, last = (1 + (len(points) - 2) * k // stretches for k in (n, n + 1))
        # What is not finite sorts nowhere.
        order = sorted(range(first, last), key=lambda i: points[i][1] if math.isfinite(points[i][1]) else math.inf)
        result += [points[i] for i in sorted({order[0], order[-1]})]
    return [*result, points[-1]]


def ticks(low: float, high: float, count: int = 4, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced, the first at most `low` and the last at least `high`.

    Args:
        low: the least value.
        high: the largest, above `low`.
        count: about how many steps.
        whole: only whole numbers.
    """
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if rough <= factor * unit * (1 + 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A tick's label: short, and without an exponent for steps up to a million."""
    if abs(value) >= 10_000 and value % 1000 == 0 and abs(value) < 1e6:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


class _Frame(NamedTuple):
    """Where values lie in the picture, and its measures."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    width: int = 340
    height: int = 200
    left: int = 46
    right: int = 328
    top: int = 8
    bottom: int = 166

    def x(self, value: float) -> float:
        return self.left + (value - self.low_x) / (self.high_x - self.low_x) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low_y) / (self.high_y - self.low_y) * (self.bottom - self.top)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A constant still needs room around it.
    room = max(abs(low), 1e-3) * 0.1 if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    return low - room, high + room


def _line(frame: _Frame, points: Points) -> str:
    """A line with a gap wherever a value is not finite; a lone point is a dot."""
    steps, pen = [], "M"
    for i, (x, y) in enumerate(points):
        if not math.isfinite(y):
            pen = "M"
            continue
        alone = pen == "M" and not (i + 1 < len(points) and math.isfinite(points[i + 1][1]))
        steps.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}" + ("h0" if alone else ""))
        pen = "L"
    return "".join(steps)


def _markers(frame: _Frame, points: Points, style: int) -> list[str]:
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return []
    # Each run's sit elsewhere, so that equal curves do not hide each other's.
    places = {min(int((n + (style % 5 + 1) / 6) * len(points) / _MARKERS), len(points) - 1) for n in range(_MARKERS)}
    return [f"{frame.x(points[i][0]):.1f} {frame.y(points[i][1]):.1f}" for i in sorted(places)]


def _said(curve: Curve, averaged: Points) -> str:
    finite = [y for _, y in averaged if math.isfinite(y)]
    if not finite:
        return f"{curve.label}: no finite value"
    text = f"{curve.label}: from {finite[0]:.3g} to {finite[-1]:.3g}"
    floor = [y for _, y in curve.floor if math.isfinite(y)]
    return text + (f", floor {floor[-1]:.3g} at the end" if floor else "")
