"""The losses of pretraining: contrastive for the encoders, binary cross-entropy for the scorer."""

from __future__ import annotations

import random
from collections.abc import Sequence
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


class Losses(NamedTuple):
    """Scalars of one step; `total` is their sum and carries the gradient."""

    total: Tensor
    terms: dict[str, Tensor]


def pretraining_losses(
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    scorer: MatchingScoreBlock | None,
    true_captions: Tensor,
    same_group: Tensor,
    generator: torch.Generator | None = None,
    encoders_train: bool = True,
) -> Losses:
    """Every loss of a batch of B matched pairs.

    Args:
        image: B pictures.
        caption: their captions.
        swapped: the first P captions with a word exchanged, each one more negative of its own picture; or None.
        positive: P <= B pictures, row i a positive of picture i. The image-image losses and the scorer's, which cost
            the most, are those of the first P pictures alone.
        scorer: the matching score block; None leaves out the general level.
        true_captions: `(B, B)` bool: picture i satisfies caption j, so j is no negative of it.
        same_group: `(P, P)` bool: pictures i and j are no negatives of each other.
        generator: draws the scorer's hard negatives.
        encoders_train: False leaves out the local and global levels, which train nothing but the encoders.

    Source: ours, after DAMSM's posterior; the scorer's binary cross-entropy with hard negatives is ours.
    """
    terms = {}
    if encoders_train:
        terms |= _encoder_terms(image, caption, swapped, positive, true_captions, same_group)
    if scorer is not None:
        terms |= _scorer_terms(scorer, image, caption, swapped, positive, true_captions, same_group, generator)
    return Losses(sum(terms.values()), {k: v.detach() for k, v in terms.items()})


def _encoder_terms(
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    true_captions: Tensor,
    same_group: Tensor,
) -> dict[str, Tensor]:
    """The local and global levels, see `pretraining_losses`."""
    batch, part = len(image.pooled), len(positive.pooled)
    own = torch.arange(batch, device=image.pooled.device)
    first = rows_of(image, own[:part])
    scores = {
        "vlm_local": (GAMMA3_LOCAL, local_scores(image, caption, GAMMA1, GAMMA2)),
        "vlm_global": (GAMMA3, global_scores(image, caption)),
    }
    terms = {}
    for name, (gamma, table) in scores.items():
        rows, excluded = table, true_captions
        if swapped is not None:
            score = local_scores if name == "vlm_local" else global_scores
            column = torch.cat(
                [score(rows_of(first, own[i : i + 1]), rows_of(swapped, own[i : i + 1])) for i in range(part)]
            )
            # A picture beyond the first P has no swapped caption: its place in the column is left out.
            rows = torch.cat([table, F.pad(column, (0, 0, 0, batch - part))], dim=1)
            excluded = torch.cat([true_captions, (own >= part)[:, None]], dim=1)
        terms[name] = contrastive_loss(gamma * rows, own, excluded) + contrastive_loss(
            gamma * table.T, own, true_captions.T
        )
    terms["vvm_local"] = matched_loss(local_scores(first, positive, GAMMA1, GAMMA2), GAMMA3_LOCAL, same_group)
    terms["vvm_global"] = matched_loss(global_scores(first, positive), GAMMA3, same_group)
    return terms


def _scorer_terms(
    scorer: MatchingScoreBlock,
    image: Features,
    caption: Features,
    swapped: Features | None,
    positive: Features,
    true_captions: Tensor,
    same_group: Tensor,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """The general level, see `pretraining_losses`."""
    part = len(positive.pooled)
    first, matched = _split(image, part)[0], _split(caption, part)[0]
    columns, valid = _hard_negatives(global_scores(image, caption)[:part], true_captions[:part], generator)
    wrong = [(rows_of(caption, columns), valid)]
    if swapped is not None:
        wrong.append((swapped, torch.ones_like(valid)))
    terms = {"vlm_general": _scorer_loss(scorer, first, matched, wrong, "caption")}
    columns, valid = _hard_negatives(global_scores(first, positive), same_group, generator)
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
def _hard_negatives(scores: Tensor, excluded: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One column a row, drawn in proportion to exp(gamma3 * score), and whether the row had any negative.

    Column i is what row i belongs to and never drawn, also where ids made of captions would set the two apart.
    """
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    weights = (GAMMA3 * (scores - 1)).exp().masked_fill(excluded | own, 0.0).cpu()
    valid = weights.sum(1) > 0
    weights[~valid] = 1.0
    columns = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return columns.to(scores.device), valid.to(scores.device)


def _split(features: Features, size: int) -> tuple[Features, Features]:
    return Features(*(part[:size] for part in features)), Features(*(part[size:] for part in features))


def rows_of(features: Features, index: Tensor) -> Features:
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
    generator = torch.Generator().manual_seed(seed)
    captions, swapped = list(first.captions), []
    batch, part = len(captions), (len(captions) + 1) // 2
    if truth is not None:
        rng = random.Random(seed)
        swapped = [swap_caption(c, list(said := read_caption(c)), said, rng)[0] for c in captions[:part]]
    true_captions = true_captions_of(truth, first)
    same_group = first.class_ids[:part, None] == second.class_ids[None, :part]
    true_captions, same_group = true_captions.to(device), same_group.to(device)
    # The text encoder trains unless both encoders are frozen.
    encoders_train = all(parameter.requires_grad for parameter in vlm.text_encoder.parameters())
    with autocast(device, dtype):
        images = torch.cat([first.images, second.images[:part]]).to(device, memory_format=torch.channels_last)
        with torch.set_grad_enabled(encoders_train):
            image, positive = _split(vlm.encode_image(images), batch)
            caption, twin = _split(vlm.encode_text(captions + swapped, generator), batch)
        twin = twin if swapped else None
        return pretraining_losses(
            image, caption, twin, positive, vlm.scorer, true_captions, same_group, generator, encoders_train
        )
