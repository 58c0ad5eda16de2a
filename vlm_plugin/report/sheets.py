"""What a run shows: captioned sample grids, loss curves with floors, word-region attention."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm_plugin.data.images import to_image, write_png
from vlm_plugin.files import writing
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matching import context_cosines, region_attention
from vlm_plugin.report.light import lit

_TILE, _LARGEST, _GAP, _TEXT, _HEADER, _LINE = 96, 160, 4, 250, 26, 18
# Okabe and Ito's colours, which colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Heats(NamedTuple):
    """A picture and where its words' weights lie."""

    title: str
    picture: Tensor
    """(3, S, S) in [-1, 1]."""
    words: Sequence[tuple[str, Tensor]]
    """Label and weights (H, W) of each word."""


def sample_sheet(path: str | Path, captions: Sequence[str], columns: Mapping[str, Sequence[Tensor]]) -> None:
    """A row a caption: its text, then a group of pictures for each column name, at 96 to 160 pixels.

    Args:
        path: file to write.
        captions: R captions.
        columns: group name -> R tensors `(K, 3, S, S)` in [-1, 1], K pictures of each caption.
    """
    font, bold = ImageFont.load_default(13), ImageFont.load_default(14)
    tile = min(max(next(iter(columns.values()))[0].shape[-1], _TILE), _LARGEST)
    counts = {name: len(rows[0]) for name, rows in columns.items()}
    width = _TEXT + sum(count * (tile + _GAP) + 3 * _GAP for count in counts.values())
    sheet = Image.new("RGB", (width, _HEADER + len(captions) * (tile + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    left = _TEXT
    for name, count in counts.items():
        draw.text((left + 2, 5), name, fill="black", font=bold)
        left += count * (tile + _GAP) + 3 * _GAP
    for row, caption in enumerate(captions):
        top, left = _HEADER + row * (tile + _GAP), _TEXT
        # As many lines as a row of tiles is high.
        lines = textwrap.fill(caption, 36, max_lines=5, placeholder=" ...")
        draw.multiline_text((6, top + 8), lines, fill="black", font=font, spacing=3)
        for rows in columns.values():
            for picture in rows[row]:
                sheet.paste(to_image(picture, tile), (left, top))
                left += tile + _GAP
            left += 3 * _GAP
    write_png(sheet, path)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The values of that name, with gaps where a damaged row has no number."""
    found = [row.get(name) for row in rows]
    return [float(value) if type(value) in (int, float) else float("nan") for value in found]


def loss_curves(path: str | Path, rows: Sequence[Mapping[str, float]]) -> None:
    """The adversarial losses, and every matching term with its floor on real pairs (dashed).

    Args:
        path: file to write.
        rows: lines of the run's log; `floor_NAME` stands beside NAME.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # A step that was passed over has not all of them.
    rows = [row for row in rows if "not_finite" not in row] or rows
    terms = [name for name in rows[-1] if f"floor_{name}" in rows[-1]]
    panels = [("adversarial", [n for n in ("discriminator", "generator", "penalty", "kl") if n in rows[-1]])]
    if damsm := [name for name in rows[-1] if name.startswith("damsm_")]:
        panels.append(("DAMSM", damsm))
    for half, title in (("vlm_", "fake image and its caption"), ("vvm_", "fake image and real image")):
        if names := [t for t in terms if t.startswith(half)]:
            panels.append((title, names))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.4), squeeze=False)
    steps = [row["step"] for row in rows]
    for axis, (title, names) in zip(axes[0], panels, strict=True):
        for colour, name in zip(_COLOURS, names, strict=False):
            axis.plot(steps, _column(rows, name), color=colour, label=name, linewidth=1.4)
            if f"floor_{name}" in rows[-1]:
                axis.plot(steps, _column(rows, f"floor_{name}"), color=colour, linestyle="--", linewidth=1)
        axis.set_title(title + (" (dashed: real pairs)" if len(names) and names[0] in terms else ""), fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0 if title != "adversarial" else None)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with writing(path) as file:
        figure.savefig(file, dpi=90, format="png")
    pyplot.close(figure)


@torch.no_grad()
def attention_sheet(path: str | Path, vlm: VLM, pictures: Tensor, captions: Sequence[str]) -> None:
    """Where the matcher looks for each word: a row of `heat_sheet` for each picture.

    Args:
        path: file to write.
        vlm: the matcher; its image encoder must have a `grid`.
        pictures: `(R, 3, S, S)` in [-1, 1] on the matcher's device.
        captions: R captions.
    """
    rows = []
    for picture, caption in zip(pictures, captions, strict=True):
        image, text = vlm.encode_image(picture[None]), vlm.encode_text([caption])
        heats = region_attention(image, text)[0, 0].unflatten(-1, vlm.image_encoder.grid).cpu()
        cosines = context_cosines(image, text)[0, 0].tolist()
        labels = [f"{word} {cosine:.2f}" for word, cosine in zip(vlm.words(caption), cosines, strict=True)]
        rows.append(Heats(caption, picture, list(zip(labels, heats, strict=True))))
    heat_sheet(path, rows)


def heat_sheet(
    path: str | Path, rows: Sequence[tuple[str, Tensor, Sequence[tuple[str, Tensor]]]], most: int = 18
) -> None:
    """A row a picture: its title, the picture, then one tile a word, bright where the word's weight is.

    Args:
        path: file to write.
        rows: what to show.
        most: words in a row at most.
    """
    font, height = ImageFont.load_default(13), _TILE + 2 * _LINE + _GAP
    widest = max(len(words[:most]) for _, _, words in rows) + 1
    sheet = Image.new("RGB", (widest * (_TILE + _GAP), len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, picture, words) in enumerate(rows):
        top, base = row * height, to_image(picture, _TILE)
        draw.text((2, top + 3), title, fill="black", font=font)
        sheet.paste(base, (0, top + 2 * _LINE))
        for column, (label, weights) in enumerate(words[:most], start=1):
            left = column * (_TILE + _GAP)
            sheet.paste(lit(base, weights, _TILE, outlined=False), (left, top + 2 * _LINE))
            draw.text((left + 2, top + _LINE + 1), label, fill="black", font=font)
    write_png(sheet, path)
