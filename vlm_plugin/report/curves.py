"""The report's training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_plugin.loss import TERMS
from vlm_plugin.report.charts import Curve, chart, swatch
from vlm_plugin.report.html import Html, element, join, said_empty, said_missing
from vlm_plugin.report.read import Run, is_number

_LEVELS = {"local": "words or regions", "global": "the whole", "general": "matching score block"}
_HALVES = {"vlm": "generated picture and caption", "vvm": "generated and real picture"}


def curves_section(runs: Sequence[Run]) -> Html:
    parts = [said_missing(run, "log.jsonl", runs, "curves") for run in runs if run.log is None]
    parts += [said_empty(run, runs, "curves", "log.jsonl holds no whole line") for run in runs if run.log == []]
    logged = [(number, run) for number, run in enumerate(runs) if run.log]
    if not logged:
        return join(parts)
    names = list(dict.fromkeys(name for _, run in logged for row in run.log for name in row))
    weights = [name for name in names if name.startswith("lambda_")]
    terms = [name for name in names if name != "step" and not name.startswith(("floor_", "lambda_"))]
    terms.sort(key=lambda name: TERMS.index(name) if name in TERMS else len(TERMS))
    charts = []
    for name in terms:
        curves = [
            Curve(run.name, number, values, _points(run.log, f"floor_{name}"))
            for number, run in logged
            if (values := _points(run.log, name))
        ]
        if curves:
            charts.append(_chart(name, curves))
    weighing = [
        (f"{run.name}, {name}" if len(runs) > 1 else name, values)
        for _, run in logged
        for name in weights
        if (values := _points(run.log, name))
    ]
    if weighing:
        charts.append(_weights([Curve(label, style, values) for style, (label, values) in enumerate(weighing)]))
    floors = any(name.startswith("floor_") for name in names)
    return join([*parts, _legend(logged, len(runs) > 1, floors), element("div", *charts, class_="charts")], "\n")


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], float(row[name])) for row in rows if is_number(row.get(name))]


def _chart(name: str, curves: Sequence[Curve]) -> Html:
    half, _, level = name.partition("_")
    known = name in TERMS
    note = element("span", f"{_HALVES[half]}: {_LEVELS[level]}", class_="note") if known else None
    return element("figure", element("figcaption", name, note), chart(curves, name), class_="chart")


def _weights(curves: Sequence[Curve]) -> Html:
    several = len(curves) > 1
    items = [element("li", swatch(curve.style, several), curve.label) for curve in curves]
    heading = element("figcaption", "weights", element("span", "what the two halves are multiplied by", class_="note"))
    legend = element("ul", *items, class_="legend")
    return element("figure", heading, legend, chart(curves, "weights", smooth=False), class_="chart")


def _legend(logged: Sequence[tuple[int, Run]], several: bool, floors: bool) -> Html:
    items = [element("li", swatch(number, True), run.name) for number, run in logged] if several else []
    text = "Strong: smoothed. Faint: as logged."
    text += " Dashed: the floor, what real pictures give with their captions or with each other." if floors else ""
    listed = element("ul", *items, class_="legend") if items else None
    return join([element("p", text, class_="quiet small"), listed])
