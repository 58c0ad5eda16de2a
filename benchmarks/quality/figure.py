"""The picture of benchmarks/quality/run.py: agreement against distance as training goes on, an arm a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.quality.plan import ARMS, NAMES, PROTOCOLS, SHIPPED
from benchmarks.quality.tables import NO_LEGS, Row, comparisons, legs_of

# Arm -> what the picture calls it, and its colour; of weights, those that ship.
LINES = {
    "plain": ("plain", "#555555"),
    "both": ("dual loss", "#c0392b"),
    "vlm": ("text half", "#e59866"),
    "vvm": ("visual half", "#8e44ad"),
    "DAMSM": ("DAMSM", "#2471a3"),
    "plain, DAMSM x 16": ("DAMSM x 16", "#2471a3"),
    "global contrastive": ("CLIP-like", "#229954"),
}
PROTOCOL = "continued"


def points(results: Path) -> dict[str, dict[str, Any]]:
    """What is drawn: baseline -> `before` (distance, accuracy), and the lines.

    A line is a list of `[steps, seeds, distance, accuracy, deviation of distance, deviation of accuracy]`, in order of
    steps: means and standard deviations (0 for one seed) over seeds.
    """
    found: dict[str, dict[str, Any]] = {}
    kept, measures = comparisons(results), ["frechet_distance", "attribute_accuracy"]
    for baseline in NAMES:
        runs = kept[PROTOCOL, baseline]
        legs = legs_of(runs)
        before = [[run["before"][m] for m in measures] for run in runs if "before" in run]
        found[baseline] = {"before": before[0] if before else None}
        for arm in LINES:
            factor = 1.0 if ARMS[arm].is_plain else SHIPPED[baseline]
            line = []
            for steps in PROTOCOLS[PROTOCOL].legs:
                seeds = legs.get(Row(arm, factor, steps), NO_LEGS)[measures]
                if len(seeds):
                    values = [*seeds.mean(), *seeds.std().fillna(0.0)]
                    line.append([steps, len(seeds), *(round(value, 4) for value in values)])
            if line:
                found[baseline][arm] = line
    return found


def draw(path: Path, results: Path) -> None:
    """Write the picture as PNG, with `points` beside it, see `drawn`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = points(results)
    shown = {baseline: lines for baseline, lines in found.items() if lines["before"]}
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5.5 * len(shown), 4.6), squeeze=False)
    for axis, (baseline, lines) in zip(axes[0], shown.items(), strict=True):
        axis.plot(*lines["before"], marker="*", markersize=13, color="black", linestyle="none", label="the start")
        for arm, (name, colour) in LINES.items():
            if arm not in lines:
                continue
            steps, seeds, distance, accuracy, across, along = zip(*lines[arm], strict=True)
            some = "-".join(map(str, sorted({min(seeds), max(seeds)}))) + " seed" + "s" * (max(seeds) > 1)
            style = {"color": colour, "linewidth": 1.6, "elinewidth": 0.7, "capsize": 2, "marker": "o", "markersize": 4}
            axis.errorbar(distance, accuracy, along, across, label=f"{name} ({some})", alpha=0.85, **style)
            for at in zip(steps, distance, accuracy, strict=True):
                axis.annotate(f"{at[0]}", at[1:], (4, 4), textcoords="offset points", fontsize=7, color=colour)
        axis.set_title(f"{NAMES[baseline]}, from where plain training has converged", fontsize=10)
        axis.set_xlabel("Frechet distance to real pictures (left is better)")
        axis.set_ylabel("attribute accuracy (up is better)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Description": json.dumps(found)})
    pyplot.close(figure)


def drawn(path: Path) -> dict[str, dict[str, Any]]:
    """The `points` that a picture of `draw` shows."""
    with Image.open(path) as picture:
        return json.loads(picture.text["Description"])
