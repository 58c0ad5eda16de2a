"""The matching scores S(image, anchor) and the contrastive loss: pure functions without parameters or state.

An *anchor* is what an image is matched against: a caption (textual-visual) or another image (visual-visual). Both are
`Features`, so each function here serves both directions. S_local is not symmetric: the image is attended over, the
anchor asks. All of it is computed in at least float32, also under autocast; float64 stays float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from vlm_plugin.blockwise import Form, LocalScores
from vlm_plugin.checks import is_transformed, without_autocast
from vlm_plugin.features import Features

# A vector shorter than this has no direction: its cosine with anything is 0 and it receives no gradient.
_EPSILON = 1e-8
GAMMA1, GAMMA2, GAMMA3 = 4.0, 5.0, 10.0
GAMMA3_LOCAL = GAMMA2 * GAMMA3


def at_least_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run `function` outside autocast, with tensors (also inside Features) of lower precision raised to float32."""

    def raised(value: object) -> object:
        if isinstance(value, Features):
            return Features(raised(value.local), raised(value.pooled), value.mask)
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Tensor:
        args = tuple(raised(a) for a in args)
        kwargs = {k: raised(v) for k, v in kwargs.items()}
        given = (part for a in (*args, *kwargs.values()) for part in (a if isinstance(a, Features) else (a,)))
        tensor = next(part for part in given if isinstance(part, Tensor))
        with without_autocast(tensor.device):
            return function(*args, **kwargs)

    return wrapper


def unit(x: Tensor) -> Tensor:
    """`x` divided by its length along the last axis; a zero vector stays zero, with zero gradient; NaN stays NaN.

    Dividing by max(length, epsilon) instead would hand a zero vector a gradient of 1 / epsilon.
    """
    square = (x * x).sum(-1, keepdim=True)
    zero = square <= _EPSILON**2
    return torch.where(zero, 0.0, x * torch.where(zero, 1.0, square).rsqrt())


@at_least_float32
def global_scores(image: Features, anchor: Features) -> Tensor:
    """Cosine of the pooled vectors of every image with every anchor.

    Args:
        image: B images.
        anchor: B' anchors.

    Returns:
        `(B, B')` in [-1, 1].

    Source: paper, global matching.
    """
    return unit(image.pooled) @ unit(anchor.pooled).T


@at_least_float32
def region_attention(image: Features, anchor: Features, gamma1: float = 4.0) -> Tensor:
    """How much each of an anchor's local vectors attends to each region of every image.

    `alpha_rj = softmax over r of gamma1 * cos(x_r, a_j)`.

    Args:
        image: B images with N regions; masked regions receive no attention.
        anchor: B' anchors with M local vectors.
        gamma1: sharpness of the attention.

    Returns:
        `(B, B', M, N)`, each row over N sums to 1.

    Source: paper, local matching; gamma1 = 4 is ours, after AttnGAN.
    """
    return _softmax_over_regions(_region_cosines(image, anchor), image.mask, gamma1)


@at_least_float32
def context_cosines(image: Features, anchor: Features, gamma1: float = 4.0) -> Tensor:
    """Cosine of each of an anchor's local vectors with the part of every image that it attends to.

    `c_j = sum_r alpha_rj x_r`, then `cos(c_j, a_j)`.

    Args:
        image: B images with N regions.
        anchor: B' anchors with M local vectors.
        gamma1: sharpness of the attention.

    Returns:
        `(B, B', M)` in [-1, 1]; entries where the anchor's mask is False mean nothing.

    Source: paper, local matching.
    """
    cosine = _region_cosines(image, anchor)
    attention = _softmax_over_regions(cosine, image.mask, gamma1)
    # One product per image over all anchors' vectors at once: broadcasting would copy the regions for every anchor.
    context = (attention.flatten(1, 2) @ image.local).unflatten(1, attention.shape[1:3])
    # a_j . c_j out of what is already there: sum_r alpha_rj |x_r| cos(x_r, a_j), instead of another pass over D.
    dot = (attention * cosine * image.local.norm(dim=-1)[:, None, None, :]).sum(-1)
    length = context.norm(dim=-1)
    zero = length <= _EPSILON
    return torch.where(zero, 0.0, dot / torch.where(zero, 1.0, length))


def _region_cosines(image: Features, anchor: Features) -> Tensor:
    return torch.einsum("jmd,ind->ijmn", unit(anchor.local), unit(image.local))


def _softmax_over_regions(cosine: Tensor, mask: Tensor, gamma1: float) -> Tensor:
    return F.softmax((gamma1 * cosine).masked_fill(~mask[:, None, None, :], float("-inf")), dim=-1)


@at_least_float32
def local_scores(image: Features, anchor: Features, gamma1: float = 4.0, gamma2: float = 5.0) -> Tensor:
    """Local matching score of every image with every anchor.

    `S_local = (1 / gamma2) * log sum_j exp(gamma2 * cos(c_j, a_j))` over the anchor's valid j.

    Args:
        image: B images with N regions.
        anchor: B' anchors with M local vectors, at least one of them valid.
        gamma1: sharpness of the attention.
        gamma2: sharpness of the sum over the anchor's local vectors; large values approach the maximum.

    Returns:
        `(B, B')`, in [-1, 1 + log(M) / gamma2].

    Computed block by block, see `blockwise`; `explicit_local_scores` are the same, and take their place where
    torch.compile, torch.func or forward-mode differentiation want to see each operation.

    Source: paper, local matching, with its factor 1 / gamma2 (the published DAMSM code leaves it out); the values of
    gamma1 and gamma2 are ours, after AttnGAN.
    """
    if torch.compiler.is_compiling() or _is_watched(image.local) or _is_watched(anchor.local):
        return explicit_local_scores(image, anchor, gamma1, gamma2)
    # Backward keeps them, which it may not where they come out of torch.inference_mode.
    regions, mask, vectors, words = (
        part.clone() if part.is_inference() else part for part in (image.local, image.mask, anchor.local, anchor.mask)
    )

    def explicit(x: Tensor, mask: Tensor, anchors: Tensor, words: Tensor) -> Tensor:
        pooled = x.new_empty(0)  # not read
        return explicit_local_scores(Features(x, pooled, mask), Features(anchors, pooled, words), gamma1, gamma2)

    form = Form(gamma1, gamma2, _EPSILON, explicit)
    return LocalScores.apply(regions, mask, vectors, words, unit(vectors.detach()), form)


def explicit_local_scores(image: Features, anchor: Features, gamma1: float, gamma2: float) -> Tensor:
    """`local_scores` out of plain operations; memory grows with `B * B' * M * N`."""
    cosine = context_cosines(image, anchor, gamma1)
    cosine = cosine.masked_fill(~anchor.mask[None], float("-inf"))
    return torch.logsumexp(gamma2 * cosine, dim=-1) / gamma2


def _is_watched(tensor: Tensor) -> bool:
    """Whether something other than plain backward differentiation follows what is done to a tensor."""
    return tensor.is_meta or is_transformed(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


@at_least_float32
def contrastive_loss(scores: Tensor, positives: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Mean of -log softmax of each row's positive, leaving out what is no negative.

    Args:
        scores: `(R, C)` scaled scores (gamma3 already multiplied in); a row asks, its columns are the candidates.
        positives: `(R,)` the column that is right for each row.
        excluded: `(R, C)` bool, True where a candidate is not a negative of the row (the same group); the positive
            itself always stays.

    Returns:
        Scalar >= 0. A row whose every negative is excluded adds 0 and no gradient.

    Source: ours, after DAMSM's posterior.
    """
    if excluded is not None:
        is_positive = positives[:, None] == torch.arange(scores.shape[1], device=scores.device)
        scores = scores.masked_fill(excluded & ~is_positive, float("-inf"))
    return F.cross_entropy(scores, positives)


@at_least_float32
def matched_loss(scores: Tensor, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """Both directions of the contrastive loss for a square batch in which image i belongs to anchor i.

    `mean of -log P(A_i | I_i) plus mean of -log P(I_i | A_i)` with `P = softmax(temperature * scores)`.

    Args:
        scores: `(B, B)`, rows are images, columns anchors.
        temperature: gamma3 (an inverse temperature: larger is sharper).
        excluded: `(B, B)` bool, True where image i and anchor j are no negatives of each other.

    Returns:
        Scalar >= 0.

    Source: ours, after DAMSM's posterior; the two directions are summed.
    """
    own = torch.arange(len(scores), device=scores.device)
    logits = temperature * scores
    return contrastive_loss(logits, own, excluded) + contrastive_loss(
        logits.T, own, None if excluded is None else excluded.T
    )


@at_least_float32
def general_loss(logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(logit), computed as softplus(-logit), which neither saturates nor overflows.

    Args:
        logits: `(B,)` of the matching score block for matched pairs.

    Returns:
        Scalar >= 0.

    Source: paper's general matching score; as a generator loss ours.
    """
    return F.softplus(-logits).mean()
