"""Tables of pictures and captions: the rows of CSV, and the lines of JSONL and of indices."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterator

_LITERAL = r"""[uU]?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_LITERALS = re.compile(_LITERAL, re.DOTALL)
# As Python, pandas and numpy write several strings; numpy puts blanks and line ends between them.
_SEVERAL = re.compile(rf"[\[({{]\s*(?:{_LITERAL}(?:\s*,\s*|\s+|(?=\s*[\])}}])))*[\])}}]", re.DOTALL)


class BrokenTableError(ValueError):
    """CSV that cannot be read any further; the message is the csv module's.

    Attributes:
        first, last: the lines on which the row begins and where reading failed.
    """

    def __init__(self, error: csv.Error, first: int, last: int) -> None:
        super().__init__(str(error))
        self.first, self.last = first, last


def csv_rows(text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Each row that is not empty, the header among them, with the line it begins on.

    Blanks between a delimiter and a quotation mark are no part of a cell, nor those around the header's names. Empty
    cells that a spreadsheet leaves behind the last column are dropped, and rows of nothing else are passed over.

    Raises:
        BrokenTableError: the quotes do not fit.
    """
    # Strict, or a stray quotation mark would swallow all rows up to the next one.
    # Names may begin with a blank, so it is dropped where quotes need that alone: readers strip what they may.
    blanks = re.search(rf'{re.escape(delimiter)} +"', text) is not None
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=blanks)
    line, width = 1, 0
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                row = row if width else [name.strip() for name in row]
                while len(row) > width and not row[-1].strip():
                    row.pop()
                width = width or len(row)
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise BrokenTableError(error, line, rows.line_num) from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, with its number."""
    # Not splitlines(): JSON strings and captions may hold further characters that it takes for line ends.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def captions_in(cell: str) -> list[str] | None:
    """The captions in a cell that may hold a list of them, as pandas, numpy and JSON write it.

    Args:
        cell: "a caption", "['one', 'another']", '["one", "another"]', "['one' 'another']" or a tuple of such.

    Returns:
        The captions, one where it is no list; None for a list that is cut short, or of other things than strings.
    """
    text = cell.strip()
    if not text.startswith(("[", "(", "{")):
        return [cell]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, list):
        return content if all(isinstance(caption, str) for caption in content) else None
    if _SEVERAL.fullmatch(text) and (literals := _LITERALS.findall(text)):
        try:
            return [ast.literal_eval(literal.replace("\r", "").replace("\n", "\\n")) for literal in literals]
        except (ValueError, SyntaxError):
            return None
    # Brackets alone make no list: "[a red bird]".
    return None if re.match(r"\[[\s\[]*[uU]?[\"']", text) else [cell]
