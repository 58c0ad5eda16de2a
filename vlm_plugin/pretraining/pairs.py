"""Pairs of pictures that the same captions fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.data.birds.truth import true_pairs
from vlm_plugin.data.dataset import Batch, Sample
from vlm_plugin.data.records import BadSampleError


class PairSample(NamedTuple):
    """A captioned picture, and another picture that shares what a caption can say of it."""

    first: Sample
    second: Sample

    def in_place_of(self, skipped: Sequence[str]) -> PairSample:
        """The same pair, standing in for others; see `Sample`."""
        return self._replace(first=self.first.in_place_of(skipped))


class Pairs(Dataset):
    """Samples with a positive for the image-image direction.

    The positive is another picture of the same class where there is one, with equal attributes where those are known
    and such a picture exists; else the same picture augmented anew. (Two views of one picture teach instance identity,
    which no caption can supply: they are the last resort.)

    Args:
        images: the pictures with their captions.
        records: the same pictures' records.
        truth: the attributes of synthetic birds, or None.
        skip_bad: a positive that cannot be used is left out; it too gives way to the same picture augmented anew.
    """

    def __init__(
        self, images: CaptionedImages, records: Sequence[Record], truth: BirdTruth | None, skip_bad: bool = False
    ) -> None:
        self.images, self.skip_bad = images, skip_bad
        groups: dict[object, list[int]] = defaultdict(list)
        names: list[list[object]] = []
        for index, record in enumerate(records):
            own: list[object] = [] if record.class_id is None else [("class", record.class_id)]
            if truth is not None:
                own.insert(0, ("attributes", *truth.values(record.key).values()))
            names.append(own)
            for name in own:
                groups[name].append(index)
        self._partners = [next((groups[n] for n in own if len(groups[n]) > 1), [i]) for i, own in enumerate(names)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PairSample:
        partners = [p for p in self._partners[index] if p != index] or [index]
        first = self.images[index]
        try:
            return PairSample(first, self.images[partners[int(torch.randint(len(partners), (), device="cpu"))]])
        except BadSampleError as error:
            if not self.skip_bad:
                raise
            return PairSample(first, self.images[index].in_place_of([error.where]))


def collate_pairs(samples: Sequence[PairSample]) -> tuple[Batch, Batch]:
    """Two batches: the captioned pictures and, row by row, their image-image positives."""
    return collate([s.first for s in samples]), collate([s.second for s in samples])


def has_wrong_caption(truth: BirdTruth | None, batch: Batch) -> bool:
    """Whether a batch has a wrong caption to tell a picture's own from; a bird has its swapped one."""
    if truth is not None:
        return True
    differ = torch.tensor([[a != b for b in batch.captions] for a in batch.captions], device="cpu")
    return bool((differ & ~true_captions_of(truth, batch)).any())


def true_captions_of(truth: BirdTruth | None, batch: Batch) -> Tensor:
    """`(B, B)` bool: which pictures satisfy which captions; without attributes, those of one class."""
    if truth is None:
        return batch.class_ids[:, None] == batch.class_ids[None, :]
    return true_pairs(truth.pictures(batch.keys), *said_by(batch.captions))
