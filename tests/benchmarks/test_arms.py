"""How hard each loss pulls and what it costs: sizes by hand, and the tables on a few birds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cost.arms import Bench, main, size_of, table
from benchmarks.quality.plan import ARMS
from vlm_plugin import TERMS, Features
from vlm_plugin.data.dataset import Batch


def test_size_does_not_depend_on_the_batch() -> None:
    picture = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    length = float(picture.pow(2).sum().sqrt())
    for batch in (1, 5):
        # A mean over the pictures hands each picture a share of its own gradient.
        assert size_of(picture.repeat(batch, 1, 1, 1) / batch) == pytest.approx(length)


def test_arms_of_the_comparison_pull_about_as_hard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("benchmarks.cost.arms.BIRDS_FOLDER", tmp_path / "birds")
    monkeypatch.setattr("benchmarks.cost.arms.BIRDS", {"train": 40, "validation": 0, "test": 2, "size": 64, "seed": 3})
    whole = Bench.costs

    def costs_of_four(bench: Bench) -> dict[str, float]:
        bench.batches = [Batch(*(None if part is None else part[:4] for part in batch)) for batch in bench.batches]
        bench.texts = [Features(text.local[:4], text.pooled[:4], text.mask[:4]) for text in bench.texts]
        return whole(bench)

    monkeypatch.setattr(Bench, "costs", costs_of_four)
    torch_threads = torch.get_num_threads()
    main(["--batches", "1", "--results", str(tmp_path / "arms.json")])
    torch.set_num_threads(torch_threads)
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = {name.strip(): [cell.strip() for cell in others] for name, *others in rows[2:]}
    sizes = {name: float(size) for name, (size, _, _) in cells.items() if size}
    assert all(size > 0 for size in sizes.values())
    assert set(TERMS) < set(sizes)
    for name in ("vlm_local alone", "global contrastive", "DAMSM", "feature matching"):
        assert sizes[f"arm {name}"] == pytest.approx(sizes["arm both"], rel=0.25)
    weight = ARMS["global contrastive"].lambda_vlm
    assert sizes["arm global contrastive"] == pytest.approx(weight * sizes["vlm_global"], rel=0.02)
    costs = {name: cost for name, (_, _, cost) in cells.items() if cost}
    assert set(costs) == {f"arm {name}" for name, arm in ARMS.items() if not arm.is_recipe}
    assert costs["arm plain"] == "1.00"
    assert cells["vlm_local"][2] == cells["arm plain"][0] == ""
    assert table(json.loads((tmp_path / "arms.json").read_text())).splitlines()[2].startswith("| adversarial |")
