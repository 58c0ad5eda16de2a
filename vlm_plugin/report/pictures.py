"""The report's pictures: captions, attention and extremes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_plugin.report.light import lit
from vlm_plugin.report.read import NO_VALUE, Run

# Larger pictures are shrunk to this many pixels a side: twice of what a tile takes on a page.
_TILE_SIDE, _WORD_SIDE = 160, 128
_OPTIONS = {"png": {}, "jpeg": {"quality": 85, "optimize": True}}


def embedded(image: Image.Image, alt: str, kinds: Sequence[str] = ("png", "jpeg")) -> dict[str, Any]:
    """An RGB picture for the page itself, as PNG or JPEG, whichever is smaller.

    Args:
        image: the picture.
        alt: what it shows, for those who cannot see it.
        kinds: formats to try.

    Returns:
        `src` (a data URL), `alt`, `width` and `height` of an `img`.
    """
    encoded = {}
    for kind in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind, **_OPTIONS[kind])
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    source = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
    return {"src": source, "alt": alt, "width": image.width, "height": image.height}


def captions_section(runs: Sequence[Run]) -> dict[str, Any]:
    """What pictures.html.j2 shows: the names of the runs with pictures, and a card for each caption of theirs."""
    shown = [run for run in runs if (run.pictures or {}).get("captions") and run.pictures.get("pictures")]
    rows = [_numbered(run.pictures["captions"]) for run in shown]
    cards = []
    for key in dict.fromkeys(key for of_run in rows for key in of_run):
        caption, figures, real = key[0], [], []
        for run, of_run in zip(shown, rows, strict=True):
            if key not in of_run:
                continue
            for name, pictures in run.pictures["pictures"].items():
                own = pictures[of_run.index(key)]
                if name != "real":
                    figures.append(_tiles(f"{run.name}, {name}" if len(runs) > 1 else name, own, caption))
                elif not real:
                    real.append(_tiles("real", own, caption))
        cards.append({"caption": caption, "figures": real + figures})
    return {"shown": [run.name for run in shown], "cards": cards}


def _numbered(captions: Sequence[str]) -> list[tuple[str, int]]:
    """Each caption and how many equal ones stand before it."""
    return [(caption, captions[:i].count(caption)) for i, caption in enumerate(captions)]


def _tiles(label: str, pictures: Tensor, caption: str) -> dict[str, Any]:
    count = len(pictures)
    images = [
        embedded(_image(p, _TILE_SIDE), f"{label}{f', {n} of {count}' if count > 1 else ''}: {caption}")
        for n, p in enumerate(pictures, start=1)
    ]
    return {"label": label, "images": images}


def attention_section(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """What attention.html.j2 shows: the tables of each run, a caption each."""
    return {run.name: [_words(part) for part in (run.pictures or {}).get("attention") or ()] for run in runs}


def _words(part: Mapping[str, Any]) -> dict[str, Any]:
    words = [word or NO_VALUE for word in part["words"]]
    rows = []
    for label, key in (("real", "real"), ("drawn", "fake")):
        base = _image(part[key], _WORD_SIDE)
        images = [embedded(base, f"{label} picture of: {part['caption']}")]
        for word, weights in zip(words, part[f"{key}_maps"], strict=True):
            alt = f"{label} picture, light where the matcher looks for \N{LEFT DOUBLE QUOTATION MARK}{word}"
            alt = f"{alt}\N{RIGHT DOUBLE QUOTATION MARK}"
            # Enlarged and shaded: never smaller as PNG, which takes ten times as long to write.
            images.append(embedded(lit(base, weights, _WORD_SIDE), alt, kinds=("jpeg",)))
        rows.append({"label": label, "images": images})
    return {"caption": part["caption"], "words": words, "rows": rows}


def extremes_section(runs: Sequence[Run]) -> dict[str, dict[str, list[tuple[dict[str, Any], str, str]]]]:
    """What extremes.html.j2 shows: each run's best and worst pictures, with score and caption."""
    kept = {run.name: run.pictures or {} for run in runs}
    return {
        name: {end: _scored(pictures[end]) for end in ("best", "worst") if pictures.get(end)}
        for name, pictures in kept.items()
    }


def _scored(part: Mapping[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    return [
        (embedded(_image(pixels, _TILE_SIDE), f"drawn for: {caption}"), f"{score:.3f}", caption)
        for caption, pixels, score in zip(part["captions"], part["pictures"], part["scores"], strict=True)
    ]


def _image(pixels: Tensor, most: int) -> Image.Image:
    """`(3, S, S)` uint8 as RGB, at most `most` pixels a side."""
    image = Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image
