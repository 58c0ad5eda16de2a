"""What a pretraining begins with: the pictures of a data folder, and a matcher that has learnt nothing yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from vlm_plugin.data import BirdTruth, Record, Records, find_truth, list_splits
from vlm_plugin.data.records import digest_records, nothing_to_learn
from vlm_plugin.matcher.choose import damsm_pair
from vlm_plugin.matcher.image_encoders import build_image_encoder
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary
from vlm_plugin.pretraining.settings import PretrainSettings
from vlm_plugin.training.skipped import open_records


class Splits(NamedTuple):
    """The pictures that a matcher is trained with, and those that choose its best epoch."""

    train: Records
    held_out: Records
    held_out_name: str
    """Which split that is: "validation" or, where there is none, "test"."""
    truth: BirdTruth | None
    """The attributes of synthetic birds; None for other data."""
    lost: list[str]
    """Files of the pictures of which nothing can be read."""
    digest: str
    """Names the pictures and captions of both."""


def open_splits(data: Path, skip_bad: bool) -> Splits:
    """The splits of a data folder.

    Raises:
        BadSampleError: something is wrong with one picture, and `skip_bad` is off.
        FileNotFoundError, ValueError: something is wrong with the folder.
    """
    held_out_name = "validation" if "validation" in list_splits(data) else "test"
    (train, lost), (held_out, lost_too) = (open_records(data, split, skip_bad) for split in ("train", held_out_name))
    pictures = digest_records(itertools.chain(train, held_out))
    return Splits(train, held_out, held_out_name, find_truth(data), [*lost, *lost_too], pictures)


def first_matcher(settings: PretrainSettings, data: Path, splits: Splits) -> VLM:
    """The matcher that the settings ask for, as it is before the first step, on the CPU.

    Args:
        settings: of `filled_in`.
        data: the data folder, where a DAMSM vocabulary is looked for.
        splits: of `open_splits`; a new vocabulary has the words of both.
    """
    torch.manual_seed(settings.seed)
    if settings.damsm is not None:
        return damsm_matcher(Path(settings.damsm), data, settings.freeze_encoders)
    records = itertools.chain(splits.train, splits.held_out)
    return new_matcher(records, settings.encoder, settings.embed_dim, settings.image_weights)


def new_matcher(records: Iterable[Record], encoder: str, embed_dim: int, image_weights: str | None) -> VLM:
    """A matcher of random weights.

    Args:
        records: whose captions make the vocabulary.
        encoder: the image encoder's name.
        embed_dim: D of the common space.
        image_weights: of an Inception trunk, which is frozen; None trains all of it.
    """
    vocabulary = Vocabulary.build(caption for record in records for caption in record.captions)
    options = {"weights": image_weights} if image_weights is not None else {}
    image_encoder = build_image_encoder(encoder, embed_dim=embed_dim, **options)
    if image_weights is not None:
        for name, parameter in image_encoder.named_parameters():
            parameter.requires_grad_(name.startswith("emb_"))
    text_encoder = LSTMTextEncoder(len(vocabulary), embed_dim)
    return VLM(image_encoder, text_encoder, vocabulary, MatchingScoreBlock(embed_dim))


def damsm_matcher(text_encoder: Path, data: Path, freeze_encoders: bool) -> VLM:
    """Published DAMSM encoders with a scorer of random weights; the arguments are those of `PretrainSettings`."""
    vlm = damsm_pair(text_encoder, data).requires_grad_(not freeze_encoders)
    vlm.scorer = MatchingScoreBlock(vlm.embed_dim)
    return vlm


def check_learnable(splits: Splits, vocabulary: Vocabulary, data: Path) -> None:
    """Refuse a train split on which nothing can be learned.

    Args:
        splits: of `open_splits`.
        vocabulary: the matcher's.
        data: the data folder, for the message.

    Raises:
        ValueError: no picture has a wrong caption, see `no_wrong_caption`.
    """
    if reason := no_wrong_caption(splits.train, splits.truth, vocabulary):
        raise ValueError(
            f"{data}, train split: {reason}: no picture has a wrong caption, so nothing can be learned. Captions of "
            "one class are right for all its pictures: where they are not, leave the classes out"
        )


def no_wrong_caption(
    records: Iterable[Record], truth: BirdTruth | None, vocabulary: Vocabulary, *, classes: bool = True
) -> str | None:
    """Why no picture has a wrong caption, see `nothing_to_learn`; captions are taken as the matcher reads them.

    Args:
        records: the pictures.
        truth: the attributes of synthetic birds, which then decide what is wrong in place of the classes; or None.
        vocabulary: the matcher's.
        classes: False takes each picture as a class of its own.
    """

    def read(caption: str) -> str:
        return " ".join(word for word in vocabulary.tokenize(caption) if word in vocabulary)

    return nothing_to_learn(
        record._replace(
            captions=tuple(filter(None, map(read, record.captions))),
            class_id=record.class_id if classes and truth is None else None,
        )
        for record in records
    )


def train_mode(vlm: VLM) -> None:
    """Put into train mode what is trained."""
    vlm.train()
    for encoder in (vlm.image_encoder, vlm.text_encoder):
        # Frozen weights, be it of the trunk alone, belong to the BatchNorm statistics that they came with.
        if not all(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
