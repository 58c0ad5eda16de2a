"""PNGs whose texts or colour profile are larger than Pillow reads: the same picture without them."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Texts that may tell how a picture is turned.
_ABOUT_TURNS = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
# Bytes of a text, unpacked: Pillow's own limit.
_MOST = 1 << 20


def without_notes(file: BinaryIO) -> io.BytesIO | None:
    """A PNG without its colour profile and its texts, but for those that tell how it is turned and are no larger than
    Pillow reads.

    All else stays as it is, damage included. Nothing is decoded, and a text is unpacked as far as that limit: the
    memory it takes is about that of the file.

    Args:
        file: open at any place.

    Returns:
        The file, open at its beginning; None where it is no PNG.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    kept = io.BytesIO()
    kept.write(_SIGNATURE)
    while head := file.read(8):
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = file.read(length + 4)  # with its checksum
        if kind not in _NOTES or _stays(kind, body[:length]):
            kept.write(head + body)
    kept.seek(0)
    return kept


def _stays(kind: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iCCP" or keyword not in _ABOUT_TURNS:
        return False
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\x01"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        rest = rest[1:]
    if not packed:
        return len(rest) <= _MOST
    try:
        return len(zlib.decompressobj().decompress(rest, _MOST + 1)) <= _MOST
    except zlib.error:
        return False
