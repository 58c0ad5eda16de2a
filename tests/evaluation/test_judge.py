"""The judge: what its numbers mean, what its file keeps, and that it learns from birds alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch

from vlm_plugin.data import ATTRIBUTES, BirdTruth, CaptionedImages, open_split
from vlm_plugin.data.birds.captions import read_caption
from vlm_plugin.data.birds.make import plan_birds
from vlm_plugin.evaluation.judge import Judge, _roughened, attribute_accuracy, train_judge


def test_attribute_accuracy_against_a_loop() -> None:
    captions = [caption for bird in plan_birds("train", 4) for caption in bird.captions]
    generator = torch.Generator().manual_seed(0)
    # Two values a column, so that about half of what is named comes out right.
    found = torch.stack([torch.randint(2, (len(captions),), generator=generator) for _ in ATTRIBUTES], dim=1)
    shares = []
    for row, caption in zip(found.tolist(), captions, strict=True):
        said = read_caption(caption)
        right = [
            ATTRIBUTES[name].index(said[name]) == row[column] for column, name in enumerate(ATTRIBUTES) if name in said
        ]
        shares.append(sum(right) / len(right))
    assert attribute_accuracy(found, captions).tolist() == pytest.approx(shares)
    assert 0 < sum(shares) < len(shares)


def test_what_the_caption_does_not_name_does_not_count() -> None:
    column = list(ATTRIBUTES).index("crown")
    found = torch.full((2, len(ATTRIBUTES)), 99)
    found[0, column] = ATTRIBUTES["crown"].index("blue")
    captions = ["a bird with a blue crown.", "a bird with a blue crown and red wings."]
    found[1] = found[0]
    assert attribute_accuracy(found, captions).tolist() == [1.0, 0.5]


def test_network_shapes() -> None:
    judge = Judge(width=2).eval()
    for size in (32, 64, 96):
        images = torch.rand(3, 3, size, size) * 2 - 1
        assert judge.features(images).shape == (3, judge.num_features)
        assert judge.features(images).min() >= 0
        logits = judge(images)
        assert {name: tuple(value.shape) for name, value in logits.items()} == {
            name: (3, len(values)) for name, values in ATTRIBUTES.items()
        }
        found = judge.find(images)
        for column, name in enumerate(ATTRIBUTES):
            assert torch.equal(found[:, column], logits[name].argmax(1))


def test_half_of_the_training_pictures_are_roughened() -> None:
    images = torch.rand(400, 3, 8, 8) * 2 - 1
    rough = _roughened(images, 3)
    assert rough.shape == images.shape
    assert rough.abs().max() <= 1
    untouched = (rough == images).flatten(1).all(1).float().mean()
    assert 0.4 < float(untouched) < 0.6
    torch.manual_seed(9)
    assert torch.equal(rough, _roughened(images, 3))
    assert not torch.equal(rough, _roughened(images, 4))


def test_training_writes_a_file_with_its_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", lambda: Judge(width=2))
    path = tmp_path / "new" / "judge.pt"
    trained = train_judge(tiny.birds(), path, epochs=1, batch=16, device="cpu")
    loaded = Judge.load(path)
    assert loaded.accuracy == trained.accuracy
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = CaptionedImages(open_split(tiny.birds(), "test"), 64, train=False)
    batch = torch.stack([images[i].image for i in range(len(images))])
    right = trained.find(batch) == BirdTruth(tiny.birds()).pictures([images[i].key for i in range(len(images))])
    assert trained.accuracy == pytest.approx(dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True)))
    torch.testing.assert_close(loaded.features(batch), trained.features(batch), atol=0.02, rtol=0.02)
    # Again: the same judge, whatever was drawn in between.
    again = train_judge(tiny.birds(), tmp_path / "again.pt", epochs=1, batch=16, device="cpu")
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_a_finished_judge_is_left_alone_and_anything_else_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", lambda: Judge(width=2))
    path = tmp_path / "judge.pt"
    accuracy = train_judge(tiny.birds(), path, epochs=1, batch=16, device="cpu").accuracy
    before = path.read_bytes()
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", Judge)
    monkeypatch.setattr("vlm_plugin.evaluation.judge.held_out_accuracy", None)
    capsys.readouterr()
    assert train_judge(tiny.birds(), path, epochs=1, batch=16, device="cpu").accuracy == accuracy
    assert capsys.readouterr().out.startswith(f"{path}: finished already, with {{'data': 'birds', 'epochs': 1")
    with pytest.raises(ValueError, match=r"out: expected a new file, got .*judge\.pt, made with .*'epochs': 1"):
        train_judge(tiny.birds(), path, epochs=2, batch=16, device="cpu")
    with pytest.raises(ValueError, match=r"tiny\.vlm\.pt: expected a vlm_plugin\.Judge file"):
        train_judge(tiny.birds(), tiny.matcher(), epochs=1, batch=16, device="cpu")
    assert path.read_bytes() == before


def test_without_a_place_for_the_file_nothing_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", None)
    monkeypatch.setattr("vlm_plugin.files._beside", lambda path: path / "nowhere")  # as if rights were missing
    with pytest.raises(OSError, match=rf"^{tmp_path / 'judge.pt'}: expected a file that can be written, got "):
        train_judge(tiny.birds(), tmp_path / "judge.pt", device="cpu")


def test_a_batch_larger_than_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", lambda: Judge(width=2))
    train_judge(tiny.birds(), tmp_path / "judge.pt", epochs=1, batch=64, device="cpu")


@pytest.mark.parametrize(("epochs", "batch"), [(0, 64), (1, 1)])
def test_nonsense_is_refused(tmp_path: Path, epochs: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"epochs, batch: expected at least 1 and 2, got {epochs} and {batch}"):
        train_judge(tiny.birds(), tmp_path / "judge.pt", epochs=epochs, batch=batch)


def test_a_seed_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed: expected a number from 0 to 4294967295, got -1"):
        train_judge(tiny.birds(), tmp_path / "judge.pt", seed=-1)


def test_only_birds_will_do(tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny.birds(), tmp_path / "pictures"))
    (data / "attributes.json").unlink()
    with pytest.raises(ValueError, match=r"pictures: expected synthetic birds \(with attributes.json\)"):
        train_judge(data, tmp_path / "judge.pt")
    with pytest.raises(ValueError, match="out: expected a file to write, got the folder"):
        train_judge(tiny.birds(), tmp_path)


def test_a_file_that_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny\.vlm\.pt: expected a vlm_plugin\.Judge file, got vlm_plugin\.VLM"):
        Judge.load(tiny.matcher())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file"):
        Judge.load(tmp_path / "nowhere.pt")
