"""DF-GAN's losses: one-way hinge with mismatched pairs, and the matching-aware gradient penalty.

Source: "DF-GAN: A Simple and Effective Baseline for Text-to-Image Synthesis" (Tao et al., arXiv 2008.05865), the
parts "One-Way Output" and "Matching-Aware Gradient Penalty". With x a real image, e its sentence vector, e' another
image's sentence vector, G(z, e) a generated image and D the logit of a pair, the discriminator minimises

    E max(0, 1 - D(x, e)) + 1/2 E max(0, 1 + D(G(z, e), e)) + 1/2 E max(0, 1 + D(x, e'))
    + k E (||grad_x D(x, e)|| + ||grad_e D(x, e)||)^p,        k = 2, p = 6,

and the generator minimises -E D(G(z, e), e). As published networks are trained, the two gradients of the penalty are
one vector per pair with one Euclidean norm, not a sum of two norms.

All functions are pure. Logits come as float32 or wider from here on, whatever autocast made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import PenaltyConvolutions

__all__ = [
    "DiscriminatorTerms",
    "discriminator_loss",
    "discriminator_terms",
    "generator_loss",
    "gradient_penalty",
    "hinge_fake",
    "hinge_real",
    "matching_aware_gradient_penalty",
    "mismatched_pairs",
]


def _widened(tensor: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_logits(name: str, logits: Tensor) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"{name}: expected floating point, got {logits.dtype}")
    if logits.numel() == 0:
        raise ValueError(f"{name}: expected at least one, got shape {tuple(logits.shape)}")
    return _widened(logits)


def hinge_real(logits: Tensor) -> Tensor:
    """Mean of max(0, 1 - logit): zero once every real pair is judged above 1.

    Args:
        logits: any non-empty shape, unbounded.

    Returns:
        Scalar, >= 0.

    Raises:
        TypeError: `logits` is not floating point.
        ValueError: `logits` is empty.
    """
    return F.relu(1 - _check_logits("logits", logits)).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """Mean of max(0, 1 + logit): zero once every fake or mismatched pair is judged below -1.

    Args:
        logits: any non-empty shape, unbounded.

    Returns:
        Scalar, >= 0.

    Raises:
        TypeError: `logits` is not floating point.
        ValueError: `logits` is empty.
    """
    return F.relu(1 + _check_logits("logits", logits)).mean()


def discriminator_loss(real: Tensor, fake: Tensor, mismatched: Tensor) -> Tensor:
    """One-way hinge loss of the discriminator, without the gradient penalty.

    Args:
        real: logits of real images with their own sentences.
        fake: logits of generated images with the sentences they were drawn from.
        mismatched: logits of real images with other images' sentences. The three batch sizes may differ.

    Returns:
        Scalar, `hinge_real(real) + (hinge_fake(fake) + hinge_fake(mismatched)) / 2`, >= 0.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: an argument is empty.
    """
    return hinge_real(real) + (hinge_fake(fake) + hinge_fake(mismatched)) / 2


def generator_loss(logits: Tensor) -> Tensor:
    """Adversarial loss of the generator: minus the mean logit of its pairs.

    Args:
        logits: any non-empty shape, unbounded.

    Returns:
        Scalar, unbounded.

    Raises:
        TypeError: `logits` is not floating point.
        ValueError: `logits` is empty.
    """
    return -_check_logits("logits", logits).mean()


def mismatched_pairs(features: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
    """Pair every image of the batch but the last with the next image's sentence.

    Args:
        features: (B, ...), images or their features.
        sentence: (B, C).

    Returns:
        `features[i]` and `sentence[i + 1]` for i = 0 .. B - 2: shapes (B - 1, ...) and (B - 1, C). Whether neighbours
        in the batch really differ in their captions is up to the order of the data.

    Raises:
        ValueError: the batch sizes differ, or there are fewer than two pairs.
    """
    if features.shape[0] != sentence.shape[0]:
        raise ValueError(
            f"features and sentence: expected the same batch size, got {features.shape[0]} and {sentence.shape[0]}"
        )
    if features.shape[0] < 2:
        raise ValueError(f"features: expected a batch of at least 2, got {features.shape[0]}")
    return features[:-1], sentence[1:]


def gradient_penalty(
    logits: Tensor, images: Tensor, sentence: Tensor, *, weight: float = 2.0, power: float = 6.0
) -> Tensor:
    """Penalise the slope of logits that were computed from `images` and `sentence`.

    Args:
        logits: (B,), each depending on its own row of `images` and `sentence` only.
        images: (B, ...), a leaf or not, with `requires_grad` when `logits` was computed.
        sentence: (B, C), likewise.
        weight: k of the formula in this module's docstring.
        power: p of that formula, at least 2.

    Returns:
        Scalar `weight * mean_b ||d logits_b / d (images_b, sentence_b)||_2 ** power`, >= 0, differentiable (the
        penalty is for training: `backward` runs through the networks a second time).

    Raises:
        ValueError: batch sizes differ, `power` is below 2, or `images` or `sentence` do not require a gradient.
    """
    if power < 2:
        raise ValueError(f"power: expected at least 2 (below, the gradient at zero slope is not finite), got {power}")
    if not images.shape[0] == sentence.shape[0] == logits.numel():
        raise ValueError(
            "logits, images and sentence: expected the same batch size, "
            f"got {logits.numel()}, {images.shape[0]} and {sentence.shape[0]}"
        )
    if not (images.requires_grad and sentence.requires_grad):
        raise ValueError(
            "images and sentence: expected both to require a gradient, since before logits were computed, got "
            f"requires_grad {images.requires_grad} and {sentence.requires_grad}"
        )
    # No pair's logit depends on another pair, so one backward of the sum gives every pair its own gradient.
    slopes = torch.autograd.grad(logits.sum(), (images, sentence), create_graph=True)
    # A power of the squared norm: the norm itself has no finite gradient at zero, where training with a fresh
    # discriminator can well be.
    squared = sum(_widened(slope).flatten(1).square().sum(1) for slope in slopes)
    return weight * squared.pow(power / 2).mean()


def matching_aware_gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    head: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    sentence: Tensor,
    *,
    weight: float = 2.0,
    power: float = 6.0,
    autocast: bool = False,
) -> Tensor:
    """Matching-aware zero-centred gradient penalty (MA-GP): smooth the discriminator around real, matching pairs.

    Args:
        discriminator: images (B, 3, S, S) -> features (B, ...).
        head: (features, sentence) -> logits (B,).
        images: real images (B, 3, S, S) in [-1, 1]; neither they nor `sentence` get a gradient from this.
        sentence: (B, C), the images' own sentence vectors.
        weight: k of the formula in this module's docstring.
        power: p of that formula, at least 2.
        autocast: False computes in float32 (float64 for float64 images) even inside `torch.autocast`, because a sixth
            power leaves few of bfloat16's eight significant bits; True leaves the surrounding autocast alone.

    Returns:
        Scalar, >= 0, see `gradient_penalty`.

    Raises:
        ValueError: batch sizes differ, or `power` is below 2.
    """
    if images.shape[0] != sentence.shape[0]:
        raise ValueError(
            f"images and sentence: expected the same batch size, got {images.shape[0]} and {sentence.shape[0]}"
        )
    with torch.enable_grad(), _precision(images, autocast), PenaltyConvolutions():
        images, sentence = _leaf(images), _leaf(sentence)
        return gradient_penalty(head(discriminator(images), sentence), images, sentence, weight=weight, power=power)


class DiscriminatorTerms(NamedTuple):
    """What one training step of the discriminator needs; the first three in the order `discriminator_loss` takes."""

    real: Tensor
    """Logits (B,) of real images with their own sentences."""
    fake: Tensor
    """Logits (B,) of generated images with the sentences they were drawn from."""
    mismatched: Tensor
    """Logits (B - 1,) of real images with the next image's sentence."""
    penalty: Tensor
    """Scalar gradient penalty, weighted."""


def discriminator_terms(
    discriminator: Callable[[Tensor], Tensor],
    head: Callable[[Tensor, Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    sentence: Tensor,
    *,
    weight: float = 2.0,
    power: float = 6.0,
    autocast: bool = False,
) -> DiscriminatorTerms:
    """Everything the discriminator's step needs, with one look at the real images instead of two.

    The penalty and the hinge need the same logits of the same real pairs. Sharing that pass gives the same numbers as
    `matching_aware_gradient_penalty` beside separate passes, with one run of the discriminator less.

    Args:
        discriminator: images (B, 3, S, S) -> features (B, ...).
        head: (features, sentence) -> logits (B,).
        real: real images (B, 3, S, S) in [-1, 1].
        fake: generated images (B, 3, S, S) in [-1, 1], detached by the caller so that the generator stays out.
        sentence: (B, C), of the real and of the generated images alike; no gradient reaches it or `real`.
        weight: k of the formula in this module's docstring.
        power: p of that formula, at least 2.
        autocast: False computes all that involves real images in at least float32, as the penalty needs (see
            `matching_aware_gradient_penalty`), and only the fakes under a surrounding autocast; True leaves the
            surrounding autocast alone.

    Returns:
        `DiscriminatorTerms`; the loss is `discriminator_loss(real, fake, mismatched) + penalty` of them.

    Raises:
        ValueError: `real` and `fake` have different shapes, the batch is smaller than 2 or of another size than
            `sentence`, or `power` is below 2.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real and fake: expected the same shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    with torch.enable_grad(), _precision(real, autocast), PenaltyConvolutions():
        images, own = _leaf(real), _leaf(sentence)
        features = discriminator(images)
        wrong_features, wrong_sentence = mismatched_pairs(features, own.detach())
        real_logits = head(features, own)
        penalty = gradient_penalty(real_logits, images, own, weight=weight, power=power)
        wrong_logits = head(wrong_features, wrong_sentence)
    return DiscriminatorTerms(real_logits, head(discriminator(fake), sentence), wrong_logits, penalty)


def _leaf(tensor: Tensor) -> Tensor:
    """A leaf of at least float32 to differentiate by, cut off from the caller's graph."""
    return _widened(tensor.detach()).requires_grad_()


def _precision(tensor: Tensor, autocast: bool) -> AbstractContextManager[object]:
    """No autocast on the tensor's device unless `autocast` asks to leave the surrounding one alone."""
    return nullcontext() if autocast else torch.autocast(tensor.device.type, enabled=False)
