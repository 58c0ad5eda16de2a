"""The numbers of a table against loops and closed forms, what is evaluated, and the mark of circular scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from vlm_plugin import VLM
from vlm_plugin.data import BirdTruth, Record, open_split, true_pairs
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.captions import Subject, items, subject
from vlm_plugin.evaluation.distances import Inception, Number, frechet_distance, inception_numbers
from vlm_plugin.evaluation.judge import Judge, attribute_accuracy
from vlm_plugin.evaluation.scorers import Named, Scorers
from vlm_plugin.evaluation.table import NO_INCEPTION, Table
from vlm_plugin.matcher.choose import marks
from vlm_plugin.metrics.base import mean_and_spread

# ---------------------------------------------------------------------------------------------------------------------
# Frechet distance
# ---------------------------------------------------------------------------------------------------------------------


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T


def gaussians_apart(real: np.ndarray, fake: np.ndarray) -> float:
    """|m - n|^2 + tr(S + T - 2 (S^1/2 T S^1/2)^1/2), which needs symmetric roots alone."""
    s, t = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    gap = real.mean(0) - fake.mean(0)
    return float(gap @ gap + np.trace(s) + np.trace(t) - 2 * np.trace(root(root(s) @ t @ root(s))))


def test_frechet_distance_against_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    fake = (
        1.5 * torch.randn(80, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 2
    )
    expected = gaussians_apart(real.numpy(), fake.numpy())
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(real + 3, real) == pytest.approx(9 * 5, rel=1e-8)


@pytest.mark.parametrize("count", [40, 4])  # 4: fewer pictures than features
def test_frechet_distance_of_equal_sets(count: int) -> None:
    features = torch.rand(count, 8, generator=torch.Generator().manual_seed(3))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What is evaluated
# ---------------------------------------------------------------------------------------------------------------------


def test_one_caption_of_every_picture_before_another() -> None:
    every = items([2, 3, 1])
    assert [tuple(item) for item in every] == [(0, 0), (1, 1), (2, 0), (0, 1), (1, 2), (1, 0)]
    assert items([2, 3, 1], 4) == every[:4]
    # Fewer than pictures: the caption's number counts the chosen ones, as if there were no others.
    assert [tuple(item) for item in items([2] * 7, 3)] == [(0, 0), (2, 1), (4, 0)]
    assert [tuple(item) for item in items([2] * 6, 3)] == [(0, 0), (2, 1), (4, 0)]
    assert items([2, 3, 1], 100) == every
    assert items([]) == []


def test_no_caption_that_is_true_of_a_bird_is_a_wrong_one() -> None:
    records, truth = open_split(tiny.birds(), "test"), BirdTruth(tiny.birds())
    chosen = items([len(record.captions) for record in records], 50)
    about = subject(records, chosen, truth)
    assert about.captions == [records[i].captions[n] for i, n in chosen]
    wrong = about.mismatched(about.facts, about.facts)
    values = truth.pictures([records[i].key for i, _ in chosen])
    assert torch.equal(wrong, ~true_pairs(values, *said_by(about.captions)))
    assert wrong.any()
    assert not wrong.diagonal().any()
    assert torch.equal(about.mismatched(about.facts[7:9], about.facts), wrong[7:9])


def test_without_attributes_classes_and_without_classes_equal_captions_are_no_wrong_ones() -> None:
    def record(key: str, caption: str, class_id: int | None) -> Record:
        return Record(key, Path(key), (caption,), class_id, None)

    chosen = items([1, 1, 1])
    classes = subject([record("a", "x", 4), record("b", "y", 4), record("c", "x", 5)], chosen, None)
    assert classes.mismatched(classes.facts, classes.facts).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    free = subject([record("a", "x", None), record("b", "y", None), record("c", "x", None)], chosen, None)
    assert free.mismatched(free.facts, free.facts).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert free.digest == classes.digest
    assert (
        subject([record("a", "z", 4)], items([1]), None).digest
        != subject([record("a", "x", 4)], items([1]), None).digest
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(trained_with: str | None = None, judge: bool = True, scorer: bool = True, own: bool = False) -> Table:
    """Of 20 captions; the evaluator is another matcher than the training's unless `own`."""
    records = open_split(tiny.birds(), "test")
    about = subject(records, items([10] * 20, 20), BirdTruth(tiny.birds()) if judge else None)
    matcher = Named("trained.vlm.pt", tiny.build_matcher(scorer=scorer))
    evaluator = matcher if own else Named("other.vlm.pt", tiny.build_matcher(seed=9, scorer=scorer))
    trained_with = matcher.vlm.fingerprint if trained_with == "matcher" else trained_with
    trained_with = () if trained_with is None else [trained_with]
    judging = Judge.load(tiny.judge()) if judge else None
    return Table(about, batches(drawn(2)), Scorers(evaluator, matcher, trained_with, judging))


def drawn(seed: int) -> Tensor:
    return torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batches(pictures: Tensor, size: int = 20) -> Iterator[Tensor]:
    return iter(pictures.split(size))


def expected_of(vlm: VLM, about: Subject, pictures: Tensor) -> dict[str, float]:
    with torch.no_grad():
        image, text = vlm.encode_image(pictures), vlm.encode_text(about.captions)
        scores = vlm.scorer(image, text, "caption").sigmoid()
        cosine = torch.nn.functional.cosine_similarity(image.pooled[:, None], text.pooled[None], dim=-1)
    wrong = about.mismatched(about.facts, about.facts)
    hits = [all(cosine[i, i] > cosine[i, j] + 1e-6 for j in range(20) if wrong[i, j]) for i in range(20)]
    return {"vlms": float(scores.mean()), "r_precision": sum(hits) / 20}


def test_a_row_has_the_numbers_of_its_pictures() -> None:
    result, pictures = table(), drawn(3)
    row = result.add("after", batches(pictures))
    assert result.rows == {"after": row}
    for suffix, vlm in (("", tiny.build_matcher(seed=9)), ("_training", tiny.build_matcher())):
        for name, value in expected_of(vlm, result.subject, pictures).items():
            assert row[name + suffix].value == pytest.approx(value, rel=1e-5), name + suffix
            assert row[name + suffix].spread >= 0
    judge = Judge.load(tiny.judge())
    with torch.no_grad():
        accuracy = attribute_accuracy(judge.find(pictures), result.subject.captions)
        assert row["attribute_accuracy"] == pytest.approx([float(v) for v in mean_and_spread(accuracy, 10, 0)])
        # The distance alone may be measured of other pictures.
        near = frechet_distance(judge.features(drawn(2)), judge.features(pictures))
        apart = frechet_distance(judge.features(drawn(2)), judge.features(pictures.abs()))
    assert row["frechet_distance"].value == pytest.approx(near, rel=1e-3)
    real = result.add("real", batches(pictures), distance_of=batches(pictures.abs()))
    assert real["frechet_distance"].value == pytest.approx(apart, rel=1e-3)
    assert {**real, "frechet_distance": None} == {**row, "frechet_distance": None}
    assert result.scores["after"].shape == (20,)
    assert float(result.scores["after"].mean()) == pytest.approx(row["vlms"].value)


def test_the_batch_size_changes_nothing_but_rounding() -> None:
    whole = table().add("after", batches(drawn(3)))
    for size in (1, 7):
        parts = table().add("after", batches(drawn(3), size))
        for name, number in whole.items():
            tolerance = {"abs": 0.05 + 1e-9} if name.startswith("r_precision") else {"rel": 1e-4}
            if name in ("vlms", "vlms_training"):
                tolerance = {"rel": 1e-5}
            assert parts[name].value == pytest.approx(number.value, **tolerance), name


@pytest.mark.parametrize("count", [19, 21])
def test_another_number_of_pictures_than_of_captions_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="pictures: expected 20, one a caption, got"):
        table().add("after", batches(torch.zeros(count, 3, 32, 32), 7))


def of_classes(classes: list[int | None]) -> Table:
    """A table of as many pictures, scored."""
    records = [Record(str(i), Path(str(i)), (f"a {i} bird",), c, None) for i, c in enumerate(classes)]
    evaluator = Named("other.vlm.pt", tiny.build_matcher(seed=9))
    about = subject(records, items([1] * len(classes)), None)
    result = Table(about, batches(drawn(2)[: len(classes)]), Scorers(evaluator))
    result.add("after", batches(drawn(3)[: len(classes)]))
    return result


@pytest.mark.parametrize(("classes", "least"), [([None] * 20, 20), ([0] * 12 + [1] * 8, 9), ([0] * 19 + [1], 2)])
def test_the_column_says_of_how_many_captions_the_own_one_is_first(classes: list[int | None], least: int) -> None:
    result = of_classes(classes)
    assert result.columns["r_precision"].what == f"own caption first of at least {least}"
    assert 0 <= result.rows["after"]["r_precision"].value <= 1


def test_of_enough_captions_the_own_one_is_first_of_a_hundred() -> None:
    records = [Record(str(i), Path(str(i)), (f"a {i} bird",), None, None) for i in range(100)]
    about = subject(records, items([1] * 100), None)
    result = Table(about, batches(drawn(2)), Scorers(Named("other.vlm.pt", tiny.build_matcher(seed=9))))
    assert result.columns["r_precision"].what == "own caption first of 100"


def test_without_wrong_captions_there_is_no_r_precision() -> None:
    result = of_classes([3] * 20)
    assert "r_precision" not in result.rows["after"]
    assert "| after |  | 0." in result.text_table()
    assert "R-precision: none, for a picture has no wrong caption among these, by" in result.text_table()


def test_parts_of_one_picture_have_no_spread() -> None:
    for count in (19, 20):
        result = of_classes([None] * count)
        row, text = result.rows["after"], result.text_table()
        assert {row[name].spread is None for name in ("r_precision", "vlms")} == {count == 19}
        assert ("±" in text, "no spread below 20 pictures" in text) == (count == 20, count == 19)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("judge", [True, False])
@pytest.mark.parametrize("trained_with", [None, "0123456789abcdef", "matcher"])
def test_circular_columns_are_marked_and_only_they(trained_with: str | None, judge: bool, own: bool) -> None:
    result = table(trained_with, judge, own=own)
    result.add("after", batches(drawn(3)))
    matcher = tiny.build_matcher().fingerprint
    by_matcher = {name for name, column in result.columns.items() if matcher in column.by}
    # Without a judge the distance too is measured by the evaluator.
    expected = {"r_precision", "vlms"} | (set() if judge else {"frechet_distance"})
    assert by_matcher == (expected if own else {"r_precision_training", "vlms_training"})
    circular = {name for name, column in result.columns.items() if column.circular}
    assert circular == (by_matcher if trained_with == "matcher" else set())
    text = result.text_table()
    cells = [cell.strip() for cell in text.splitlines()[0].split("|")[2:-1]]
    assert {name for name, cell in zip(result.columns, cells, strict=True) if cell.endswith("*")} == circular
    assert text.count("circular: this matcher trained the generator") == len(circular)
    assert "20 captions" in text
    assert NO_INCEPTION in text


def test_a_matcher_that_sees_with_the_trainers_eyes_is_circular_too() -> None:
    """Another scorer, or none, on the image encoder that the generator was trained to please."""
    records = open_split(tiny.birds(), "test")
    about = subject(records, items([10] * 20, 20), None)
    trained, judging, blind = tiny.build_matcher(), tiny.build_matcher(scorer=False), tiny.build_matcher(seed=9)
    assert trained.fingerprint != judging.fingerprint
    blind.text_encoder.load_state_dict(trained.text_encoder.state_dict())
    for taught in ({trained.fingerprint}, marks(trained)):
        scorers = Scorers(Named("judge", judging), Named("trained", trained), taught)
        result = Table(about, batches(drawn(2)), scorers)
        assert {name for name, column in result.columns.items() if column.circular} == set(result.columns)
    # Without the matcher beside it, by what later notes say.
    result = Table(about, batches(drawn(2)), Scorers(Named("judge", judging), trained_with=marks(trained)))
    assert result.columns["r_precision"].circular
    # Who shares the text encoder alone sees for itself.
    result = Table(about, batches(drawn(2)), Scorers(Named("other", blind), trained_with=marks(trained)))
    assert not result.columns["vlms"].circular


def test_a_matcher_without_scorer_has_no_vlms() -> None:
    result = table(scorer=False)
    row = result.add("after", batches(drawn(3)))
    assert set(row) == {"attribute_accuracy", "r_precision", "r_precision_training", "frechet_distance"}
    assert "VLMS" not in result.text_table()
    assert result.scores == {}


def test_the_content_is_plain_json() -> None:
    result = table()
    row = result.add("after", batches(drawn(3)))
    content = json.loads(json.dumps(result.content({"seed": 0})))
    assert content["manifest"] == {"seed": 0}
    assert list(content["columns"]) == list(row)
    assert content["rows"] == [
        {"name": "after", "values": {k: {"value": v.value, "spread": v.spread} for k, v in row.items()}}
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Inception
# ---------------------------------------------------------------------------------------------------------------------


def test_inception_weights_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--inception .*none\.pth: no such file"):
        Inception(tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"--inception .*other\.pth: expected torch-fidelity's Inception weights"):
        Inception(tmp_path / "other.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: expected .* weights, got .*Missing key") as caught:
        Inception(tmp_path / "other.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(tmp_path))


def test_inception_numbers_are_those_of_torchmetrics_called_by_hand() -> None:
    """On features in Inception's place: the numbers come from torchmetrics, the features are passed on as they are."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Network(nn.Module):
        num_features = 12

        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.float().flatten(1)

    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, 256, (40, 3, 2, 2), generator=generator, dtype=torch.uint8) for _ in range(2))
    logits = torch.randn(40, 7, generator=generator)
    numbers = inception_numbers(real.float().flatten(1), fake.float().flatten(1), logits)
    fid = FrechetInceptionDistance(feature=Network(), input_img_size=(3, 2, 2))
    kid = KernelInceptionDistance(feature=Network(), subset_size=20)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert numbers["fid"].value == pytest.approx(float(fid.compute()), rel=1e-5)
    torch.manual_seed(0)
    assert numbers["kid"] == pytest.approx([float(part) for part in kid.compute()], rel=1e-3)
    # Its parts are drawn after KID's subsets.
    score = InceptionScore(feature=_Flat())
    score.update(logits)
    assert numbers["inception_score"] == pytest.approx([float(part) for part in score.compute()], rel=1e-5)
    before = torch.random.get_rng_state()
    assert inception_numbers(real.float().flatten(1), fake.float().flatten(1), logits) == numbers
    assert torch.equal(before, torch.random.get_rng_state())


def _numbers(count: int, others: int | None = None) -> dict[str, Number]:
    generator = torch.Generator().manual_seed(count)
    real, fake = (torch.rand(n, 4, generator=generator) for n in (others or count, count))
    return inception_numbers(real, fake + 0.02, torch.randn(count, 5, generator=generator))


@pytest.mark.parametrize("count", [2, 3, 5, 10, 19])
def test_few_pictures_have_no_spread_and_no_inception_score(count: int) -> None:
    numbers = _numbers(count)
    assert set(numbers) == {"fid", "kid"}
    assert numbers["kid"].spread is None
    assert math.isfinite(numbers["kid"].value)


@pytest.mark.parametrize("count", [20, 21, 25, 41, 300, 1000])
def test_a_spread_says_something_from_twenty_pictures_up(count: int) -> None:
    numbers = _numbers(count)
    assert numbers["kid"].spread > 0
    # No part of a single picture, whose score would be exactly 1.
    assert numbers["inception_score"].spread > 0
    assert numbers["inception_score"].value > 1


def test_few_real_pictures_count_as_well() -> None:
    numbers = _numbers(30, 19)
    assert numbers["kid"].spread is None
    assert numbers["inception_score"].spread > 0


@pytest.mark.parametrize(("count", "size"), [(2, 2), (19, 19), (20, 10), (41, 20), (1000, 500), (2001, 1000)])
def test_subsets_are_half_of_the_pictures(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image import kid

    found, distance = [], kid.poly_mmd
    monkeypatch.setattr(kid, "poly_mmd", lambda a, b, *rest: (found.append((len(a), len(b))), distance(a, b, *rest))[1])
    _numbers(count)
    assert found == [(size, size)] * (100 if count >= 20 else 1)


def test_the_default_device_changes_no_distance() -> None:
    """With CUDA as the default the parts would be drawn there, for features that lie here: meta stands in for it."""
    expected, before = _numbers(40), torch.get_default_device()
    torch.set_default_device("meta")
    try:
        generator = torch.Generator().manual_seed(40)
        real, fake = (torch.rand(40, 4, generator=generator, device="cpu") for _ in range(2))
        logits = torch.randn(40, 5, generator=generator, device="cpu")
        assert inception_numbers(real, fake + 0.02, logits) == expected
    finally:
        torch.set_default_device(before)


@pytest.mark.parametrize(
    ("notes", "judged"),
    [({}, True), ({"held_out": {"general_swapped": 0.5}}, True), ({"held_out": {"general_hard": 0.5}}, True),
     ({"held_out": {"local_r1": 1.0}}, False)],
)  # fmt: skip
def test_vlms_of_a_scorer_that_no_wrong_caption_has_judged(notes: dict, judged: bool) -> None:
    vlm = tiny.build_matcher()
    vlm.notes.update(notes)
    records = list(open_split(tiny.birds(), "test"))[:2]
    table = Table(subject(records, items([1, 1], 2), None), [torch.zeros(2, 3, 32, 32)], Scorers(Named("m.pt", vlm)))
    assert any(note.startswith("VLMS by m.pt may mean nothing") for note in table.notes) == (not judged)


class _Flat(nn.Module):
    num_features = 7

    def forward(self, values: Tensor) -> Tensor:
        return values
