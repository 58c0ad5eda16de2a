"""Numbers about generated pictures: one place, one pass over the pictures, every measure at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.captions import CANDIDATES, CHUNK, FOLDS, Subject, fewest_wrong
from vlm_plugin.evaluation.distances import NO_INCEPTION, Inception, Number, frechet_distance, inception_numbers
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.features import Features
from vlm_plugin.matcher.choose import marks
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.metrics.attribute_accuracy import AttributeAccuracy
from vlm_plugin.metrics.r_precision import RPrecision
from vlm_plugin.metrics.vlms import VLMS


class Named(NamedTuple):
    """A matcher and what to call it."""

    name: str
    vlm: VLM


class Column(NamedTuple):
    """What a column of the table is."""

    title: str
    by: str
    what: str
    better: str = "higher"
    bounds: tuple[float | None, float | None] = (0, 1)
    circular: bool = False


class Table:
    """Scores sets of pictures drawn from the same captions against the same references.

    Args:
        subject: the captions.
        reference: batches of real pictures in [-1, 1] that distances are measured to.
        evaluator: the matcher that scores.
        matcher: the matcher of the training, scored by beside the evaluator where it is another one; None if unknown.
        trained_with: `marks` of the matchers that trained the generator: their own scores are circular.
        judge: the birds' attribute classifier; None for other data.
        inception: Inception with its weights; None where there are none.
        seed: draws wrong captions and folds.

    Attributes:
        rows: name -> column -> number.
        columns: id -> what it is.
        scores: name -> `(N,)` VLMS of each picture by the evaluator.
    """

    def __init__(
        self,
        subject: Subject,
        reference: Iterable[Tensor],
        evaluator: Named,
        matcher: Named | None = None,
        trained_with: Collection[str] = (),
        judge: Judge | None = None,
        inception: Inception | None = None,
        seed: int = 0,
    ) -> None:
        self.subject, self.judge, self.inception, self.seed = subject, judge, inception, seed
        self.evaluator = evaluator
        self._readers = [("", evaluator)]
        if matcher is not None and matcher.vlm.fingerprint != evaluator.vlm.fingerprint:
            self._readers.append(("_training", matcher))
        for _, reader in self._readers:
            reader.vlm.eval()
        # What the picture with the fewest wrong captions chooses from: these and its own.
        self._candidates = min(CANDIDATES, 1 + fewest_wrong(subject))
        self._texts = [_encoded(reader.vlm, subject.captions) for _, reader in self._readers]
        self.columns = self._columns(trained_with)
        self.notes = [] if inception is not None else [NO_INCEPTION]
        self.rows: dict[str, dict[str, Number]] = {}
        self.scores: dict[str, Tensor] = {}
        self._reference = self._look(reference)

    def _columns(self, trained_with: Collection[str]) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        if self.judge is not None:
            judge = f"judge {fingerprint(self.judge)}"
            what = "share of the attributes named by the caption that the judge finds"
            columns["attribute_accuracy"] = Column("attribute accuracy", judge, what)
        ranking = f"own caption first of {'' if self._candidates == CANDIDATES else 'at least '}{self._candidates}"
        if self._candidates == 1:
            ranking = "none, for a picture has no wrong caption among these"
        seen = {suffix: marks(reader.vlm) for suffix, reader in self._readers}
        # An earlier release's notes have the fingerprint of the whole matcher alone.
        taught = set(trained_with).union(*(own for own in seen.values() if not own.isdisjoint(trained_with)))
        for suffix, reader in self._readers:
            circular = not seen[suffix].isdisjoint(taught)
            by = f"{'matcher' if suffix else 'evaluator'} {reader.name} {reader.vlm.fingerprint}"
            whose = ", own matcher" if suffix else ""
            columns[f"r_precision{suffix}"] = Column(f"R-precision{whose}", by, ranking, circular=circular)
            if reader.vlm.scorer is not None:
                what = "mean score of picture and caption"
                columns[f"vlms{suffix}"] = Column(f"VLMS{whose}", by, what, circular=circular)
        whose, circular = ("judge", False) if self.judge is not None else ("evaluator", columns["r_precision"].circular)
        columns["frechet_distance"] = Column(
            "Frechet distance", columns["attribute_accuracy" if self.judge is not None else "r_precision"].by,
            f"distance to real pictures in the {whose}'s features (not an FID)", "lower", (0, None), circular,
        )  # fmt: skip
        if self.inception is not None:
            by = f"Inception {self.inception.checksum[:16]}"
            columns["fid"] = Column("FID", by, "by torchmetrics", "lower", (0, None))
            columns["kid"] = Column("KID", by, "by torchmetrics, 100 subsets of at most 1,000", "lower", (None, None))
            columns["inception_score"] = Column(
                "Inception Score", by, "by torchmetrics, ten parts", "higher", (1, None)
            )
        return columns

    @torch.no_grad()
    def add(
        self, name: str, pictures: Iterable[Tensor], distance_of: Iterable[Tensor] | None = None
    ) -> dict[str, Number]:
        """Score pictures and keep the row.

        Args:
            name: the row's name.
            pictures: batches `(B, 3, S, S)` in [-1, 1], picture i of them all drawn from caption i.
            distance_of: batches to measure distances of in their place (real pictures of another split); without a
                second picture the row has no distances.

        Raises:
            ValueError: another number of pictures than of captions.
        """
        metrics = [self._metrics(reader.vlm) for _, reader in self._readers]
        accuracy = None
        if self.judge is not None:
            accuracy = AttributeAccuracy(self.judge.find, said_by, folds=FOLDS, seed=self.seed, sync_on_compute=False)
        looked, done = _Looked(), 0
        for batch in pictures:
            part = slice(done, done + len(batch))
            done += len(batch)
            if done > len(self.subject.captions):
                break
            captions, facts = self.subject.captions[part], self.subject.facts[part]
            for (_, reader), text, (precision, vlms) in zip(self._readers, self._texts, metrics, strict=True):
                placed = batch.to(reader.vlm.device)
                image, anchor = (
                    reader.vlm.encode_image(placed),
                    Features(*(value[part].to(placed.device) for value in text)),
                )
                precision.update_features(image, anchor, facts.to(reader.vlm.device))
                if vlms is not None:
                    vlms.update_features(image, anchor)
            if accuracy is not None:
                accuracy.update(batch.to(self._device), captions)
            self._look_at(batch, looked)
        if done != len(self.subject.captions):
            raise ValueError(f"pictures: expected {len(self.subject.captions)}, one a caption, got {done}")
        if distance_of is not None:
            looked = self._look(distance_of)
        row = {}
        if accuracy is not None:
            row["attribute_accuracy"] = self._number(accuracy)
        for (suffix, _), (precision, vlms) in zip(self._readers, metrics, strict=True):
            if self._candidates > 1:
                row[f"r_precision{suffix}"] = self._number(precision)
            if vlms is not None:
                row[f"vlms{suffix}"] = self._number(vlms)
        if metrics[0][1] is not None:
            self.scores[name] = metrics[0][1].values().cpu()
        self.rows[name] = row | self._distances(looked)
        return self.rows[name]

    @property
    def _device(self) -> torch.device:
        return self.evaluator.vlm.device

    def _metrics(self, vlm: VLM) -> tuple[RPrecision, VLMS | None]:
        # One process computes the table: to sync would wait for the others for ever.
        options = {"folds": FOLDS, "seed": self.seed, "sync_on_compute": False}
        precision = RPrecision(vlm, candidates=CANDIDATES, mismatched=self.subject.mismatched, **options)
        return precision, VLMS(vlm, **options) if vlm.scorer is not None else None

    @property
    def _has_spread(self) -> bool:
        return len(self.subject.captions) >= 2 * FOLDS

    def _number(self, metric: AttributeAccuracy | RPrecision | VLMS) -> Number:
        mean, spread = metric.compute()
        return Number(float(mean), float(spread) if self._has_spread else None)

    @torch.no_grad()
    def _look(self, pictures: Iterable[Tensor]) -> _Looked:
        looked = _Looked()
        for batch in pictures:
            self._look_at(batch, looked)
        return looked

    def _look_at(self, batch: Tensor, looked: _Looked) -> None:
        placed = batch.to(self._device)
        if self.judge is not None:
            looked.features.append(self.judge.features(placed).cpu())
        else:
            looked.features.append(self.evaluator.vlm.encode_image(placed).pooled.float().cpu())
        if self.inception is not None:
            features, logits = self.inception(placed)
            looked.inception.append(features.cpu())
            looked.logits.append(logits.cpu())

    def _distances(self, looked: _Looked) -> dict[str, Number]:
        real = self._reference
        if min(sum(map(len, of.features)) for of in (real, looked)) < 2:
            return {}  # one picture has no spread
        row = {"frechet_distance": Number(frechet_distance(torch.cat(real.features), torch.cat(looked.features)))}
        if self.inception is not None:
            row |= inception_numbers(torch.cat(real.inception), torch.cat(looked.inception), torch.cat(looked.logits))
        return row

    def text_table(self) -> str:
        """A Markdown table with spreads, circular columns marked with an asterisk, and what the columns mean."""
        titles = {name: column.title + ("*" if column.circular else "") for name, column in self.columns.items()}
        lines = ["| pictures | " + " | ".join(titles.values()) + " |", "| --- |" + " ---: |" * len(titles)]
        for name, row in self.rows.items():
            lines.append(f"| {name} | " + " | ".join(_cell(c, row.get(c)) for c in titles) + " |")
        notes = [f"{titles[name]}: {_meaning(column)}" for name, column in self.columns.items()]
        spread = f"no spread below {2 * FOLDS} pictures"
        if self._has_spread:
            spread = "± is the standard deviation over ten equal parts of the pictures"
        return "\n".join([*lines, "", f"{len(self.subject.captions)} captions; {spread}", *notes, *self.notes])

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


class _Looked:
    """Features of pictures, for distances between sets of them."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.inception: list[Tensor] = []
        self.logits: list[Tensor] = []


def _cell(column: str, number: Number | None) -> str:
    if number is None:
        return ""
    form = ".4g" if column in ("frechet_distance", "fid") else ".3f"
    return f"{number.value:{form}}" + ("" if number.spread is None else f" ± {number.spread:{form}}")


def _meaning(column: Column) -> str:
    mark = " (circular: this matcher trained the generator)" if column.circular else ""
    return f"{column.what}, by {column.by}{mark}, {column.better} is better"


@torch.no_grad()
def _encoded(vlm: VLM, captions: Sequence[str]) -> Features:
    """Features of many captions on the CPU, padded to the longest; each caption's do not depend on the others."""
    every: Features | None = None
    for start in range(0, len(captions), CHUNK):
        part = vlm.encode_text(captions[start : start + CHUNK]).to("cpu")
        rows, size, width = part.local.shape
        if every is None:
            # At once and once: COCO's are gigabytes, which a GPU has not and nothing should hold twice.
            local = part.local.new_zeros(len(captions), vlm.max_words, width)
            mask = part.mask.new_zeros(len(captions), vlm.max_words)
            every = Features(local, part.pooled.new_zeros(len(captions), width), mask)
        place = slice(start, start + rows)
        every.local[place, :size], every.mask[place, :size], every.pooled[place] = part.local, part.mask, part.pooled
    longest = int(every.mask.sum(1).max())
    return Features(every.local[:, :longest], every.pooled, every.mask[:, :longest])
