"""Tables of the benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table.

    Args:
        head: titles of the columns.
        rows: cells.
        words: how many columns, from the left, hold words; the others hold numbers, set to the right.
    """
    rule = [*["---"] * words, *["---:"] * (len(head) - words)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def mean_cell(values: Collection[float], digits: int, sign: str = "") -> str:
    """A cell: the mean, with the standard deviation of two values or more; nothing where there is none.

    Args:
        values: what is averaged.
        digits: after the point.
        sign: "+" shows the sign of a mean above 0 too.
    """
    if not len(values):
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"
