"""Small line charts as inline SVG: no scripts, no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlm_plugin.report.html import Html, element, join

Points = Sequence[tuple[float, float]]
MOST_POINTS = 200
_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 8, 34
_COLOURS = 7
# Drawn around (0, 0). Runs differ in shape as well as in colour.
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8L4.6 3.4h-9.2z", "M0-5L5 0L0 5L-5 0z",
    "M0 4.8L4.6-3.4h-9.2z",
)  # fmt: skip
_MARKED = 5


class Curve(NamedTuple):
    """One run's values of one quantity, by step."""

    label: str
    style: int
    """Number of its colour and marker."""
    values: Points
    floor: Points = ()
    """What real pairs give, drawn dashed."""


def chart(curves: Sequence[Curve], name: str, x_name: str = "step", smooth: bool = True) -> Html:
    """Raw values faint, smoothed ones strong, floors dashed; several curves differ in colour and marker.

    Args:
        curves: at least one, each with at least one point.
        name: what the values are, for those who cannot see it.
        x_name: what stands below.
        smooth: the values are noisy; else they are drawn as they are.
    """
    strong = [smoothed(curve.values) if smooth else list(curve.values) for curve in curves]
    seen = [point for curve in curves for point in (*curve.values, *curve.floor) if math.isfinite(point[1])]
    x_ticks = ticks(*_range([x for x, _ in seen] or [0.0]), whole=True)
    y_ticks = ticks(*_range([y for _, y in seen] or [0.0]))
    low, high = _range([x for x, _ in seen] or [0.0])
    # The steps end where they end, the values at a tick.
    frame = _Frame(low, high, y_ticks[0], y_ticks[-1])
    parts = [_axes(frame, [x for x in x_ticks if low <= x <= high], y_ticks, x_name)]
    several = len(curves) > 1
    for curve, averaged in zip(curves, strong, strict=True):
        lines = []
        if curve.floor:
            # As noisy as the curve itself: unsmoothed, its dashes would be dots.
            lines.append(_line(frame, downsampled(smoothed(curve.floor)), "floor"))
        if averaged != list(curve.values):
            lines.append(_line(frame, downsampled(curve.values), "raw"))
        averaged = downsampled(averaged)
        lines.append(_line(frame, averaged, "smooth"))
        lines += _markers(frame, averaged, curve.style) if several else []
        parts.append(element("g", *lines, class_=_colour(curve.style)))
    said = "; ".join(_said(curve, averaged) for curve, averaged in zip(curves, strong, strict=True))
    return element(
        "svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{name} by {x_name}. {said}"
    )


def swatch(style: int, marked: bool, dashed: bool = False) -> Html:
    """A short piece of a curve, for a legend; says nothing to those who cannot see it."""
    line = element("path", d="M2 8h32", class_=f"line {'floor' if dashed else 'smooth'}")
    marker = element("path", d=_MARKERS[style % len(_MARKERS)], transform="translate(18 8)", class_="marker")
    content = join([line, marker if marked and not dashed else None])
    return element("svg", content, viewBox="0 0 36 16", width=36, height=16, aria_hidden="true", class_=_colour(style))


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
    """Where values lie in the picture."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (_HEIGHT - _TOP - _BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A constant still needs room around it.
    room = max(abs(low), 1e-3) * 0.1 if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    return low - room, high + room


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str) -> Html:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in y_ticks:
        y = round(frame.y(value), 1)
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", number(value), x=_LEFT - 7, y=round(y + 3.8, 1), text_anchor="end"))
    for value in x_ticks:
        x = round(frame.x(value), 1)
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        anchor = "end" if x > right - 10 else "middle"
        parts.append(element("text", number(value), x=x, y=bottom + 16, text_anchor=anchor))
    parts.append(element("text", x_name, x=(_LEFT + right) / 2, y=_HEIGHT - 4, text_anchor="middle"))
    parts.append(element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    return element("g", *parts, aria_hidden="true")


def _line(frame: _Frame, points: Points, kind: str) -> Html:
    """A line with a gap wherever a value is not finite; a lone point is a dot."""
    steps, pen = [], "M"
    for i, (x, y) in enumerate(points):
        if not math.isfinite(y):
            pen = "M"
            continue
        alone = pen == "M" and not (i + 1 < len(points) and math.isfinite(points[i + 1][1]))
        steps.append(f"{pen}{frame.x(x):.1f} {frame.y(y):.1f}" + ("h0" if alone else ""))
        pen = "L"
    return element("path", d="".join(steps), class_=f"line {kind}")


def _markers(frame: _Frame, points: Points, style: int) -> list[Html]:
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        return []
    # Each run's sit elsewhere, so that equal curves do not hide each other's.
    places = {min(int((n + (style % 5 + 1) / 6) * len(points) / _MARKED), len(points) - 1) for n in range(_MARKED)}
    return [
        element(
            "path",
            d=_MARKERS[style % len(_MARKERS)],
            transform=f"translate({frame.x(points[i][0]):.1f} {frame.y(points[i][1]):.1f})",
            class_="marker",
        )
        for i in sorted(places)
    ]


def _said(curve: Curve, averaged: Points) -> str:
    finite = [y for _, y in averaged if math.isfinite(y)]
    if not finite:
        return f"{curve.label}: no finite value"
    text = f"{curve.label}: from {finite[0]:.3g} to {finite[-1]:.3g}"
    floor = [y for _, y in curve.floor if math.isfinite(y)]
    return text + (f", floor {floor[-1]:.3g} at the end" if floor else "")


def _colour(style: int) -> str:
    return f"s{style % _COLOURS}"
