"""The losses that the dual loss is compared with, against loops, and in the place of the dual loss."""

from __future__ import annotations

import tiny
import torch
from easydict import EasyDict

from baselines.attngan.losses import damsm_loss
from benchmarks.alternatives import DAMSMLoss, FeatureMatching, rougher_views
from vlm_plugin import VLM, Features
from vlm_plugin.tools import gan


def world(augment: bool = False) -> tuple[VLM, EasyDict, torch.Tensor, torch.Tensor]:
    matcher = tiny.build_matcher().requires_grad_(False)
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return matcher, EasyDict({"vlm": {"augment": augment}}), pictures[:3].requires_grad_(), pictures[3:]


def captions(matcher: VLM) -> Features:
    return matcher.encode_text(["a red bird", "a small bird with black wings", "a bird with a blue crown"])


def test_feature_matching_against_loops() -> None:
    matcher, settings, fake, real = world()
    loss = FeatureMatching(matcher, settings)
    loss.lambda_vvm, loss.lambda_vlm = 0.5, 7.0
    total, terms = loss(fake, captions(matcher), real, class_ids=torch.arange(3))
    image, anchor = matcher.encode_image(fake), matcher.encode_image(real)
    regions = image.local.shape[1]
    local = sum((image.local[i, r] - anchor.local[i, r]).pow(2).sum() for i in range(3) for r in range(regions))
    pooled = sum((image.pooled[i] - anchor.pooled[i]).pow(2).sum() for i in range(3))
    torch.testing.assert_close(terms["features_local"], (local / (3 * regions)).detach())
    torch.testing.assert_close(terms["features_pooled"], (pooled / 3).detach())
    torch.testing.assert_close(total, 0.5 * (local / (3 * regions) + pooled / 3))
    assert torch.autograd.grad(total, fake)[0].abs().sum() > 0


def test_damsm_is_attngans_on_the_same_encoders() -> None:
    matcher, settings, fake, real = world()
    loss, text = DAMSMLoss(matcher, settings), captions(matcher)
    loss.lambda_vvm, loss.lambda_vlm = 7.0, 0.5
    ids = torch.tensor([4, 9, 4])
    total, terms = loss(fake, text, real, class_ids=ids)
    expected = damsm_loss(matcher.encode_image(fake), text, ids)
    torch.testing.assert_close(total, 0.5 * sum(expected))
    assert list(terms) == list(expected._fields)
    assert torch.autograd.grad(total, fake)[0].abs().sum() > 0


def test_generated_pictures_alone_are_seen_in_random_views() -> None:
    matcher, settings, fake, real = world(augment=True)
    for build in (DAMSMLoss, FeatureMatching):
        loss = build(matcher, settings)
        assert not list(loss.parameters())
        torch.testing.assert_close(loss.encode(real).pooled, matcher.encode_image(real).pooled)
        first, second = (loss.encode(fake, augment=True).pooled for _ in range(2))
        assert not torch.equal(first, second)


def test_rougher_views_are_rougher() -> None:
    matcher, settings, fake, _ = world(augment=True)
    settings.vlm.terms = None
    loss = rougher_views(matcher, settings)
    usual = gan.dual_loss(matcher, settings)
    assert loss.terms == usual.terms
    flat = torch.zeros_like(fake)
    assert loss.augment(flat).std() > 4 * usual.augment(flat).std()
