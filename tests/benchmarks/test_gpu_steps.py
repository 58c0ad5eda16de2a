"""The benchmark of steps on a GPU: its table by hand, and on a CPU a tiny run that is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from easydict import EasyDict

from benchmarks.cost.cost import ARMS, GIB, workplace
from benchmarks.cost.gpu_steps import ROUNDS, main, measure, table

PLAIN, DUAL = {"seconds": [0.1, 0.3, 0.2], "bytes": 2 * GIB}, {"seconds": [0.3, 0.3, 9.0], "bytes": 3 * GIB}


def test_the_table() -> None:
    of = {"batch": 24, "steps": 36_000, "precisions": {"bfloat16": {"plain": PLAIN, "dual": DUAL}}}
    shown = table({"GPU X": {"versions": {"torch": "1.2"}, "configs": {"dfgan/bird": of}}})
    assert "| dfgan/bird | 24 | bfloat16 | 200 / 300 | 1.50 | 2.0 / 3.0 | 2.0 / 3.0 |" in shown
    assert "GPU X, torch 1.2." in shown
    assert "Not measured: dfgan/scratch, attngan/scratch, dfgan/coco," in shown


@pytest.mark.parametrize("baseline", ["dfgan", "attngan"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_steps_are_timed(baseline: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.cost.gpu_steps.STEPS", 2)
    place = workplace(baseline, EasyDict(tiny.settings(baseline)), tiny.build_matcher(), device)
    before = {name: value.clone() for name, value in place.trainer.generator.state_dict().items()}
    found = measure(place, 3, torch.bfloat16)
    assert place.trainer.dtype == torch.bfloat16
    assert found.keys() == set(ARMS)
    for numbers in found.values():
        assert len(numbers["seconds"]) == ROUNDS
        assert min(numbers["seconds"]) > 0
        assert (numbers["bytes"] > 0) == (device == "cuda")
    after = place.trainer.generator.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path, places = tmp_path / "gpu.json", []

    def place(baseline: str, settings: EasyDict, matcher: object, device: str) -> tuple[str, object]:
        places.append((baseline, settings.batch, matcher, device))
        return baseline, matcher

    monkeypatch.setattr("benchmarks.cost.gpu_steps.full_matcher", lambda: "full")
    monkeypatch.setattr("benchmarks.cost.gpu_steps.workplace", place)
    monkeypatch.setattr("benchmarks.cost.gpu_steps.measure", lambda place, batch, dtype: {"plain": PLAIN, "dual": DUAL})
    main(["--configs", "dfgan/bird", "--device", "cpu", "--results", str(path)])
    main(["--configs", "dfgan/bird", "dfgan/scratch", "--device", "cpu", "--results", str(path)])
    # Of 256 pixels with a matcher of full size, of 64 with the packaged one.
    assert [(baseline, batch, device) for baseline, batch, _, device in places] == [
        ("dfgan", 24, "cpu"), ("dfgan", 32, "cpu"),
    ]  # fmt: skip
    assert places[0][2] == "full"
    assert places[1][2].fingerprint
    content = json.loads(path.read_text())["CPU"]["configs"]
    assert content["dfgan/scratch"]["steps"] == 9000
    assert content["dfgan/bird"]["precisions"].keys() == {"float32", "bfloat16"}
    shown = capsys.readouterr().out
    assert "| dfgan/scratch | 32 | float32 |" in shown
