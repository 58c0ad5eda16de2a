"""What a run shows: captioned sample grids, loss curves with floors, word-region attention."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm_plugin.features import Features
from vlm_plugin.matching import context_cosines, region_attention
from vlm_plugin.model import VLM

_TILE, _GAP, _TEXT, _HEADER = 96, 4, 250, 26
# Okabe and Ito's colours, which colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def to_image(picture: Tensor, side: int) -> Image.Image:
    """A `(3, S, S)` picture in [-1, 1] as `side` pixels of RGB."""
    pixels = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)


def sample_sheet(path: str | Path, captions: Sequence[str], columns: Mapping[str, Sequence[Tensor]]) -> None:
    """A row a caption: its text, then a group of pictures for each column name.

    Args:
        path: file to write.
        captions: R captions.
        columns: group name -> R tensors `(K, 3, S, S)` in [-1, 1], K pictures of each caption.
    """
    font, bold = ImageFont.load_default(13), ImageFont.load_default(14)
    counts = {name: len(rows[0]) for name, rows in columns.items()}
    width = _TEXT + sum(count * (_TILE + _GAP) + 3 * _GAP for count in counts.values())
    sheet = Image.new("RGB", (width, _HEADER + len(captions) * (_TILE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    left = _TEXT
    for name, count in counts.items():
        draw.text((left + 2, 5), name, fill="black", font=bold)
        left += count * (_TILE + _GAP) + 3 * _GAP
    for row, caption in enumerate(captions):
        top, left = _HEADER + row * (_TILE + _GAP), _TEXT
        draw.multiline_text((6, top + 8), textwrap.fill(caption, 36), fill="black", font=font, spacing=3)
        for rows in columns.values():
            for picture in rows[row]:
                sheet.paste(to_image(picture, _TILE), (left, top))
                left += _TILE + _GAP
            left += 3 * _GAP
    sheet.save(path)


def loss_curves(path: str | Path, rows: Sequence[Mapping[str, float]]) -> None:
    """The adversarial losses, and every matching term with its floor on real pairs (dashed).

    Args:
        path: file to write.
        rows: lines of the run's log; `floor_NAME` stands beside NAME.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    terms = [name for name in rows[-1] if f"floor_{name}" in rows[-1]]
    panels = [("adversarial", ["discriminator", "generator", "penalty"])]
    for half, title in (("vlm_", "fake image and its caption"), ("vvm_", "fake image and real image")):
        if names := [t for t in terms if t.startswith(half)]:
            panels.append((title, names))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.4), squeeze=False)
    steps = [row["step"] for row in rows]
    for axis, (title, names) in zip(axes[0], panels, strict=True):
        for colour, name in zip(_COLOURS, names, strict=False):
            axis.plot(steps, [row[name] for row in rows], color=colour, label=name, linewidth=1.4)
            if f"floor_{name}" in rows[-1]:
                axis.plot(steps, [row[f"floor_{name}"] for row in rows], color=colour, linestyle="--", linewidth=1)
        axis.set_title(title + (" (dashed: real pairs)" if len(names) and names[0] in terms else ""), fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0 if title != "adversarial" else None)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


@torch.no_grad()
def attention_sheet(path: str | Path, vlm: VLM, pictures: Tensor, captions: Sequence[str], words: int = 12) -> None:
    """Where each word looks: the picture, then one tile a word, bright where its attention is.

    Args:
        path: file to write.
        vlm: the matcher; its image encoder must have a `grid`.
        pictures: `(R, 3, S, S)` in [-1, 1] on the matcher's device.
        captions: R captions.
        words: tiles in a row at most.
    """
    font = ImageFont.load_default(13)
    rows = []
    for picture, caption in zip(pictures, captions, strict=True):
        image, text = vlm.encode_image(picture[None]), vlm.encode_text([caption])
        names = vlm.vocabulary.decode(vlm.vocabulary.encode(caption, vlm.max_words)).split()
        rows.append((picture, names[:words], _attention(image, text, vlm), context_cosines(image, text)[0, 0]))
    widest = max(len(names) for _, names, _, _ in rows) + 1
    sheet = Image.new("RGB", (widest * (_TILE + _GAP), len(rows) * (_TILE + _HEADER)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (picture, names, attention, cosines) in enumerate(rows):
        top = row * (_TILE + _HEADER)
        base = to_image(picture, _TILE)
        sheet.paste(base, (0, top + 20))
        for column, name in enumerate(names, start=1):
            left = column * (_TILE + _GAP)
            heat = attention[column - 1]
            heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-8)
            mask = Image.fromarray((heat.cpu().numpy() * 255).astype(np.uint8)).resize(
                (_TILE, _TILE), Image.Resampling.BICUBIC
            )
            dark = Image.eval(base, lambda value: value // 5)
            sheet.paste(Image.composite(base, dark, mask), (left, top + 20))
            draw.text((left + 2, top + 3), f"{name} {float(cosines[column - 1]):.2f}", fill="black", font=font)
    sheet.save(path)


def _attention(image: Features, text: Features, vlm: VLM) -> Tensor:
    """`(M, H, W)` attention of each word over the region grid."""
    return region_attention(image, text)[0, 0].unflatten(-1, vlm.image_encoder.grid)
