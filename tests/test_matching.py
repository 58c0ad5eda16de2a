"""The matching scores and losses equal slow loops, in value and gradient, and stay finite where cosines do not."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import reference
import torch
from reference import random_features

import vlm_plugin.matching
from vlm_plugin.features import Features
from vlm_plugin.matching import (
    context_cosines,
    contrastive_loss,
    general_loss,
    global_scores,
    local_scores,
    matched_loss,
    region_attention,
    unit,
)

# Three images with 4, 2 and 3 valid regions; four anchors with 5, 1, 3 and 2 valid vectors.
IMAGE = random_features([4, 2, 3], seed=1)
ANCHOR = random_features([5, 1, 3, 2], seed=2)


def with_gradient(features):
    return Features(features.local.clone().requires_grad_(), features.pooled.clone().requires_grad_(), features.mask)


def gradients(value, *features):
    """Gradient of a weighted sum of `value`: different weights, so that a permutation would show."""
    weights = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    inputs = [part for f in features for part in (f.local, f.pooled)]
    found = torch.autograd.grad((weights * value).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize(("gamma1", "gamma2"), [(4.0, 5.0), (1.5, 7.0), (9.0, 0.5)])
def test_local_scores_and_gradients_equal_the_loops(gamma1, gamma2):
    ours, theirs = (with_gradient(IMAGE), with_gradient(ANCHOR)), (with_gradient(IMAGE), with_gradient(ANCHOR))
    scores = local_scores(*ours, gamma1, gamma2)
    expected = reference.local_scores(*theirs, gamma1, gamma2)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    for gradient, slow in zip(gradients(scores, *ours), gradients(expected, *theirs), strict=True):
        torch.testing.assert_close(gradient, slow, rtol=1e-9, atol=1e-11)


def test_local_scores_defaults_are_gamma1_4_gamma2_5():
    assert torch.equal(local_scores(IMAGE, ANCHOR), local_scores(IMAGE, ANCHOR, 4.0, 5.0))
    assert torch.equal(region_attention(IMAGE, ANCHOR), region_attention(IMAGE, ANCHOR, 4.0))
    assert torch.equal(context_cosines(IMAGE, ANCHOR), context_cosines(IMAGE, ANCHOR, 4.0))


def test_global_scores_and_gradients_equal_the_loops():
    ours, theirs = (with_gradient(IMAGE), with_gradient(ANCHOR)), (with_gradient(IMAGE), with_gradient(ANCHOR))
    scores, expected = global_scores(*ours), reference.global_scores(*theirs)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    for gradient, slow in zip(gradients(scores, *ours), gradients(expected, *theirs), strict=True):
        torch.testing.assert_close(gradient, slow, rtol=1e-9, atol=1e-11)


def test_attention_and_context_equal_the_loops():
    """`(B, B', M, N)`: a distribution over each image's valid regions for every vector of every anchor."""
    attention, cosines = region_attention(IMAGE, ANCHOR, 3.0), context_cosines(IMAGE, ANCHOR, 3.0)
    assert attention.shape == (3, 4, 5, 4)
    assert cosines.shape == (3, 4, 5)
    for i in range(3):
        regions = reference.valid(IMAGE, i)
        for j in range(4):
            for m, word in enumerate(reference.valid(ANCHOR, j)):
                expected = torch.stack(reference.attention(regions, word, 3.0))
                torch.testing.assert_close(attention[i, j, m, : len(regions)], expected)
                assert not attention[i, j, m, len(regions) :].any()
                cosine = reference.cosine(reference.context(regions, word, 3.0), word)
                torch.testing.assert_close(cosines[i, j, m], cosine)


def test_gradcheck():
    """Analytic against numerical gradients, through a masked batch."""

    def losses(regions, pooled, words, sentences):
        image, anchor = Features(regions, pooled, IMAGE.mask), Features(words, sentences, ANCHOR.mask)
        return local_scores(image, anchor), global_scores(image, anchor)

    inputs = [part.clone().requires_grad_() for f in (IMAGE, ANCHOR) for part in (f.local, f.pooled)]
    assert torch.autograd.gradcheck(losses, inputs)
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda s: matched_loss(s, 3.0, excluded), scores)


def test_padding_never_matters():
    """Whatever lies behind the masks, scores and gradients are the same, and the padding gets no gradient."""
    results = []
    for filler in (0.0, 1.0, -1e6, 1e30):
        image, anchor = with_gradient(IMAGE), with_gradient(ANCHOR)
        with torch.no_grad():
            for features in (image, anchor):
                features.local[~features.mask] = filler
        scores = local_scores(image, anchor)
        found = gradients(scores, image, anchor)
        assert not found[0][~image.mask].any()
        assert not found[2][~anchor.mask].any()
        results.append([scores, *found])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_wider_padding_gives_the_same_scores():
    wide = Features(
        torch.nn.functional.pad(ANCHOR.local, (0, 0, 0, 3), value=2.0),
        ANCHOR.pooled,
        torch.nn.functional.pad(ANCHOR.mask, (0, 3)),
    )
    torch.testing.assert_close(local_scores(IMAGE, wide), local_scores(IMAGE, ANCHOR), rtol=1e-13, atol=0)


def test_local_score_is_the_images_attention_not_the_anchors():
    """S_local is not symmetric: image and anchor swapped gives other numbers."""
    swapped = local_scores(ANCHOR, IMAGE).T
    assert (swapped - local_scores(IMAGE, ANCHOR)).abs().max() > 0.05


def test_score_ranges():
    """Cosines in [-1, 1]; the local score at most 1 + log(M) / gamma2, reached at a perfect match of every word."""
    same = Features(ANCHOR.local, ANCHOR.pooled, ANCHOR.mask)
    word = Features(torch.ones(1, 1, 6).double(), torch.ones(1, 6).double(), torch.ones(1, 1, dtype=torch.bool))
    many = Features(word.local.expand(1, 3, 6), word.pooled, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(global_scores(same, same).diag(), torch.ones(4).double())
    assert global_scores(IMAGE, ANCHOR).abs().max() <= 1
    torch.testing.assert_close(local_scores(word, many, 4.0, 5.0).item(), 1 + math.log(3) / 5)
    torch.testing.assert_close(local_scores(word, word, 4.0, 5.0).item(), 1.0)


def test_arguments_may_be_named():
    """The scores are not symmetric, so callers name image and anchor."""
    assert torch.equal(local_scores(image=IMAGE, anchor=ANCHOR), local_scores(IMAGE, ANCHOR))
    assert torch.equal(global_scores(image=IMAGE, anchor=ANCHOR), global_scores(IMAGE, ANCHOR))
    assert torch.equal(general_loss(logits=torch.ones(2)), general_loss(torch.ones(2)))


GROUPS = [None, [0, 1, 2, 3], [0, 1, 0, 2], [5, 5, 5, -1]]


@pytest.mark.parametrize("groups", GROUPS)
def test_matched_loss_and_gradient_equal_the_loops(groups):
    """Both directions, summed; other rows of the same group are no negatives."""
    scores = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    slow = scores.detach().clone().requires_grad_()
    ids = None if groups is None else torch.tensor(groups)
    loss = matched_loss(scores, 3.0, None if ids is None else ids[:, None] == ids[None, :])
    expected = reference.posterior_loss(slow, 3.0, groups)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(scores.grad, slow.grad, rtol=1e-10, atol=1e-13)


def test_matched_loss_with_a_table_of_excluded_pairs_that_is_not_symmetric():
    """`excluded[i, j]` is about image i and anchor j, whatever holds of image j and anchor i: where an anchor asks, its
    column counts."""
    scores = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    slow = scores.detach().clone().requires_grad_()
    pairs = {(0, 1), (0, 3), (2, 1), (3, 2)}
    excluded = torch.tensor([[(i, j) in pairs for j in range(4)] for i in range(4)])
    expected = 0
    for own in range(4):
        anchors = [j for j in range(4) if (own, j) not in pairs]
        images = [i for i in range(4) if (i, own) not in pairs]
        expected = expected - (3 * slow[own, own] - sum((3 * slow[own, j]).exp() for j in anchors).log()) / 4
        expected = expected - (3 * slow[own, own] - sum((3 * slow[i, own]).exp() for i in images).log()) / 4
    loss = matched_loss(scores, 3.0, excluded)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(scores.grad, slow.grad, rtol=1e-10, atol=1e-13)


def test_contrastive_loss_by_hand():
    """Rows ask, columns answer; an excluded candidate leaves the sum, the positive stays even if marked."""
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]).double()
    e = torch.exp(scores)
    expected = -(torch.log(e[0, 1] / e[0].sum()) + torch.log(e[1, 2] / e[1].sum())) / 2
    torch.testing.assert_close(contrastive_loss(scores, torch.tensor([1, 2])), expected)
    excluded = torch.tensor([[True, True, False], [False, False, True]])
    expected = -(torch.log(e[0, 1] / (e[0, 1] + e[0, 2])) + torch.log(e[1, 2] / e[1].sum())) / 2
    torch.testing.assert_close(contrastive_loss(scores, torch.tensor([1, 2]), excluded), expected)


def test_a_row_without_negatives_adds_nothing():
    """Every negative excluded, and B = 1: loss 0, gradient 0, both finite."""
    scores = torch.randn(3, 3, requires_grad=True)
    loss = matched_loss(scores, 10.0, torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()
    one = torch.randn(1, 1, requires_grad=True)
    matched_loss(one, 10.0).backward()
    assert not one.grad.any()


def test_general_loss_equals_minus_log_sigmoid_and_never_overflows():
    logits = torch.tensor([-3.0, 0.0, 2.5], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(general_loss(logits), reference.general_loss(logits))
    assert torch.autograd.gradcheck(general_loss, logits)
    for value, slope in ((1e4, 0.0), (-1e4, -1.0), (-1e30, -1.0)):
        huge = torch.full((2,), value, requires_grad=True)
        loss = general_loss(huge)
        loss.backward()
        torch.testing.assert_close(loss.item(), max(-value, 0.0), rtol=1e-6, atol=0)
        torch.testing.assert_close(huge.grad, torch.full((2,), slope / 2))


def every_loss(image, anchor):
    return (
        matched_loss(local_scores(image, anchor), 50.0)
        + matched_loss(global_scores(image, anchor), 10.0)
        + region_attention(image, anchor).square().sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x, id="perfect match"),
        pytest.param(lambda x: x * 0, id="zero"),
        pytest.param(lambda x: x * 1e-12, id="tiny"),
        pytest.param(lambda x: x * 1e12, id="large"),
        pytest.param(lambda x: -x, id="opposite"),
        pytest.param(lambda x: x[:1].expand_as(x), id="all alike"),
        pytest.param(lambda x: x * torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=x.dtype).view(-1, *[1] * (x.dim() - 1)),
                     id="one row zero"),
    ],
)  # fmt: skip
def test_finite_gradients(change, dtype):
    """Where a cosine has no derivative the gradient is finite all the same."""
    features = random_features([3, 1, 2, 3], seed=5, dtype=dtype)
    anchor = with_gradient(features)
    image = with_gradient(Features(change(features.local), change(features.pooled), features.mask))
    loss = every_loss(image, anchor)
    loss.backward()
    assert loss.isfinite()
    for part in (image.local, image.pooled, anchor.local, anchor.pooled):
        assert part.grad.isfinite().all()


def test_finite_gradients_with_one_word_and_one_pair():
    image, anchor = with_gradient(random_features([4])), with_gradient(random_features([1], seed=1))
    every_loss(image, anchor).backward()
    assert all(part.grad.isfinite().all() for part in (image.local, image.pooled, anchor.local, anchor.pooled))
    assert all(part.grad.isfinite().all() for part in (image.local, image.pooled))


def test_a_context_of_length_zero():
    """Two opposite regions cancel under equal attention: no direction, so cosine 0 and a finite gradient."""
    local = torch.tensor([[[0.0, 1.0], [0.0, -1.0]]]).requires_grad_()
    image = Features(local, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    anchor = Features(torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 2), torch.ones(1, 1, dtype=torch.bool))
    score = local_scores(image, anchor)
    score.sum().backward()
    assert score.item() == 0
    assert local.grad.isfinite().all()


def test_zero_vectors_have_cosine_zero_and_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    y.sum().backward()
    assert not x.grad[0].any()
    assert x.grad[1].any()


def test_nan_is_not_hidden():
    """A generator that has diverged shows in the loss, instead of matching nothing with no gradient."""
    for part in ("local", "pooled"):
        broken = IMAGE._replace(**{part: getattr(IMAGE, part) * float("nan")})
        assert every_loss(broken, random_features([2, 1, 2], seed=4)).isnan()


@pytest.mark.parametrize("function", [local_scores, global_scores, region_attention, context_cosines])
def test_autocast_and_half_precision(function):
    """Under autocast the very numbers of float32; half-precision features are raised to float32; float64 stays."""
    image, anchor = IMAGE.to(torch.float32), ANCHOR.to(torch.float32)
    plain = function(image, anchor)
    assert plain.dtype == torch.float32
    assert function(IMAGE, ANCHOR).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(image, anchor), plain)
        assert function(IMAGE, ANCHOR).dtype == torch.float64
        assert torch.equal(function(IMAGE, ANCHOR), function(IMAGE, ANCHOR))
    for dtype in (torch.bfloat16, torch.float16):
        low = image.to(dtype), anchor.to(dtype)
        expected = function(low[0].to(torch.float32), low[1].to(torch.float32))
        assert torch.equal(function(*low), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(*low), expected)


def test_losses_of_half_precision_scores():
    scores = torch.randn(4, 4).bfloat16()
    own = torch.arange(4)
    assert torch.equal(contrastive_loss(scores, own), contrastive_loss(scores.float(), own))
    assert torch.equal(general_loss(scores[0]), general_loss(scores[0].float()))
    assert contrastive_loss(scores.double(), own).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matched_loss(scores.float(), 10.0).dtype == torch.float32
    # Not exact in half precision: the scores are raised before they are multiplied.
    assert torch.equal(matched_loss(scores, 10.1), matched_loss(scores.float(), 10.1))


def test_matching_imports_nothing_of_ours_but_its_own_parts():
    tree = ast.parse(Path(vlm_plugin.matching.__file__).read_text(encoding="utf-8"))
    ours = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level or (node.module or "").split(".")[0] == "vlm_plugin":
                ours.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Import):
            ours |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vlm_plugin"}
    assert ours == {"vlm_plugin.blockwise", "vlm_plugin.checks", "vlm_plugin.features"}
