"""One page about an evaluated run, or about several side by side: numbers, curves, pictures, attention, settings.

The page is a single file that loads nothing and runs no script, for any browser, a phone's too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from vlm_plugin.loss import TERMS
from vlm_plugin.model import read_file
from vlm_plugin.tools import manifest
from vlm_plugin.tools.charts import Curve, chart, swatch
from vlm_plugin.tools.command_line import user_path
from vlm_plugin.tools.page import Html, element, join, page, picture, scroller
from vlm_plugin.tools.training import Log, check_writable

# Larger pictures are shrunk to this many pixels a side: twice of what a tile takes on a page.
_SIDE, _WORD_SIDE = 160, 128
# How much light is left where a word's weight is least.
_DARK = 0.2
_NONE = "\N{EN DASH}"
_ROW_MEANINGS = {
    "real": "the real pictures",
    "before": "the generator as the run began",
    "after": "the generator as the run ended",
}
_LEVELS = {"local": "words or regions", "global": "the whole", "general": "matching score block"}
_HALVES = {"vlm": "generated picture and caption", "vvm": "generated and real picture"}
_WHY = {
    "log.jsonl": "not trained here, or not begun",
    "report.pt": "the evaluation kept no pictures",
    "options.json": "not trained here",
}


class Run(NamedTuple):
    """What a run's folder holds; None for a file that is not there."""

    name: str
    """Told from the other runs' names."""
    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]] | None
    options: dict[str, Any] | None
    pictures: dict[str, Any] | None


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------------------------


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page.

    Args:
        runs: folders that `vlm-plugin evaluate` was run on; several are compared.
        out: the file to write; its folder is made.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: a run has no evaluation.json.
        OSError: `out` cannot be written.
        ValueError: no run, one given twice, a file of it is damaged, or runs that were evaluated in different ways; the
            message names the file, or each difference.
    """
    folders, out = [Path(run) for run in runs], Path(out)
    if not folders:
        raise ValueError("runs: expected at least one run's folder, got none")
    if twice := [str(f) for f, n in Counter(folder.resolve() for folder in folders).items() if n > 1]:
        raise ValueError(f"runs: expected different folders, got {', '.join(twice)} more than once")
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    read = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    for other in read[1:]:
        _check_comparable(read[0], other)
    check_writable(out)
    text = render(read)
    unfinished = out.with_name(out.name + ".part")
    # Names of runs and pictures may be no valid UTF-8.
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(unfinished, out)
    return out


def read_run(folder: Path, name: str) -> Run:
    """What a run's folder holds.

    Raises:
        FileNotFoundError: no evaluation.json.
        ValueError: a damaged file, named by the message.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a run with evaluation.json, got none: run vlm-plugin evaluate first"
        )
    evaluation, log, options, pictures = _read_json(path), None, None, None
    if missing := [n for n in ("manifest", "columns", "rows") if not evaluation.get(n)]:
        raise ValueError(f"{path}: expected manifest, columns and rows, got no {' and no '.join(missing)}")
    for column in evaluation["columns"].values():
        _check_keys(path, "column", column, ("title", "better"))
    for row in evaluation["rows"]:
        _check_keys(path, "row", row, ("name", "values"))
    if (folder / "log.jsonl").is_file():
        log = [row for row in Log.read(folder / "log.jsonl") if isinstance(row, dict) and _is_number(row.get("step"))]
    if (folder / "options.json").is_file():
        options = _read_json(folder / "options.json")
    if (folder / "report.pt").is_file():
        pictures = read_file(folder / "report.pt", "file of vlm-plugin evaluate")
        _check_pictures(pictures, folder / "report.pt")
    return Run(name, folder, evaluation, log, options, pictures)


def _check_keys(path: Path, what: str, content: Mapping[str, Any], keys: Sequence[str]) -> None:
    if not all(key in content for key in keys):
        raise ValueError(f"{path}: expected every {what} with {' and '.join(keys)}, got {content}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _check_pictures(content: object, path: Path) -> None:
    """Before anything is drawn: each part as long as what stands beside it, pictures of bytes."""
    try:
        captions = content.get("captions", [])
        for name, pictures in content.get("pictures", {}).items():
            _expect(len(pictures) == len(captions) and pictures.ndim == 5, path, f"pictures.{name}", pictures.shape)
            _expect(pictures.dtype == torch.uint8, path, f"pictures.{name}", pictures.dtype)
        for name in ("best", "worst"):
            part = content.get(name) or {"captions": [], "pictures": [], "scores": []}
            lengths = [len(part[key]) for key in ("captions", "pictures", "scores")]
            _expect(len(set(lengths)) == 1, path, name, lengths)
        for number, part in enumerate(content.get("attention") or []):
            lengths = [len(part[key]) for key in ("words", "real_maps", "fake_maps")]
            _expect(len(set(lengths)) == 1, path, f"attention {number}", lengths)
            shapes = [tuple(part[key].shape) for key in ("real", "fake")]
            _expect(all(len(shape) == 3 for shape in shapes), path, f"attention {number}", shapes)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected what vlm-plugin evaluate writes, got something else ({error!r})") from error


def _expect(right: bool, path: Path, part: str, got: object) -> None:
    if not right:
        raise ValueError(f"{path}: {part}: expected parts that fit together, uint8 for pictures, got {got}")


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _check_comparable(first: Run, other: Run) -> None:
    if differences := manifest.comparable(first.evaluation["manifest"], other.evaluation["manifest"]):
        raise ValueError(
            f"{other.folder}: expected the same evaluation as {first.folder}, got differences: {'; '.join(differences)}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run]) -> Html:
    """The page of runs that may be compared."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    sections: list[tuple[str, str, Callable[[Sequence[Run]], Html]]] = [
        ("results", "Results", _results),
        ("curves", "Curves", _curves),
        ("pictures", "Captions and pictures", _captions),
        ("attention", "Attention", _attention),
        ("extremes", "Best and worst", _extremes),
        ("settings", "Settings and versions", _settings),
    ]
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    header = element(
        "header",
        element("h1", title),
        *(element("p", line, class_="quiet") for line in _introduction(runs)),
        element("nav", element("ul", *links), aria_label="Sections"),
    )
    body = [
        element(
            "section", element("h2", heading, id=f"{name}-title"), make(runs), id=name, aria_labelledby=f"{name}-title"
        )
        for name, heading, make in sections
    ]
    return page(f"Report: {title}", join([header, element("main", *body)], "\n"))


def _introduction(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        facts = run.options or {}
        words = [str(facts["baseline"])] if facts.get("baseline") else []
        if run.options is not None:
            words.append("with the dual loss" if facts.get("vlm") else "without the dual loss")
        if _is_number(facts.get("steps")):
            words.append(f"{facts['steps']:,} steps")
        if _is_number(facts.get("seed")):
            words.append(f"trained with seed {facts['seed']}")
        if words:
            yield (f"{run.name}: " if len(runs) > 1 else "") + ", ".join(words) + "."
    facts = runs[0].evaluation["manifest"]
    size = f" of {facts['image_size']} \N{MULTIPLICATION SIGN} {facts['image_size']} pixels"
    yield (
        f"Evaluated on {_count(facts.get('pictures'))} pictures"
        + (size if facts.get("image_size") else "")
        + f", split \N{LEFT DOUBLE QUOTATION MARK}{facts.get('split')}\N{RIGHT DOUBLE QUOTATION MARK} of "
        + f"{facts.get('data')}, seed {facts.get('seed')}."
    )


def _missing(run: Run, file: str, runs: Sequence[Run], what: str) -> Html:
    where = f"{run.name} has no {file}" if len(runs) > 1 else f"there is no {file}"
    return element("p", f"No {what}: {where} ({_WHY[file]}).", class_="none")


def _empty(run: Run, runs: Sequence[Run], what: str, why: str) -> Html:
    of = f" of {run.name}" if len(runs) > 1 else ""
    return element("p", f"No {what}{of}: {why}.", class_="none")


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def _results(runs: Sequence[Run]) -> Html:
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
    folds = f", \N{PLUS-MINUS SIGN} standard deviation over {_count(runs[0].evaluation['manifest'].get('folds'))} folds"
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
    return _NONE if value is None else _number(value, column)


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
        found = manifest.warnings(runs[0].evaluation["manifest"], other.evaluation["manifest"])
        items += [f"{runs[0].name} and {other.name} differ in {difference}" for difference in found]
    if not items:
        return None
    listed = element("ul", *(element("li", item) for item in items))
    return element("div", element("h3", "Notes"), listed, class_="notes small")


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Run]) -> Html:
    parts = [_missing(run, "log.jsonl", runs, "curves") for run in runs if run.log is None]
    parts += [_empty(run, runs, "curves", "log.jsonl holds no whole line") for run in runs if run.log == []]
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
    return [(row["step"], float(row[name])) for row in rows if _is_number(row.get(name))]


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


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def _captions(runs: Sequence[Run]) -> Html:
    parts, shown = [], []
    for run in runs:
        if run.pictures is None:
            parts.append(_missing(run, "report.pt", runs, "pictures"))
        elif not run.pictures.get("captions") or not run.pictures.get("pictures"):
            parts.append(_empty(run, runs, "pictures", "report.pt holds none"))
        else:
            shown.append(run)
    if not shown:
        return join(parts)
    parts.append(element("p", "Every model draws from the same noise.", class_="quiet small"))
    rows = [_numbered(run.pictures["captions"]) for run in shown]
    cards = []
    for key in dict.fromkeys(key for of_run in rows for key in of_run):
        caption, figures, real = key[0], [], None
        for run, of_run in zip(shown, rows, strict=True):
            if key not in of_run:
                continue
            for name, pictures in run.pictures["pictures"].items():
                own = pictures[of_run.index(key)]
                if name != "real":
                    figures.append(_tiles(f"{run.name}, {name}" if len(runs) > 1 else name, own, caption))
                elif real is None:
                    real = _tiles("real", own, caption)
        cards.append(element("article", element("h3", caption), real, *figures, class_="card"))
    return join([*parts, element("div", *cards, class_="cards")], "\n")


def _numbered(captions: Sequence[str]) -> list[tuple[str, int]]:
    """Each caption and how many equal ones stand before it."""
    return [(caption, captions[:i].count(caption)) for i, caption in enumerate(captions)]


def _tiles(label: str, pictures: Tensor, caption: str) -> Html:
    count = len(pictures)
    images = [
        picture(_image(p, _SIDE), f"{label}{f', {n} of {count}' if count > 1 else ''}: {caption}")
        for n, p in enumerate(pictures, start=1)
    ]
    return element("figure", element("figcaption", label), element("div", *images, class_="four"))


def _attention(runs: Sequence[Run]) -> Html:
    parts = []
    for run in runs:
        if run.pictures is None:
            parts.append(_missing(run, "report.pt", runs, "attention"))
        elif not run.pictures.get("attention"):
            parts.append(_empty(run, runs, "attention", "report.pt holds none (the encoder has no regions)"))
        else:
            parts.append(element("h3", run.name) if len(runs) > 1 else None)
            parts += [_words(part) for part in run.pictures["attention"]]
    if any(run.pictures and run.pictures.get("attention") for run in runs):
        text = "Light is where the matcher looks for a word; the outline lies halfway between least and largest weight."
        parts.insert(0, element("p", text, class_="quiet small"))
    return join(parts, "\n")


def _words(part: Mapping[str, Any]) -> Html:
    words = [word or _NONE for word in part["words"]]
    heads = [element("th", word, scope="col") for word in words]
    head = element("tr", element("th", "", scope="col"), element("th", "picture", scope="col"), *heads)
    rows = []
    for label, key in (("real", "real"), ("drawn", "fake")):
        base = _image(part[key], _WORD_SIDE)
        cells = [element("td", picture(base, f"{label} picture of: {part['caption']}"))]
        for word, weights in zip(words, part[f"{key}_maps"], strict=True):
            alt = f"{label} picture, light where the matcher looks for \N{LEFT DOUBLE QUOTATION MARK}{word}"
            cells.append(element("td", picture(lit(base, weights), f"{alt}\N{RIGHT DOUBLE QUOTATION MARK}")))
        rows.append(element("tr", element("th", label, scope="row"), *cells))
    table = element(
        "table", element("caption", part["caption"]), element("thead", head), element("tbody", *rows), class_="words"
    )
    return scroller(table, f"Attention: {part['caption']}")


def lit(image: Image.Image, weights: Tensor) -> Image.Image:
    """A picture darkened where weights are low, with an outline around the high ones.

    Hues stay, so that no colour has to be told from another; the outline serves pictures that are dark by themselves.

    Args:
        image: RGB.
        weights: `(h, w)`; the largest leaves the picture as it is, the least leaves a fifth of its light. Equal weights
            darken nothing.

    Returns:
        RGB of `_WORD_SIDE` pixels a side.
    """
    weights = weights.detach().float().cpu().nan_to_num()
    span = weights.max() - weights.min()
    share = (weights - weights.min()) / span if span > 0 else torch.ones_like(weights)
    side = (_WORD_SIDE, _WORD_SIDE)
    image = image.resize(side, Image.Resampling.BICUBIC)
    mask = Image.fromarray((share * 255).round().to(torch.uint8).numpy()).resize(side, Image.Resampling.BICUBIC)
    result = Image.composite(image, Image.eval(image, lambda value: round(value * _DARK)), mask)
    high = mask.point(lambda value: 255 if value > 127 else 0)
    # Black beside white: seen on light pictures and on dark ones.
    for width, colour in ((5, "black"), (3, "white")):
        edge = ImageChops.subtract(high.filter(ImageFilter.MaxFilter(width)), high)
        result.paste(colour, mask=edge)
    return result


def _image(pixels: Tensor, most: int) -> Image.Image:
    """`(3, S, S)` uint8 as RGB, at most `most` pixels a side."""
    image = Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image


def _extremes(runs: Sequence[Run]) -> Html:
    parts = []
    for run in runs:
        if run.pictures is None:
            parts.append(_missing(run, "report.pt", runs, "best and worst pictures"))
            continue
        if not any(run.pictures.get(name) for name in ("best", "worst")):
            parts.append(
                _empty(run, runs, "best and worst pictures", "report.pt holds none (no VLMS without a scorer)")
            )
            continue
        vlms = run.evaluation["columns"].get("vlms", {})
        by = vlms.get("by", "an evaluator that evaluation.json does not name")
        of = f"{run.name}: " if len(runs) > 1 else ""
        parts.append(element("p", f"{of}{vlms.get('title', 'VLMS')} by {by}.", class_="quiet small"))
        for name in ("best", "worst"):
            part = run.pictures.get(name) or {"captions": []}
            if part["captions"]:
                parts.append(element("h3", f"{of}{name}" if of else name.capitalize()))
                parts.append(_scored(part))
    return join(parts, "\n")


def _scored(part: Mapping[str, Any]) -> Html:
    figures = [
        element(
            "figure",
            picture(_image(pixels, _SIDE), f"drawn for: {caption}"),
            element("figcaption", element("strong", f"{score:.3f}"), caption),
        )
        for caption, pixels, score in zip(part["captions"], part["pictures"], part["scores"], strict=True)
    ]
    return element("div", *figures, class_="scored")


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def _settings(runs: Sequence[Run]) -> Html:
    parts = [_missing(run, "options.json", runs, "settings") for run in runs if run.options is None]
    if any(run.options is not None for run in runs):
        parts.append(_details("Settings of training (options.json)", runs, [run.options for run in runs]))
    asides = []
    for other in runs[1:]:
        found = manifest.asides(runs[0].evaluation["manifest"], other.evaluation["manifest"])
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
            _NONE if content is None else one.get(key, _NONE) for content, one in zip(contents, flat, strict=True)
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> str:
    return f"{value:,}" if _is_number(value) and math.isfinite(value) else "an unknown number of"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin report`."""
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="a run's folder, evaluated; several are compared"
    )
    # argparse would append its "(default: None)".
    parser.add_argument(
        "--out",
        type=user_path,
        default=argparse.SUPPRESS,
        help="file to write (default: report.html in the run's folder; with several runs in the current one)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `vlm-plugin report`."""
    runs = arguments.runs
    default = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    print(f"wrote {write_report(runs, getattr(arguments, 'out', default))}")
