"""The report's pictures: captions, attention and extremes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from vlm_plugin.report.html import NO_VALUE, Html, element, join, picture, said_empty, said_missing, scroller
from vlm_plugin.report.read import Run

# Larger pictures are shrunk to this many pixels a side: twice of what a tile takes on a page.
_SIDE, _WORD_SIDE = 160, 128
# How much light is left where a word's weight is least.
_DARK = 0.2


def captions_section(runs: Sequence[Run]) -> Html:
    parts, shown = [], []
    for run in runs:
        if run.pictures is None:
            parts.append(said_missing(run, "report.pt", runs, "pictures"))
        elif not run.pictures.get("captions") or not run.pictures.get("pictures"):
            parts.append(said_empty(run, runs, "pictures", "report.pt holds none"))
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


def attention_section(runs: Sequence[Run]) -> Html:
    parts = []
    for run in runs:
        if run.pictures is None:
            parts.append(said_missing(run, "report.pt", runs, "attention"))
        elif not run.pictures.get("attention"):
            parts.append(said_empty(run, runs, "attention", "report.pt holds none (the encoder has no regions)"))
        else:
            parts.append(element("h3", run.name) if len(runs) > 1 else None)
            parts += [_words(part) for part in run.pictures["attention"]]
    if any(run.pictures and run.pictures.get("attention") for run in runs):
        text = "Light is where the matcher looks for a word; the outline lies halfway between least and largest weight."
        parts.insert(0, element("p", text, class_="quiet small"))
    return join(parts, "\n")


def _words(part: Mapping[str, Any]) -> Html:
    words = [word or NO_VALUE for word in part["words"]]
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


def extremes_section(runs: Sequence[Run]) -> Html:
    parts = []
    for run in runs:
        if run.pictures is None:
            parts.append(said_missing(run, "report.pt", runs, "best and worst pictures"))
            continue
        if not any(run.pictures.get(name) for name in ("best", "worst")):
            parts.append(
                said_empty(run, runs, "best and worst pictures", "report.pt holds none (no VLMS without a scorer)")
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
