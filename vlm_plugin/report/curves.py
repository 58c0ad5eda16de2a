"""The report's training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_plugin.loss import TERMS
from vlm_plugin.report.charts import Curve, chart
from vlm_plugin.report.read import Run, is_number

_LEVELS = {"local": "words or regions", "global": "the whole", "general": "matching score block"}
_HALVES = {"vlm": "generated picture and caption", "vvm": "generated and real picture"}


def curves_section(runs: Sequence[Run]) -> dict[str, Any]:
    """What curves.html.j2 shows: the runs with a log by style, whether there are floors, and a figure for each term."""
    logged = [(style, run) for style, run in enumerate(runs) if run.log]
    names = list(dict.fromkeys(name for _, run in logged for row in run.log for name in row))
    terms = [name for name in names if name != "step" and not name.startswith(("floor_", "lambda_"))]
    terms.sort(key=lambda name: TERMS.index(name) if name in TERMS else len(TERMS))
    figures = []
    for name in terms:
        drawn = [
            Curve(run.name, style, values, _points(run.log, f"floor_{name}"))
            for style, run in logged
            if (values := _points(run.log, name))
        ]
        if drawn:
            figures.append({"title": name, "note": _note(name), "legend": (), "chart": chart(drawn, name)})
    weighing = [
        (f"{run.name}, {name}" if len(runs) > 1 else name, values)
        for _, run in logged
        for name in names
        if name.startswith("lambda_") and (values := _points(run.log, name))
    ]
    if weighing:
        weights = [Curve(label, style, values) for style, (label, values) in enumerate(weighing)]
        legend, drawn = [(curve.style, curve.label) for curve in weights], chart(weights, "weights", smooth=False)
        note = "what the two halves are multiplied by"
        figures.append({"title": "weights", "note": note, "legend": legend, "chart": drawn})
    floors = any(name.startswith("floor_") for name in names)
    return {"logged": [(style, run.name) for style, run in logged], "floors": floors, "figures": figures}


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], float(row[name])) for row in rows if is_number(row.get(name))]


def _note(term: str) -> str | None:
    half, _, level = term.partition("_")
    return f"{_HALVES[half]}: {_LEVELS[level]}" if term in TERMS else None
