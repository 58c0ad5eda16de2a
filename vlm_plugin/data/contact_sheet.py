"""A sheet of pictures with their captions beneath, for people to look at."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlm_plugin.data.images import write_png

_GAP = 6
_FONT_SIZE = 12
# A text by whose width the letters of a line are counted.
_USUAL_TEXT = "the quick brown fox"


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
        OSError: the file cannot be written.
        ValueError: no picture, fewer than one column, or not one caption each.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(
            f"captions: expected one for each of at least one picture, got {len(captions)} for {len(pictures)}"
        )
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    font = ImageFont.load_default(size=_FONT_SIZE)
    line_height = sum(font.getbbox("bg")[1::2])
    letters = max(int((width - 8) / (font.getlength(_USUAL_TEXT) / len(_USUAL_TEXT))), 8)
    wrapped = [textwrap.wrap(caption, letters) for caption in captions]
    height = width + 8 + line_height * max(max(len(lines) for lines in wrapped), 1)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), _GAP + rows * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (width + _GAP), _GAP + row * (height + _GAP)
        sheet.paste(
            _opened(getattr(picture, "image", picture)).resize((width, width), Image.Resampling.BICUBIC), (x, y)
        )
        for index, line in enumerate(lines):
            draw.text((x + 2, y + width + 4 + index * line_height), line, fill="black", font=font)
    write_png(sheet, path)
    return Path(path)


def _opened(picture: str | Path | Image.Image) -> Image.Image:
    """A file or a picture as RGB."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    with Image.open(picture) as file:
        return file.convert("RGB")
