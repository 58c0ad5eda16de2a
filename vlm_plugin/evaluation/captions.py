"""Which captions of a split are evaluated, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vlm_plugin.data import BirdTruth, Record, true_pairs
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.files import caption_id, digest
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.metrics.r_precision import different_groups

T = TypeVar("T")
CAPTIONS_AT_ONCE = 100  # so that tables of all captions, of which there may be many thousands, fit into memory


def spread(every: Sequence[T], count: int) -> list[T]:
    """`count` of them at equal distances, or all: pictures often lie in the order of their classes or folders."""
    count = min(count, len(every))
    return [every[number * len(every) // count] for number in range(count)]


class Item(NamedTuple):
    """One caption to draw."""

    record: int
    """Position of its picture in the split."""
    number: int
    """Position of the caption among the picture's."""


def items(captions_of: Sequence[int], count: int | None = None) -> list[Item]:
    """Which captions are evaluated, in which order.

    First one caption of every picture, number i % n of picture i with n captions, then another of every picture, until
    each caption had its turn. Fewer captions than pictures are of pictures at equal distances, see `spread`:
    number i % n of the i-th of them.

    Args:
        captions_of: number of captions of each picture.
        count: how many; all when left out or greater.
    """
    if count is not None and count < len(captions_of):
        chosen = spread(range(len(captions_of)), count)
        return [Item(index, number % captions_of[index]) for number, index in enumerate(chosen)]
    rounds = range(max(captions_of, default=0))
    every = [Item(index, (index + turn) % n) for turn in rounds for index, n in enumerate(captions_of) if turn < n]
    return every if count is None else every[:count]


class Subject(NamedTuple):
    """What is evaluated: captions, and which of them may serve a picture as wrong ones."""

    captions: list[str]
    facts: Tensor
    """`(N, F)` int64, see `mismatched`."""
    mismatched: Callable[[Tensor, Tensor], Tensor]
    """As `RPrecision` takes it."""
    digest: str
    """Sixteen hexadecimal digits that name the pictures' keys and the captions."""


def subject(records: Sequence[Record], chosen: Sequence[Item], truth: BirdTruth | None) -> Subject:
    """The captions of some items with what is known about them.

    Where attributes are known, no caption that is true of a picture is a wrong one; else none of its class; else none
    of the same text.
    """
    rows = [(records[item.record], item.number) for item in chosen]
    captions = [record.captions[number] for record, number in rows]
    name = digest(f"{record.key}\t{caption}" for (record, _), caption in zip(rows, captions, strict=True))
    if truth is not None:
        values, named = said_by(captions)
        facts = torch.cat([truth.pictures([record.key for record, _ in rows]), values, named.long()], dim=1)
        return Subject(captions, facts, untrue, name)
    ids = [caption_id(c) if r.class_id is None else r.class_id for (r, _), c in zip(rows, captions, strict=True)]
    return Subject(captions, torch.tensor(ids, device="cpu")[:, None], different_groups, name)


def untrue(rows: Tensor, every: Tensor) -> Tensor:
    """Birds: which captions are not true of which pictures.

    Args:
        rows: `(R, 3A)`: attributes of pictures, then values and mention of each attribute in their captions.
        every: `(N, 3A)` the same for the captions.

    Returns:
        `(R, N)` bool.
    """
    attributes = rows.shape[1] // 3
    picture, said, named = rows[:, :attributes], every[:, attributes : 2 * attributes], every[:, 2 * attributes :]
    return ~true_pairs(picture, said, named.bool())


def fewest_wrong(subject: Subject) -> int:
    """How many captions may serve as wrong ones for the picture that has the fewest."""
    fewest = len(subject.captions)
    for rows in torch.arange(len(subject.captions), device="cpu").split(CAPTIONS_AT_ONCE):
        wrong = subject.mismatched(subject.facts[rows], subject.facts)
        wrong[torch.arange(len(rows), device="cpu"), rows] = False  # its own
        fewest = min(fewest, int(wrong.sum(1).min()))
    return fewest


def with_known_words(records: Sequence[Record], vocabularies: Sequence[Vocabulary]) -> list[Record]:
    """The records with those of their captions that have a word of every vocabulary; those without any are left out."""
    kept = []
    for record in records:
        captions = tuple(
            caption
            for caption in record.captions
            if all(any(word in known for word in known.tokenize(caption)) for known in vocabularies)
        )
        if captions:
            kept.append(record._replace(captions=captions))
    return kept
