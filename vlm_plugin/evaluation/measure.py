"""Computes a row of the table: one pass over the pictures, every measure at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.captions import CAPTIONS_AT_ONCE, Subject, fewest_wrong
from vlm_plugin.evaluation.distances import FOLDS, Number, frechet_distance, inception_numbers
from vlm_plugin.evaluation.scorers import Scorers
from vlm_plugin.features import Features
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.metrics.attribute_accuracy import AttributeAccuracy
from vlm_plugin.metrics.r_precision import RPrecision
from vlm_plugin.metrics.vlms import VLMS

CANDIDATES = 100  # captions that R-precision chooses from


class Row(NamedTuple):
    """What is computed of one set of pictures."""

    numbers: dict[str, Number]
    """Column -> number."""
    scores: Tensor | None
    """`(N,)` VLMS of each picture by the evaluator; None where that has no scorer."""


class Measure:
    """Scores sets of pictures drawn from the same captions against the same references.

    Args:
        subject: the captions.
        reference: batches of real pictures in [-1, 1] that distances are measured to.
        scorers: who scores.
        seed: draws wrong captions and folds.

    Attributes:
        candidates: among how many captions the picture with the fewest wrong ones looks for its own.
    """

    def __init__(self, subject: Subject, reference: Iterable[Tensor], scorers: Scorers, seed: int = 0) -> None:
        self.subject, self.scorers, self.seed = subject, scorers, seed
        self._readers = {suffix: reader.vlm.eval() for suffix, reader in scorers.readers().items()}
        self.candidates = min(CANDIDATES, 1 + fewest_wrong(subject))
        self._texts = {suffix: _encoded(vlm, subject.captions) for suffix, vlm in self._readers.items()}
        self._reference = self._look(reference)

    @property
    def has_spread(self) -> bool:
        """Whether the parts hold two pictures each."""
        return len(self.subject.captions) >= 2 * FOLDS

    @torch.no_grad()
    def row(self, pictures: Iterable[Tensor], distance_of: Iterable[Tensor] | None = None) -> Row:
        """Score pictures.

        Args:
            pictures: batches `(B, 3, S, S)` in [-1, 1], picture i of them all drawn from caption i.
            distance_of: batches to measure distances of in their place (real pictures of another split); without a
                second picture the row has no distances.

        Raises:
            ValueError: another number of pictures than of captions.
        """
        readings = {
            suffix: _Reading(vlm, self._texts[suffix], self.subject, self.seed)
            for suffix, vlm in self._readers.items()
        }  # fmt: skip
        accuracy = self._accuracy()
        looked, done = _Looked(), 0
        for batch in pictures:
            part = slice(done, done + len(batch))
            done += len(batch)
            if done > len(self.subject.captions):
                break
            for reading in readings.values():
                reading.update(batch, part)
            if accuracy is not None:
                accuracy.update(batch.to(self._device), self.subject.captions[part])
            self._look_at(batch, looked)
        if done != len(self.subject.captions):
            raise ValueError(f"pictures: expected {len(self.subject.captions)}, one a caption, got {done}")
        numbers = {} if accuracy is None else {"attribute_accuracy": self._number(accuracy)}
        for suffix, reading in readings.items():
            if self.candidates > 1:
                numbers[f"r_precision{suffix}"] = self._number(reading.precision)
            if reading.vlms is not None:
                numbers[f"vlms{suffix}"] = self._number(reading.vlms)
        numbers |= self._distances(looked if distance_of is None else self._look(distance_of))
        evaluators = readings[""].vlms
        return Row(numbers, None if evaluators is None else evaluators.values().cpu())

    @property
    def _device(self) -> torch.device:
        return self.scorers.evaluator.vlm.device

    def _accuracy(self) -> AttributeAccuracy | None:
        judge = self.scorers.judge
        if judge is None:
            return None
        return AttributeAccuracy(judge.find, said_by, folds=FOLDS, seed=self.seed, sync_on_compute=False)

    def _number(self, metric: AttributeAccuracy | RPrecision | VLMS) -> Number:
        mean, spread = metric.compute()
        return Number(float(mean), float(spread) if self.has_spread else None)

    @torch.no_grad()
    def _look(self, pictures: Iterable[Tensor]) -> _Looked:
        looked = _Looked()
        for batch in pictures:
            self._look_at(batch, looked)
        return looked

    def _look_at(self, batch: Tensor, looked: _Looked) -> None:
        placed = batch.to(self._device)
        if self.scorers.judge is not None:
            looked.features.append(self.scorers.judge.features(placed).cpu())
        else:
            looked.features.append(self.scorers.evaluator.vlm.encode_image(placed).pooled.float().cpu())
        if self.scorers.inception is not None:
            features, logits = self.scorers.inception(placed)
            looked.inception.append(features.cpu())
            looked.logits.append(logits.cpu())

    def _distances(self, looked: _Looked) -> dict[str, Number]:
        real = self._reference
        if min(sum(map(len, of.features)) for of in (real, looked)) < 2:
            return {}  # one picture has no spread
        row = {"frechet_distance": Number(frechet_distance(torch.cat(real.features), torch.cat(looked.features)))}
        if self.scorers.inception is not None:
            row |= inception_numbers(torch.cat(real.inception), torch.cat(looked.inception), torch.cat(looked.logits))
        return row


class _Reading:
    """What one matcher finds in one set of pictures, encoded once for both measures.

    Args:
        vlm: the matcher.
        text: features of every caption, on the CPU.
        subject: the captions.
        seed: draws wrong captions and folds.
    """

    def __init__(self, vlm: VLM, text: Features, subject: Subject, seed: int) -> None:
        self._vlm, self._text, self._facts = vlm, text, subject.facts
        # One process computes the table: to sync would wait for the others for ever.
        options = {"folds": FOLDS, "seed": seed, "sync_on_compute": False}
        self.precision = RPrecision(vlm, candidates=CANDIDATES, mismatched=subject.mismatched, **options)
        self.vlms = VLMS(vlm, **options) if vlm.scorer is not None else None

    def update(self, batch: Tensor, part: slice) -> None:
        """Look at the pictures of the captions `part`."""
        device = self._vlm.device
        image = self._vlm.encode_image(batch.to(device))
        text = Features(*(value[part].to(device) for value in self._text))
        self.precision.update_features(image, text, self._facts[part].to(device))
        if self.vlms is not None:
            self.vlms.update_features(image, text)


class _Looked:
    """Features of pictures, for distances between sets of them."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.inception: list[Tensor] = []
        self.logits: list[Tensor] = []


@torch.no_grad()
def _encoded(vlm: VLM, captions: Sequence[str]) -> Features:
    """Features of many captions on the CPU, padded to the longest; each caption's do not depend on the others."""
    every: Features | None = None
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        part = vlm.encode_text(captions[start : start + CAPTIONS_AT_ONCE]).to("cpu")
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
