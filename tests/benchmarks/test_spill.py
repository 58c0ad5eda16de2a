"""Colours that spill, backgrounds, and the two parts of the distance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from benchmarks.diagnosis.spill import apart, main, parts_of_distance, spill
from benchmarks.quality.plan import PROTOCOLS, Protocol, Run
from benchmarks.quality.run import Grid
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.distances import frechet_distance


def test_spill_by_hand() -> None:
    values, named = said_by(
        ["this bird has a red crown and blue wings.", "a bird with a green breast and a long bill."]
    )
    found = values.clone()
    index = {name: number for number, name in enumerate(ATTRIBUTES)}
    for row, part, colour in (
        (0, "back", "red"), (0, "breast", "yellow"),
        (1, "crown", "green"), (1, "back", "white"), (1, "wings", "green"),
    ):  # fmt: skip
        found[row, index[part]] = ATTRIBUTES[part].index(colour)
    # Of the first: back and breast are open; the back alone has the crown's red, neither has the wings' blue: 1 of 4.
    # Of the second: crown and wings have the breast's green, the back has not: 2 of 3.
    assert spill(found, values, named) == pytest.approx(3 / 7)


def test_spill_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    found, values = (torch.randint(3, (40, len(ATTRIBUTES)), generator=generator) for _ in range(2))
    named = torch.rand(values.shape, generator=generator) < 0.4
    hits = pairs = 0
    for row in range(40):
        for first in range(4):
            for second in range(4):
                if named[row, first] and not named[row, second]:
                    pairs += 1
                    hits += int(values[row, first] == found[row, second])
    assert spill(found, values, named) == pytest.approx(hits / pairs)


def test_how_far_apart_values_are() -> None:
    real = torch.tensor([0, 0, 1, 1])
    assert apart(real, real) == 0
    assert apart(torch.tensor([4, 4]), real) == 1
    assert apart(torch.tensor([0, 0, 0, 1]), real) == pytest.approx(0.25)


def test_both_parts_are_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(60, 5, generator=generator) * scale for scale in (1.0, 2.0))
    means, covariances = parts_of_distance(real, fake + 1)
    assert means > 1
    assert covariances > 1
    assert means + covariances == pytest.approx(frechet_distance(real, fake + 1), rel=1e-4)
    assert sum(parts_of_distance(real, real)) == pytest.approx(0, abs=1e-4)


@pytest.mark.usefixtures("in_this_process")
def test_runs_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.quality.run.CAPTIONS", 2)
    monkeypatch.setattr("benchmarks.diagnosis.spill.QUALITY", tmp_path / "results")
    # Fewer pictures than captions: some are drawn twice, and are measured once.
    birds = {"train": 20, "validation": 12, "test": 16, "size": tiny.SIZE, "seed": 5}
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("tiny", legs=(1,), birds=birds))
    runs = [Run("tiny", "dfgan", "vlm", seed) for seed in (0, 1)]
    Grid(tmp_path / "results", tmp_path / "work", jobs=2, settings=tiny.settings(evaluated=20)).run(runs)
    words = ["tiny-*", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "spill.json")]
    main(words)
    table = capsys.readouterr().out
    assert "| tiny | DF-GAN | vlm | 1 | 2 | " in table
    measured = json.loads((tmp_path / "spill.json").read_text())
    for run in runs:
        numbers, leg = (
            measured[run.name],
            json.loads((tmp_path / "results" / f"{run.name}.json").read_text())["legs"][0],
        )
        assert (numbers["steps"], numbers["arm"], numbers["seed"]) == (1, "vlm", run.seed)
        parts = numbers["generated"]["means"] + numbers["generated"]["covariances"]
        # The pictures are those that the run was scored on.
        assert parts == pytest.approx(leg["frechet_distance"], rel=1e-3)
        assert numbers["real"]["backgrounds"] == 0
        assert 0 < numbers["real"]["spill"] < 1
    monkeypatch.setattr("benchmarks.diagnosis.spill.measure", lambda *_: pytest.fail("measured again"))
    main(words)
    assert capsys.readouterr().out == table
    # A run whose folder has gone past its last result.
    path = tmp_path / "results" / f"{runs[0].name}.json"
    content = json.loads(path.read_text())
    content["legs"][-1]["steps"] = 2
    path.write_text(json.dumps(content))
    main(words)
    assert capsys.readouterr().out == f"{runs[0].name}: left out, it is being trained beyond its last result\n{table}"
