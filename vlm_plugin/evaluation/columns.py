"""The columns of a table: which there are for those who score, and what each says of itself."""

from __future__ import annotations

from typing import NamedTuple

from vlm_plugin.evaluation.distances import FOLDS, LARGEST_SUBSET, SUBSETS
from vlm_plugin.evaluation.measure import CANDIDATES
from vlm_plugin.evaluation.scorers import Scorers
from vlm_plugin.matcher.choose import marks
from vlm_plugin.matcher.identity import fingerprint

# What these are of, as the table and reports say.
KID = f"by torchmetrics, {SUBSETS} subsets of half of the pictures, {LARGEST_SUBSET:,} at most, ± is their deviation"
INCEPTION_SCORE = f"ten parts, none below {2 * FOLDS} pictures"


class Column(NamedTuple):
    """What a column of the table is."""

    title: str
    by: str
    """Who computes it, with a fingerprint."""
    what: str
    better: str = "higher"
    """Or "lower"."""
    bounds: tuple[float | None, float | None] = (0, 1)
    """The lowest and the highest number there can be; None where there is no such bound."""
    circular: bool = False
    """A matcher that trained the generator computes it."""

    def meaning(self) -> str:
        """What the column says, in words."""
        mark = " (circular: this matcher trained the generator)" if self.circular else ""
        return f"{self.what}, by {self.by}{mark}, {self.better} is better"


def columns_of(scorers: Scorers, candidates: int) -> dict[str, Column]:
    """Every column by its id, in the order of the table.

    Args:
        scorers: who computes them.
        candidates: among how many captions the picture with the fewest looks for its own, see `Measure`.
    """
    judged = {} if scorers.judge is None else {"attribute_accuracy": _attribute_accuracy(scorers)}
    read = _matchers_columns(scorers, candidates)
    return judged | read | {"frechet_distance": _frechet_distance(judged | read)} | _inception_columns(scorers)


def _attribute_accuracy(scorers: Scorers) -> Column:
    what = "share of the attributes named by the caption that the judge finds"
    return Column("attribute accuracy", f"judge {fingerprint(scorers.judge)}", what)


def _matchers_columns(scorers: Scorers, candidates: int) -> dict[str, Column]:
    readers = scorers.readers()
    ranking = f"own caption first of {'' if candidates == CANDIDATES else 'at least '}{candidates}"
    if candidates == 1:
        ranking = "none, for a picture has no wrong caption among these"
    seen = {suffix: marks(reader.vlm) for suffix, reader in readers.items()}
    # An earlier release's notes have the fingerprint of the whole matcher alone.
    taught = set(scorers.trained_with).union(
        *(own for own in seen.values() if not own.isdisjoint(scorers.trained_with))
    )
    columns = {}
    for suffix, reader in readers.items():
        circular = not seen[suffix].isdisjoint(taught)
        by = f"{'matcher' if suffix else 'evaluator'} {reader.name} {reader.vlm.fingerprint}"
        whose = ", own matcher" if suffix else ""
        columns[f"r_precision{suffix}"] = Column(f"R-precision{whose}", by, ranking, circular=circular)
        if reader.vlm.scorer is not None:
            what = "mean score of picture and caption"
            columns[f"vlms{suffix}"] = Column(f"VLMS{whose}", by, what, circular=circular)
    return columns


def _frechet_distance(others: dict[str, Column]) -> Column:
    """Of the features of whoever computes the first column: the judge or, where there is none, the evaluator."""
    whose = "judge" if "attribute_accuracy" in others else "evaluator"
    by, circular = next((column.by, column.circular) for column in others.values())
    what = f"distance to real pictures in the {whose}'s features (not an FID)"
    return Column("Frechet distance", by, what, "lower", (0, None), circular)


def _inception_columns(scorers: Scorers) -> dict[str, Column]:
    if scorers.inception is None:
        return {}
    by = f"Inception {scorers.inception.checksum[:16]}"
    return {
        "fid": Column("FID", by, "by torchmetrics", "lower", (0, None)),
        "kid": Column("KID", by, KID, "lower", (None, None)),
        "inception_score": Column("Inception Score", by, INCEPTION_SCORE, "higher", (1, None)),
    }
