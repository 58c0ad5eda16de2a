"""The matching score block equals a transformer written as loops, and sees every part of its input but the padding."""

from __future__ import annotations

import pytest
import reference
import torch
from reference import random_features, sharpen

from vlm_plugin import Features, MatchingScoreBlock
from vlm_plugin.matcher.scorer import KINDS

IMAGE, ANCHOR = random_features([4, 2, 3], seed=1), random_features([1, 5, 3], seed=2)


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return sharpen(MatchingScoreBlock(6, layers=2, heads=2)).double().eval()


def test_defaults():
    assert MatchingScoreBlock().settings == {"embed_dim": 256, "layers": 2, "heads": 4}
    settings = {"embed_dim": 8, "layers": 1, "heads": 2}
    block = MatchingScoreBlock(**settings)
    assert block.settings == settings
    assert block.encoder_fingerprints is None
    assert KINDS == ("caption", "image")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_the_loops(scorer, kind):
    results = []
    for function in (scorer, lambda *a: reference.matching_logits(scorer, *a)):
        parts = [part.clone().requires_grad_() for f in (IMAGE, ANCHOR) for part in (f.local, f.pooled)]
        logits = function(Features(*parts[:2], IMAGE.mask), Features(*parts[2:], ANCHOR.mask), kind)
        assert logits.shape == (3,)
        weighted = (torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64) * logits).sum()
        results.append([logits, *torch.autograd.grad(weighted, parts)])
    for ours, slow in zip(*results, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-11)
    assert all(g.abs().max() > 1e-6 for g in results[0][1:])


def test_logits_without_gradient_are_the_same(scorer):
    """Evaluation takes torch's fused path; it must give the same scores."""
    logits = scorer(IMAGE, ANCHOR, "caption")
    with torch.no_grad():
        torch.testing.assert_close(scorer(IMAGE, ANCHOR, "caption"), logits, rtol=1e-9, atol=1e-11)
    single = scorer.requires_grad_(False)(IMAGE, ANCHOR, "caption")
    torch.testing.assert_close(single, logits, rtol=1e-9, atol=1e-11)


def test_padding_never_matters(scorer):
    logits = scorer(IMAGE, ANCHOR, "caption")
    for filler in (0.0, -7.0, 1e4):
        dirty = [Features(f.local.clone(), f.pooled, f.mask) for f in (IMAGE, ANCHOR)]
        for features in dirty:
            features.local[~features.mask] = filler
        torch.testing.assert_close(scorer(*dirty, "caption"), logits, rtol=1e-9, atol=1e-11)


def test_kind_and_roles_matter(scorer):
    """Caption and image anchors have types of their own, and image and anchor are not interchangeable."""
    logits = scorer(IMAGE, ANCHOR, "caption")
    assert (scorer(IMAGE, ANCHOR, "image") - logits).abs().min() > 1e-6
    assert (scorer(ANCHOR, IMAGE, "image") - scorer(IMAGE, ANCHOR, "image")).abs().min() > 1e-6


@pytest.mark.parametrize("change", [lambda x: x * 0, lambda x: x * 1e12, lambda x: x], ids=["zero", "large", "as is"])
def test_finite_gradients(scorer, change):
    local, pooled = (change(x).clone().requires_grad_() for x in (IMAGE.local, IMAGE.pooled))
    image = Features(local, pooled, IMAGE.mask)
    scorer(image, image.detach(), "image").sum().backward()
    assert local.grad.isfinite().all()
    assert pooled.grad.isfinite().all()


def test_precision():
    """At least float32 out, whatever the features' type; close to float32 under autocast."""
    torch.manual_seed(0)
    scorer = sharpen(MatchingScoreBlock(16, layers=2, heads=4)).eval()
    image, anchor = random_features([4, 2], 16, dtype=torch.float32), random_features([3, 5], 16, 1, torch.float32)
    plain = scorer(image, anchor, "caption")
    assert plain.dtype == torch.float32
    assert torch.equal(scorer(image.to(torch.float64), anchor, "caption"), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = scorer(image.to(torch.bfloat16), anchor, "caption")
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0.05, atol=0.05)
    assert scorer.double()(image, anchor, "caption").dtype == torch.float64


def test_errors(scorer):
    with pytest.raises(ValueError, match=r"kind: expected one of \('caption', 'image'\), got 'text'"):
        scorer(IMAGE, ANCHOR, "text")
    other = random_features([2, 2, 2], dim=4)
    with pytest.raises(ValueError, match="image: expected features of width 6, got 4"):
        scorer(other, ANCHOR, "caption")
    with pytest.raises(ValueError, match="anchor: expected features of width 6, got 4"):
        scorer(IMAGE, other, "caption")
    with pytest.raises(ValueError, match=r"anchor: expected 3 as there are images, got 2"):
        scorer(IMAGE, random_features([2, 2]), "caption")
    with pytest.raises(ValueError, match=r"heads: expected a divisor of embed_dim \(6\), got 4"):
        MatchingScoreBlock(6, heads=4)
    for name, value in (("heads", 0), ("layers", 0), ("layers", -1), ("embed_dim", "256"), ("layers", True)):
        with pytest.raises(ValueError, match=rf"^{name}: expected a positive integer, got {value!r}$"):
            MatchingScoreBlock(**{"embed_dim": 8, "layers": 1, "heads": 2, name: value})
