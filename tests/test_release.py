"""Files that release 0.1 wrote still load: matchers, runs, checkpoints, reports, an unfinished pretraining.

`release-0.1.tar.xz` was written by that release, from the birds, the matcher and the settings of `tiny`: two runs of
two steps of four (`whole.jsonl` is the log of the same runs when nothing stops them), and a pretraining that was
interrupted in its second epoch of two.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import tiny
import torch

from vlm_plugin import VLM, ConvEncoder
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.gans.find import baseline, find_networks
from vlm_plugin.gans.run import run
from vlm_plugin.pretraining.pretrain import pretrain
from vlm_plugin.report.report import write_report

ARCHIVE = Path(__file__).parent / "release-0.1.tar.xz"
# Other machines and releases of torch round otherwise, and a few steps of a GAN enlarge that.
CLOSE = 2e-2


@pytest.fixture
def release(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "release", filter="data")
    return tmp_path / "release"


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_matcher_and_a_judge_load(release: Path) -> None:
    vlm = VLM.load(release / "tiny.vlm.pt")
    assert vlm.fingerprint == "c91f575bd4c00c17"
    assert vlm.encode_text(["a small red bird"]).pooled.shape == (1, tiny.DIM)
    assert Judge.load(release / "tiny.judge.pt").find(torch.zeros(2, 3, 32, 32)).shape[0] == 2


@pytest.mark.parametrize(("name", "option"), [("dfgan", "--vlm"), ("attngan", "--text-encoder")])
def test_a_run_goes_on_as_if_nothing_had_happened(
    release: Path, name: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge.load(release / "tiny.judge.pt")
    monkeypatch.setattr(Judge, "load", classmethod(lambda cls, *_: judge))
    before = rows(release / name / "log.jsonl")
    words = ["--data", str(tiny.birds()), option, str(release / "tiny.vlm.pt"), "--steps", "4", "--device", "cpu"]
    found = baseline(name)
    run(name, found.folder, found.trainer, ["--resume", str(release / name), *words])
    after, whole = rows(release / name / "log.jsonl"), rows(release / name / "whole.jsonl")
    assert after[:2] == before
    assert [row["step"] for row in after] == [0, 1, 2, 3]
    for row, expected in zip(after, whole, strict=True):
        assert row == pytest.approx(expected, rel=CLOSE, abs=CLOSE)
    assert (release / name / "report.html").is_file()


def test_its_networks_are_found(release: Path) -> None:
    trainer, saved = find_networks(release / "dfgan")
    assert trainer is baseline("dfgan").trainer
    assert saved.matcher == "/somewhere/tiny.vlm.pt"
    assert len(saved.trained_with) == 2
    assert trainer.load_generator(saved, "dfgan").noise_dim == 4


def test_its_evaluation_makes_a_report(release: Path, tmp_path: Path) -> None:
    write_report([release / "dfgan"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    accuracy = json.loads((release / "dfgan" / "evaluation.json").read_text(encoding="utf-8"))["rows"]
    assert "Frechet" in page
    assert accuracy


def test_an_unfinished_pretraining_goes_on(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "vlm_plugin.pretraining.start.build_image_encoder", lambda name, embed_dim: ConvEncoder(embed_dim, width=2)
    )
    options = {"epochs": 2, "batch": 8, "embed_dim": 4, "image_size": 32, "device": "cpu", "precision": "float32"}
    again = pretrain(tiny.birds(), release / "unfinished.vlm.pt", **options)
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    assert not (release / "unfinished.vlm.pt.state").exists()
    whole = pretrain(tiny.birds(), release / "new.vlm.pt", **options)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=CLOSE, atol=CLOSE)
