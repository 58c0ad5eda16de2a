"""The table of an evaluation: a row for each set of pictures, as text and as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from vlm_plugin.evaluation.captions import Subject
from vlm_plugin.evaluation.columns import columns_of
from vlm_plugin.evaluation.distances import FOLDS, Number
from vlm_plugin.evaluation.measure import Measure
from vlm_plugin.evaluation.scorers import Scorers
from vlm_plugin.matcher.vlm import VLM

NO_INCEPTION = "no Inception weights: pass --inception PATH"


class Table:
    """Numbers about sets of pictures that were drawn from the same captions.

    Args:
        subject: the captions.
        reference: batches of real pictures in [-1, 1] that distances are measured to.
        scorers: who scores.
        seed: draws wrong captions and folds.

    Attributes:
        rows: name -> column -> number.
        columns: id -> what it is.
        scores: name -> `(N,)` VLMS of each picture by the evaluator.
        notes: lines that stand below the table.
    """

    def __init__(self, subject: Subject, reference: Iterable[Tensor], scorers: Scorers, seed: int = 0) -> None:
        self.subject, self.scorers = subject, scorers
        self._measure = Measure(subject, reference, scorers, seed)
        self.columns = columns_of(scorers, self._measure.candidates)
        self.notes = [] if scorers.inception is not None else [NO_INCEPTION]
        self.notes += [
            _never_judged(reader.name) for reader in scorers.readers().values() if not was_judged(reader.vlm)
        ]
        self.rows: dict[str, dict[str, Number]] = {}
        self.scores: dict[str, Tensor] = {}

    def add(
        self, name: str, pictures: Iterable[Tensor], distance_of: Iterable[Tensor] | None = None
    ) -> dict[str, Number]:
        """Score pictures, see `Measure.row`, and keep the row under a name."""
        numbers, scores = self._measure.row(pictures, distance_of)
        self.rows[name] = numbers
        if scores is not None:
            self.scores[name] = scores
        return numbers

    def text_table(self) -> str:
        """A Markdown table with spreads, circular columns marked with an asterisk, and what the columns mean."""
        titles = {name: column.title + ("*" if column.circular else "") for name, column in self.columns.items()}
        lines = ["| pictures | " + " | ".join(titles.values()) + " |", "| --- |" + " ---: |" * len(titles)]
        for name, row in self.rows.items():
            lines.append(f"| {name} | " + " | ".join(_cell(c, row.get(c)) for c in titles) + " |")
        meanings = [f"{titles[name]}: {column.meaning()}" for name, column in self.columns.items()]
        spread = f"no spread below {2 * FOLDS} pictures"
        if self._measure.has_spread:
            spread = "± is the standard deviation over ten equal parts of the pictures"
        return "\n".join([*lines, "", f"{len(self.subject.captions)} captions; {spread}", *meanings, *self.notes])

    def content(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Plain values for evaluation.json."""
        return {
            "manifest": manifest,
            "columns": {name: column._asdict() for name, column in self.columns.items()},
            "rows": [
                {"name": name, "values": {column: number._asdict() for column, number in row.items()}}
                for name, row in self.rows.items()
            ],
            "notes": self.notes,
        }


def was_judged(vlm: VLM) -> bool:
    """Whether a scorer that `pretrain` trained had to prefer right captions to wrong ones on held-out pictures.

    True also where nothing is known of its training, or there is no scorer.
    """
    held_out = vlm.notes.get("held_out")
    told = isinstance(held_out, Mapping) and vlm.scorer is not None
    return not told or any(str(name).startswith("general_") for name in held_out)


def _never_judged(name: str) -> str:
    return (
        f"VLMS by {name} may mean nothing: no held-out caption was wrong in its training, so nothing says that its "
        "scorer tells right captions from wrong ones"
    )


def _cell(column: str, number: Number | None) -> str:
    if number is None:
        return ""
    form = ".4g" if column in ("frechet_distance", "fid") else ".3f"
    return f"{number.value:{form}}" + ("" if number.spread is None else f" ± {number.spread:{form}}")
