"""The report's table of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_plugin.report.html import NO_VALUE, Html, element, join, scroller
from vlm_plugin.report.read import Run, count_text, warnings

_ROW_MEANINGS = {
    "real": "the real pictures",
    "before": "the generator as the run began",
    "after": "the generator as the run ended",
}


def results_section(runs: Sequence[Run]) -> Html:
    columns = _columns(runs)
    return join([_headline(runs, columns), _table(runs, columns), _meanings(runs, columns), _notes(runs)], "\n")


def _columns(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Every run's columns; what the first run that has one says of it."""
    columns: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, column in run.evaluation["columns"].items():
            columns.setdefault(name, column)
    return columns


def _titles(runs: Sequence[Run], columns: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each column's title, with who computed it where nothing else tells it from another."""
    looks = {name: (column["title"], _circular(runs, name)) for name, column in columns.items()}
    count = Counter(looks.values())
    return {
        name: f"{title} by {columns[name].get('by')}" if count[title, circular] > 1 else title
        for name, (title, circular) in looks.items()
    }


def _circular(runs: Sequence[Run], name: str) -> str | None:
    """What a circular column says of itself."""
    where = [run.name for run in runs if run.evaluation["columns"].get(name, {}).get("circular")]
    if not where:
        return None
    only = f" for {', '.join(where)}" if len(where) < len(runs) else ""
    return f"circular{only}: this matcher trained the generator"


def _headline(runs: Sequence[Run], columns: Mapping[str, Mapping[str, Any]]) -> Html | None:
    """The last row of each run in large, for each column that proves something."""
    facts, titles = [], _titles(runs, columns)
    for name, column in columns.items():
        if _circular(runs, name):
            continue
        lines = []
        for run in runs:
            *others, last = run.evaluation["rows"]
            rest = [
                element("span", f"{row['name']} {_value(row, name, column)} ", class_="beside")
                for row in others
                if name in row["values"]
            ]
            label = f"{run.name}, {last['name']}" if len(runs) > 1 else last["name"]
            # What the others are is in the table; several runs' would not find room.
            value = element("strong", *_cell(last, name, column, _has_spread(last, name)))
            lines.append(element("span", label, value, *(rest if len(runs) == 1 else ()), class_="run"))
        facts.append(element("div", element("dt", titles[name]), element("dd", *lines), class_="fact"))
    return element("dl", *facts, class_="facts") if facts else None


def _table(runs: Sequence[Run], columns: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = [row for run in runs for row in run.evaluation["rows"]]
    with_spread = {name for name in columns if any(_has_spread(row, name) for row in rows)}
    circular, titles = {name: _circular(runs, name) for name in columns}, _titles(runs, columns)
    heads = [
        element(
            "th",
            titles[name],
            element("span", f"{column['better']} is better", class_="note"),
            element("span", circular[name], class_="circular") if circular[name] else None,
            scope="col",
            class_="by-trainer" if circular[name] else None,
        )
        for name, column in columns.items()
    ]
    bodies = []
    for run in runs:
        lines = []
        if len(runs) > 1:
            lines.append(
                element("tr", element("th", run.name, scope="rowgroup", colspan=len(columns) + 1, class_="left group"))
            )
        for row in run.evaluation["rows"]:
            cells = [
                element(
                    "td",
                    *_cell(row, name, column, name in with_spread),
                    class_="by-trainer" if _circular([run], name) else None,
                )
                for name, column in columns.items()
            ]
            member = "member" if len(runs) > 1 else None
            lines.append(element("tr", element("th", row["name"], scope="row", class_=member), *cells))
        bodies.append(element("tbody", *lines))
    folds = (
        f", \N{PLUS-MINUS SIGN} standard deviation over {count_text(runs[0].evaluation['manifest'].get('folds'))} folds"
    )
    caption = element("caption", "Values" + (folds if with_spread else ""))
    head = element("thead", element("tr", element("th", "pictures", scope="col"), *heads))
    table = scroller(element("table", caption, head, *bodies, class_="results"), "Table of results")
    names = dict.fromkeys(row["name"] for row in rows)
    known = "; ".join(f"{name}: {_ROW_MEANINGS[name]}" for name in names if name in _ROW_MEANINGS)
    return join([element("p", f"{known}.", class_="quiet small") if known else None, table])


def _has_spread(row: Mapping[str, Any], name: str) -> bool:
    return (row["values"].get(name) or {}).get("spread") is not None


def _cell(row: Mapping[str, Any], name: str, column: Mapping[str, Any], with_spread: bool) -> list[Html | str]:
    value = _value(row, name, column)
    if not with_spread:
        return [value]
    # Also where there is none, so that values stand below each other.
    text = ""
    if _has_spread(row, name):
        text = f"\N{PLUS-MINUS SIGN} {_spread(row['values'][name]['spread'], column)}"
    return [value, " ", element("span", text, class_="spread")]


def _value(row: Mapping[str, Any], name: str, column: Mapping[str, Any]) -> str:
    value = (row["values"].get(name) or {}).get("value")
    return NO_VALUE if value is None else _number(value, column)


def _number(value: float, column: Mapping[str, Any]) -> str:
    """As in the run's own table: distances with four significant digits, else three decimals."""
    if column.get("better") != "lower":
        return f"{value:.3f}"
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e9 else f"{value:.4g}"


def _spread(value: float, column: Mapping[str, Any]) -> str:
    if column.get("better") != "lower":
        return f"{value:.3f}"
    # More digits than two would say nothing.
    return f"{value:.0f}" if 99.5 <= value < 1e9 else f"{value:.2g}"


def _meanings(runs: Sequence[Run], columns: Mapping[str, Mapping[str, Any]]) -> Html:
    parts = []
    for name, column in columns.items():
        by = {run.name: run.evaluation["columns"].get(name, {}).get("by") for run in runs}
        makers = set(by.values()) - {None}
        if len(makers) > 1:
            made = "; ".join(f"for {run} by {maker}" for run, maker in by.items() if maker)
        else:
            made = f"by {makers.pop()}" if makers else None
        text = [column.get("what"), made, _range(column.get("bounds")), f"{column['better']} is better"]
        parts.append(element("dt", column["title"]))
        parts.append(element("dd", "; ".join(part for part in text if part), _circular_end(runs, name)))
    return join([element("h3", "What the columns mean"), element("dl", *parts, class_="meanings small")])


def _circular_end(runs: Sequence[Run], name: str) -> Html | None:
    circular = _circular(runs, name)
    return element("span", circular, class_="circular") if circular else None


def _range(bounds: Sequence[float | None] | None) -> str | None:
    low, high = bounds or (None, None)
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"from {low:g} up" if low is not None else None


def _notes(runs: Sequence[Run]) -> Html | None:
    lines: dict[str, list[str]] = {}
    for run in runs:
        for note in run.evaluation.get("notes") or []:
            lines.setdefault(str(note), []).append(run.name)
    items = [text if len(of) == len(runs) else f"{', '.join(of)}: {text}" for text, of in lines.items()]
    for other in runs[1:]:
        found = warnings(runs[0].evaluation["manifest"], other.evaluation["manifest"])
        items += [f"{runs[0].name} and {other.name} differ in {difference}" for difference in found]
    if not items:
        return None
    listed = element("ul", *(element("li", item) for item in items))
    return element("div", element("h3", "Notes"), listed, class_="notes small")
