"""Variants of the dual loss that were tried on the validation split; alternatives.py trains DF-GAN with them.

None of them ships: docs/results-recipe.md has what they brought.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from vlm_plugin import VLM, DualVLMLoss, Features
from vlm_plugin.augment import RandomView
from vlm_plugin.data.birds.captions import NOUNS, PLUMAGE, read_caption, swap_caption
from vlm_plugin.gans.run import dual_loss
from vlm_plugin.loss import LossOutput, Rows
from vlm_plugin.matching import (
    at_least_float32,
    context_cosines,
    contrastive_loss,
    general_loss,
    global_scores,
    local_scores,
)


def rougher_views(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    """The dual loss, with the matcher seeing each generated picture shifted farther and under more noise."""
    loss = dual_loss(matcher, settings)
    loss.augment = RandomView(shift=0.15, noise=0.15)
    return loss


def sharper(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    """The dual loss with `gamma3_local` of 100 in place of 50."""
    loss = dual_loss(matcher, settings)
    loss.gamma3_local = 100.0
    return loss


def closer_attention(matcher: VLM, settings: EasyDict) -> DualVLMLoss:
    """The dual loss with `gamma1` of 12 in place of 4: a word looks at fewer regions, so painting more of them in its
    colour brings less."""
    loss = dual_loss(matcher, settings)
    loss.gamma1 = 12.0
    return loss


class WholeCaption(DualVLMLoss):
    """The dual loss with four times the weight on `vlm_global`, which then pulls about as hard as `vlm_local`."""

    SHARE = 4.0

    @classmethod
    def build(cls, matcher: VLM, settings: EasyDict) -> WholeCaption:
        return _like(dual_loss(matcher, settings), cls, matcher)

    def _term(self, name: str, *rows: object) -> Tensor:
        value = super()._term(name, *rows)
        return self.SHARE * value if name == "vlm_global" else value


class EveryWord(DualVLMLoss):
    """The dual loss with a local score that counts every word.

    `S_local = (1 / gamma2) * log mean_j exp(gamma2 * cos(c_j, a_j))` with gamma2 = 1 in place of 5, at which the few
    words that match best make up nearly all of the score; the mean in place of the sum keeps long captions from scoring
    high; gamma3_local = 100. Source: ours.
    """

    @classmethod
    def build(cls, matcher: VLM, settings: EasyDict) -> EveryWord:
        return _like(dual_loss(matcher, settings), cls, matcher, gamma2=1.0, gamma3_local=100.0)

    def _local_scores(self, image: Features, anchor: Features) -> Tensor:
        return every_word_scores(image, anchor, self.gamma1, self.gamma2)


@at_least_float32
def every_word_scores(image: Features, anchor: Features, gamma1: float, gamma2: float) -> Tensor:
    """See `EveryWord`; arguments and shapes as of `matching.local_scores`."""
    cosine = context_cosines(image, anchor, gamma1).masked_fill(~anchor.mask[None], float("-inf"))
    return (torch.logsumexp(gamma2 * cosine, dim=-1) - anchor.mask.sum(1).log()) / gamma2


class SwappedWords(DualVLMLoss):
    """The dual loss in which each picture also has to tell its caption from twins of it with one value exchanged.

    They are `TWINS` more negatives of -log P(caption | picture), at the local and the global level. Source: ours,
    after the matcher's pretraining.
    """

    TWINS = 3

    @staticmethod
    def twin(caption: str, rng: random.Random) -> str:
        """A caption with one value exchanged."""
        said = read_caption(caption)
        return swap_caption(caption, list(said), said, rng)[0]

    @classmethod
    def build(cls, matcher: VLM, settings: EasyDict) -> SwappedWords:
        loss = _like(dual_loss(matcher, settings), cls, matcher)
        rng, encode = random.Random(0), matcher.encode_tokens

        def hear(captions: list[str]) -> None:
            twins = [cls.twin(caption, rng) for caption in captions for _ in range(cls.TWINS)]
            loss.twins = encode(*matcher.vocabulary.encode_batch(twins, matcher.max_words)).detach()

        listen(matcher, hear)
        return loss

    def _term(self, name: str, images: Rows, anchors: dict[str, Rows], excluded: Tensor) -> Tensor:
        if name not in ("vlm_local", "vlm_global"):
            return super()._term(name, images, anchors, excluded)
        image, captions = images.own, anchors["vlm"].own
        batch = len(image.pooled)
        own = torch.arange(batch, device=image.pooled.device)
        if name == "vlm_local":
            scores, temperature = self._local_scores, self.gamma3_local
        else:
            scores, temperature = global_scores, self.gamma3
        table = temperature * scores(image, captions)
        wrong = temperature * scores(image, self.twins).unflatten(1, (batch, self.TWINS))[own, own]
        return contrastive_loss(
            torch.cat([table, wrong], 1), own, F.pad(excluded, (0, self.TWINS), value=False)
        ) + contrastive_loss(table.T, own, excluded.T)


class MovedWords(SwappedWords):
    """The same, with twins that say a colour of a part which the caption leaves open: "a white crown", "a white back".

    A picture that paints both parts white is as good a match for the one as for the other, and has to choose. A caption
    that names every part keeps the twins of `SwappedWords`. Source: ours.
    """

    @staticmethod
    def twin(caption: str, rng: random.Random) -> str:
        """A caption with one colour moved to another part."""
        return move_colour(caption, rng) or SwappedWords.twin(caption, rng)


def move_colour(caption: str, rng: random.Random) -> str | None:
    """Says of a part of the bird that a sentence of `birds.sentence` does not name what it says of another.

    Args:
        caption: the sentence.
        rng: picks both parts.

    Returns:
        The sentence with the part's noun exchanged; None where it names all parts, or none with a colour.
    """
    said = read_caption(caption)
    named, free = ([part for part in PLUMAGE if (part in said) == there] for there in (True, False))
    if not named or not free:
        return None
    part, other = rng.choice(named), rng.choice(free)
    noun, colour, nouns = rng.choice(NOUNS[other]), said[part], "|".join(dict.fromkeys(NOUNS[part]))
    if part == "wings":
        caption = re.sub(rf"\b{colour} (?:{nouns})\b", f"a {colour} {noun}", caption)
    elif other == "wings":
        caption = re.sub(rf"\ba {colour} (?:{nouns})\b", f"{colour} {noun}", caption)
    return re.sub(rf"\b(?:{nouns})\b", noun, caption)


class Floored(DualVLMLoss):
    """The dual loss as far as it lies above that of real pictures, row by row.

    Each of a term's rows l_i is replaced by max(l_i - f_i, 0), where f_i is the same row with another view of the real
    picture in place of the generated one: a picture that matches as well as the real one has no gradient. One process
    alone. Source: ours.
    """

    @classmethod
    def build(cls, matcher: VLM, settings: EasyDict) -> Floored:
        return _like(dual_loss(matcher, settings), cls, matcher)

    def forward(self, fake: Tensor, text: Features, real: Tensor, *, class_ids: Tensor) -> LossOutput:
        """See `DualVLMLoss.forward`."""
        self._freeze()
        view = self.augment or torch.nn.Identity()
        image = self._encode(view(fake))
        with torch.no_grad():
            floor, true = self._encode(view(real.flip(3))), self._encode(real)
        excluded = (class_ids[:, None] == class_ids[None, :]).to(fake.device)
        total, terms = fake.new_zeros(()), {}
        for name in self.terms:
            half, level = name.split("_")
            anchor = text if half == "vlm" else true
            rows, least = (self.rows(level, images, anchor, half, excluded) for images in (image, floor))
            value = F.relu(rows - least.detach()).mean(1).sum()
            total = total + (self.lambda_vlm if half == "vlm" else self.lambda_vvm) * value
            terms[name] = value.detach()
        return LossOutput(total, terms)

    def rows(self, level: str, image: Features, anchor: Features, half: str, excluded: Tensor) -> Tensor:
        """`(directions, B)`: what a term is the mean of."""
        if level == "general":
            logits = self.scorer(image, anchor, "caption" if half == "vlm" else "image")
            return torch.stack([general_loss(logit[None]) for logit in logits])[None]
        if level == "local":
            table = self.gamma3_local * local_scores(image, anchor, self.gamma1, self.gamma2)
        else:
            table = self.gamma3 * global_scores(image, anchor)
        table = table.masked_fill(excluded & ~torch.eye(len(table), dtype=torch.bool, device=table.device), -torch.inf)
        return torch.stack([-table.log_softmax(dim).diagonal() for dim in (1, 0)])


def _like(usual: DualVLMLoss, variant: type[DualVLMLoss], matcher: VLM, **changes: float) -> DualVLMLoss:
    return variant(matcher, lambda_vvm=0.0, lambda_vlm=0.0, augment=usual.augment, terms=usual.terms, **changes)


def listen(matcher: VLM, hear: Callable[[list[str]], None]) -> None:
    """Hand every batch of captions to `hear` when it is encoded: a loss is given their features alone."""
    encode, words = matcher.encode_tokens, matcher.vocabulary.words

    def encode_tokens(tokens: Tensor, lengths: Tensor) -> Features:
        hear([" ".join(words[i] for i in row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)])
        return encode(tokens, lengths)

    matcher.encode_tokens = encode_tokens
