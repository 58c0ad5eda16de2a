"""Local matching measured both ways: equal gradients, less memory, and a table that is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cost.local import Size, main


def test_both_forms_are_measured_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.cost.local.SIZES", (Size(5, 6, 16, 8),))
    threads = torch.get_num_threads()
    main(["--rounds", "1", "--results", str(tmp_path / "local.json")])
    torch.set_num_threads(threads)
    content = json.loads((tmp_path / "local.json").read_text())
    (row,) = content["rows"]
    assert row["difference"] < 1e-5
    assert row["bytes"]["explicit"] > 5 * 5 * 6 * 16 * 4
    assert row["ratio"] == pytest.approx(row["seconds"]["block by block"] / row["seconds"]["explicit"])
    assert "| 5 pictures, 6 x 16, D = 8 |" in capsys.readouterr().out
    assert content["machine"]
