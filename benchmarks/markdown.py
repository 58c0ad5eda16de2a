"""Tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table.

    Args:
        head: titles of the columns.
        rows: cells.
        words: how many columns, from the left, hold words; the others hold numbers, set to the right.
    """
    rule = [*["---"] * words, *["---:"] * (len(head) - words)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
