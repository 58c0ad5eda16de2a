"""The numbers of a results table against loops and closed forms, and its warning about circular scores."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from vlm_plugin import VLM
from vlm_plugin.tools.evaluation import Table, frechet_distance, r_precision
from vlm_plugin.tools.judge import Judge, attribute_accuracy

CAPTIONS = [
    f"a bird with a {crown} crown and {wings} wings." for crown in ("red", "blue") for wings in ("green", "white")
]


def others(count: int) -> Tensor:
    return ~torch.eye(count, dtype=torch.bool)


# ---------------------------------------------------------------------------------------------------------------------
# R-precision
# ---------------------------------------------------------------------------------------------------------------------


def test_r_precision_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    captions = torch.randn(30, 4, generator=generator)
    images = captions + 0.7 * torch.randn(30, 4, generator=generator)
    mismatched = torch.rand(30, 30, generator=generator) < 0.7
    for candidates in (2, 6, 100):
        keys = torch.rand(30, 30, generator=torch.Generator().manual_seed(8)).tolist()
        hits = 0
        for i in range(30):
            allowed = sorted((j for j in range(30) if mismatched[i, j] and j != i), key=lambda j: keys[i][j])
            drawn = allowed[: candidates - 1]
            own, *wrong = (float(torch.cosine_similarity(images[i], captions[j], dim=0)) for j in [i, *drawn])
            hits += all(own > score for score in wrong)
        assert r_precision(images, captions, mismatched, candidates, seed=8) == pytest.approx(hits / 30)
        assert 0 < hits < 30


def test_perfect_and_chance_r_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1500, 16, generator=generator)
    assert r_precision(vectors, vectors, others(1500)) == 1
    assert r_precision(vectors.roll(1, 0), vectors, others(1500)) == pytest.approx(0.01, abs=0.008)
    assert r_precision(vectors.roll(1, 0), vectors, others(1500), candidates=2) == pytest.approx(0.5, abs=0.04)


def test_a_tie_is_no_hit() -> None:
    assert r_precision(torch.ones(4, 3), torch.ones(4, 3), others(4)) == 0


def test_what_is_no_candidate_is_never_drawn() -> None:
    """Caption i + 1 is picture i's best match but no allowed candidate of it, under any seed."""
    captions = torch.eye(6)
    images = captions + 2 * captions.roll(-1, 0)
    mismatched = others(6)
    assert r_precision(images, captions, mismatched) == 0
    for i in range(6):
        mismatched[i, (i + 1) % 6] = False
    for seed in range(20):
        assert r_precision(images, captions, mismatched, candidates=4, seed=seed) == 1


def test_the_own_caption_is_never_a_wrong_one() -> None:
    vectors = torch.eye(5)
    assert r_precision(vectors, vectors, torch.ones(5, 5, dtype=torch.bool)) == 1
    # A picture without a single wrong caption is right.
    assert r_precision(vectors.roll(1, 0), vectors, torch.zeros(5, 5, dtype=torch.bool)) == 1


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
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(trained_with: str | None = None, judge: bool = True, scorer: bool = True) -> tuple[Table, VLM, Tensor]:
    matcher = tiny.build_matcher(scorer=scorer)
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    trained_with = matcher.fingerprint if trained_with == "itself" else trained_with
    result = Table(
        CAPTIONS * 2, others(8), pictures, matcher, trained_with, Judge.load(tiny.judge()) if judge else None
    )
    return result, matcher, pictures


def test_a_row_has_the_numbers_of_its_pictures() -> None:
    result, matcher, reference = table()
    pictures = reference.flip(0)
    row = result.add("after", pictures)
    assert result.rows == {"after": row}
    judge = Judge.load(tiny.judge())
    with torch.no_grad():
        image, text = matcher.encode_image(pictures), matcher.encode_text(CAPTIONS * 2)
        assert row["vlms"] == pytest.approx(float(matcher.scorer(image, text, "caption").sigmoid().mean()), rel=1e-5)
        assert row["r_precision"] == r_precision(image.pooled, text.pooled, others(8))
        expected = attribute_accuracy(judge.find(pictures), CAPTIONS * 2).mean()
        assert row["attribute_accuracy"] == pytest.approx(float(expected))
        # The distance alone may be measured of other pictures.
        apart = frechet_distance(judge.features(reference), judge.features(pictures.abs()))
    real = result.add("real", pictures, distance_of=pictures.abs())
    assert real == {**row, "frechet_distance": pytest.approx(apart)}
    assert real["frechet_distance"] > 1.5 * abs(row["frechet_distance"])


def test_captions_of_several_chunks_are_padded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, pictures = table()
    monkeypatch.setattr("vlm_plugin.tools.evaluation._CHUNK", 3)
    parts, _, _ = table()
    for a, b in zip(whole.text, parts.text, strict=True):
        torch.testing.assert_close(a, b)
    first, second = whole.add("x", pictures), parts.add("x", pictures)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("judge", [True, False])
@pytest.mark.parametrize("trained_with", [None, "0123456789abcdef", "itself"])
def test_circular_columns_are_marked_and_only_they(trained_with: str | None, judge: bool) -> None:
    result, matcher, pictures = table(trained_with, judge)
    result.add("after", pictures)
    text, meaning = result.text_table(), result.describe()
    columns = ["r_precision", "vlms", "frechet_distance"]
    if judge:
        columns.insert(0, "attribute_accuracy")
    assert list(meaning) == columns
    # Without a judge the distance too is measured by the matcher.
    by_matcher = {"r_precision", "vlms"} | (set() if judge else {"frechet_distance"})
    circular = by_matcher if trained_with == "itself" else set()
    assert result.circular == bool(circular)
    for name, description in meaning.items():
        assert ("circular" in description) == (name in circular), name
        assert (matcher.fingerprint in description) == (name in by_matcher), name
    header = dict(zip(columns, (cell.strip() for cell in text.splitlines()[0].split("|")[2:-1]), strict=True))
    assert {name for name, cell in header.items() if cell.endswith("*")} == circular
    assert all(cell.rstrip("*").lower().split()[0] in name.replace("_", "-") for name, cell in header.items())
    assert "8 captions of the test split" in text


def test_a_matcher_without_scorer_has_no_vlms() -> None:
    result, _, pictures = table(scorer=False)
    assert set(result.add("after", pictures)) == {"attribute_accuracy", "r_precision", "frechet_distance"}
    assert "VLMS" not in result.text_table()
    assert "vlms" not in result.describe()
