"""Local matching block by block: the explicit form's values and gradients, in any blocks, and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_plugin import blockwise
from vlm_plugin.features import Features
from vlm_plugin.matching import explicit_local_scores, local_scores

SIZES = [(3, 4, 5, 6, 7), (1, 3, 2, 4, 3), (4, 2, 18, 9, 8), (2, 5, 1, 9, 3)]


def inputs(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64, short: bool = False) -> tuple[Tensor, ...]:
    """Regions, their mask, vectors, their mask; `short` makes some of them 0."""
    images, anchors, words, regions, width = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(images, regions, width, generator=generator, dtype=dtype)
    vectors = torch.randn(anchors, words, width, generator=generator, dtype=dtype)
    if short:
        x[0, 0], x[-1], vectors[0, 0] = 0, 0, 0
    masks = [torch.rand(shape, generator=generator) < 0.6 for shape in ((images, regions), (anchors, words))]
    for mask in masks:
        mask[:, 0] = True
    return x, masks[0], vectors, masks[1]


def scores(function, x: Tensor, mask: Tensor, vectors: Tensor, words: Tensor, *gammas: float) -> Tensor:
    return function(Features(x, x[:, 0], mask), Features(vectors, vectors[:, 0], words), *gammas)


def value_and_gradients(function, given: tuple[Tensor, ...], *gammas: float) -> tuple[Tensor, ...]:
    x, mask, vectors, words = given
    x, vectors = x.clone().requires_grad_(), vectors.clone().requires_grad_()
    found = scores(function, x, mask, vectors, words, *gammas)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
    return (found.detach(), *torch.autograd.grad((found * weights).sum(), (x, vectors)))


@pytest.mark.parametrize("block", [1, 150, 2**20])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("gammas", [(4.0, 5.0), (60.0, 20.0), (0.1, 1.0)])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_of_the_explicit_form(
    sizes: tuple[int, ...], gammas: tuple[float, float], short: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", {"cpu": block})
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        given = inputs(sizes, dtype, short)
        ours = value_and_gradients(local_scores, given, *gammas)
        theirs = value_and_gradients(explicit_local_scores, given, *gammas)
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("asked", ["regions", "vectors"])
def test_one_side_alone(asked: str) -> None:
    x, mask, vectors, words = inputs(SIZES[0])
    found = []
    for function in (local_scores, explicit_local_scores):
        leaf = (x if asked == "regions" else vectors).clone().requires_grad_()
        sides = (leaf, vectors) if asked == "regions" else (x, leaf)
        total = scores(function, sides[0], mask, sides[1], words, 4.0, 5.0).square().sum()
        found.append(torch.autograd.grad(total, leaf)[0])
    torch.testing.assert_close(*found)


def test_first_and_second_derivatives_by_differences() -> None:
    x, mask, vectors, words = inputs((2, 2, 3, 4, 3))
    x, vectors = x.requires_grad_(), vectors.requires_grad_()

    def of(x: Tensor, vectors: Tensor) -> Tensor:
        return scores(local_scores, x, mask, vectors, words, 4.0, 5.0)

    assert torch.autograd.gradcheck(of, (x, vectors))
    assert torch.autograd.gradgradcheck(of, (x, vectors))


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, Tensor) and part._base is None:
                self.elements = max(self.elements, part.numel())
        return made


def test_nothing_grows_with_all_sizes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", {"cpu": 2000})
    sizes = images, anchors, words, regions, _ = 6, 7, 10, 20, 4
    given = inputs(sizes)
    with Largest() as ours:
        value_and_gradients(local_scores, given, 4.0, 5.0)
    with Largest() as theirs:
        value_and_gradients(explicit_local_scores, given, 4.0, 5.0)
    assert theirs.elements == images * anchors * words * regions
    # A block, or what belongs to every pair of an image and an anchor's vector, or every pair of regions.
    assert ours.elements <= max(2000, images * anchors * words, images * regions * regions)


def test_what_wants_to_see_each_operation_gets_the_explicit_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise.LocalScores, "forward", lambda *_: pytest.fail("blockwise"))
    x, mask, vectors, words = inputs(SIZES[0])

    def of(x: Tensor) -> Tensor:
        return scores(local_scores, x, mask, vectors, words, 4.0, 5.0).sum()

    expected = value_and_gradients(explicit_local_scores, (x, mask, vectors, words), 4.0, 5.0)[1]
    assert torch.func.grad(of)(x).shape == expected.shape
    assert torch.func.jvp(of, (x,), (x,))[1].isfinite()
    with torch.autograd.forward_ad.dual_level():
        made = of(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.autograd.forward_ad.unpack_dual(made).tangent.isfinite()
    assert scores(local_scores, *(part.to("meta") for part in (x, mask, vectors, words)), 4.0, 5.0).is_meta
