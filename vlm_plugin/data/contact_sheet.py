"""A sheet of pictures with their captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    pictures: Sequence[Any], captions: Sequence[str], columns: int, path: str | Path, width: int = 192
) -> Path:
    """Writes a PNG of enlarged pictures with their captions beneath.

    Args:
        pictures: paths, PIL pictures, or records with a field `image`.
        captions: one text for each picture.
        columns: pictures in a row.
        path: the file to write.
        width: width of a picture on the sheet, in pixels.

    Returns:
        `path` as a path.

    Raises:
        ValueError: no picture, fewer than one column, or not one caption each.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(
            f"captions: expected one for each of at least one picture, got {len(captions)} for {len(pictures)}"
        )
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    font = ImageFont.load_default(size=12)
    line_height = sum(font.getbbox("bg")[1::2])
    letters = max(int((width - 8) / (font.getlength("the quick brown fox") / 19)), 8)
    wrapped = [textwrap.wrap(caption, letters) for caption in captions]
    height = width + 8 + line_height * max(max(len(lines) for lines in wrapped), 1)
    gap = 6
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (height + gap)
        picture = getattr(picture, "image", picture)
        if not isinstance(picture, Image.Image):
            with Image.open(picture) as file:
                picture = file.convert("RGB")
        sheet.paste(picture.convert("RGB").resize((width, width), Image.Resampling.BICUBIC), (x, y))
        for index, line in enumerate(lines):
            draw.text((x + 2, y + width + 4 + index * line_height), line, fill="black", font=font)
    path = Path(path)
    sheet.save(path)
    return path
