"""The losses that the dual loss is compared with, against loops, and in the place of the dual loss."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import tiny
import torch
from easydict import EasyDict
from torch import Tensor, nn

from benchmarks.quality.alternatives import DAMSMLoss, FeatureMatching, JudgesOwn
from benchmarks.quality.variants import (
    EveryWord,
    Floored,
    MovedWords,
    SwappedWords,
    WholeCaption,
    closer_attention,
    move_colour,
    rougher_views,
    sharper,
)
from vlm_plugin import TERMS, VLM, DualVLMLoss, Features
from vlm_plugin.baselines.attngan.losses import damsm_loss
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import PLUMAGE, draw_named, read_caption, sentence
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.gans.run import dual_loss
from vlm_plugin.matching import context_cosines, global_scores, local_scores, matched_loss


def world(augment: bool = False) -> tuple[VLM, EasyDict, torch.Tensor, torch.Tensor]:
    matcher = tiny.build_matcher().requires_grad_(False)
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return matcher, EasyDict({"vlm": {"augment": augment}}), pictures[:3].requires_grad_(), pictures[3:]


def captions(matcher: VLM) -> Features:
    return matcher.encode_text(["a bird with red wings", "a small bird with black wings", "a bird with a blue crown"])


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
    usual = dual_loss(matcher, settings)
    assert loss.terms == usual.terms
    flat = torch.zeros_like(fake)
    assert loss.augment(flat).std() > 4 * usual.augment(flat).std()


def variant(build: Callable[[VLM, EasyDict], nn.Module]) -> tuple[nn.Module, VLM, Features, Tensor, Tensor]:
    """A variant at weights .1 and .4 that has heard three captions, with their features and pictures."""
    matcher, settings, fake, real = world()
    settings.vlm.terms = None
    loss = build(matcher, settings)
    loss.lambda_vvm, loss.lambda_vlm = 0.1, 0.4
    return loss, matcher, captions(matcher), fake, real


@pytest.mark.parametrize(
    ("build", "change"), [(sharper, {"gamma3_local": 100.0}), (closer_attention, {"gamma1": 12.0})]
)
def test_variants_of_one_number(build: Callable[[VLM, EasyDict], nn.Module], change: dict[str, float]) -> None:
    loss, matcher, text, fake, real = variant(build)
    usual = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.4, **change)
    torch.testing.assert_close(loss(fake, text, real).total, usual(fake, text, real).total)


def test_the_whole_caption_weighs_four_times_as_much() -> None:
    loss, matcher, text, fake, real = variant(WholeCaption.build)
    total, terms = loss(fake, text, real)
    usual = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.4)(fake, text, real)
    for name in TERMS:
        torch.testing.assert_close(terms[name], (4 if name == "vlm_global" else 1) * usual.terms[name])
    torch.testing.assert_close(total, usual.total + 3 * 0.4 * usual.terms["vlm_global"])


def test_scores_that_count_every_word_against_loops() -> None:
    loss, matcher, text, fake, real = variant(EveryWord.build)
    assert (loss.gamma2, loss.gamma3_local) == (1.0, 100.0)
    image = matcher.encode_image(fake)
    cosines = context_cosines(image, text, loss.gamma1).detach()
    expected = torch.zeros(3, 3)
    for i, j in itertools.product(range(3), repeat=2):
        words = [float(cosines[i, j, k]) for k in range(text.mask.shape[1]) if text.mask[j, k]]
        expected[i, j] = math.log(sum(math.exp(cosine) for cosine in words) / len(words))
    torch.testing.assert_close(loss._local_scores(image, text), expected)
    terms = loss(fake, text, real, class_ids=torch.arange(3)).terms
    torch.testing.assert_close(terms["vlm_local"], matched_loss(expected, 100.0))
    usual = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.4)(fake, text, real, class_ids=torch.arange(3)).terms
    for name in ("vlm_global", "vvm_global", "vlm_general", "vvm_general"):
        torch.testing.assert_close(terms[name], usual[name])
    assert not torch.isclose(terms["vvm_local"], usual["vvm_local"])


@pytest.mark.parametrize("kind", [SwappedWords, MovedWords])
def test_twins_are_negatives_of_their_own_picture(kind: type[SwappedWords]) -> None:
    loss, matcher, text, fake, real = variant(kind.build)
    count = kind.TWINS
    ids = torch.tensor([5, 2, 5])
    total, terms = loss(fake, text, real, class_ids=ids)
    image, twins = matcher.encode_image(fake), loss.twins
    assert len(twins.pooled) == 3 * count
    assert all((twins.pooled[count * i + k] - text.pooled[i]).norm() > 0 for i in range(3) for k in range(count))
    for name, score, gamma in (("vlm_local", local_scores, 50.0), ("vlm_global", global_scores, 10.0)):
        table, wrong = gamma * score(image, text), gamma * score(image, twins)
        expected = 0.0
        for i in range(3):
            others = [j for j in range(3) if ids[j] != ids[i]]
            row = [table[i, i], *(table[i, j] for j in others), *(wrong[i, count * i + k] for k in range(count))]
            column = [table[i, i], *(table[j, i] for j in others)]
            expected += sum(torch.stack(x).logsumexp(0) - table[i, i] for x in (row, column)) / 3
        torch.testing.assert_close(terms[name], expected.detach())
    usual = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.4)(fake, text, real, class_ids=ids).terms
    for name in ("vvm_local", "vvm_global", "vlm_general", "vvm_general"):
        torch.testing.assert_close(terms[name], usual[name])
    weighted = sum((0.4 if name.startswith("vlm") else 0.1) * value for name, value in terms.items())
    torch.testing.assert_close(total.detach(), weighted)


def test_a_moved_colour_is_said_of_a_part_that_was_open() -> None:
    rng, moved = random.Random(0), 0
    for number in range(500):
        values = {name: rng.choice(choices) for name, choices in ATTRIBUTES.items()}
        said = {name: values[name] for name in draw_named(rng)}
        twin = move_colour(sentence(said, number), rng)
        if twin is None:
            assert not set(PLUMAGE) - said.keys()
            continue
        moved += 1
        now = read_caption(twin)
        (gone,), (come,) = said.keys() - now.keys(), now.keys() - said.keys()
        assert {gone, come} <= set(PLUMAGE)
        assert now[come] == said[gone]
        assert {**now, gone: said[gone]} == {**said, come: now[come]}
    assert moved > 450
    assert move_colour("a small bird with a long bill.", rng) is None
    every = "a bird with a red crown, a blue back, black wings and a white breast."
    assert move_colour(every, rng) is None
    assert set(read_caption(MovedWords.twin(every, rng))) == set(PLUMAGE)
    assert set(read_caption(MovedWords.twin("a bird with a red crown.", rng))) < set(PLUMAGE) - {"crown"}


def test_a_floored_loss_against_loops() -> None:
    loss, matcher, text, fake, real = variant(Floored.build)
    ids = torch.tensor([5, 2, 5])
    total, terms = loss(fake, text, real, class_ids=ids)
    image, view, true = (matcher.encode_image(x) for x in (fake, real.flip(3), real))
    for half, anchor, kind in (("vlm", text, "caption"), ("vvm", true, "image")):
        for level, score, gamma in (("local", local_scores, 50.0), ("global", global_scores, 10.0)):
            expected = 0.0
            for i, turned in itertools.product(range(3), (False, True)):
                values = []
                for rows in (image, view):
                    table = gamma * score(rows, anchor)
                    table = table.T if turned else table
                    row = [table[i, j] for j in range(3) if j == i or ids[j] != ids[i]]
                    values.append(torch.stack(row).logsumexp(0) - table[i, i])
                expected += max(float(values[0] - values[1]), 0.0) / 3
            assert float(terms[f"{half}_{level}"]) == pytest.approx(expected, abs=1e-4)
        values = [-matcher.scorer(rows, anchor, kind).sigmoid().log() for rows in (image, view)]
        expected = sum(max(float(a - b), 0.0) for a, b in zip(*values, strict=True)) / 3
        assert float(terms[f"{half}_general"]) == pytest.approx(expected, abs=1e-5)
    weighted = sum((0.4 if name.startswith("vlm") else 0.1) * value for name, value in terms.items())
    torch.testing.assert_close(total.detach(), weighted)
    assert torch.autograd.grad(total, fake)[0].abs().sum() > 0


def test_a_picture_as_good_as_the_real_one_has_no_floored_gradient() -> None:
    loss, _, text, _, real = variant(Floored.build)
    fake = real.flip(3).requires_grad_()
    total, terms = loss(fake, text, real, class_ids=torch.arange(3))
    assert set(terms) == set(TERMS)
    assert all(float(value) == 0 for value in terms.values())
    assert torch.autograd.grad(total, fake)[0].abs().sum() == 0


def test_the_judges_own_loss_against_loops() -> None:
    loss, _, text, fake, real = variant(JudgesOwn)
    assert not list(loss.parameters())
    total, terms = loss(fake, text, real)
    logits, expected = Judge.load()(fake), 0.0
    assert len(loss.captions) == 3
    for row, caption in enumerate(loss.captions):
        named = read_caption(caption)
        rows = [-logits[a][row].log_softmax(0)[ATTRIBUTES[a].index(value)] for a, value in named.items()]
        expected += sum(rows) / len(rows) / len(loss.captions)
    torch.testing.assert_close(total, 0.4 * expected)
    torch.testing.assert_close(terms["judge"], expected.detach())
