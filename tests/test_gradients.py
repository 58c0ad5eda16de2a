"""How hard each loss pulls: sizes by hand, and the table on a few birds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gradients
from benchmarks.quality_plan import ARMS
from vlm_plugin import TERMS


def test_size_does_not_depend_on_the_batch() -> None:
    picture = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    length = float(picture.pow(2).sum().sqrt())
    for batch in (1, 5):
        # A mean over the pictures hands each picture a share of its own gradient.
        assert gradients.size_of(picture.repeat(batch, 1, 1, 1) / batch) == pytest.approx(length)


def test_arms_of_the_comparison_pull_about_as_hard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gradients, "BIRDS_FOLDER", tmp_path / "birds")
    monkeypatch.setattr(gradients, "BIRDS", {"train": 40, "validation": 0, "test": 2, "size": 64, "seed": 3})
    gradients.main(["--batches", "1"])
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    sizes = {cells[0].strip(): float(cells[1]) for cells in rows[2:]}
    assert all(size > 0 for size in sizes.values())
    assert set(TERMS) < set(sizes)
    for name in ("vlm_local alone", "global contrastive", "DAMSM", "feature matching"):
        assert sizes[f"arm {name}"] == pytest.approx(sizes["arm both"], rel=0.25)
    weight = ARMS["global contrastive"].lambda_vlm
    assert sizes["arm global contrastive"] == pytest.approx(weight * sizes["vlm_global"], rel=0.02)
