"""The report's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_plugin.report.read import NO_VALUE, Run, asides, differences


def settings_section(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What settings.html.j2 shows: tables of a line a setting and a column a run."""
    tables = []
    if any(run.options is not None for run in runs):
        tables.append(_table("Settings of training (options.json)", [run.options for run in runs]))
    manifests = [run.evaluation["manifest"] for run in runs]
    tables.append(_table("Manifest of the evaluation, with versions (evaluation.json)", manifests))
    if found := differences(runs, asides):
        tables[-1]["note"] = f"Differences that do not matter: {'; '.join(found)}."
    return tables


def _table(title: str, contents: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    flat = [None if content is None else flattened(content) for content in contents]
    rows = []
    for name in dict.fromkeys(name for values in flat for name in values or ()):
        cells = [NO_VALUE if values is None else values.get(name, NO_VALUE) for values in flat]
        rows.append({"name": name, "cells": cells, "differs": len(set(cells)) > 1})
    return {"title": title, "rows": rows, "note": None}


def flattened(content: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings as one, "a.b.c" -> its value as text."""
    result: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            result |= flattened(value, f"{above}{key}.")
        else:
            result[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return result
