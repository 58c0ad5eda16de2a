"""The report's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_plugin.report import read as read_module
from vlm_plugin.report.html import NO_VALUE, Html, element, join, said_missing, scroller
from vlm_plugin.report.read import Run


def settings_section(runs: Sequence[Run]) -> Html:
    parts = [said_missing(run, "options.json", runs, "settings") for run in runs if run.options is None]
    if any(run.options is not None for run in runs):
        parts.append(_details("Settings of training (options.json)", runs, [run.options for run in runs]))
    asides = []
    for other in runs[1:]:
        found = read_module.asides(runs[0].evaluation["manifest"], other.evaluation["manifest"])
        asides += [f"{runs[0].name} and {other.name} differ in {difference}" for difference in found]
    text = f"Differences that do not matter: {'; '.join(asides)}." if asides else None
    facts = [run.evaluation["manifest"] for run in runs]
    parts.append(_details("Manifest of the evaluation, with versions (evaluation.json)", runs, facts, text))
    return join(parts, "\n")


def _details(
    title: str, runs: Sequence[Run], contents: Sequence[Mapping[str, Any] | None], text: str | None = None
) -> Html:
    flat = [flattened(content or {}) for content in contents]
    rows, differing = [], 0
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [
            NO_VALUE if content is None else one.get(key, NO_VALUE) for content, one in zip(contents, flat, strict=True)
        ]
        differs = len(set(values)) > 1
        differing += differs
        mark = element("td", "differs" if differs else "") if len(runs) > 1 else None
        cells = [element("td", value) for value in values]
        rows.append(element("tr", element("th", key, scope="row"), mark, *cells, class_="differs" if differs else None))
    names = [run.name for run in runs] if len(runs) > 1 else ["value"]
    heads = ["name", *(["same?"] if len(runs) > 1 else []), *names]
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in heads)))
    count = f" \N{EN DASH} {differing} of {len(rows)} differ" if len(runs) > 1 else ""
    table = element(
        "table", element("caption", title, class_="unseen"), head, element("tbody", *rows), class_="settings"
    )
    note = element("p", text, class_="quiet small") if text else None
    return element("details", element("summary", f"{title}{count}"), note, scroller(table, title))


def flattened(content: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings as one, "a.b.c" -> its value as text."""
    result: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            result |= flattened(value, f"{above}{key}.")
        else:
            result[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return result
