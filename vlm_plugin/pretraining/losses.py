"""The losses of pretraining: contrastive for the encoders, binary cross-entropy for the scorer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_plugin.data import BirdTruth
from vlm_plugin.data.birds.captions import read_caption, swap_caption
from vlm_plugin.data.dataset import Batch
from vlm_plugin.features import Features
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matching import (
    GAMMA1,
    GAMMA2,
    GAMMA3,
    GAMMA3_LOCAL,
    contrastive_loss,
    global_scores,
    local_scores,
    matched_loss,
)
from vlm_plugin.pretraining.pairs import true_captions_of
from vlm_plugin.training.device import autocast

# The scorer's targets. A scorer that is never quite sure keeps a gradient for the generator.
TARGET_TRUE, TARGET_FALSE = 0.9, 0.1


class Level(NamedTuple):
    """How the encoders are compared."""

    score: Callable[[Features, Features], Tensor]
    """`(B, C)` scores of B pictures and C anchors."""
    gamma: float
    """Sharpness of the posterior."""


def _local_scores(image: Features, anchor: Features) -> Tensor:
    return local_scores(image, anchor, GAMMA1, GAMMA2)


LEVELS = {"local": Level(_local_scores, GAMMA3_LOCAL), "global": Level(global_scores, GAMMA3)}


class Losses(NamedTuple):
    """Scalars of one step; `total` is their sum and carries the gradient."""

    total: Tensor
    terms: dict[str, Tensor]


class EncodedPairs(NamedTuple):
    """B pictures and the captions that fit them. P of them, P <= B, have a positive too.

    The image-image losses and the scorer's, which cost the most, are those of the first P pictures alone.
    """

    image: Features
    """B pictures."""
    caption: Features
    """Their captions."""
    swapped: Features | None
    """The first P captions with a word exchanged, each one more negative of its own picture; or None."""
    positive: Features
    """P pictures, row i a positive of picture i."""


class Excluded(NamedTuple):
    """Which pairs are no negatives."""

    true_captions: Tensor
    """`(B, B)` bool: picture i satisfies caption j."""
    same_group: Tensor
    """`(P, P)` bool: picture i and positive j show the same."""


def pretraining_losses(
    pairs: EncodedPairs,
    excluded: Excluded,
    scorer: MatchingScoreBlock | None,
    generator: torch.Generator | None = None,
    encoders_train: bool = True,
) -> Losses:
    """Every loss of a batch.

    Args:
        pairs: the batch.
        excluded: its pairs that are no negatives.
        scorer: the matching score block; None leaves out the general level.
        generator: draws the scorer's hard negatives.
        encoders_train: False leaves out the local and global levels, which train nothing but the encoders.

    Source: ours, after DAMSM's posterior; the scorer's binary cross-entropy with hard negatives is ours.
    """
    terms = {}
    if encoders_train:
        terms |= _encoder_terms(pairs, excluded)
    if scorer is not None:
        terms |= _scorer_terms(scorer, pairs, excluded, generator)
    return Losses(sum(terms.values()), {k: v.detach() for k, v in terms.items()})


def _encoder_terms(pairs: EncodedPairs, excluded: Excluded) -> dict[str, Tensor]:
    """The local and global levels, see `pretraining_losses`."""
    first = rows_of(pairs.image, torch.arange(len(pairs.positive.pooled), device=pairs.image.pooled.device))
    tables = {name: level.score(pairs.image, pairs.caption) for name, level in LEVELS.items()}
    terms = {}
    for name, level in LEVELS.items():
        twins = None if pairs.swapped is None else _own_scores(first, pairs.swapped, level)
        terms[f"vlm_{name}"] = _caption_loss(tables[name], twins, excluded.true_captions, level.gamma)
    for name, level in LEVELS.items():
        terms[f"vvm_{name}"] = matched_loss(level.score(first, pairs.positive), level.gamma, excluded.same_group)
    return terms


def _own_scores(image: Features, anchor: Features, level: Level) -> Tensor:
    """`(P, 1)`: the score of each picture with its own anchor alone."""
    rows = torch.arange(len(image.pooled), device=image.pooled.device).split(1)
    return torch.cat([level.score(rows_of(image, row), rows_of(anchor, row)) for row in rows])


def _caption_loss(table: Tensor, twins: Tensor | None, true_captions: Tensor, gamma: float) -> Tensor:
    """Picture -> captions, the swapped one among them, and caption -> pictures.

    Args:
        table: `(B, B)` scores of pictures and captions.
        twins: `(P, 1)` scores of the first pictures and their swapped captions; or None.
        true_captions: see `Excluded`.
        gamma: sharpness of the posterior.
    """
    own = torch.arange(len(table), device=table.device)
    rows, excluded = table, true_captions
    if twins is not None:
        part = len(twins)
        # A picture beyond the first P has no swapped caption: its place in the column is left out.
        rows = torch.cat([table, F.pad(twins, (0, 0, 0, len(table) - part))], dim=1)
        excluded = torch.cat([true_captions, (own >= part)[:, None]], dim=1)
    return contrastive_loss(gamma * rows, own, excluded) + contrastive_loss(gamma * table.T, own, true_captions.T)


def _scorer_terms(
    scorer: MatchingScoreBlock, pairs: EncodedPairs, excluded: Excluded, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """The general level, see `pretraining_losses`."""
    image, caption, swapped, positive = pairs
    part = len(positive.pooled)
    first, matched = _split(image, part)[0], _split(caption, part)[0]
    scores = global_scores(image, caption)[:part]
    columns, valid = hard_negatives(scores, excluded.true_captions[:part], generator)
    wrong = [(rows_of(caption, columns), valid)]
    if swapped is not None:
        wrong.append((swapped, torch.ones_like(valid)))
    terms = {"vlm_general": _scorer_loss(scorer, first, matched, wrong, "caption")}
    columns, valid = hard_negatives(global_scores(first, positive), excluded.same_group, generator)
    terms["vvm_general"] = _scorer_loss(scorer, first, positive, [(rows_of(positive, columns), valid)], "image")
    return terms


def _scorer_loss(
    scorer: MatchingScoreBlock,
    image: Features,
    matched: Features,
    wrong: Sequence[tuple[Features, Tensor]],
    kind: str,
) -> Tensor:
    """Binary cross-entropy: half the weight on matched pairs, half on wrong ones (each with its bool of valid rows)."""
    logits = scorer(image, matched, kind)
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, TARGET_TRUE))
    others = []
    for anchor, valid in wrong:
        logits = scorer(image, anchor, kind)
        each = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, TARGET_FALSE), reduction="none")
        others.append((each * valid).sum() / valid.sum().clamp(min=1))
    return (loss + sum(others) / len(others)) / 2


@torch.no_grad()
def hard_negatives(scores: Tensor, excluded: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One column a row, drawn in proportion to exp(gamma3 * score), and whether the row had any negative. Source: ours.

    Column i is what row i belongs to and never drawn, also where ids made of captions would set the two apart.

    Args:
        scores: `(P, B)` cosines.
        excluded: `(P, B)` bool: no negatives.
        generator: draws.

    Returns:
        `(P,)` int64 columns and `(P,)` bool; the column of a row without a negative means nothing.
    """
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    weights = (GAMMA3 * (scores - 1)).exp().masked_fill(excluded | own, 0.0).cpu()
    # Of broken features nothing is drawn; the losses of these are no numbers either, and say so.
    weights[~weights.isfinite()] = 0.0
    valid = weights.sum(1) > 0
    weights[~valid] = 1.0
    columns = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return columns.to(scores.device), valid.to(scores.device)


def _split(features: Features, size: int) -> tuple[Features, Features]:
    return Features(*(part[:size] for part in features)), Features(*(part[size:] for part in features))


def rows_of(features: Features, index: Tensor) -> Features:
    """The rows `index`, an int64 tensor, of features."""
    return Features(features.local[index], features.pooled[index], features.mask[index])


def step_losses(
    vlm: VLM,
    first: Batch,
    second: Batch,
    truth: BirdTruth | None,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Losses:
    """The losses of a batch of pictures; their gradient reaches whatever of the matcher trains.

    Args:
        vlm: the matcher.
        first: B captioned pictures.
        second: their positives, of which the first (B + 1) // 2 are looked at.
        truth: the attributes of synthetic birds, or None.
        device: where to compute.
        dtype: what to compute in.
        seed: draws swapped words and hard negatives.
    """
    generator = torch.Generator().manual_seed(seed)
    captions, swapped = list(first.captions), []
    batch, part = len(captions), (len(captions) + 1) // 2
    if truth is not None:
        rng = random.Random(seed)
        swapped = [swap_caption(c, list(said := read_caption(c)), said, rng)[0] for c in captions[:part]]
    same_group = first.class_ids[:part, None] == second.class_ids[None, :part]
    excluded = Excluded(true_captions_of(truth, first).to(device), same_group.to(device))
    # The text encoder trains unless both encoders are frozen.
    encoders_train = all(parameter.requires_grad for parameter in vlm.text_encoder.parameters())
    with autocast(device, dtype):
        images = torch.cat([first.images, second.images[:part]]).to(device, memory_format=torch.channels_last)
        with torch.set_grad_enabled(encoders_train):
            image, positive = _split(vlm.encode_image(images), batch)
            caption, twin = _split(vlm.encode_text(captions + swapped, generator), batch)
        pairs = EncodedPairs(image, caption, twin if swapped else None, positive)
        return pretraining_losses(pairs, excluded, vlm.scorer, generator, encoders_train)
