"""AttnGAN's losses on logits: discriminator, generator, conditioning augmentation, and DAMSM.

What DAMSM shares with the package's matching comes from `vlm_plugin.matching` (the sentence score is its global score,
the posterior its contrastive loss). What differs is `damsm_word_scores`, and only that:

| | package, `local_scores` | DAMSM, `damsm_word_scores` |
| --- | --- | --- |
| word and region are compared by | cosine | dot product |
| before the softmax over regions | nothing | a softmax over the caption's words |
| score | (1/gamma2) log sum exp(gamma2 cos) | log sum exp(gamma2 cos): no factor 1/gamma2 |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_plugin import Features, distributed
from vlm_plugin.matching import at_least_float32, contrastive_loss, global_scores, unit

from .networks import Discriminator


def discriminator_loss(discriminator: Discriminator, real: Tensor, fake: Tensor, sentence: Tensor) -> Tensor:
    """Real with its sentence, against fakes and against real pictures with another's sentence.

    `(unconditional real + conditional real) / 2 + (unconditional fake + conditional fake + conditional wrong) / 3`,
    each a binary cross-entropy; the wrong pairs are each picture but the last with the next one's sentence.

    Args:
        discriminator: one stage's.
        real: (B, 3, S, S) in [-1, 1], B >= 2.
        fake: (B, 3, S, S); no gradient goes into it.
        sentence: (B, D).

    Returns:
        Scalar >= 0.

    Source: AttnGAN's published training, golden values.
    """
    # Two passes, as published: BatchNorm sees real and generated pictures apart.
    real_features, fake_features = discriminator(real), discriminator(fake.detach())
    true = _is(True, discriminator.unconditional(real_features))
    true = true + _is(True, discriminator.conditional(real_features, sentence))
    false = _is(False, discriminator.unconditional(fake_features))
    false = false + _is(False, discriminator.conditional(fake_features, sentence))
    false = false + _is(False, discriminator.conditional(real_features[:-1], sentence[1:]))
    return true / 2 + false / 3


def generator_loss(discriminators: Sequence[Discriminator], fakes: Sequence[Tensor], sentence: Tensor) -> Tensor:
    """`sum over stages of (-log D_i(x) - log D_i(x, sentence)) / 2`.

    Args:
        discriminators: one a stage.
        fakes: one (B, 3, S, S) a stage.
        sentence: (B, D).

    Returns:
        Scalar >= 0.

    Source: the papers (AttnGAN, and L_Gi of VLMGAN*). AttnGAN's published code leaves out the factor 1/2.
    """
    total = fakes[0].new_zeros(())
    for discriminator, fake in zip(discriminators, fakes, strict=True):
        features = discriminator(fake)
        heads = (discriminator.unconditional(features), discriminator.conditional(features, sentence))
        total = total + sum(_is(True, logits) for logits in heads) / 2
    return total


@at_least_float32
def _is(real: bool, logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(logit) for `real`, of -log(1 - sigmoid(logit)) otherwise; finite for every logit."""
    return F.softplus(-logits if real else logits).mean()


def kl_loss(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mu, exp(logvar)) from N(0, 1), `-1/2 (1 + logvar - mu^2 - exp(logvar))`.

    Args:
        mu: (B, C).
        logvar: (B, C).

    Returns:
        Scalar >= 0, the mean over all elements. Source: StackGAN's conditioning augmentation; mean as published.
    """
    return -0.5 * (1 + logvar - mu**2 - logvar.exp()).mean()


class DAMSM(NamedTuple):
    """The four parts of DAMSM's loss, scalars >= 0."""

    damsm_w0: Tensor
    """-log P(caption | image) by words."""
    damsm_w1: Tensor
    """-log P(image | caption) by words."""
    damsm_s0: Tensor
    """-log P(caption | image) by sentences."""
    damsm_s1: Tensor
    """-log P(image | caption) by sentences."""


def damsm_loss(
    image: Features,
    text: Features,
    class_ids: Tensor | None = None,
    gamma1: float = 4.0,
    gamma2: float = 5.0,
    gamma3: float = 10.0,
) -> DAMSM:
    """DAMSM's word and sentence losses in the formula of its published code, over the pictures of every rank.

    Args:
        image: B generated pictures.
        text: their captions.
        class_ids: (B,) integers; other pairs of equal class are no negatives.
        gamma1: sharpness of the attention.
        gamma2: sharpness of the sum over words.
        gamma3: inverse temperature of the posteriors.

    Source: AttnGAN section 3.2, golden values.
    """
    # Each rank has the whole batch's loss, whose gradient the gathering sums over ranks and the trainer averages.
    image = distributed.gather_features(image, class_ids=class_ids is not None)
    text = distributed.gather_features(text)
    same = None
    if class_ids is not None:
        class_ids = distributed.gather(class_ids)
        same = class_ids[:, None] == class_ids[None, :]
    own = torch.arange(len(image.pooled), device=image.pooled.device)
    words = gamma3 * damsm_word_scores(image, text, gamma1, gamma2)
    sentences = gamma3 * global_scores(image, text)
    return DAMSM(*(contrastive_loss(s, own, same) for s in (words, words.T, sentences, sentences.T)))


@at_least_float32
def damsm_word_scores(image: Features, text: Features, gamma1: float = 4.0, gamma2: float = 5.0) -> Tensor:
    """Word-region score of every image with every caption.

    `s_tr = w_t . x_r`, softmax over the caption's words t, times gamma1, softmax over the regions r: alpha_tr;
    `c_t = sum_r alpha_tr x_r`; score `log sum_t exp(gamma2 cos(c_t, w_t))`.

    Args:
        image: B images with N regions.
        text: B' captions with T words; padding takes no part.
        gamma1: sharpness of the attention over regions.
        gamma2: sharpness of the sum over words.

    Returns:
        (B, B').

    Source: AttnGAN section 3.2 as its published code computes it.
    """
    scores = torch.einsum("jtd,ind->ijtn", text.local, image.local)
    by_word = scores.masked_fill(~text.mask[None, :, :, None], float("-inf")).softmax(dim=2)
    by_region = (gamma1 * by_word).masked_fill(~image.mask[:, None, None, :], float("-inf")).softmax(dim=3)
    context = (by_region.flatten(1, 2) @ image.local).unflatten(1, by_region.shape[1:3])
    cosine = (unit(context) * unit(text.local)).sum(-1)
    return (gamma2 * cosine).masked_fill(~text.mask[None], float("-inf")).logsumexp(dim=2)
