"""Text out of bytes: UTF-8, a few accents of Latin-1, and what is neither and may not pass for it."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
_MARKS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SAVE = "save the file as UTF-8"
# How a problem ends that is not fatal.
AS_LATIN_1 = "it is read as Latin-1"

_SOUND = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# A few of these, quotation marks say, say nothing against Latin-1 elsewhere in a file.
_SOUND_AND_LONG = re.compile(rb"[\xe1-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WORD = re.compile(rb"[A-Za-z\x80-\xff]*[\x80-\xff][A-Za-z\x80-\xff]*")
_HIGH = re.compile(rb"[\x80-\xff]")
# Between two letters: what Latin-1 has as controls and signs, and other encodings as letters. Apostrophes, dashes and
# dots of Windows, its ligature oe, blanks, hyphens and the Catalan dot do stand there.
_SIGN = rb"[\x80-\x84\x86-\x8b\x8d-\x90\x95\x98-\x9b\x9d-\x9f\xa1-\xac\xae-\xb3\xb5\xb6\xb8-\xbf]"
_SIGN_IN_WORD = re.compile(rb"(?<=[A-Za-z\x80-\xff])" + _SIGN + rb"(?=[A-Za-z\x80-\xff])")
_LETTER = re.compile(rb"[A-Za-z\x80-\xff]")
# Turkish has these letters where Latin-1 has Icelandic ones, and none of Icelandic's others.
_TURKISH, _ICELANDIC = (
    re.compile(rb"[\xd0\xdd\xde\xf0\xfd\xfe]"),
    re.compile(rb"[\xc1\xc9\xcd\xd3\xda\xc6\xe1\xe9\xed\xf3\xfa\xe6]"),
)

# Of the bytes that are no ASCII, the least share in words that no language of Latin-1 has (a table may be English but
# for a few rows), of signs in words (Polish has 60%, Czech 10%, French with Windows' letters 1%), and, of all letters,
# the least share that is not ASCII (Icelandic, the most accented language of Latin-1, has 13%).
_FOREIGN_SHARE, _SIGN_SHARE, _HIGH_SHARE = 0.2, 0.05, 0.3
# Letters, pairs and accents below which shares say nothing.
_ENOUGH_LETTERS, _ENOUGH_PAIRS, _ENOUGH_ACCENTS, _ENOUGH_SOUND = 40, 4, 12, 4
# No word of Latin-1 has as many accents in a row.
_LONGEST_RUN = 5


class Decoded(NamedTuple):
    """A file's text, or why there is none."""

    text: str | None
    """None where the file is no text that can be told."""
    problem: str | None
    """What was expected and what came; None for sound UTF-8. Where there is a text, it is usable all the same."""


def decode(content: bytes) -> Decoded:
    """Reads bytes as UTF-8, as UTF-16 or UTF-32 where a mark says so, or as Latin-1 where that is what they can be.

    Latin-1 gives every byte a letter, so any other encoding would pass for it, and words be learned that nobody can
    type. It is taken only where the bytes above 127 look like a few accents in Latin letters; source of that: ours.

    Args:
        content: of a whole file.
    """
    mark = next((name for start, name in _MARKS if content.startswith(start)), None)
    if mark is not None:
        try:
            return Decoded(content.decode(mark), None)
        except UnicodeDecodeError:
            return Decoded(None, f"got {mark.upper()} that is damaged: {_SAVE}")
    if b"\0" in content:
        return Decoded(None, f"got NUL bytes, as UTF-16 and binary files have them: {_SAVE} if it is text")
    # ISO-2022 for Japanese, Korean and Chinese is ASCII throughout, with these before each change of letters.
    if b"\x1b$" in content or b"\x1b(" in content:
        return Decoded(None, f"got escape sequences, as ISO-2022 has them: {_SAVE}")
    try:
        return Decoded(content.decode("utf-8-sig"), None)
    except UnicodeDecodeError as error:
        place = f"byte 0x{content[error.start]:02x} at position {error.start}"
    sound = _SOUND.findall(content)
    if len(sound) >= _ENOUGH_SOUND and sum(map(len, sound)) > len(_HIGH.findall(content)) / 2:
        return Decoded(None, f"expected UTF-8, got UTF-8 that is damaged ({place}): {_SAVE}")
    if (where := foreign(content)) is not None:
        line = content.count(b"\n", 0, where) + 1
        what = f"expected UTF-8, got text of another encoding (GBK, Shift-JIS, a Windows code page) in line {line}"
        return Decoded(None, f"{what}: {_SAVE}")
    return Decoded(content.decode("latin-1"), f"expected UTF-8, got {place}; {AS_LATIN_1}")


def foreign(content: bytes) -> int | None:
    """Where text begins that is not Latin-1, None where it can be.

    Args:
        content: text that is not UTF-8. The longer, the surer: a single short word can be anything.
    """
    content = _SOUND_AND_LONG.sub(lambda match: b" " * len(match[0]), content)
    words = list(_WORD.finditer(content))
    high = sum(len(_HIGH.findall(word[0])) for word in words)
    if not high:
        return None
    strange = [word for word in words if _is_strange(word[0])]
    pairs = [word for word in words if len(word[0]) % 2 == 0 and _HIGH.sub(b"", word[0]) == b""]
    signs = [sign for word in words for sign in _SIGN_IN_WORD.finditer(content, word.start(), word.end())]
    certain = next((word for word in strange if _longest_run(word[0]) > _LONGEST_RUN), None)
    if certain or sum(len(_HIGH.findall(word[0])) for word in strange) >= _FOREIGN_SHARE * high:
        return (certain or strange[0]).start()
    if len(pairs) >= _ENOUGH_PAIRS and sum(len(word[0]) for word in pairs) >= high / 2:
        return pairs[0].start()
    if len(signs) >= _SIGN_SHARE * high:
        return signs[0].start()
    letters = len(_LETTER.findall(content))
    turkish, icelandic = len(_TURKISH.findall(content)), len(_ICELANDIC.findall(content))
    mostly_high = letters >= _ENOUGH_LETTERS and high >= _HIGH_SHARE * letters
    is_turkish = high >= _ENOUGH_ACCENTS and turkish >= _FOREIGN_SHARE * high and not icelandic
    return words[0].start() if mostly_high or is_turkish else None


def _is_strange(word: bytes) -> bool:
    """Whether no language of Latin-1 writes so many accents in a row, or in one word."""
    longest = _longest_run(word)
    high = len(_HIGH.findall(word))
    return longest >= 4 or (longest == len(word) >= 3) or (len(word) >= 5 and high > 0.6 * len(word))


def _longest_run(word: bytes) -> int:
    return max(map(len, re.findall(rb"[\x80-\xff]+", word)))
