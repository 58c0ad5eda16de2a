"""Pretraining against loops written from the method, and runs that are interrupted, resumed, and given nonsense."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import pickle
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import reference
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

from vlm_plugin import (
    VLM,
    ConvEncoder,
    DualVLMLoss,
    Features,
    InceptionEncoder,
    LSTMTextEncoder,
    MatchingScoreBlock,
    Vocabulary,
)
from vlm_plugin.cli.main import main
from vlm_plugin.cli.pretrain import add_arguments
from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate, make_birds, open_split
from vlm_plugin.data.birds.captions import read_caption
from vlm_plugin.data.dataset import Batch, Sample
from vlm_plugin.evaluation.table import was_judged
from vlm_plugin.files import not_finite, write_next
from vlm_plugin.matcher.identity import encoder_fingerprints
from vlm_plugin.matching import global_scores, local_scores
from vlm_plugin.pretraining.evaluator import Evaluator
from vlm_plugin.pretraining.losses import (
    EncodedPairs,
    Excluded,
    Losses,
    hard_negatives,
    pretraining_losses,
    rows_of,
    step_losses,
)
from vlm_plugin.pretraining.pairs import Pairs, collate_pairs, has_wrong_caption
from vlm_plugin.pretraining.pretrain import pretrain
from vlm_plugin.pretraining.settings import DEFAULTS, PretrainSettings, filled_in
from vlm_plugin.pretraining.start import new_matcher, no_wrong_caption, train_mode

CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------------------------------
# The losses
# ---------------------------------------------------------------------------------------------------------------------


class Example:
    """Five pictures with captions, the first three with swapped captions and positives. Not all pairs are negatives."""

    def __init__(self) -> None:
        dim = 4
        self.image = reference.random_features([3, 2, 3, 3, 3], dim, seed=1)
        self.caption = reference.random_features([2, 3, 1, 2, 2], dim, seed=2)
        self.swapped = reference.random_features([2, 3, 1], dim, seed=3)
        self.positive = reference.random_features([3, 3, 2], dim, seed=4)
        self.true_captions = torch.eye(5, dtype=torch.bool)
        for picture, caption in ((0, 1), (2, 0), (3, 4), (4, 3), (4, 0)):
            self.true_captions[picture, caption] = True
        self.same_group = torch.eye(3, dtype=torch.bool)
        self.same_group[0, 2] = self.same_group[2, 0] = True
        torch.manual_seed(0)
        self.scorer = MatchingScoreBlock(dim, layers=1, heads=2).double()

    def leaves(self) -> list[Tensor]:
        sides = (self.image, self.caption, self.swapped, self.positive)
        return [part.requires_grad_() for side in sides for part in (side.local, side.pooled)]


def softmax_loss(scores: list[Tensor], own: int) -> Tensor:
    return -(scores[own].exp() / sum(score.exp() for score in scores)).log()


def caption_loss(example: Example, score: object, gamma: float, with_swapped: bool) -> Tensor:
    """Picture -> captions (its swapped one among them) and caption -> pictures, without what is true."""
    table = score(example.image, example.caption)
    first = Features(*(part[:3] for part in example.image))
    twins = score(first, example.swapped)
    rows, columns = [], []
    for i in range(5):
        wrong = [j for j in range(5) if j != i and not example.true_captions[i, j]]
        scores = [gamma * table[i, i], *(gamma * table[i, j] for j in wrong)]
        if with_swapped and i < 3:
            scores.append(gamma * twins[i, i])
        rows.append(softmax_loss(scores, 0))
        wrong = [k for k in range(5) if k != i and not example.true_captions[k, i]]
        columns.append(softmax_loss([gamma * table[i, i], *(gamma * table[k, i] for k in wrong)], 0))
    return (sum(rows) + sum(columns)) / 5


def picture_loss(example: Example, score: object, gamma: float) -> Tensor:
    table = score(Features(*(part[:3] for part in example.image)), example.positive)
    return reference.posterior_loss(table, gamma, [0, 1, 0])


def cross_entropy(logit: Tensor, target: float) -> Tensor:
    share = 1 / (1 + (-logit).exp())
    return -(target * share.log() + (1 - target) * (1 - share).log())


def drawn(scores: Tensor, excluded: Tensor, generator: torch.Generator) -> list[int | None]:
    """The columns that the same generator draws from weights computed one by one; None for rows without a negative."""
    weights = torch.zeros(scores.shape, dtype=torch.float64)
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if i != j and not excluded[i, j]:
                weights[i, j] = (10 * (scores[i, j] - 1)).exp()
    empty = weights.sum(1) == 0
    weights[empty] = 1.0
    columns = torch.multinomial(weights, 1, generator=generator).flatten().tolist()
    return [None if e else c for e, c in zip(empty, columns, strict=True)]


def scorer_loss(example: Example, anchor: Features, wrong: list[list[tuple[int, Features, int]]], kind: str) -> Tensor:
    def logit(picture: int, anchors: Features, j: int) -> Tensor:
        pair = [Features(*(part[k : k + 1] for part in side)) for side, k in ((example.image, picture), (anchors, j))]
        return reference.matching_logits(example.scorer, *pair, kind)[0]

    right = sum(cross_entropy(logit(i, anchor, i), 0.9) for i in range(3)) / 3
    others = [sum(cross_entropy(logit(*pair), 0.1) for pair in group) / max(len(group), 1) for group in wrong]
    return (right + sum(others) / len(others)) / 2


def expected_losses(example: Example, seed: int, with_swapped: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = Features(*(part[:3] for part in example.image))

    def local(image: Features, anchor: Features) -> Tensor:
        return reference.local_scores(image, anchor, 4.0, 5.0)

    terms = {
        "vlm_local": caption_loss(example, local, 50.0, with_swapped),
        "vlm_global": caption_loss(example, reference.global_scores, 10.0, with_swapped),
        "vvm_local": picture_loss(example, local, 50.0),
        "vvm_global": picture_loss(example, reference.global_scores, 10.0),
    }
    columns = drawn(reference.global_scores(first, example.caption).detach(), example.true_captions[:3], generator)
    wrong = [[(i, example.caption, j) for i, j in enumerate(columns) if j is not None]]
    if with_swapped:
        wrong.append([(i, example.swapped, i) for i in range(3)])
    terms["vlm_general"] = scorer_loss(example, example.caption, wrong, "caption")
    columns = drawn(reference.global_scores(first, example.positive).detach(), example.same_group, generator)
    wrong = [[(i, example.positive, j) for i, j in enumerate(columns) if j is not None]]
    terms["vvm_general"] = scorer_loss(example, example.positive, wrong, "image")
    return terms


def our_losses(
    example: Example, seed: int, with_swapped: bool = True, scorer: bool = True, encoders_train: bool = True
) -> Losses:
    swapped = example.swapped if with_swapped else None
    return pretraining_losses(
        EncodedPairs(example.image, example.caption, swapped, example.positive),
        Excluded(example.true_captions, example.same_group),
        example.scorer if scorer else None,
        torch.Generator().manual_seed(seed),
        encoders_train,
    )


@pytest.mark.parametrize("with_swapped", [True, False])
def test_losses_and_gradients_against_loops(with_swapped: bool) -> None:
    example = Example()
    leaves = example.leaves() + list(example.scorer.parameters())
    expected = expected_losses(example, 11, with_swapped)
    losses = our_losses(example, 11, with_swapped)
    assert set(losses.terms) == set(expected)
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-6), name
        assert not losses.terms[name].requires_grad
    total = sum(expected.values())
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-6)
    ours = torch.autograd.grad(losses.total, leaves, allow_unused=True)
    theirs = torch.autograd.grad(total, leaves, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in ours)
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:  # without swapped captions
            assert all(gradient is None or not gradient.any() for gradient in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_without_a_scorer_the_general_level_is_left_out() -> None:
    example = Example()
    with_scorer, without = our_losses(example, 3), our_losses(example, 3, scorer=False)
    assert set(without.terms) == {"vlm_local", "vlm_global", "vvm_local", "vvm_global"}
    for name, value in without.terms.items():
        assert torch.equal(value, with_scorer.terms[name])


def test_frozen_encoders_leave_the_general_level_alone() -> None:
    example = Example()
    full = our_losses(example, 3)
    part = our_losses(example, 3, encoders_train=False)
    assert set(part.terms) == {"vlm_general", "vvm_general"}
    for name, value in part.terms.items():
        assert torch.equal(value, full.terms[name])
    assert part.total.item() == pytest.approx(sum(part.terms.values()).item())
    assert part.total.requires_grad


def test_what_is_true_is_no_negative_wherever_it_moves() -> None:
    """Caption 1 and picture 1 fit all others, so caption 1 competes nowhere; likewise positive 1 of the image pairs."""

    def terms(caption: int | None, positive: int | None) -> dict[str, Tensor]:
        example = Example()
        example.true_captions[1, :] = example.true_captions[:, 1] = True
        example.same_group = torch.eye(3, dtype=torch.bool)
        example.same_group[1, :] = example.same_group[:, 1] = True
        for features, row in ((example.caption, caption), (example.positive, positive)):
            if row is not None:
                features.local[row] = 3 * example.image.local[0]
                features.pooled[row] = 3 * example.image.pooled[0]
        return our_losses(example, 0, with_swapped=False, scorer=False).terms

    before, moved, competing = terms(None, None), terms(1, 1), terms(2, 0)
    for name in before:
        assert torch.allclose(before[name], moved[name]), name
        assert not torch.allclose(before[name], competing[name]), name


def testhard_negatives_are_never_excluded_ones() -> None:
    torch.manual_seed(0)
    scores = torch.rand(6, 6) * 2 - 1
    excluded = torch.rand(6, 6) < 0.4
    excluded.fill_diagonal_(False)  # ids made of captions differ between two views of one picture
    excluded[4] = True
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(6, 6)
    for _ in range(1500):
        columns, valid = hard_negatives(scores, excluded, generator)
        assert valid.tolist() == [True, True, True, True, False, True]
        counts[torch.arange(6), columns] += 1
    counts, forbidden = counts[valid], (excluded | torch.eye(6, dtype=torch.bool))[valid]
    assert not counts[forbidden].any()
    weights = (10 * scores[valid]).exp().masked_fill(forbidden, 0)
    torch.testing.assert_close(counts / 1500, weights / weights.sum(1, keepdim=True), atol=0.05, rtol=0)


def test_a_row_without_negatives_counts_nothing() -> None:
    example = Example()
    example.true_captions[:] = True
    example.same_group[:] = True
    losses = our_losses(example, 0, with_swapped=False)
    for name in ("vlm_local", "vlm_global", "vvm_local", "vvm_global"):
        assert losses.terms[name] == 0, name
    right = example.scorer(rows_of(example.image, torch.arange(3)), example.positive, "image")
    expected = sum(cross_entropy(logit, 0.9) for logit in right) / 3 / 2
    assert losses.terms["vvm_general"].item() == pytest.approx(expected.item())
    gradients = torch.autograd.grad(losses.total, list(example.scorer.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_a_positive_under_another_id_is_not_its_own_negative() -> None:
    """Without classes the ids come from captions, and two views of one picture may show two captions."""
    example = Example()
    example.same_group = torch.zeros(3, 3, dtype=torch.bool)
    example.positive = Features(*(part[:3].clone() for part in example.image))  # by far the hardest candidates
    for seed in range(20):
        scores = global_scores(example.positive, example.positive)
        columns, _ = hard_negatives(scores, example.same_group, torch.Generator().manual_seed(seed))
        assert all(column != row for row, column in enumerate(columns.tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# Data and evaluation
# ---------------------------------------------------------------------------------------------------------------------


def pairs(truth: BirdTruth | None, classes: bool = True) -> Pairs:
    records = open_split(tiny.birds(), "train")
    if not classes:
        records = [record._replace(class_id=None) for record in records]
    return Pairs(CaptionedImages(records, 16, train=True), records, truth)


def test_positives_share_every_attribute() -> None:
    truth = BirdTruth(tiny.birds())
    dataset = pairs(truth)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.first.index == index
        assert sample.second.key != sample.first.key
        assert truth.values(sample.second.key) == truth.values(sample.first.key)


def test_without_attributes_positives_share_the_class() -> None:
    dataset = pairs(None)
    partners = {dataset[0].second.key for _ in range(40)}
    assert len(partners) > 4
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.second.key != sample.first.key
        assert sample.second.class_id == sample.first.class_id


def test_without_classes_the_positive_is_another_view() -> None:
    first, second = pair = pairs(None, classes=False)[3]
    assert first.key == second.key
    images, positives = collate_pairs([pair])
    assert not torch.equal(images.images, positives.images)


def test_ceiling_against_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOL", 6)
    truth = BirdTruth(tiny.birds())
    records = open_split(tiny.birds(), "train")[:22]
    evaluator = Evaluator(records, 16, truth, CPU)
    assert [len(pool) for pool in evaluator.pools] == [6, 6, 6]  # the rest of four would be an easier pool
    chances = []
    for batch in evaluator.batches():
        said = [read_caption(caption) for caption in batch.captions]
        shown = [truth.values(key) for key in batch.keys]
        fits = [[all(values[n] == v for n, v in claims.items()) for claims in said] for values in shown]
        for picture in range(6):
            candidates = [c for c in range(6) if fits[picture][c]]
            spread = {c: sum(fits[other][c] for other in range(6)) for c in candidates}
            best = [c for c in candidates if spread[c] == min(spread.values())]
            chances.append((picture in best) / len(best))
    assert evaluator.ceiling() == pytest.approx(sum(chances) / len(chances))
    assert evaluator.ceiling() < 1


def test_ceiling_without_attributes_counts_equal_captions() -> None:
    records = open_split(tiny.birds(), "test")[:4]
    same = [record._replace(captions=("a bird",) if i < 3 else record.captions) for i, record in enumerate(records)]
    assert Evaluator(records, 16, None, CPU).ceiling() == 1
    assert Evaluator(same, 16, None, CPU).ceiling() == pytest.approx((3 * (1 / 3) + 1) / 4)


def test_pictures_of_the_held_out_split_are_loaded_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large split some pools are judged by, the first and every so many; up to that many all are."""
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOL", 3)
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOLS", 4)
    loaded, alive = [], [0]
    load = CaptionedImages.__getitem__

    def watched(images: CaptionedImages, index: int) -> Sample:
        sample = load(images, index)
        loaded.append((index, weakref.ref(sample.image)))
        alive.append(sum(picture() is not None for _, picture in loaded))
        return sample

    def stacked(samples: list[Sample]) -> Batch:
        batch = collate(samples)
        loaded.append((None, weakref.ref(batch.images)))
        return batch

    monkeypatch.setattr(CaptionedImages, "__getitem__", watched)
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.collate", stacked)
    records = open_split(tiny.birds(), "train")[:32]
    evaluator = Evaluator(records, 16, BirdTruth(tiny.birds()), CPU)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    assert evaluator.pools == [order[start : start + 3] for start in (0, 6, 15, 21)]  # the 1st, 3rd, 6th, 8th of 10
    evaluator.ceiling()
    assert not any(picture() is not None for _, picture in loaded)
    loaded.clear()
    evaluator(tiny.build_matcher())
    assert [index for index, _ in loaded if index is not None] == [index for pool in evaluator.pools for index in pool]
    assert max(alive) <= 3 + 1  # a pool, and the stack of the one before
    assert Evaluator(records[:12], 16, None, CPU).pools == [
        p.tolist() for p in torch.randperm(12, generator=torch.Generator().manual_seed(0)).split(3)
    ]


def test_evaluation_against_loops() -> None:
    """One pair at a time, so that no padding and no order of a batch plays a part."""
    truth = BirdTruth(tiny.birds())
    evaluator = Evaluator(open_split(tiny.birds(), "test"), tiny.SIZE, truth, CPU)
    vlm = tiny.build_matcher().train()
    results = evaluator(vlm)
    assert not vlm.training
    (batch,), (swapped,) = evaluator.batches(), evaluator.swapped
    scores = {
        "local": lambda image, anchor: float(local_scores(image, anchor, 4.0, 5.0)),
        "global": lambda image, anchor: float(global_scores(image, anchor)),
        "general": lambda image, anchor: float(vlm.scorer(image, anchor, "caption")),
    }
    hits = dict.fromkeys(("local_r1", "global_r1", "local_swapped", "global_swapped", "general_swapped"), 0)
    with torch.no_grad():
        captions, twins = ([vlm.encode_text([c]) for c in texts] for texts in (batch.captions, swapped))
        for i, caption in enumerate(captions):
            assert sum(a != b for a, b in zip(batch.captions[i].split(), swapped[i].split(), strict=True)) == 1
            image = vlm.encode_image(batch.images[i : i + 1])
            for name, score in scores.items():
                hits[f"{name}_swapped"] += score(image, caption) > score(image, twins[i])
            for name in ("local", "global"):
                hits[f"{name}_r1"] += scores[name](image, caption) == max(scores[name](image, c) for c in captions)
    hard = results.pop("general_hard")
    assert results == pytest.approx({name: count / 20 for name, count in hits.items()})
    assert 0 < hard < 1  # the next test says which


@pytest.mark.parametrize("with_truth", [True, False])
def test_the_hardest_wrong_caption_against_a_loop(with_truth: bool) -> None:
    """It is the wrong one of the highest global score; a caption true of the picture, or of its class, is not wrong."""
    truth = BirdTruth(tiny.birds())
    records = open_split(tiny.birds(), "test")
    records = [record._replace(class_id=i % 3) for i, record in enumerate(records)]
    evaluator = Evaluator(records, tiny.SIZE, truth if with_truth else None, CPU)
    vlm = tiny.build_matcher()
    (batch,) = evaluator.batches()
    claims = [read_caption(caption) for caption in batch.captions]
    wins, spared = 0, 0
    with torch.no_grad():
        captions = [vlm.encode_text([caption]) for caption in batch.captions]
        for i in range(20):
            image = vlm.encode_image(batch.images[i : i + 1])
            shown = truth.values(batch.keys[i])
            if with_truth:
                wrong = [j for j in range(20) if any(shown[name] != value for name, value in claims[j].items())]
            else:
                wrong = [j for j in range(20) if batch.class_ids[j] != batch.class_ids[i]]
            scores = [float(global_scores(image, caption)) for caption in captions]
            hardest = max(wrong, key=lambda j: scores[j])
            spared += hardest != max((j for j in range(20) if j != i), key=lambda j: scores[j])
            pair = [float(vlm.scorer(image, captions[j], "caption")) for j in (i, hardest)]
            wins += pair[0] > pair[1]
    assert spared
    assert 0 < wins < 20
    assert evaluator(vlm)["general_hard"] == pytest.approx(wins / 20)


def test_without_a_wrong_caption_or_a_scorer_there_is_no_hardest() -> None:
    records = [record._replace(class_id=1) for record in open_split(tiny.birds(), "test")]
    evaluator = Evaluator(records, tiny.SIZE, None, CPU)
    assert set(evaluator(tiny.build_matcher())) == {"local_r1", "global_r1"}
    # Two pictures of another class are compared, and are all that is.
    records = [record._replace(class_id=int(i < 18)) for i, record in enumerate(records)]
    assert "general_hard" in Evaluator(records, tiny.SIZE, None, CPU)(tiny.build_matcher())
    assert "general_hard" not in Evaluator(records, tiny.SIZE, None, CPU)(tiny.build_matcher(scorer=False))


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------

# 40 birds in batches of 13: three steps an epoch, nine in all.
RUN = {"epochs": 3, "batch": 13, "embed_dim": 8, "image_size": 32, "device": "cpu", "precision": "float32"}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small encoder at a sixteenth of its width."""
    monkeypatch.setattr(
        "vlm_plugin.pretraining.start.build_image_encoder", lambda name, embed_dim: ConvEncoder(embed_dim, width=2)
    )


def few(folder: Path, classes: str = "01010101", held_out: str = "0101", caption: str = "a dog number {}") -> Path:
    """Train and test pictures in the layout of the originals; digits are their classes, "" for none."""
    for split, ids in (("train", classes or " " * 8), ("test", held_out)):
        names = [f"{split}{i}" for i in range(len(ids))]
        for part in ("images", "text", split):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            Image.new("RGB", (36, 36), (20 * i, 100, 50)).save(folder / "images" / f"{name}.jpg")
            (folder / "text" / f"{name}.txt").write_text(caption.format(i))
        (folder / split / "filenames.pickle").write_bytes(pickle.dumps(names))
        if classes:
            (folder / split / "class_info.pickle").write_bytes(pickle.dumps([int(c) for c in ids]))
    return folder


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": "11111111"}, "expected pictures of two classes or more, got 8 of the one class"),
        ({"caption": "a photo of sks dog"}, "expected captions that tell pictures apart, got the same for all 8"),
        ({"classes": "", "caption": "A dog."}, "expected captions that tell pictures apart, got the same for all 8"),
    ],
)
def test_a_train_split_without_a_wrong_caption_is_refused(tmp_path: Path, options: dict, reason: str) -> None:
    data = few(tmp_path / "data", **options)
    with pytest.raises(ValueError, match=rf"^{data}, train split: {reason}.*no picture has a wrong caption"):
        pretrain(data, tmp_path / "m.vlm.pt", **RUN)
    assert not list(tmp_path.glob("m.vlm.pt*"))


def test_captions_are_compared_as_the_matcher_reads_them() -> None:
    records = [
        Record(str(i), Path(), (text,), None, None) for i, text in enumerate(("A red dog!", "a red  dog", "x red dog"))
    ]
    assert no_wrong_caption(records, None, Vocabulary.build(["a red dog", "x"])) is None
    assert "the same for all 2" in no_wrong_caption(records[:2], None, Vocabulary.build(["a red dog"]))
    # A vocabulary of DAMSM's drops what it does not know.
    assert "the same for all 3" in no_wrong_caption(records, None, Vocabulary(["<end>", "red", "dog"], unknown=None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"held_out": "1"},
            "test split: expected two pictures or more, got 1: no wrong caption, epochs cannot be told",
        ),
        ({"held_out": "01"}, None),
        ({"held_out": " ", "classes": ""}, "got 1: no wrong caption, epochs cannot be told apart, so the last is kept"),
        ({"held_out": "000"}, "got 3 of the one class 0: no wrong caption, the scorer is not judged"),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_held_out_pictures_that_tell_nothing_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict, said: str | None
) -> None:
    vlm = pretrain(few(tmp_path / "data", **options), tmp_path / "m.vlm.pt", **{**RUN, "epochs": 1, "batch": 4})
    out = capsys.readouterr().out
    assert ("test split: expected" in out) == (said is not None)
    assert (said or "") in out
    assert was_judged(vlm) == (said is None)


@pytest.mark.usefixtures("narrow")
def test_of_equal_epochs_the_last_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, shares = [], iter((0.5, 1.0, 1.0, 0.9))

    def look(self: Evaluator, vlm: VLM) -> dict[str, float]:
        seen.append(vlm.fingerprint)
        return dict.fromkeys(("local_r1", "global_r1"), next(shares))

    monkeypatch.setattr(Evaluator, "__call__", look)
    best = pretrain(tiny.birds(), tmp_path / "m.vlm.pt", **{**RUN, "epochs": 4, "batch": 40})
    assert len(set(seen)) == 4
    assert best.fingerprint == seen[2]


@pytest.mark.usefixtures("narrow")
def test_a_run_whose_batches_taught_nothing_writes_no_matcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.vlm.pt"
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.has_wrong_caption", lambda *batch: False)
    with pytest.raises(ValueError, match=rf"got none in 2 epochs: .* 0 throughout, so {out} is not written"):
        pretrain(tiny.birds(), out, **{**RUN, "epochs": 2, "batch": 40})
    assert not list(tmp_path.glob("m.vlm.pt*"))


def test_a_batch_with_a_wrong_caption() -> None:
    first = list(open_split(tiny.birds(), "train"))[:3]

    def wrong(captions: list[str], classes: list[int | None]) -> bool:
        records = [r._replace(captions=(c,), class_id=k) for r, c, k in zip(first, captions, classes, strict=True)]
        images = CaptionedImages(records, 32, train=False)
        return has_wrong_caption(None, collate([images[i] for i in range(3)]))

    assert wrong(["a", "b", "c"], [None, None, None])
    assert wrong(["a", "a", "b"], [1, 1, 2])
    assert not wrong(["a", "b", "c"], [1, 1, 1])
    assert not wrong(["a", "a", "a"], [1, 2, 3])


@pytest.mark.usefixtures("narrow")
def test_a_run_says_that_part_of_the_split_chooses_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "each epoch is judged by 10 of 20 pictures of the validation split"
    pretrain(tiny.birds(), tmp_path / "all.vlm.pt", **{**RUN, "epochs": 1})
    assert "is judged by" not in capsys.readouterr().out
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOL", 5)
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOLS", 2)
    pretrain(tiny.birds(), tmp_path / "part.vlm.pt", **{**RUN, "epochs": 1})
    assert said in capsys.readouterr().out


def break_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = RuntimeError) -> None:
    """The evaluation that ends this epoch fails; the ones before it work."""
    original, calls = Evaluator.__call__, []

    def evaluate(self: Evaluator, vlm: VLM) -> dict[str, float]:
        calls.append(None)
        if len(calls) == number:
            raise error("interrupted")
        return original(self, vlm)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)


@pytest.mark.usefixtures("narrow")
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file has the best epoch's weights; those of the last epoch are in the state, which goes when a run is done.
    states, save = [], write_next
    monkeypatch.setattr(
        "vlm_plugin.pretraining.resume.write_next", lambda c, p: (states.append(copy.deepcopy(c)), save(c, p))
    )
    whole = pretrain(tiny.birds(), tmp_path / "new" / "whole.vlm.pt", **RUN)
    last = states[-1]
    printed = capsys.readouterr().out
    assert "epoch 3/3  validation: R@1 of 20 local" in printed
    assert "true over swapped: local" in printed
    assert f"true over hardest wrong: general {whole.notes['held_out']['general_hard']:.3f}" in printed
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["whole.vlm.pt"]

    out = tmp_path / "cut.vlm.pt"
    with monkeypatch.context() as patch:
        break_in_epoch(2, patch)
        with pytest.raises(RuntimeError, match="interrupted"):
            pretrain(tiny.birds(), out, **RUN)
    assert VLM.load(out).notes["held_out"]["split"] == "validation"  # epoch 1's matcher is there to use
    torch.manual_seed(77)  # whatever happened in between
    resumed = pretrain(tiny.birds(), out, **RUN)
    printed = capsys.readouterr().out
    assert "resuming after epoch 1 of 3" in printed
    assert not out.with_name(out.name + ".state").exists()
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.notes == whole.notes
    assert states[-1]["epoch"] == last["epoch"] == 3
    for name, value in last["vlm"].items():
        assert torch.equal(value, states[-1]["vlm"][name]), name
    assert states[-1]["schedule"] == last["schedule"]
    assert resumed.scorer.encoder_fingerprints == whole.scorer.encoder_fingerprints
    assert set(whole.notes["held_out"]) >= {"split", "ceiling_r1", "local_r1", "global_r1", "general_swapped"}
    assert whole.notes["pretraining"]["batch"] == 13


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("where", ["vlm_global", "image_encoder"])
def test_a_training_that_breaks_down_ends_there_and_keeps_its_files(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a term of a step, the first of epoch 2, or in the weights that its last step leaves."""
    out, steps = tmp_path / "a.vlm.pt", []

    def breaking(vlm: VLM, *arguments: object) -> Losses:
        steps.append(None)
        losses = step_losses(vlm, *arguments)
        if where == "vlm_global" and len(steps) == 4:
            losses.terms["vlm_global"] = torch.tensor(float("nan"))
        if where == "image_encoder" and len(steps) == 6:
            vlm.image_encoder.stem_norm.bias.data[0] = float("nan")
        return losses

    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", breaking)
    message = (
        rf"epoch 2: .*NaN or infinity in {where}.*{out.name}\.state stays as it was after epoch 1; .*--learning-rate"
    )
    with pytest.raises(ValueError, match=message):
        pretrain(tiny.birds(), out, **RUN, max_bad_steps=1)
    assert len(steps) == {"vlm_global": 4, "image_encoder": 6}[where]  # three an epoch
    state = torch.load(out.with_name("a.vlm.pt.state"), weights_only=True)
    assert state["epoch"] == 1
    assert not_finite(state) is None
    assert not_finite(VLM.load(out).state_dict()) is None


@pytest.mark.usefixtures("narrow")
def test_a_kill_between_matcher_and_state_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**RUN, "epochs": 1}
    whole = pretrain(tiny.birds(), tmp_path / "whole.vlm.pt", **options)
    out = tmp_path / "cut.vlm.pt"
    original = write_next

    def die(content: object, path: Path) -> None:
        original(content, path)
        raise KeyboardInterrupt

    for killed in (True, False):
        with monkeypatch.context() as patch:
            if killed:
                patch.setattr("vlm_plugin.pretraining.resume.write_next", die)
                with pytest.raises(KeyboardInterrupt):
                    pretrain(tiny.birds(), out, **options)
            else:
                # All epochs are done: what is there is the result.
                assert pretrain(tiny.birds(), out, **options).fingerprint == whole.fingerprint


@pytest.mark.usefixtures("narrow")
def test_a_finished_matcher_is_left_alone_and_anything_else_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, another, options = tmp_path / "a.vlm.pt", tiny.matcher(), {**RUN, "epochs": 1}
    whole = pretrain(tiny.birds(), out, **options)
    before = out.read_bytes()
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", None)  # nothing trains from here on
    monkeypatch.setattr("vlm_plugin.files._beside", None)  # nor is anything written
    capsys.readouterr()
    assert pretrain(tiny.birds(), out, **options).fingerprint == whole.fingerprint
    assert capsys.readouterr().out == f"{out}: finished already\n"
    with pytest.raises(ValueError, match=r"out: .*a\.vlm\.pt, made otherwise \(batch: 13 there, 12 here\): "):
        pretrain(tiny.birds(), out, **{**options, "batch": 12})
    with pytest.raises(ValueError, match=r"made otherwise \(half: False there, True here\)"):
        pretrain(tiny.birds(), out, **options, half=True)
    other = Path(shutil.copytree(tiny.birds(), tmp_path / "elsewhere" / "birds"))
    (other / "text" / f"{open_split(other, 'train')[0].key}.txt").write_text("a blue bird\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"made otherwise \(pictures: '\w+' there, '\w+' here\)"):
        pretrain(other, out, **options)
    assert out.read_bytes() == before
    notes = tmp_path / "notes.txt"
    notes.write_text("no matcher")
    for file in (notes, another):
        before = file.read_bytes()
        with pytest.raises(ValueError, match=rf"out: expected a new file, got {file}, made otherwise"):
            pretrain(tiny.birds(), file, **options)
        assert file.read_bytes() == before


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("where", ["file/a.vlm.pt", "taken.vlm.pt"])
def test_without_a_place_for_the_matcher_nothing_trains(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.Evaluator", None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("vlm_plugin.files._beside", lambda path: path / "nowhere")  # as if rights were missing
    words = ["--data", tiny.birds(), "--out", tmp_path / where, "--device", "cpu"]
    assert main(["pretrain", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlm-plugin pretrain: {tmp_path / where}: expected a file that can be written, got ")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("narrow")
def test_a_kill_before_the_first_state_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = pretrain(tiny.birds(), tmp_path / "whole.vlm.pt", **RUN), tmp_path / "cut.vlm.pt"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vlm_plugin.pretraining.resume.write_next", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny.birds(), out, **RUN)
    assert VLM.load(out).notes["pretraining"]["epochs_done"] == 1
    assert pretrain(tiny.birds(), out, **RUN).fingerprint == whole.fingerprint


@pytest.mark.usefixtures("narrow")
def test_the_data_may_be_called_something_else_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, options = tmp_path / "clean", tmp_path / "a.vlm.pt", {**RUN, "epochs": 2}
    shutil.copytree(tiny.birds(), data)
    with monkeypatch.context() as patch:
        break_in_epoch(2, patch)
        with pytest.raises(RuntimeError):
            pretrain(data, out, **options)
    renamed = data.rename(tmp_path / "renamed")
    capsys.readouterr()
    pretrain(renamed, out, **options)
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    monkeypatch.chdir(renamed)
    pretrain(".", out, **options)
    assert capsys.readouterr().out == f"{out}: finished already\n"


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("epoch", "kept"),
    [(1, "nothing is kept yet: the same command begins anew"), (2, "kept after epoch 1: the same command goes on")],
)
def test_ctrl_c_is_one_line_that_says_what_is_kept(
    tmp_path: Path, epoch: int, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--data", tiny.birds(), "--out", tmp_path / "a.vlm.pt", "--epochs", 2, "--batch", 13]
    words = [str(word) for word in (*words, "--embed-dim", 8, "--image-size", 16, "--device", "cpu")]
    with monkeypatch.context() as patch:
        break_in_epoch(epoch, patch, KeyboardInterrupt)
        assert main(words) == 130
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith(f"vlm-plugin pretrain: interrupted; {kept}")
    assert "Traceback" not in error
    assert main(words) == 0
    assert ("resuming after epoch 1 of 2" in capsys.readouterr().out) == (epoch == 2)
    monkeypatch.setattr("vlm_plugin.pretraining.start.open_records", interrupt)
    assert main(words) == 130
    assert capsys.readouterr().err == f"vlm-plugin pretrain: interrupted; {tmp_path / 'a.vlm.pt'} stays as it is\n"


@pytest.mark.usefixtures("narrow")
def test_from_a_damaged_state_a_run_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pretrain(tiny.birds(), tmp_path / "whole.vlm.pt", **RUN)
    out = tmp_path / "cut.vlm.pt"
    with monkeypatch.context() as patch:
        break_in_epoch(3, patch)
        with pytest.raises(RuntimeError, match="interrupted"):
            pretrain(tiny.birds(), out, **RUN)
    state, older = tmp_path / "cut.vlm.pt.state", tmp_path / "cut.vlm.pt.previous.state"
    state.write_bytes(b"")
    capsys.readouterr()
    resumed = pretrain(tiny.birds(), out, **RUN)
    told = capsys.readouterr().out
    assert f"{state}: not a readable state" in told
    assert f"going on from the one before, {older}, after epoch 1" in told
    assert resumed.fingerprint == whole.fingerprint
    assert {p.name for p in tmp_path.iterdir()} == {"whole.vlm.pt", "cut.vlm.pt"}


@pytest.mark.usefixtures("narrow")
def test_a_second_pretraining_of_one_file_is_refused_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original, told = tmp_path / "a.vlm.pt", Evaluator.__call__, []

    def evaluate(self: Evaluator, vlm: VLM) -> dict[str, float]:
        if not told:
            words = ["pretrain", "--data", str(tiny.birds()), "--out", str(out)]
            told.append((main(words), capsys.readouterr().err.splitlines()[-1]))
        return original(self, vlm)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    first = pretrain(tiny.birds(), out, **RUN)
    refusal = f"vlm-plugin pretrain: {out}: another process is training this matcher; wait, or stop it first"
    assert told[0][0] == 2
    assert told[0][1].endswith(refusal)
    assert VLM.load(out).fingerprint == first.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["a.vlm.pt"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("narrow")
def test_a_leftover_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.vlm.pt"
    with monkeypatch.context() as patch:
        break_in_epoch(2, patch)
        with pytest.raises(RuntimeError):
            pretrain(tiny.birds(), out, **RUN)
    with pytest.raises(ValueError, match=r"a\.vlm\.pt\.state: .*batch: 13 there, 12 here.*delete the file"):
        pretrain(tiny.birds(), out, **{**RUN, "batch": 12})
    with pytest.raises(ValueError, match=r"epochs: 3 there, 2 here, learning_rate: 0\.001 there, 0\.01 here"):
        pretrain(tiny.birds(), out, **{**RUN, "epochs": 2, "learning_rate": 0.01})
    # Another folder of the same name, with another caption in it.
    other = tmp_path / "elsewhere" / "birds"
    shutil.copytree(tiny.birds(), other)
    key = open_split(other, "train")[0].key
    (other / "text" / f"{key}.txt").write_text("this bird has a red crown and blue wings.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.vlm\.pt\.state: an unfinished run on other data"):
        pretrain(other, out, **RUN)


def without_truth(root: Path) -> Path:
    """CUB's layout and nothing more: no attributes, no validation split."""
    for file in ("attributes.json", "birds.json"):
        (root / file).unlink()
    shutil.rmtree(root / "validation")
    return root


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("classes", [True, False])
def test_pictures_that_are_no_birds(tmp_path: Path, classes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data = without_truth(Path(shutil.copytree(tiny.birds(), tmp_path / "pictures")))
    if not classes:
        for split in ("train", "test"):
            (data / split / "class_info.pickle").unlink()
    vlm = pretrain(data, tmp_path / "m.vlm.pt", **{**RUN, "epochs": 1}, half=True)
    assert "test: R@1 of 20" in capsys.readouterr().out
    assert vlm.notes["held_out"]["split"] == "test"
    assert set(vlm.notes["held_out"]) == {"split", "ceiling_r1", "local_r1", "global_r1", "general_hard"}
    assert VLM.load(tmp_path / "m.vlm.pt").fingerprint == vlm.fingerprint
    # float16 in the file, and the scorer's fingerprints are those of what the file holds.
    assert vlm.scorer.encoder_fingerprints == encoder_fingerprints(vlm.image_encoder, vlm.text_encoder)


def test_the_command_line_has_every_setting_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args(["--data", "birds", "--out", "m.vlm.pt"]))
    settings = {field.name: field.default for field in dataclasses.fields(PretrainSettings)}
    # The encoder left out is something else than the encoder given.
    assert given == {name: value for name, value in settings.items() if name != "encoder"} | {
        "data": Path("birds"),
        "out": Path("m.vlm.pt"),
    }
    assert filled_in(PretrainSettings(encoder="inception", embed_dim=8)) == PretrainSettings(
        encoder="inception", embed_dim=8, image_size=256, learning_rate=2e-4
    )
    assert filled_in(PretrainSettings()).encoder == "conv"
    with pytest.raises(TypeError, match="epoch"):
        pretrain("birds", "m.vlm.pt", epoch=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet"}, r"encoder: expected one of \['conv', 'inception', 'shufflenet'\], got 'resnet'"),
        ({"epochs": 0}, "epochs: expected a whole number from 1 up, got 0"),
        ({"batch": 1}, "batch: expected a whole number from 2 up, got 1"),
        ({"batch": 2.5}, "batch: expected a whole number from 2 up, got 2.5"),
        ({"embed_dim": 0}, "embed_dim: expected a whole number from 1 up, got 0"),
        ({"image_size": 0}, "image_size: expected a whole number from 1 up, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0, got 0.0"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number above 0, got -1.0"),
        ({"image_weights": "imagenet"}, "image_weights: only the inception encoder takes any, got 'imagenet' for conv"),
        ({"freeze_encoders": True}, "freeze_encoders: expected DAMSM encoders with it"),
        ({"damsm": "x.pth", "encoder": "conv"}, "encoder: the DAMSM files decide on it, leave it out, got 'conv'"),
        ({"damsm": "x.pth"}, "embed_dim: the DAMSM files decide on it, leave it out, got 8"),
        ({"damsm": "x.pth", "embed_dim": None, "image_weights": "imagenet"}, "image_weights: the DAMSM files decide"),
        ({"damsm": "x.pth", "embed_dim": None}, "x.pth: expected a DAMSM text encoder, found no such file"),
        ({"device": "tpu"}, "--device tpu"),
        ({"precision": "float16"}, "precision: expected auto, float32 or bfloat16"),
        ({"seed": 2**32}, "seed: expected a number from 0 to 4294967295, got 4294967296"),
        ({"embed_dim": 6}, "heads: expected a divisor of embed_dim"),
        ({"out": "."}, "out: expected a file to write, got the folder"),
        ({"data": "nowhere"}, "nowhere: expected a data folder"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    options = {"data": tiny.birds(), "out": tmp_path / "m.vlm.pt", **RUN, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(**options)
    assert not list(tmp_path.glob("*.vlm.pt*"))


class Bomb:
    """A pickle that makes a folder when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_image_weights_is_refused_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"fc.weight": Bomb(tmp_path / "it ran")}, tmp_path / "bomb.pth")
    words = ("--data", tiny.birds(), "--out", tmp_path / "m.vlm.pt", "--encoder", "inception", "--device", "cpu")
    assert main(["pretrain", *map(str, words), "--image-weights", str(tmp_path / "bomb.pth")]) == 2
    assert "bomb.pth: expected a file of network weights" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.pth"]


# ---------------------------------------------------------------------------------------------------------------------
# Published encoders
# ---------------------------------------------------------------------------------------------------------------------

DAMSM_RUN = {name: value for name, value in RUN.items() if name != "embed_dim"}


def tiny_pair(seed: int = 0, last_word: str = "zebra") -> VLM:
    """What `damsm_pair` returns, but small: no scorer, no word for unknown ones, statistics of some pictures."""
    captions = [caption for record in open_split(tiny.birds(), "train") for caption in record.captions]
    words = sorted({word for caption in captions for word in Vocabulary.build([caption]).words[2:]})
    vocabulary = Vocabulary.from_damsm(dict(enumerate(["<end>", *words, last_word])))
    torch.manual_seed(seed)
    vlm = VLM(
        ConvEncoder(8, width=2), LSTMTextEncoder(len(vocabulary), 8, 8), vocabulary, notes={"source": "DAMSM: tiny"}
    )
    vlm.image_encoder(torch.rand(4, 3, 32, 32))
    return vlm.eval()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Every pair that is asked for is the tiny one; the list is what was asked for."""
    asked = []
    monkeypatch.setattr(
        "vlm_plugin.pretraining.start.damsm_pair", lambda text, data: (asked.append((text, data)), tiny_pair())[1]
    )
    return asked


def test_frozen_encoders_get_a_scorer_and_nothing_else(
    tmp_path: Path, pair: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, terms, modes = [], [], []

    def step(vlm: VLM, *arguments: object) -> Losses:
        starts.append(copy.deepcopy(vlm))
        modes.append([part.training for part in (vlm.image_encoder, vlm.text_encoder, vlm.scorer)])
        losses = step_losses(vlm, *arguments)
        terms.append(set(losses.terms))
        return losses

    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", step)
    options = {**DAMSM_RUN, "epochs": 1, "freeze_encoders": True}
    vlm = pretrain(tiny.birds(), tmp_path / "m.vlm.pt", damsm="some/text_encoder7.pth", **options)
    assert pair == [(Path("some/text_encoder7.pth"), tiny.birds())]
    assert modes == 3 * [[False, False, True]]
    assert terms == 3 * [{"vlm_general", "vvm_general"}]
    for name, value in starts[0].state_dict().items():
        assert torch.equal(vlm.state_dict()[name], value) == (not name.startswith("scorer.")), name
    assert vlm.vocabulary == tiny_pair().vocabulary
    start = tiny_pair()
    assert vlm.scorer.encoder_fingerprints == encoder_fingerprints(start.image_encoder, start.text_encoder)
    assert vlm.notes["source"] == "DAMSM: tiny"
    assert vlm.notes["pretraining"]["damsm"] == "text_encoder7.pth"


@pytest.mark.usefixtures("pair")
def test_without_freezing_the_published_encoders_train_too(tmp_path: Path) -> None:
    vlm = pretrain(tiny.birds(), tmp_path / "m.vlm.pt", damsm="text_encoder7.pth", **{**DAMSM_RUN, "epochs": 1})
    start = tiny_pair()
    for part in ("image_encoder", "text_encoder"):
        for name, value in getattr(start, part).named_parameters():
            assert not torch.equal(getattr(vlm, part).get_parameter(name), value), name
    assert vlm.vocabulary == start.vocabulary
    DualVLMLoss(vlm, lambda_vvm=1, lambda_vlm=1)


@pytest.mark.usefixtures("pair")
def test_an_interrupted_run_on_frozen_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends like an uninterrupted one, and goes on with the very files and settings that it began with alone."""
    options = {**DAMSM_RUN, "damsm": tmp_path / "text_encoder7.pth", "freeze_encoders": True}
    whole = pretrain(tiny.birds(), tmp_path / "whole.vlm.pt", **options)
    out = tmp_path / "cut.vlm.pt"
    with monkeypatch.context() as patch:
        break_in_epoch(3, patch)
        with pytest.raises(RuntimeError, match="interrupted"):
            pretrain(tiny.birds(), out, **options)
    state = out.with_name("cut.vlm.pt.state").read_bytes()
    text, image, vocabulary = tiny_pair(), tiny_pair(), tiny_pair(last_word="zebu")
    text.text_encoder.load_state_dict(tiny_pair(1).text_encoder.state_dict())
    image.image_encoder.stem_norm.running_mean += 1
    for other, named in ((text, "text_encoder"), (image, "image_encoder"), (vocabulary, "vocabulary")):
        with monkeypatch.context() as patch:
            patch.setattr("vlm_plugin.pretraining.start.damsm_pair", lambda *_, other=other: copy.deepcopy(other))
            with pytest.raises(ValueError, match=rf"other settings \({named}: '\w+' there, '\w+' here\)"):
                pretrain(tiny.birds(), out, **options)
    for change, message in (
        ({"freeze_encoders": False}, r"\(freeze_encoders: True there, False here\)"),
        ({"damsm": tmp_path / "text_encoder8.pth"}, r"\(damsm: 'text_encoder7.pth' there, 'text_encoder8.pth' here\)"),
        ({"damsm": None, "freeze_encoders": False}, "damsm: 'text_encoder7.pth' there, None here"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(tiny.birds(), out, **{**options, **change})
    assert out.with_name("cut.vlm.pt.state").read_bytes() == state
    capsys.readouterr()
    # The same encoder may lie elsewhere by now.
    resumed = pretrain(tiny.birds(), out, **{**options, "damsm": tmp_path / "elsewhere" / "text_encoder7.pth"})
    assert "resuming after epoch 2 of 3" in capsys.readouterr().out
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.notes == whole.notes


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("freeze", "r1", "hard", "best"),
    [
        (True, [0.1, 0.1, 0.1], [0.4, 0.9, 0.6], 1),
        (True, [0.1, 0.1, 0.1], [None, None, None], 2),
        (False, [0.3, 0.1, 0.2], [0.4, 0.9, 0.6], 0),
    ],
)
def test_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool, r1: list[float], hard: list[float | None], best: int
) -> None:
    """R@1 does not change where the encoders do not: there the scorer chooses, and the last epoch if it cannot."""
    epochs = [
        {"local_r1": a, "global_r1": a} | ({} if b is None else {"general_hard": b})
        for a, b in zip(r1, hard, strict=True)
    ]
    trained = []

    def evaluate(self: Evaluator, vlm: VLM) -> dict[str, float]:
        trained.append(copy.deepcopy(vlm.scorer.state_dict()))
        return epochs[len(trained) - 1]

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    vlm = pretrain(tiny.birds(), tmp_path / "m.vlm.pt", damsm="text_encoder.pth", freeze_encoders=freeze, **DAMSM_RUN)
    assert vlm.notes["held_out"].items() >= epochs[best].items()
    for name, value in vlm.scorer.state_dict().items():
        assert torch.equal(value, trained[best][name]), name


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder whose hundreds of megabytes do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_published_files(roomy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real sizes and formats, from the command line to the loss that a generator is trained with."""
    data, encoders = make_birds(roomy / "birds", 4, 0, 2, tiny.SIZE), roomy / "DAMSMencoders"
    encoders.mkdir()
    captions = [c for split in ("train", "test") for record in open_split(data, split) for c in record.captions]
    words = dict(enumerate(["<end>", *Vocabulary.build(captions).words[2:]]))
    content = [[[1, 2]], [[3]], words, {word: i for i, word in words.items()}]
    (data / "captions.pickle").write_bytes(pickle.dumps(content, protocol=2))
    torch.manual_seed(0)
    networks = {"image_encoder": InceptionEncoder(256, "Mixed_7c"), "text_encoder": LSTMTextEncoder(len(words), 256)}
    for name, network in networks.items():
        torch.save(network.state_dict(), encoders / f"{name}7.pth")
    out = roomy / "m.vlm.pt"
    command = ["pretrain", "--damsm", encoders / "text_encoder7.pth", "--freeze-encoders", "--data", data, "--out", out]
    command += ["--epochs", 1, "--batch", 2, "--device", "cpu", "--precision", "float32"]
    assert main([str(word) for word in command]) == 0
    assert "epoch 1/1  test: R@1 of 2" in capsys.readouterr().out

    vlm = VLM.load(out)
    for name, network in networks.items():
        state = getattr(vlm, name).state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items()), name
    assert vlm.vocabulary.words == tuple(words.values())
    notes = vlm.notes["pretraining"]
    assert (notes["encoder"], notes["embed_dim"], notes["image_size"]) == ("inception", 256, 256)
    assert notes["learning_rate"] == DEFAULTS["inception"][1]
    loss = DualVLMLoss(vlm, lambda_vvm=1, lambda_vlm=1)
    pictures = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        terms = loss(pictures[0], loss.encode_text(captions[:2]), pictures[1]).terms
    assert set(terms) == set(loss.terms)
    assert len(terms) == 6
    assert all(value.isfinite() for value in terms.values())


# ---------------------------------------------------------------------------------------------------------------------
# Inception
# ---------------------------------------------------------------------------------------------------------------------


def test_one_step_with_inception() -> None:
    records = open_split(tiny.birds(), "train")
    vlm = new_matcher(records, "inception", 8, None)
    assert isinstance(vlm.image_encoder, InceptionEncoder)
    train_mode(vlm)
    assert all(part.training for part in vlm.modules())
    dataset = pairs(None)
    first, second = collate_pairs([dataset[0], dataset[15]])
    losses = step_losses(vlm, first, second, None, CPU, torch.float32, 0)
    losses.total.backward()
    assert losses.total.isfinite()
    assert vlm.image_encoder.Conv2d_1a_3x3.conv.weight.grad.abs().max() > 0


def test_a_pretrained_trunk_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def build(name: str, embed_dim: int, weights: str | None = None) -> nn.Module:
        asked.append((name, weights))
        return InceptionEncoder(embed_dim)

    monkeypatch.setattr("vlm_plugin.pretraining.start.build_image_encoder", build)
    vlm = new_matcher(open_split(tiny.birds(), "train"), "inception", 8, "imagenet")
    assert asked == [("inception", "imagenet")]
    moving = {name for name, parameter in vlm.image_encoder.named_parameters() if parameter.requires_grad}
    assert moving == {"emb_features.weight", "emb_cnn_code.weight", "emb_cnn_code.bias"}
    assert all(parameter.requires_grad for parameter in vlm.text_encoder.parameters())
    train_mode(vlm)
    assert vlm.text_encoder.training
    assert not vlm.image_encoder.Conv2d_1a_3x3.bn.training
