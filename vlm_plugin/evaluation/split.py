"""Which pictures an evaluation is about: those of a split, and those of another one that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, Records, find_layout
from vlm_plugin.evaluation.captions import spread
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.training.skipped import open_records, usable_indices


class Split(NamedTuple):
    """The real pictures of an evaluation."""

    data: Path
    """The data folder."""
    name: str
    """Of the split."""
    records: Sequence[Record]
    """The pictures whose captions are drawn."""
    others: Sequence[Record]
    """Pictures of another split, for the distance between real pictures and real ones; may be none."""
    truth: BirdTruth | None
    """The attributes of synthetic birds; None for other data."""
    lost: Sequence[str] = ()
    """Files and keys of the split's pictures that are left out because they cannot be read."""


def open_evaluated(
    data: Path, name: str, truth: BirdTruth | None, *, count: int | None = None, skip_bad: bool = False
) -> Split:
    """The pictures of a split, and as many of another one, none of which is read yet.

    Args:
        data: the data folder.
        name: of the split.
        truth: see `Split`.
        count: how many captions are evaluated; all when left out.
        skip_bad: leave out pictures with which something is wrong.

    Raises:
        BadSampleError: something is wrong with one picture, and `skip_bad` is off; or with every one.
        FileNotFoundError, ValueError: something is wrong with the folder.
    """
    records, lost = open_records(data, name, skip_bad)
    others = other_pictures(_other_split(data, name, skip_bad), min(len(records), count or len(records)), truth)
    return Split(data, name, records, others, truth, lost)


def readable(split: Split, image_size: int) -> Split:
    """The split without the pictures that cannot be read at this size; those of the split itself are told as lost.

    Raises:
        ValueError: none can be read.
    """
    records, unreadable = usable_records(split.records, image_size, True)
    others = usable_records(split.others, image_size, True)[0] if split.others else []
    return split._replace(records=records, others=others, lost=[*split.lost, *unreadable])


def _other_split(data: Path, name: str, skip_bad: bool) -> Records:
    own = find_layout(data).splits(data)
    for other in ("train", "test", "validation"):
        # Without a test split a part of train is one.
        if other != name and (other in own or (other == "test" and "train" in own)):
            return open_records(data, other, skip_bad)[0]
    return Records()


def other_pictures(records: Sequence[Record], count: int, truth: BirdTruth | None) -> list[Record]:
    """Those of another split's pictures that the real ones' distance is measured to.

    Args:
        records: the other split's.
        count: how many.
        truth: of synthetic birds, which are alike in any order: there the last are taken, as in the committed figures.
    """
    return spread(records, count) if truth is None else list(records[-count:])


def usable_records(
    records: Sequence[Record], image_size: int, skip_bad: bool, vocabulary: Vocabulary | None = None
) -> tuple[list[Record], list[str]]:
    """The records with a readable picture and a caption that says something, and what is wrong with the others: their
    files and keys.

    Args:
        records: any number of records.
        image_size: side that the pictures are brought to.
        skip_bad: leave out what cannot be used.
        vocabulary: of whose words a caption must have one; None leaves captions alone.

    Raises:
        BadSampleError: a record cannot be used, and `skip_bad` is off.
        ValueError: no record can be used.
    """
    images = CaptionedImages(records, image_size, train=False, vocabulary=vocabulary)
    indices, skipped = usable_indices(images, skip_bad)
    return [records[index] for index in indices], skipped
