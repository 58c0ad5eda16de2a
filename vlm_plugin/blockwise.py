"""Local matching block by block: the same scores and gradients as the explicit form, without its large tensors.

The explicit form keeps several tensors `(B, B', M, N)` for the backward pass. Here they exist for a block at a time, in
forward and again in backward, so that memory is `(B, B', M)` and a block. Two facts save work within a block:

* The cosine of a context with the anchor's vector does not change when the attention is scaled. So it is left without
  its sum: `e_r = exp(gamma1 * cos(x_r, a))`, `cos(c, a) = sum_r e_r (x_r . a) / sqrt(e' G e)`.
* The length of a context comes of the regions' products with each other, `G = X X'`, not of another pass over D.

Source: ours; the scores are those of `matching.local_scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements of a block: on a CPU it stays in its caches, on a GPU it keeps all of it busy.
BLOCK = {"cpu": 2**20, "cuda": 2**25}
# Above this sharpness exponentials are taken relative to the largest of their sum, in another pass.
_LARGEST_PLAIN_GAMMA = 20.0


class Form(NamedTuple):
    """What scores are, beside the vectors."""

    gamma1: float
    """Sharpness of the attention."""
    gamma2: float
    """Sharpness of the sum over an anchor's vectors."""
    epsilon: float
    """A vector that is not longer has no direction."""
    explicit: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """The same scores of regions, their mask, vectors and their mask, for second derivatives."""


class _Regions:
    """What blocks need to know of the images, and the blocks themselves.

    Args:
        x: `(B, N, D)` regions.
        mask: `(B, N)`.
        units: `(B', M, D)` the anchors' vectors, of length 1 or 0.
        form: how sharp the attention is, and what is too short.
    """

    def __init__(self, x: Tensor, mask: Tensor, units: Tensor, form: Form) -> None:
        length = x.norm(dim=-1, keepdim=True)
        self.x, self.units, self.gamma1 = x, units, form.gamma1
        self.short = length <= form.epsilon
        self.length = torch.where(self.short, 1.0, length)
        # cos(x_r, a) = (x_r . a) / |x_r|; 0 for a region without direction.
        self.directed = torch.where(self.short, 0.0, x)
        self.sharpness = form.gamma1 / self.length
        self.bias = torch.zeros_like(length).masked_fill_(~mask[..., None], float("-inf"))
        self.gram = x @ x.mT

    def blocks(self) -> Iterator[tuple[slice, slice, slice, Tensor]]:
        """Which images, which anchors, which columns of `(B, B' * M)`, and the anchors' vectors `(P, D)`."""
        images, regions, _ = self.x.shape
        anchors, words, _ = self.units.shape
        most = BLOCK.get(self.x.device.type, BLOCK["cpu"])
        for some in _parts(anchors, max(1, most // (regions * words))):
            vectors = self.units[some].flatten(0, 1)
            columns = slice(some.start * words, some.stop * words)
            for few in _parts(images, max(1, most // (regions * len(vectors)))):
                yield few, some, columns, vectors

    def attended(self, few: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """`(k, N, P)` products of regions and vectors, and the attention before its sum is divided out."""
        products = self.directed[few] @ vectors.T
        attention = torch.addcmul(self.bias[few], products, self.sharpness[few])
        if self.gamma1 > _LARGEST_PLAIN_GAMMA:
            attention -= attention.amax(1, keepdim=True)
        return products, attention.exp_()


def _parts(count: int, most: int) -> list[slice]:
    """`range(count)` in parts of nearly the same size, none above `most`."""
    number = -(-count // min(most, count))
    size = -(-count // number)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class LocalScores(torch.autograd.Function):
    """`matching.local_scores`; see there and at the top. A second derivative is taken of the explicit form."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        mask: Tensor,
        anchors: Tensor,
        words: Tensor,
        units: Tensor,
        form: Form,
    ) -> Tensor:
        """Scores `(B, B')`.

        Args:
            ctx: for backward.
            x: `(B, N, D)` regions.
            mask: `(B, N)` which of them are there.
            anchors: `(B', M, D)` local vectors.
            words: `(B', M)` which of them are there.
            units: `anchors`, each of length 1 or 0, without gradient.
            form: all else.
        """
        regions, (_, gamma2, epsilon, _) = _Regions(x, mask, units, form), form
        shape = (len(x), *words.shape)
        products = x.new_empty(len(x), words.numel())
        # One over the context's length, both not divided by the attention's sum; 0 where there is no context.
        inverse = torch.empty_like(products)
        for few, _, columns, vectors in regions.blocks():
            dots, attention = regions.attended(few, vectors)
            total = attention.sum(1)
            products[few, columns] = dots.mul_(attention).sum(1)
            square = torch.matmul(regions.gram[few], attention).mul_(attention).sum(1)
            none = square <= (epsilon * total) ** 2
            inverse[few, columns] = torch.where(none, 0.0, torch.where(none, 1.0, square).rsqrt())
        cosines = (products * inverse).view(shape).masked_fill_(~words, float("-inf"))
        scores = torch.logsumexp(gamma2 * cosines, dim=-1) / gamma2
        ctx.save_for_backward(x, mask, anchors, words, units, cosines, inverse, scores)
        ctx.form = form
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of the regions and of the anchors' vectors."""
        form, (x, mask, anchors, words, units, cosines, inverse, scores) = ctx.form, ctx.saved_tensors
        asked = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            given = [tensor for tensor, is_asked in zip((x, anchors), asked, strict=True) if is_asked]
            found = iter(
                torch.autograd.grad(form.explicit(x, mask, anchors, words), given, gradient, create_graph=True)
            )
            dx, danchors = (next(found) if is_asked else None for is_asked in asked)
        else:
            regions = _Regions(x, mask, units, form)
            of_cosines = torch.exp(form.gamma2 * (cosines - scores[..., None])) * gradient[..., None]
            # Of the products, and twice that of the squared length.
            of_products = of_cosines.flatten(1).mul_(inverse)
            of_square = -(of_products * inverse * cosines.masked_fill(~words, 0.0).flatten(1))
            dx, dunits = _gradients(regions, of_products[:, None], of_square[:, None], asked)
            danchors = None if dunits is None else _of_direction(anchors, units, dunits, form.epsilon)
        return dx, None, danchors, None, None, None


def _gradients(
    regions: _Regions, of_products: Tensor, of_square: Tensor, asked: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the regions and of the anchors' directions, out of those of the blocks' sums `(B, 1, B' * M)`."""
    dx, dgram = torch.zeros_like(regions.x), torch.zeros_like(regions.gram)
    dunits = torch.zeros_like(regions.units) if asked[1] else None
    # How much each region's gradient by way of its cosines goes along the region itself.
    along = torch.zeros_like(regions.length)
    for few, some, columns, vectors in regions.blocks():
        dots, attention = regions.attended(few, vectors)
        direct, squared = of_products[few, :, columns], of_square[few, :, columns]
        # Of gamma1 * cos: the attention's sum needs no correction, since nothing depends on it.
        sharp = torch.matmul(regions.gram[few], attention).mul_(squared).addcmul_(dots, direct).mul_(attention)
        if asked[0]:
            along[few] += dots.mul_(sharp).sum(2, keepdim=True)
            dgram[few].baddbmm_(torch.mul(attention, squared, out=dots), attention.mT)
        through = sharp.mul_(regions.sharpness[few]).addcmul_(attention, direct)
        if asked[0]:
            dx[few] += through @ vectors
        if dunits is not None:
            dunits[some] += torch.einsum("knp,knd->pd", through, regions.directed[few]).view_as(dunits[some])
    if not asked[0]:
        return None, dunits
    dx -= (along * regions.sharpness / regions.length**2) * regions.x
    # What has no direction gets a gradient by the context's length alone.
    return torch.where(regions.short, 0.0, dx).baddbmm_(dgram, regions.x), dunits


def _of_direction(vector: Tensor, unit: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """The gradient of vectors out of that of their directions."""
    length = vector.norm(dim=-1, keepdim=True)
    short = length <= epsilon
    across = gradient - unit * (gradient * unit).sum(-1, keepdim=True)
    return torch.where(short, 0.0, across / torch.where(short, 1.0, length))
