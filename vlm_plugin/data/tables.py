"""Tables of pictures and captions: the rows of CSV, and the lines of JSONL and of indices."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator


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

    Raises:
        BrokenTableError: the quotes do not fit.
    """
    # Strict, or a stray quotation mark would swallow all rows up to the next one.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in rows:
            if row:
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise BrokenTableError(error, line, rows.line_num) from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, with its number."""
    # Not splitlines(): JSON strings and captions may hold further characters that it takes for line ends.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
