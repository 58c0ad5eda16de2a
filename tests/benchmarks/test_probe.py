"""The probe that reads attributes off sentence vectors."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F

from benchmarks.diagnosis.probe import Probe, Vectors, encoded
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by


def drawn(count: int, seed: int) -> Vectors:
    """Vectors that hold all attributes but the bill's length."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randint(len(v), (count,), generator=generator) for v in ATTRIBUTES.values()], 1)
    named = torch.rand(values.shape, generator=generator) < 0.5
    parts = [
        F.one_hot(values[:, k], len(v)).float() for k, (n, v) in enumerate(ATTRIBUTES.items()) if n != "bill_length"
    ]
    return Vectors(torch.cat(parts, 1), values, named)


@pytest.mark.parametrize("hidden", [0, 64])
def test_what_is_in_the_vectors_is_found(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.diagnosis.probe.STEPS", 1000)
    data, fresh = drawn(600, 0), drawn(300, 1)
    torch.manual_seed(0)
    reader = Probe(data.sentences, hidden)
    reader.fit(data)
    shares = reader.shares(fresh)
    assert all(share > 0.97 for name, share in shares.items() if name not in ("bill_length", "all"))
    assert shares["bill_length"] < 0.65


def test_shares_against_loops() -> None:
    data = drawn(50, 0)
    reader = Probe(data.sentences, 0)
    shares, (right, total) = reader.shares(data), (0, 0)
    for column, (name, logits) in enumerate(zip(ATTRIBUTES, reader(data.sentences), strict=True)):
        rows = [row for row in range(50) if data.named[row, column]]
        hits = sum(int(logits[row].argmax()) == int(data.values[row, column]) for row in rows)
        assert shares[name] == pytest.approx(hits / len(rows))
        right, total = right + hits, total + len(rows)
    assert shares["all"] == pytest.approx(right / total)


def test_vectors_are_the_matchers_sentences() -> None:
    matcher, captions = tiny.build_matcher(), ["a small bird with black wings", "a bird with a blue crown"]
    vectors = encoded(matcher, captions)
    torch.testing.assert_close(vectors.sentences, matcher.encode_text(captions).pooled.detach())
    values, named = said_by(captions)
    assert torch.equal(vectors.values, values)
    assert torch.equal(vectors.named, named)
