"""The report's table of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlm_plugin.report.read import NO_VALUE, Run, counted, differences, warnings

_ROW_MEANINGS = {
    "real": "the real pictures",
    "before": "the generator as the run began",
    "after": "the generator as the run ended",
}


class Cell(NamedTuple):
    """A value as the page shows it."""

    value: str
    spread: str | None
    """None in a column without spreads; empty where only this value has none, so that values stand below each other."""
    known: bool
    """The row has this column."""
    circular: bool
    """In this run the column proves nothing."""


def results_section(runs: Sequence[Run]) -> dict[str, Any]:
    """What results.html.j2 shows: columns, each run's rows of cells, what rows and columns mean, and notes."""
    columns: dict[str, dict[str, Any]] = {}
    for run in runs:
        # What the first run that has a column says of it.
        columns |= {name: column for name, column in run.evaluation["columns"].items() if name not in columns}
    rows = [row for run in runs for row in run.evaluation["rows"]]
    with_spread = {name for name in columns if any(_number(row, name, "spread") is not None for row in rows)}
    titles = Counter((column["title"], _circular(runs, name)) for name, column in columns.items())
    names = dict.fromkeys(row["name"] for row in rows)
    return {
        "columns": [_described(runs, name, column, titles) for name, column in columns.items()],
        "rows": {
            run.name: [
                {"name": row["name"], "cells": {n: _cell(run, row, n, columns[n], n in with_spread) for n in columns}}
                for row in run.evaluation["rows"]
            ]
            for run in runs
        },
        "rows_mean": "; ".join(f"{name}: {_ROW_MEANINGS[name]}" for name in names if name in _ROW_MEANINGS),
        "folds": counted(runs[0].evaluation["manifest"].get("folds")) if with_spread else None,
        "notes": _notes(runs),
    }


def _circular(runs: Sequence[Run], name: str) -> str | None:
    """What a circular column says of itself."""
    where = [run.name for run in runs if run.evaluation["columns"].get(name, {}).get("circular")]
    if not where:
        return None
    only = f" for {', '.join(where)}" if len(where) < len(runs) else ""
    return f"circular{only}: this matcher trained the generator"


def _described(
    runs: Sequence[Run], name: str, column: Mapping[str, Any], titles: Mapping[tuple[str, str | None], int]
) -> dict[str, Any]:
    """A column's names and what it means; `titles` counts the columns that look alike."""
    by = {run.name: run.evaluation["columns"].get(name, {}).get("by") for run in runs}
    makers = set(by.values()) - {None}
    if len(makers) > 1:
        made = "; ".join(f"for {run} by {maker}" for run, maker in by.items() if maker)
    else:
        made = f"by {makers.pop()}" if makers else None
    meaning = [column.get("what"), made, _range(column.get("bounds")), f"{column['better']} is better"]
    term, circular = column["title"], _circular(runs, name)
    return {
        "name": name,
        "term": term,
        # Who computed it, where nothing else tells it from another.
        "title": f"{term} by {column.get('by')}" if titles[term, circular] > 1 else term,
        "better": column["better"],
        "circular": circular,
        "meaning": "; ".join(part for part in meaning if part),
    }


def _range(bounds: Sequence[float | None] | None) -> str | None:
    low, high = bounds or (None, None)
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"from {low:g} up" if low is not None else None


def _cell(run: Run, row: Mapping[str, Any], name: str, column: Mapping[str, Any], with_spread: bool) -> Cell:
    value, spread = (_number(row, name, part) for part in ("value", "spread"))
    text = "" if spread is None else f"\N{PLUS-MINUS SIGN} {formatted(spread, column.get('better'), digits=2)}"
    shown = NO_VALUE if value is None else formatted(value, column.get("better"))
    return Cell(shown, text if with_spread else None, name in row["values"], _circular([run], name) is not None)


def _number(row: Mapping[str, Any], name: str, part: str) -> float | None:
    return (row["values"].get(name) or {}).get(part)


def formatted(value: float, better: str | None, digits: int = 4) -> str:
    """A number as the table has it: distances, of which lower ones are better, to some digits, else three decimals.

    Args:
        value: the number.
        better: "lower" or "higher".
        digits: significant ones of a distance; more would say nothing of a spread than two.
    """
    if better != "lower":
        return f"{value:.3f}"
    return f"{value:.0f}" if 10**digits - 0.5 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _notes(runs: Sequence[Run]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for run in runs:
        for note in run.evaluation.get("notes") or []:
            lines.setdefault(str(note), []).append(run.name)
    notes = [text if len(of) == len(runs) else f"{', '.join(of)}: {text}" for text, of in lines.items()]
    return notes + differences(runs, warnings)
