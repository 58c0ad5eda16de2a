"""The torchmetrics classes against loops, over processes, batches and mistakes."""

from __future__ import annotations

import copy
import datetime
import math
import multiprocessing
import os
import pickle
import random
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from reference import TinyEncoder, pictures, sharpen
from torch import nn
from torchmetrics import MetricCollection

from vlm_plugin import VLM, Features, LSTMTextEncoder, MatchingScoreBlock, Vocabulary
from vlm_plugin.data import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.data.birds.drawing import draw_bird
from vlm_plugin.data.birds.make import plan_birds
from vlm_plugin.data.birds.truth import true_pairs
from vlm_plugin.evaluation.judge import Judge, attribute_accuracy
from vlm_plugin.evaluation.score import score
from vlm_plugin.files import caption_id
from vlm_plugin.metrics.attribute_accuracy import AttributeAccuracy
from vlm_plugin.metrics.base import mean_and_spread
from vlm_plugin.metrics.r_precision import RPrecision, caption_ids, different_groups
from vlm_plugin.metrics.vlms import VLMS

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("red", "blue", "green", "bird", "wing", "crown", "long", "bill")


def make_vlm(scorer=True):
    """A matcher of 8-pixel pictures whose scores are no constants."""
    vocabulary = Vocabulary.build([" ".join(WORDS)] * 9)
    torch.manual_seed(3)
    return VLM(
        TinyEncoder(some_regions=True),
        LSTMTextEncoder(len(vocabulary), 6, word_dim=4),
        vocabulary,
        sharpen(MatchingScoreBlock(6, layers=1, heads=2)) if scorer else None,
    ).eval()


def captions_of(count, seed=0):
    """Captions of one to seven words, so that every batch pads to another length."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(count)]


def samples(count, seed=0):
    return pictures(count, seed, torch.float32), captions_of(count, seed)


class Flat(nn.Module):
    """An image encoder that reads a picture's first D numbers: pictures are then vectors of our choosing."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.flatten(1)[:, : self.width]


class Table:
    """A text encoder that looks captions "0", "1", ... up in a table."""

    def __init__(self, vectors):
        self.vectors = vectors

    def __call__(self, captions):
        return self.vectors[[int(caption) for caption in captions]]


def as_pictures(vectors):
    """Pictures in [-1, 1] that `Flat` reads vectors from, up to a positive factor."""
    count, width = vectors.shape
    side = 2 + math.ceil(math.sqrt(width / 3))
    values = torch.zeros(count, 3 * side * side)
    values[:, :width] = vectors / vectors.abs().max()
    values[:, -1] = -1  # something dark in every picture
    return values.view(count, 3, side, side)


def world(count, width=8, noise=0.0, seed=0):
    """Pictures, captions and sentence vectors; without noise every picture fits its own caption best."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(count, width, generator=generator)
    images = as_pictures(text + noise * torch.randn(count, width, generator=generator))
    return images, list(map(str, range(count))), text


def synthetic(text, **arguments):
    return RPrecision(image_encoder=Flat(text.shape[1]), text_encoder=Table(text), **arguments)


def fed(metric, *columns, batch=1000):
    """The metric after updates with consecutive batches; a column that is None is left out."""
    for start in range(0, len(columns[0]), batch):
        metric.update(*(None if c is None else c[start : start + batch] for c in columns))
    return metric


def exactly(result):
    return [float(part) for part in result]


# ------------------------------------------------------------------------------------------------ mean and spread


@pytest.mark.parametrize(("count", "folds"), [(40, 10), (47, 10), (7, 3), (6, 3)])
def test_mean_and_spread_against_loops(count, folds):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    parts, start = [], 0
    for part in range(folds):
        size = count // folds + (part < count % folds)
        parts.append([float(values[i]) for i in order[start : start + size]])
        start += size
    assert start == count
    mean, spread = mean_and_spread(values, folds, seed=5)
    assert mean.shape == spread.shape == ()
    assert mean.dtype == spread.dtype == torch.float32
    assert float(mean) == pytest.approx(sum(values.tolist()) / count, rel=1e-6)
    assert float(spread) == pytest.approx(statistics.stdev(statistics.mean(part) for part in parts), rel=1e-5)
    assert float(spread) > 0


def test_fewer_than_two_values_a_part_have_no_spread():
    values = torch.arange(20.0)
    assert float(mean_and_spread(values)[1]) > 0
    assert exactly(mean_and_spread(values[:19])) == [9, 0]
    assert exactly(mean_and_spread(values[:1])) == [0, 0]


def test_the_parts_are_shuffled_by_the_seed():
    values = (torch.arange(100) // 10).float()  # sorted: parts in order would spread widely
    first, again, other = (mean_and_spread(values, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again != other
    assert float(first) < float(torch.arange(10.0).std()) / 2


def test_a_million_equal_values_have_their_own_mean():
    """Summed in float32, 0.1 a million times is off by far more than rounding one number."""
    mean, spread = mean_and_spread(torch.full((1_000_000,), 0.1))
    assert float(mean) == float(torch.tensor(0.1))
    assert float(spread) < 1e-12


# ---------------------------------------------------------------------------------------------------------- VLMS


def test_vlms_against_loops():
    """One pair at a time, its valid tokens alone."""
    vlm, (images, captions) = make_vlm(), samples(25)
    expected = []
    for i in range(25):
        image, text = vlm.encode_image(images[i : i + 1]), vlm.encode_text(captions[i : i + 1])
        with torch.no_grad():
            logit = float(reference.matching_logits(vlm.scorer, image, text, "caption")[0])
        expected.append(1 / (1 + math.exp(-logit)))
    metric = fed(VLMS(vlm), images, captions, batch=25)
    torch.testing.assert_close(metric.values(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    mean, spread = metric.compute()
    assert float(mean) == pytest.approx(statistics.mean(expected), rel=1e-4)
    assert torch.equal(spread, mean_and_spread(metric.values())[1])
    assert max(expected) - min(expected) > 0.05


def test_a_matcher_without_scorer_has_no_vlms():
    vlm = make_vlm(scorer=False)
    with pytest.raises(ValueError, match=rf"^vlm: expected a matcher with a scorer, got {vlm.fingerprint}, which has"):
        VLMS(vlm)
    RPrecision(vlm)
    for metric in (VLMS, RPrecision):
        with pytest.raises(TypeError, match=r"^vlm: expected a VLM \(VLM.load\(path\) reads one\), got str$"):
            metric("birds.vlm.pt")


@pytest.fixture(scope="module")
def birds():
    """60 test birds that nothing packaged was trained on: pictures, captions, attribute values."""
    plan = plan_birds("test", 60, seed=4711)
    drawn = [torch.tensor(list(draw_bird(bird.values, 64, bird.seed).tobytes())) for bird in plan]
    images = torch.stack(drawn).view(-1, 64, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1
    values = [[ATTRIBUTES[name].index(bird.values[name]) for name in ATTRIBUTES] for bird in plan]
    return images, [bird.captions[0] for bird in plan], torch.tensor(values)


def not_true(rows, everything):
    """Wrong captions of a bird are those that are not true of it: facts are its values, said values and said names."""
    own, _, _ = rows.chunk(3, 1)
    _, said, named = everything.chunk(3, 1)
    return ~true_pairs(own, said, named.bool())


def test_wrong_captions_of_birds_lower_all_three(birds):
    images, captions, values = birds
    vlm = VLM.load("birds.vlm.pt")
    image = vlm.encode_image(images)
    found = {}
    for name, shift in (("own", 0), ("shifted", 23)):
        told = captions[shift:] + captions[:shift]
        text, (said, named) = vlm.encode_text(told), said_by(told)
        vlms, precision = VLMS(vlm), RPrecision(vlm, candidates=20, mismatched=not_true)
        vlms.update_features(image, text)
        precision.update_features(image, text, torch.cat([values, said, named.long()], 1))
        accuracy = fed(AttributeAccuracy(Judge.load().find, said_by), images, told)
        found[name] = [float(metric.compute()[0]) for metric in (vlms, precision, accuracy)]
    own, shifted = found["own"], found["shifted"]
    assert own[0] > shifted[0] + 0.3
    assert own[1] > 0.5
    assert shifted[1] < 0.3
    assert own[2] > 0.8
    assert shifted[2] < 0.6


# --------------------------------------------------------------------------------------------------- R-precision


def loop_r_precision(images, captions, wrong, candidates, seed):
    """One picture at a time: the lowest random keys among its wrong captions."""
    count, hits, keys = len(images), [], []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 100):  # a hundred pictures at a time
        keys += torch.rand(min(100, count - start), count, generator=generator).tolist()
    for i in range(count):
        allowed = sorted((j for j in range(count) if j != i and wrong(i, j)), key=lambda j: keys[i][j])
        own, *others = (
            float(torch.cosine_similarity(images[i], captions[j], dim=0)) for j in [i, *allowed[: candidates - 1]]
        )
        hits.append(float(all(own > other for other in others)))
    return hits


@pytest.mark.parametrize("candidates", [2, 10, 100, 500])
def test_r_precision_against_loops(candidates):
    images, captions, text = world(130, noise=0.6)
    classes = torch.arange(130) // 7 % 9
    metric = fed(synthetic(text, candidates=candidates, seed=11), images, captions, classes, batch=30)
    expected = loop_r_precision(
        images.flatten(1)[:, :8], text, lambda i, j: classes[i] != classes[j], candidates, seed=11
    )
    assert metric.values().tolist() == expected
    mean, spread = metric.compute()
    assert float(mean) == pytest.approx(statistics.mean(expected))
    assert torch.equal(spread, mean_and_spread(torch.tensor(expected), seed=11)[1])
    assert 0 < sum(expected) < 130


def test_a_true_pair_is_perfect_and_shuffled_captions_are_chance():
    images, captions, text = world(2000)
    for candidates in (2, 100):
        assert exactly(fed(synthetic(text, candidates=candidates), images, captions).compute()) == [1, 0]
        shuffled = fed(synthetic(text, candidates=candidates), images, captions[1:] + captions[:1])
        mean, spread = exactly(shuffled.compute())
        deviation = math.sqrt((1 - 1 / candidates) / candidates / 2000)
        assert mean == pytest.approx(1 / candidates, abs=4 * deviation)
        assert 0 < spread < 3 * deviation * math.sqrt(10)


def test_a_tie_is_no_hit():
    """Also a tie up to rounding, as of equal captions from different batches."""
    images, captions, text = world(30)
    text[1::2] = text[::2] * (1 + 1e-7 * torch.arange(15)[:, None])
    ids = torch.arange(30)
    assert exactly(fed(synthetic(text), images, captions, ids).compute())[0] == 0
    text[1::2] = text[::2] + 0.1 * torch.randn(15, 8, generator=torch.Generator().manual_seed(0))
    assert exactly(fed(synthetic(text), images, captions, ids).compute())[0] == 0.5


def test_the_length_of_a_vector_does_not_matter():
    images, captions, text = world(60, noise=1.0)
    expected = fed(synthetic(text), images, captions).values()
    assert 0 < expected.sum() < 60
    for scale in (1e-6, 1e6):
        for metric in (synthetic(text), synthetic(text * torch.logspace(0, math.log10(scale), 60)[:, None])):
            with torch.no_grad():
                metric.image_encoder.scale.mul_(scale)
            assert torch.equal(fed(metric, images, captions).values(), expected)


def test_the_own_caption_is_never_a_wrong_one_and_the_forbidden_are_never_drawn():
    """Caption i + 1 is picture i's best match, but may not serve it, under any seed."""
    text = torch.eye(8)
    images, captions = as_pictures(text + 2 * text.roll(-1, 0)), list(map(str, range(8)))

    def all_but_next(rows, everything):
        return (rows[:, None, 0] + 1) % 8 != everything[None, :, 0]

    def everything_goes(rows, everything):
        return torch.ones(len(rows), len(everything), dtype=torch.bool)

    ids = torch.arange(8)
    for seed in range(20):
        metric = synthetic(text, mismatched=all_but_next, candidates=5, seed=seed)
        assert exactly(fed(metric, images, captions, ids).compute())[0] == 1
        metric = synthetic(text, mismatched=everything_goes, candidates=9, seed=seed)
        assert exactly(fed(metric, images, captions, ids).compute())[0] == 0
        metric = synthetic(text, mismatched=everything_goes, candidates=9, seed=seed)
        assert exactly(fed(metric, as_pictures(text), captions, ids).compute())[0] == 1


def test_a_picture_without_a_wrong_caption_has_no_r_precision():
    images, captions, text = world(10)
    for classes in ([4], [4] * 10):
        metric = fed(synthetic(text), images[: len(classes)], captions[: len(classes)], torch.tensor(classes))
        assert metric.values().isnan().all()
        assert metric.compute()[0].isnan()
    metric = synthetic(text, mismatched=lambda rows, every: (rows != every.T) & (rows != 7))
    assert fed(metric, images, captions, torch.arange(10)).values().isnan().tolist() == [i == 7 for i in range(10)]
    assert metric.compute()[0].isnan()


def test_every_allowed_caption_is_drawn_as_often_as_any_other():
    """Picture 0 is beaten by one caption alone: it misses as often as that one is drawn, whichever it is."""
    text = torch.eye(12)
    classes = torch.tensor([0, 0, 0, 0, *range(1, 9)])
    for best in (4, 8, 11):
        images = text.clone()
        images[0] = 0.5 * text[0] + text[best]
        drawn = 0
        for seed in range(300):
            metric = synthetic(text, candidates=3, seed=seed)
            values = fed(metric, as_pictures(images), list(map(str, range(12))), classes).values()
            assert values[1:].all()
            drawn += 1 - float(values[0])
        assert drawn / 300 == pytest.approx(2 / 8, abs=0.1)


def test_equal_captions_are_no_wrong_ones_without_facts():
    """Captions 1 and 6 are the same text; with ids of their own as facts, they are wrong for each other."""
    images, captions, text = world(10)
    captions[6] = "1"
    text[6] = text[1]
    images[6] = images[1]
    assert fed(synthetic(text), images, captions).values().tolist() == [1] * 10
    expected = [float(i not in (1, 6)) for i in range(10)]
    assert fed(synthetic(text), images, captions, torch.arange(10)).values().tolist() == expected


def test_captions_of_the_class_are_no_wrong_ones():
    images, captions, text = world(10)
    text[6], images[6] = text[1], images[1]
    assert fed(synthetic(text), images, captions).values()[[1, 6]].tolist() == [0, 0]
    for classes in (torch.arange(10) % 5, (torch.arange(10) % 5).to(torch.int16), torch.arange(10)[:, None] % 5):
        assert fed(synthetic(text), images, captions, classes).values().tolist() == [1] * 10


def test_groups_differ_where_any_fact_does():
    rows = torch.tensor([[1, 2], [3, 2]])
    everything = torch.tensor([[1, 2], [1, 3], [3, 2]])
    assert different_groups(rows, everything).tolist() == [[False, True, True], [True, True, False]]


def test_caption_ids_are_the_data_sets_own():
    texts = ["a bird", "A bird", "", "Stra\u00dfe \U0001f426", "\udc80"]
    assert caption_ids(texts).tolist() == [caption_id(text) for text in texts]
    assert caption_ids(texts).dtype == torch.int64


def test_true_captions_of_other_birds_are_never_drawn(birds):
    """An encoder that prefers true captions of other pictures to the own one is always right, whatever the seed."""
    _, captions, values = birds
    said, named = said_by(captions)
    facts = torch.cat([values, said, named.long()], 1)
    true = true_pairs(values, said, named).float()
    assert true.diagonal().all()
    assert true.sum() > 60 * 1.2
    index, number = torch.eye(60), {caption: i for i, caption in enumerate(captions)}
    assert len(number) == 60
    images = as_pictures(2 * true - index)
    arguments = {"image_encoder": Flat(60), "text_encoder": lambda texts: index[[number[text] for text in texts]]}
    for seed in range(5):
        metric = RPrecision(**arguments, candidates=20, seed=seed, mismatched=not_true)
        assert exactly(fed(metric, images, captions, facts).compute())[0] == 1
    assert exactly(fed(RPrecision(**arguments), images, captions).compute())[0] < 0.9


def test_no_square_of_the_samples_is_ever_asked_for():
    shapes = []

    def watched(rows, everything):
        shapes.append((len(rows), len(everything)))
        return different_groups(rows, everything)

    images, captions, text = world(450)
    fed(synthetic(text, mismatched=watched), images, captions).compute()
    assert shapes == [(100, 450)] * 4 + [(50, 450)]


def test_encoders_may_give_vectors_features_or_a_damsm_pair():
    vlm, (images, captions) = make_vlm(), samples(40)
    expected = fed(RPrecision(vlm, candidates=4), images, captions).values()
    assert 0 < expected.sum() < 40
    pairs = {
        "features": (vlm.encode_image, vlm.encode_text),
        "vectors": (lambda x: vlm.encode_image(x).pooled, lambda c: vlm.encode_text(c).pooled),
        "a pair": (TinyEncoder(pair=True), vlm.encode_text),
    }
    for name, (image_encoder, text_encoder) in pairs.items():
        metric = RPrecision(image_encoder=image_encoder, text_encoder=text_encoder, candidates=4)
        assert torch.equal(fed(metric, images, captions).values(), expected), name


def test_a_vector_without_length_is_no_hit_and_nan_is_none_either():
    text = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    image = text.clone()
    image[1], image[2] = 0, math.nan
    mask = torch.ones(6, 1, dtype=torch.bool)
    metric = synthetic(text)
    metric.update_features(Features(image[:, None], image, mask), Features(text[:, None], text, mask), torch.arange(6))
    assert metric.values().tolist() == [1, 0, 0, 1, 1, 1]
    assert metric.compute()[0].isfinite()


# -------------------------------------------------------------------------------------------- attribute accuracy


def test_attribute_accuracy_against_loops(birds):
    images, captions, _ = birds
    judge = Judge.load()
    metric = fed(AttributeAccuracy(judge.find, said_by), images, captions, batch=25)
    expected = []
    for image, caption in zip(images, captions, strict=True):
        found = judge.find(image[None])[0].tolist()
        values, named = (part[0].tolist() for part in said_by([caption]))
        hits = [f == v for f, v, n in zip(found, values, named, strict=True) if n]
        expected.append(sum(hits) / len(hits))
    assert metric.values().tolist() == pytest.approx(expected)
    torch.testing.assert_close(metric.values(), attribute_accuracy(judge.find(images), captions))
    assert len(set(expected)) > 2
    mean, spread = metric.compute()
    assert float(mean) == pytest.approx(statistics.mean(expected))
    assert torch.equal(spread, mean_and_spread(metric.values())[1])


def test_a_caption_that_names_nothing_is_an_error():
    metric = AttributeAccuracy(lambda images: torch.zeros(len(images), len(ATTRIBUTES)), said_by)
    captions = ["a bird with a red crown.", "what a day"]
    with pytest.raises(ValueError, match=r"^captions\[1\]: expected it to name an attribute, got 'what a day'$"):
        metric.update(pictures(2, dtype=torch.float32), captions)


def test_find_and_said_by_must_fit_together():
    images, captions = samples(3)
    good, named = torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool)
    for found, said, names in (
        (good[:, :3], good, named), (good[:2], good, named), (good, good, named.float()), (good, good[:2], named),
    ):  # fmt: skip
        metric = AttributeAccuracy(lambda _, f=found: f, lambda _, s=said, n=names: (s, n))
        with pytest.raises(ValueError, match=r"^find, said_by: expected values \(B, A\), and values"):
            metric.update(images, captions)


# ------------------------------------------------------------------------------------------------ batches, features


def colours(captions):
    """A made-up `said_by`: which of the words a caption has, and what to find where."""
    named = torch.tensor([[word in caption.split() for word in WORDS] for caption in captions])
    return torch.ones(named.shape), named


class Finder(nn.Module):
    """A made-up judge: pixels above 0."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(192, len(WORDS))

    def find(self, images):
        return (self.linear(images.flatten(1)) > 0).float()

    forward = find


def every_metric(vlm=None):
    vlm = vlm or make_vlm()
    return {
        "vlms": VLMS(vlm),
        "r_precision": RPrecision(vlm, candidates=5, seed=2),
        "accuracy": AttributeAccuracy(Finder().find, colours),
    }


NAMES = tuple(every_metric())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_a_sample_came_in_does_not_matter(name, batch):
    images, captions = samples(101)
    whole = fed(every_metric()[name], images, captions, batch=101)
    parts = fed(every_metric()[name], images, captions, batch=batch)
    torch.testing.assert_close(parts.values(), whole.values(), rtol=1e-5, atol=0)
    for part, expected in zip(parts.compute(), whole.compute(), strict=True):
        assert float(part) == pytest.approx(float(expected), rel=1e-4)
        assert float(part) > 0


def test_features_serve_both_and_give_what_pictures_give():
    """One encoding, through update_features or through the update of a collection."""
    vlm, (images, captions) = make_vlm(), samples(30)
    collection = MetricCollection({"v": VLMS(vlm), "r": RPrecision(vlm, candidates=5)})
    vlms, precision = VLMS(vlm), RPrecision(vlm, candidates=5)
    expected = fed(VLMS(vlm), images, captions), fed(RPrecision(vlm, candidates=5), images, captions)
    calls = vlm.image_encoder.calls
    for part in (slice(0, 10), slice(10, 30)):
        image, text = vlm.encode_image(images[part]), vlm.encode_text(captions[part])
        facts = caption_ids(captions[part])
        vlms.update_features(image, text)
        precision.update_features(image, text, facts)
        collection.update(image, text, facts=facts)
    assert vlm.image_encoder.calls == calls + 2
    for metric, twin, name in zip((vlms, precision), expected, "vr", strict=True):
        torch.testing.assert_close(metric.values(), twin.values())
        torch.testing.assert_close(collection[name].values(), twin.values())
        assert not metric.values().requires_grad
    assert 0 < precision.values().sum() < 30


def test_an_update_after_compute_counts():
    """Also one with features: a result that was kept must not be given again."""
    vlm, (images, captions) = make_vlm(), samples(8)
    metric = VLMS(vlm)
    metric.update(images[:2], captions[:2])
    first = metric.compute()[0]
    metric.update_features(vlm.encode_image(images[2:]), vlm.encode_text(captions[2:]))
    second = metric.compute()[0]
    assert float(second) == pytest.approx(float(metric.values().mean()))
    assert metric.update_count == 2
    assert len(metric.values()) == 8
    assert first != second


def test_the_draw_is_the_seeds_and_not_the_global_generators():
    images, captions, text = world(120, noise=1.2)
    results = []
    for seed, state in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(state)
        results.append(fed(synthetic(text, candidates=3, seed=seed), images, captions).values().tolist())
        after = torch.rand(())
        torch.manual_seed(state)
        assert torch.rand(()) == after
    assert results[0] == results[1] != results[2]


# ------------------------------------------------------------------------------------------- life as a torchmetric


@pytest.mark.parametrize("name", NAMES)
def test_what_torchmetrics_asks_of_a_class(name):
    metric = every_metric()[name]
    assert metric.is_differentiable is False
    assert metric.higher_is_better is True
    assert metric.full_state_update is False
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_forward_gives_the_batch_and_keeps_all(name):
    metric, (images, captions) = every_metric()[name], samples(40)
    for start in (0, 20):
        part = slice(start, start + 20)
        expected = fed(every_metric()[name], images[part], captions[part])
        assert exactly(metric(images[part], captions[part])) == pytest.approx(exactly(expected.compute()))
    whole = fed(every_metric()[name], images, captions)
    torch.testing.assert_close(metric.values(), whole.values())
    assert exactly(metric.compute()) == pytest.approx(exactly(whole.compute()))
    # forward allows gradients; none may hang on what is kept.
    for state in metric.metric_state.values():
        assert not any(part.requires_grad for part in (state if isinstance(state, list) else [state]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: m.clone(), lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_where_the_original_is(name, copied):
    metric, (images, captions) = every_metric()[name], samples(30)
    fed(metric, images[:10], captions[:10])
    twin = copied(metric)
    fed(metric, images[10:], captions[10:])
    assert len(twin.values()) == 10
    fed(twin, images[10:], captions[10:])
    assert torch.equal(twin.values(), metric.values())
    assert exactly(twin.compute()) == exactly(metric.compute())
    # A copy's network is its own, and the one that it uses.
    own, original = next(twin.parameters()), next(metric.parameters())
    assert own.data_ptr() != original.data_ptr()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(math.nan)
    expected = metric.values()[:10]
    for one in (metric, twin):
        one.reset()
        fed(one, images[:10], captions[:10])
    if name != "r_precision":  # which drew among 30 before
        assert torch.equal(metric.values(), expected)
    assert not torch.equal(twin.values(), metric.values())


@pytest.mark.parametrize("name", NAMES)
def test_reset_forgets_and_nothing_to_compute_is_an_error(name):
    metric, (images, captions) = every_metric()[name], samples(30)
    expected = exactly(fed(metric, images[:10], captions[:10]).compute())
    fed(metric, images[10:], captions[10:])
    metric.reset()
    with pytest.raises(ValueError, match=r"^(VLMS|RPrecision|AttributeAccuracy): expected at least one update before"):
        metric.values()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match="at least one"):
        metric.compute()
    assert exactly(fed(metric, images[:10], captions[:10]).compute()) == expected


def test_a_collection_gives_what_each_gives_alone():
    images, captions = samples(30)
    collection = MetricCollection(every_metric())
    for part in (slice(0, 10), slice(10, 30)):
        collection.update(images[part], captions[part], facts=torch.arange(30)[part] % 6)
    result = collection.compute()
    assert result.keys() == set(NAMES)
    for name, metric in every_metric().items():
        facts = torch.arange(30) % 6 if name == "r_precision" else None
        alone = fed(metric, images, captions, *([facts] if facts is not None else []))
        assert exactly(result[name]) == pytest.approx(exactly(alone.compute()))


def test_two_judges_that_agree_at_first_stay_two_in_a_collection():
    """A collection lets metrics of equal state share their updates; these are equal after the first batch alone."""
    first, second = Finder(0), Finder(1)
    images, captions = samples(60)
    images[0] = 0
    images[0, 0, 0, 0] = -0.01
    # Both judges see the same in the first picture.
    with torch.no_grad():
        second.linear.bias.copy_(first.linear.bias)
    assert torch.equal(first(images[:1]), second(images[:1]))
    assert not torch.equal(first(images), second(images))
    both = MetricCollection({"a": AttributeAccuracy(first, colours), "b": AttributeAccuracy(second, colours)})
    for part in (slice(0, 1), slice(1, 60)):
        both.update(images[part], captions[part])
    for name, judge in (("a", first), ("b", second)):
        expected = fed(AttributeAccuracy(judge, colours), images, captions).compute()
        assert exactly(both.compute()[name]) == exactly(expected)
    assert both.compute()["a"] != both.compute()["b"]


def test_a_plot_shows_means():
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    metric, (images, captions) = every_metric()["vlms"], samples(30)
    results = [metric(images[i : i + 10], captions[i : i + 10]) for i in (0, 10, 20)]
    first, means = results[0], [mean for mean, _ in results]
    for given, expected in ((None, metric.compute()[:1]), (first, first[:1]), (results, means)):
        figure, axes = metric.plot(given)
        drawn = [float(y) for line in axes.get_lines() for y in line.get_ydata()]
        for mean in expected:
            assert any(y == pytest.approx(float(mean)) for y in drawn)
        for _, spread in (metric.compute(), *results):
            assert not any(y == pytest.approx(float(spread), rel=1e-4) for y in drawn)
        pyplot.close(figure)


# ------------------------------------------------------------------------------------------------- the networks


class Noisy(nn.Module):
    """An encoder that gives itself away: a BatchNorm and a dropout, and what it was called under."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, len(WORDS)))
        self.seen = []

    def forward(self, images):
        self.seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), images.dtype))
        return self.layers(images)


class Sentences(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, len(WORDS))
        self.seen = []

    def forward(self, captions):
        self.seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.float32))
        return self.layer(torch.tensor([[float(len(caption))] for caption in captions]))


def test_networks_sleep_whatever_their_host_does():
    """Eval mode, no gradient, no autocast, in update and in forward; and they are submodules of the metric. Between two
    updates they are as their host has them: it may be training them."""
    image_encoder, text_encoder, judge = Noisy(), Sentences(), Noisy()
    metrics = [
        RPrecision(image_encoder=image_encoder, text_encoder=text_encoder),
        AttributeAccuracy(judge, colours),
    ]
    host = nn.ModuleDict({str(i): metric for i, metric in enumerate(metrics)})
    networks = (image_encoder, text_encoder, judge)
    assert {id(n) for n in networks} <= {id(m) for m in host.modules()}
    images, captions = samples(6)
    weights = copy.deepcopy(host.state_dict())
    for network in networks:
        network.train()  # somebody shares and trains it
    host.eval()
    host.train()
    assert all(network.training for network in networks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for metric in metrics:
            metric.update(images.double(), captions)
            metric(images, captions)
    for network in networks:
        assert network.seen == [(False, False, False, torch.float32)] * 2
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in host.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_network_is_given_back_awake_after_an_error():
    network = Noisy()
    metric = AttributeAccuracy(network, lambda captions: 1 / 0)
    network.train()
    with pytest.raises(ZeroDivisionError):
        metric.update(*samples(3))
    assert network.training


def test_methods_bring_their_networks_along():
    """`judge.find` and `vlm.encode_image` are no modules, but what they belong to moves with the metric."""
    vlm, judge = make_vlm().train(), Finder().train()
    metrics = [
        RPrecision(image_encoder=vlm.encode_image, text_encoder=vlm.encode_text),
        AttributeAccuracy(judge.find, colours),
        VLMS(make_vlm().train()),
    ]
    for metric, network in zip(metrics, (vlm, judge, metrics[2].vlm), strict=True):
        assert network in list(metric.modules())
        assert all(module.training for module in network.modules())
        nn.ModuleList([metric]).half()
        assert next(network.parameters()).dtype == torch.float16
        nn.ModuleList([metric]).float()


@pytest.mark.cuda
def test_metrics_follow_to_a_gpu_and_draw_the_same_there():
    images, captions = samples(101)
    for name, metric in every_metric().items():
        expected = fed(metric, images, captions, batch=30)
        values, result = expected.values(), expected.compute()
        moved = every_metric()[name].to("cuda")
        with pytest.raises(ValueError, match=r"^images: expected them on cuda:0, where the network is, got cpu$"):
            moved.update(images, captions)
        moved = fed(every_metric()[name].to("cuda"), images.cuda(), captions, batch=30)
        assert moved.values().device.type == "cuda"
        torch.testing.assert_close(moved.values().cpu(), values, rtol=1e-3, atol=1e-4)
        for part, wanted in zip(moved.compute(), result, strict=True):
            assert part.device.type == "cuda"
            torch.testing.assert_close(part.cpu(), wanted, rtol=1e-3, atol=1e-3)
        # What was gathered comes back with the metric.
        assert moved.to("cpu").values().device.type == "cpu"


# ----------------------------------------------------------------------------------------------------- mistakes


def bad_images():
    good = pictures(3, dtype=torch.float32)
    return {
        "uint8": ((good * 127 + 127).to(torch.uint8), r"got torch\.uint8$"),
        "0 to 255": (good * 127.5 + 127.5, r"got values from .* to 25\d$"),
        "below -1": (-(good + 1), r"got values from -[12]\.?\d* to .*$"),
        "not a number": (torch.full_like(good, math.nan), r"got NaN$"),
        "one is not a number": (torch.where(good == good.max(), math.nan, good), r"got NaN$"),
        "0 to 1": (good / 2 + 0.5, r"got no negative value \(.* to .*\): is this \[0, 1\]\?$"),
        "no batch": (good[0], r"got shape \(3, 8, 8\)$"),
        "channels last": (good.permute(0, 2, 3, 1), r"got shape \(3, 8, 8, 3\)$"),
        "nothing": (good[:0], r"got shape \(0, 3, 8, 8\)$"),
        "an array": (good.numpy(), r"got ndarray$"),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mistake", bad_images())
def test_wrong_images(name, mistake):
    images, message = bad_images()[mistake]
    metric = every_metric()[name]
    with pytest.raises(ValueError, match=rf"^images: expected a floating-point tensor .* in \[-1, 1\], {message}"):
        metric.update(images, captions_of(3))
    fed(metric, *samples(3))
    assert len(metric.values()) == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("red", "captions: expected a list of 3 strings, got str"),
        (None, "captions: expected a list of 3 strings, got NoneType"),
        (["red", "blue"], "captions: expected 3 as there are images, got 2"),
        (["red", "blue", 7], r"captions\[2\]: expected a string, got int"),
    ],
)
def test_wrong_captions(name, captions, message):
    metric = every_metric()[name]
    with pytest.raises(ValueError, match=rf"^{message}$"):
        metric.update(pictures(3, dtype=torch.float32), captions)
    fed(metric, *samples(3))
    assert len(metric.values()) == 3


def test_a_bright_picture_passes_once_a_dark_one_was_seen():
    """And a uniform one, which fits any range, tells nothing."""
    metric, bright = every_metric()["vlms"], pictures(2, dtype=torch.float32).abs()
    metric.update(torch.zeros(2, 3, 8, 8), ["red", "blue"])
    with pytest.raises(ValueError, match="got no negative value"):
        metric.update(bright, ["red", "blue"])
    metric.update(-bright, ["red", "blue"])
    metric.update(bright, ["red", "blue"])
    metric.update(pictures(2, dtype=torch.float32) * 1.01, ["red", "blue"])  # rounding beyond the range
    metric.reset()
    metric.update(bright, ["red", "blue"])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (torch.zeros(3), "facts: expected integers, got torch.float32"),
        (torch.zeros(3, dtype=torch.bool), "facts: expected integers, got torch.bool"),
        (["a", "b", "c"], "facts: expected integers, got list of other values"),
        (torch.arange(2), r"facts: expected shape \(3,\) or \(3, F\), got \(2,\)"),
        (torch.zeros(3, 2, 2).long(), r"facts: expected shape \(3,\) or \(3, F\), got \(3, 2, 2\)"),
        (torch.zeros(3, 0).long(), r"facts: expected shape \(3,\) or \(3, F\), got \(3, 0\)"),
    ],
)
def test_wrong_facts(facts, message):
    metric = every_metric()["r_precision"]
    with pytest.raises((TypeError, ValueError), match=rf"^{message}$"):
        metric.update(*samples(3), facts)


def test_facts_of_any_kind():
    expected = []
    for facts in (torch.tensor([7, 7, 9]), [7, 7, 9], np.array([9, 7, 7])[::-1]):
        metric = every_metric()["r_precision"]
        metric.update(*samples(3), facts)
        expected.append(metric.values())
    assert torch.equal(expected[0], expected[1])
    assert torch.equal(expected[0], expected[2])


def test_a_scorer_of_other_encoders_is_refused_and_an_untrained_one_told():
    vlm = make_vlm()
    vlm.scorer.encoder_fingerprints = None
    with pytest.warns(UserWarning, match="^scorer: nothing says that it was trained, and VLMS is its score") as told:
        VLMS(vlm)
    assert [warning.filename for warning in told] == [__file__]
    vlm.stamp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VLMS(vlm)
        # Of a matcher that was cast nothing can be said.
        VLMS(copy.deepcopy(vlm).double())
    with torch.no_grad():
        next(vlm.image_encoder.parameters()).mul_(2)
    for use in (VLMS, lambda matcher: score(matcher, Path("nowhere"), {"a.png": "a bird"})):
        with pytest.raises(ValueError, match=r"^scorer: it was trained on another image_encoder .* or VLM\.stamp\(\)"):
            use(vlm)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        (torch.tensor([1, 0]), {}, TypeError, r"values: expected a floating-point tensor \(N,\), got torch.int64"),
        ([0.5, 1.0], {}, TypeError, r"values: expected a floating-point tensor \(N,\), got list"),
        (torch.rand(0), {}, ValueError, r"values: expected shape \(N,\) with N at least 1, got \(0,\)"),
        (torch.rand(2, 3), {}, ValueError, r"values: expected shape .*, got \(2, 3\)"),
        (torch.rand(9), {"folds": 1}, ValueError, "folds: expected an integer of at least 2, got 1"),
        (torch.rand(9), {"seed": -1}, ValueError, "seed: expected an integer of at least 0, got -1"),
    ],
)
def test_nonsense_in_place_of_values(values, options, error, message):
    with pytest.raises(error, match=message):
        mean_and_spread(values, **options)


def test_facts_of_two_kinds_do_not_mix():
    images, captions = samples(3)
    classes = torch.arange(3)
    for first, second in ((classes, None), (None, classes)):
        metric = every_metric()["r_precision"]
        metric.update(images, captions, first)
        with pytest.raises(ValueError, match=r"^facts: expected them at every update or at none, got them at some$"):
            metric.update(images, captions, second)
        # forward sees one batch alone, so it shows at the end.
        metric = every_metric()["r_precision"]
        metric(images, captions, first)
        metric(images, captions, second)
        with pytest.raises(ValueError, match=r"^facts: expected them at every update or at none, got them at some$"):
            metric.compute()
    metric = every_metric()["r_precision"]
    metric.update(images, captions, classes)
    with pytest.raises(ValueError, match=r"^facts: expected 1 a sample as before, got 2$"):
        metric.update(images, captions, torch.zeros(3, 2).long())


def test_features_need_facts_and_as_many_rows():
    vlm, (images, captions) = make_vlm(), samples(3)
    image, text = vlm.encode_image(images), vlm.encode_text(captions)
    precision, vlms = RPrecision(vlm), VLMS(vlm)
    with pytest.raises(ValueError, match=r"^facts: .* got None: caption_ids\(captions\) has those of their texts$"):
        precision.update_features(image, text)
    fewer = Features(*(part[:2] for part in text))
    for update in (
        lambda: precision.update_features(image, fewer, torch.arange(3)),
        lambda: vlms.update(images, fewer),
    ):
        with pytest.raises(ValueError, match=r"^captions: expected 3 as there are images, got 2$"):
            update()
    with pytest.raises(TypeError, match=r"^image: expected Features"):
        vlms.update_features(images, text)
    with pytest.raises(TypeError, match=r"^text: expected Features"):
        precision.update_features(image, captions, torch.arange(3))
    wide = Features(*(torch.cat([part, part], -1) for part in text[:2]), text.mask)
    with pytest.raises(ValueError, match=r"^captions: expected vectors of width 6 as the images', got 12$"):
        precision.update_features(image, wide, torch.arange(3))
    with pytest.raises(ValueError, match=r"^anchor: expected features of width 6, got 12$"):
        vlms.update_features(image, wide)
    precision.update_features(image, text, torch.arange(3))
    wide = wide, Features(*(torch.cat([part, part], -1) for part in image[:2]), image.mask)
    with pytest.raises(ValueError, match=r"^images: expected vectors of width 6 as before, got 12$"):
        precision.update_features(wide[1], wide[0], torch.arange(3))


def test_arguments_that_do_not_fit():
    vlm = make_vlm()
    for arguments in ({}, {"image_encoder": vlm.encode_image}, {"text_encoder": vlm.encode_text}):
        with pytest.raises(ValueError, match=r"^vlm: expected either a VLM or both image_encoder and text_encoder$"):
            RPrecision(**arguments)
    with pytest.raises(ValueError, match=r"^vlm: expected either a VLM or both"):
        RPrecision(vlm, text_encoder=vlm.encode_text)
    with pytest.raises(ValueError, match=r"^image_encoder: expected a function or a module, got int$"):
        RPrecision(image_encoder=3, text_encoder=vlm.encode_text)
    for name, least in (("candidates", 2), ("folds", 2), ("seed", 0)):
        for value in (least - 1, 2.5, True, "9"):
            with pytest.raises(ValueError, match=rf"^{name}: expected an integer of at least {least}, got {value!r}$"):
                RPrecision(vlm, **{name: value})
    metric = RPrecision(vlm, candidates=7, seed=3, folds=4)
    assert (metric.candidates, metric.seed, metric.folds) == (7, 3, 4)


def test_r_precision_is_that_of_100_candidates_and_ten_folds():
    metric = RPrecision(make_vlm())
    assert (metric.candidates, metric.folds) == (100, 10)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (torch.zeros(3, 6), torch.zeros(3, 6).long(), r"text_encoder: expected .* got torch.int64 \(3, 6\)"),
        (torch.zeros(3, 6), ["a"], r"text_encoder: expected .* got list"),
        (torch.zeros(3, 6, 1), torch.zeros(3, 6), r"image_encoder: expected .* got torch.float32 \(3, 6, 1\)"),
        (torch.zeros(3, 6), torch.zeros(2, 6), r"text_encoder: expected .* got torch.float32 \(2, 6\)"),
        (torch.zeros(2, 6), torch.zeros(2, 6), r"image_encoder: expected .* got torch.float32 \(2, 6\)"),
    ],
)
def test_encoders_that_return_something_else(image, text, message):
    metric = RPrecision(image_encoder=lambda _: image, text_encoder=lambda _: text)
    with pytest.raises(ValueError, match=rf"^{message}"):
        metric.update(*samples(3))


@pytest.mark.parametrize(
    "wrong", [lambda rows, every: torch.ones(len(rows), len(every)), lambda rows, every: torch.ones(3, 3).bool()[:, :2]]
)
def test_mismatched_must_return_bool_of_its_shape(wrong):
    metric = RPrecision(make_vlm(), mismatched=wrong)
    metric.update(*samples(3))
    with pytest.raises(ValueError, match=r"^mismatched: expected it to return bool of shape \(3, 3\), got torch"):
        metric.compute()


# ------------------------------------------------------------------------------------------------ imports


def test_the_drop_in_does_without_torchmetrics():
    """And what needs it says what to install."""
    code = (
        "import sys; sys.modules['torchmetrics'] = None; import vlm_plugin, vlm_plugin.data, vlm_plugin.training; "
        "print('vlm_plugin.metrics' in sys.modules, flush=True); import vlm_plugin.metrics"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.split() == ["False"]
    last = result.stderr.strip().splitlines()[-1]
    assert last == 'ImportError: vlm_plugin.metrics: expected torchmetrics: in the repository: pip install ".[eval]"'


# ------------------------------------------------------------------------------------------------ processes

RANKS = 2
# What each rank sees, so that rank after rank it is 0, 1, 2, ...: unequal shares, and batches of other sizes.
SHARES = ([(0, 20), (20, 43)], [(43, 50), (50, 60), (60, 71)])
COUNT = 71


def feed_share(metric, rank, facts=None):
    images, captions = samples(COUNT)
    for start, stop in SHARES[rank]:
        part = slice(start, stop)
        metric.update(images[part], captions[part], *([] if facts is None else [facts[part]]))
    return metric


def work(rank, folder):
    """Everything that one of two processes does."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
        found = {}
        for name, metric in every_metric().items():
            feed_share(metric, rank)
            own = metric.values()
            with metric.sync_context():
                everybody = metric.values()
            result = list(metric.compute())
            found[name] = {"own": own, "everybody": everybody, "result": result, "after": metric.values()}
        facts = torch.arange(COUNT)[:, None] % torch.tensor([3, 5])
        found["facts"] = list(feed_share(every_metric()["r_precision"], rank, facts).compute())
        # A rank without a sample, as when there are fewer batches than ranks.
        for name, metric in every_metric().items():
            if rank == 0:
                metric.update(*samples(30))
            found[name]["alone"] = list(metric.compute())
        metric = every_metric()["r_precision"]
        metric.update(*samples(5), torch.zeros(5, 1 + rank).long())
        try:
            metric.compute()
        except ValueError as error:
            found["widths"] = str(error)
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        with open(f"{folder}/{rank}.error", "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        raise


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchmetrics", "vlm_plugin", "reference"])
    processes = [context.Process(target=work, args=(rank, str(folder)), daemon=True) for rank in range(RANKS)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    assert not hanging, f"{len(hanging)} of {RANKS} processes did not end"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_with_one(found, name):
    whole = fed(every_metric()[name], *samples(COUNT))
    for rank, (result, share) in enumerate(zip((f[name] for f in found), SHARES, strict=True)):
        torch.testing.assert_close(result["everybody"], whole.values())
        assert exactly(result["result"]) == pytest.approx(exactly(whole.compute()))
        # Outside of a sync a process has its own samples alone, before compute as well as after.
        own = feed_share(every_metric()[name], rank).values()
        torch.testing.assert_close(result["own"], own)
        torch.testing.assert_close(result["after"], own)
        assert len(own) == share[-1][1] - share[0][0]


def test_two_processes_agree_with_one_on_facts(found):
    facts = torch.arange(COUNT)[:, None] % torch.tensor([3, 5])
    expected = exactly(fed(every_metric()["r_precision"], *samples(COUNT), facts).compute())
    for result in found:
        assert exactly(result["facts"]) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_process_may_have_seen_nothing(found, name):
    expected = exactly(fed(every_metric()[name], *samples(30)).compute())
    for result in found:
        assert exactly(result[name]["alone"]) == pytest.approx(expected)


def test_facts_of_unequal_width_are_an_error_in_every_process(found):
    for result in found:
        assert result["widths"].startswith("facts: expected vectors and facts of one width in all processes, got [[")
