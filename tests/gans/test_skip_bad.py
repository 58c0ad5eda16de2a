"""Damaged pictures and captions without words, met in the middle of training: by default the end, else left out."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from vlm_plugin import VLM, ConvEncoder
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.cli.main import main
from vlm_plugin.data import BirdTruth, CaptionedImages, open_split
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.gans import run as run_module
from vlm_plugin.gans.evaluate import evaluate
from vlm_plugin.gans.export import export
from vlm_plugin.pretraining.evaluator import Evaluator
from vlm_plugin.pretraining.pairs import Pairs, collate_pairs
from vlm_plugin.pretraining.pretrain import pretrain
from vlm_plugin.training.run_folder import Log
from vlm_plugin.training.skipped import open_records

CPU = torch.device("cpu")
HINT = "(--skip-bad leaves out what cannot be used)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a run that are nothing but files, and a matcher of a few channels."""
    for name in ("sample_sheet", "loss_curves", "attention_sheet"):
        monkeypatch.setattr(f"vlm_plugin.gans.show.{name}", lambda path, *_: path.write_bytes(b""))
    monkeypatch.setattr(
        "vlm_plugin.pretraining.start.build_image_encoder", lambda name, embed_dim: ConvEncoder(embed_dim, width=2)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Birds to damage, without attributes."""
    root = Path(shutil.copytree(tiny.birds(), tmp_path / "birds"))
    (root / "attributes.json").unlink()
    return root


def truncate(data: Path, split: str, number: int) -> Path:
    path = open_split(data, split)[number].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def say_nothing(data: Path, split: str, number: int) -> str:
    """Leaves a picture one caption, of punctuation."""
    key = open_split(data, split)[number].key
    (data / "text" / f"{key}.txt").write_text("?!...\n", encoding="utf-8")
    return key


class Seen:
    """Builds trainers that keep the keys of their batches."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        self.keys: list[list[str]] = []
        seen = self

        class Watched(DFGAN):
            def step(self, batch, text, step, vlm_loss):
                before_step(step)
                seen.keys.append(batch.keys)
                return super().step(batch, text, step, vlm_loss)

        self.build = Watched


def run(*words: object, build: type[DFGAN] = DFGAN) -> Path:
    return run_module.run("dfgan", tiny.ROOT / "baselines" / "dfgan", build, ["--device", "cpu", *map(str, words)])


@pytest.fixture
def begin(data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Starts a run of twelve steps of four pictures: more than an epoch of 40."""

    def start(out: str, *words: object, build: type[DFGAN] = DFGAN, **changes: object) -> Path:
        cfg = tiny.config(tmp_path / f"{out}.yml", steps=12, **changes)
        return run(
            "--data", data, "--text-encoder", tiny.matcher(), "--out", tmp_path / out, "--cfg", cfg, *words, build=build
        )

    return start


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def options_of(folder: Path) -> dict:
    return json.loads((folder / "options.json").read_text(encoding="utf-8"))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def assert_same_end(a: Path, b: Path) -> None:
    flat = [{}, {}]
    for result, folder in zip(flat, (a, b), strict=True):
        for name, part in checkpoint(folder)["trainer"].items():
            if name.endswith("_adam"):
                part = {f"{i}.{k}": v for i, state in part["state"].items() for k, v in state.items()}
            result.update({f"{name}.{k}": v for k, v in part.items()})
    assert flat[0].keys() == flat[1].keys()
    assert len(flat[0]) > 20
    for name, value in flat[0].items():
        assert torch.equal(value, flat[1][name]), name
    assert Log.read(a / "log.jsonl") == Log.read(b / "log.jsonl")
    for name in ("evaluation.md", "skipped.txt"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# The baselines
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_ends_the_run_in_one_line(
    data: Path, begin: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    bad = truncate(data, "train", 17)
    with pytest.raises(SystemExit) as stop:
        begin("runs", workers=workers)
    assert str(stop.value).startswith(f"dfgan: {bad}: expected a picture, but reading it failed")
    assert str(stop.value).endswith(HINT)
    assert "\n" not in str(stop.value)
    # It was in the middle: there is a checkpoint to go on from.
    assert 2 <= checkpoint(tmp_path / "runs" / "00000-dfgan")["step"] < 10


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "bomb"])
def test_so_does_one_that_is_none(
    data: Path, begin: Callable[..., Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = open_split(data, "train")[17].image
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32)
        Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(SystemExit) as stop:
        begin("runs")
    assert str(stop.value).startswith(f"dfgan: {path}: expected a picture")
    assert str(stop.value).endswith(HINT)


def test_left_out_it_is_counted_listed_and_replaced(
    data: Path, begin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    clean, dirty, again = Seen(), Seen(), Seen()
    assert not (begin("clean", "--skip-bad", build=clean.build) / "skipped.txt").exists()
    assert "left out" not in capsys.readouterr().out
    bad = truncate(data, "train", 17)
    wordless = say_nothing(data, "train", 3)
    key = open_split(data, "train")[17].key
    folder = begin("dirty", "--skip-bad", build=dirty.build)
    assert lines(folder / "skipped.txt") == sorted([str(bad), wordless])
    printed = capsys.readouterr()
    assert f"left out 2 unusable pictures: see {folder / 'skipped.txt'}\n" in printed.out
    assert "left out=2" in printed.err  # the progress bar
    differing = 0
    for before, after in zip(*(itertools.chain(*seen.keys) for seen in (clean, dirty)), strict=True):
        assert after not in (key, wordless)
        differing += after != before
        assert after == before or before in (key, wordless)
    assert differing >= 2
    # Two loader processes change nothing.
    other = begin("again", "--skip-bad", build=again.build, workers=2)
    assert again.keys == dirty.keys
    assert_same_end(folder, other)


def test_a_run_that_broke_on_its_data_goes_on_without(
    data: Path, begin: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends as if the option had been there from the start."""
    truncate(data, "train", 17)
    say_nothing(data, "train", 3)
    whole = begin("whole", "--skip-bad")
    with pytest.raises(SystemExit):
        begin("broken")
    folder = tmp_path / "broken" / "00000-dfgan"
    assert not options_of(folder)["skip_bad"]
    torch.manual_seed(5)
    run("--resume", folder, "--skip-bad")
    assert options_of(folder)["skip_bad"]
    assert_same_end(folder, whole)


def test_an_interrupted_run_keeps_leaving_out(data: Path, begin: Callable[..., Path], tmp_path: Path) -> None:
    truncate(data, "train", 17)
    say_nothing(data, "train", 3)
    whole = begin("whole", "--skip-bad")

    def die(now: int) -> None:
        if now == 7:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        begin("cut", "--skip-bad", build=Seen(die).build)
    folder = tmp_path / "cut" / "00000-dfgan"
    run("--resume", folder)
    assert_same_end(folder, whole)


def test_what_an_earlier_process_left_out_stays_listed(
    data: Path, begin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(data, "train", 17)
    folder = begin("runs", "--skip-bad")
    capsys.readouterr()
    # Lengthened by steps that do not meet it.
    (folder / "skipped.txt").write_text("somewhere/else.jpg\n", encoding="utf-8")
    run("--resume", folder, "--steps", 13)
    assert "somewhere/else.jpg" in lines(folder / "skipped.txt")
    assert "left out" in capsys.readouterr().out


def test_a_picture_of_data_that_has_moved_is_listed_once(
    data: Path, begin: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, wordless = truncate(data, "train", 17), say_nothing(data, "train", 3)
    folder = begin("runs", "--skip-bad")
    moved = data.rename(tmp_path / "moved")
    expected = sorted([str(moved / bad.relative_to(data)), wordless])
    capsys.readouterr()
    # Those of an epoch and more, then none: the list is right either way.
    for steps in (24, 24):
        run("--resume", folder, "--steps", steps, "--data", moved)
        assert lines(folder / "skipped.txt") == expected
        assert "left out 2 unusable pictures" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_caption_without_a_known_word_ends_the_run_and_has_a_key(
    data: Path, begin: Callable[..., Path], workers: int
) -> None:
    key = say_nothing(data, "train", 3)
    with pytest.raises(SystemExit) as stop:
        begin("runs", workers=workers)
    assert str(stop.value).startswith(f"dfgan: {key}: expected a caption with a word of the vocabulary")
    assert str(stop.value).endswith(f"got '?!...' {HINT}")


def test_another_caption_of_the_picture_will_do(data: Path, begin: Callable[..., Path]) -> None:
    for record in open_split(data, "train"):
        (data / "text" / f"{record.key}.txt").write_text(f"...\nxyzzy\n{record.captions[0]}\n", encoding="utf-8")
    assert checkpoint(begin("runs"))["step"] == 12


def test_nothing_but_bad_pictures_ends_the_run_all_the_same(data: Path, begin: Callable[..., Path]) -> None:
    for record in open_split(data, "train"):
        record.image.write_bytes(b"")
    with pytest.raises(SystemExit, match="dfgan: expected one usable sample in 10, found none; the last one: ") as stop:
        begin("runs", "--skip-bad")
    assert HINT not in str(stop.value)


def test_bad_pictures_of_the_test_split(
    data: Path, begin: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # As many as the run's table takes, so that a later evaluation of all takes the same.
    for file in ("filenames", "class_info"):
        path = data / "test" / f"{file}.pickle"
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes())[:10]))
    bad, key = truncate(data, "test", 4), say_nothing(data, "test", 6)
    seen = Seen()
    with pytest.raises(SystemExit) as stop:
        begin("stopped", build=seen.build)
    assert str(stop.value).startswith(f"dfgan: {bad}: ")
    assert str(stop.value).endswith(HINT)
    assert seen.keys == []  # before any training
    folder = begin("runs", "--skip-bad")
    assert "left out 2 of 10 pictures of the test split" in capsys.readouterr().out
    results = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert results["manifest"]["pictures"] == 8
    assert lines(folder / "skipped.txt") == sorted([str(bad), key])
    assert torch.load(folder / "before.pt", weights_only=True)["pictures"].shape[0] == 8
    # A later evaluation leaves out what the run's own did, and one of other networks when it is told to.
    again = evaluate(folder, out=tmp_path / "again", count=8, device="cpu")
    content = json.loads((again / "evaluation.json").read_text(encoding="utf-8"))
    assert content["manifest"]["data_digest"] == results["manifest"]["data_digest"]
    assert f"1 of the split's pictures are left out, as they cannot be read (the first: {bad})" in content["notes"]
    start = tmp_path / "start.pt"
    export(folder, start)
    words = {"text_encoder": str(tiny.matcher()), "device": "cpu"}
    with pytest.raises(BadSampleError, match=str(bad)):
        evaluate(start, data, out=tmp_path / "stopped", **words)
    truncate(data, "train", 39)
    there = evaluate(start, data, out=tmp_path / "there", count=8, skip_bad=True, **words)
    assert json.loads((there / "evaluation.json").read_text(encoding="utf-8"))["manifest"]["pictures"] == 8


def test_the_real_pictures_of_the_train_split_that_the_table_takes(
    data: Path, begin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = truncate(data, "train", 36)
    folder = begin("runs", "--skip-bad", "--steps", 0)
    assert "left out 1 of 10 pictures of the train split" in capsys.readouterr().out
    assert lines(folder / "skipped.txt") == [str(bad)]
    assert len(json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["rows"]) == 3


@pytest.mark.parametrize("left", [1, 2])
def test_one_test_picture_has_no_distance(data: Path, begin: Callable[..., Path], left: int) -> None:
    names = pickle.loads((data / "test" / "filenames.pickle").read_bytes())
    for file, content in (("filenames", names[:left]), ("class_info", [1, 2][:left])):
        (data / "test" / f"{file}.pickle").write_bytes(pickle.dumps(content))
    folder = begin("runs", "--steps", 1)
    results = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for row in results["rows"]:
        assert ("frechet_distance" in row["values"]) == (left == 2)
        assert "vlms" in row["values"]
    assert (folder / "samples.png").exists()


def pairs(folder: Path, captions: dict[str, str]) -> Path:
    """Pictures with a file of captions beside each."""
    colours = ("red", "blue", "green", "white")
    pictures = [record.image for record in open_split(tiny.birds(), "train")]
    for split, part in (("train", pictures[:12]), ("test", pictures[12:20])):
        (folder / split).mkdir(parents=True)
        for number, picture in enumerate(part):
            shutil.copy(picture, folder / split / f"{number:02d}{picture.suffix}")
            (folder / split / f"{number:02d}.txt").write_text(f"a small {colours[number % 4]} bird\n", encoding="utf-8")
    for name, text in captions.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_what_no_caption_can_be_read_of_is_left_out_as_well(
    data: Path, begin: Callable[..., Path], tmp_path: Path
) -> None:
    """Found by the reader of the layout, before any picture is opened."""
    shutil.rmtree(data)
    pairs(data, {"train/03.txt": "", "test/05.txt": "\n"})
    shutil.copy(data / "train" / "04.jpg", data / "train" / "05.png")
    (data / "train" / "07.txt").unlink()
    bad = sorted(str(data / name) for name in ("train/03.txt", "test/05.txt", "train/05.png", "train/07.txt"))
    with pytest.raises(SystemExit, match=rf"^dfgan: {data}/train/\d\d\.\w\w\w: expected .*{re.escape(HINT)}$"):
        begin("stopped")
    folder = begin("runs", "--skip-bad")
    assert lines(folder / "skipped.txt") == bad
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["manifest"]["pictures"] == 7
    assert command(data, tmp_path / "m.vlm.pt") == 2
    assert command(data, tmp_path / "m.vlm.pt", "--skip-bad") == 0
    assert lines(tmp_path / "m.vlm.pt.skipped.txt") == bad


def test_what_is_wrong_with_the_folder_is_no_picture_to_leave_out(data: Path) -> None:
    (data / "train" / "class_info.pickle").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=r"class_info\.pickle") as stop:
        open_records(data, "train", skip_bad=True)
    assert not isinstance(stop.value, BadSampleError)


def test_a_split_without_any_captions_is_an_error(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs", {f"test/{number:02d}.txt": "" for number in range(8)})
    with pytest.raises(BadSampleError, match=r"00\.txt: expected at least one caption, got an empty file"):
        open_records(folder, "test", skip_bad=True)


def test_sampling_does_not_take_it() -> None:
    with pytest.raises(SystemExit, match="--sample does not train: leave out --skip-bad"):
        run("--sample", "a bird", "--skip-bad")


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining
# ---------------------------------------------------------------------------------------------------------------------

OPTIONS = {"epochs": 2, "batch": 13, "embed_dim": 8, "image_size": 32, "device": "cpu", "precision": "float32"}


def command(data: Path, out: Path, *words: object) -> int:
    options = [str(word) for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", value)]
    return main(["pretrain", "--data", str(data), "--out", str(out), *options, *map(str, words)])


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("wordless", [True, False])
def test_pretraining_stops_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, wordless: bool
) -> None:
    where = say_nothing(data, split, 5) if wordless else truncate(data, split, 5)
    assert command(data, tmp_path / "m.vlm.pt") == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "vlm-plugin pretrain: " in line)
    assert f"vlm-plugin pretrain: {where}: expected a " in line
    assert line.endswith(HINT)
    with pytest.raises(BadSampleError, match="expected a"):
        pretrain(data, tmp_path / "m.vlm.pt", **OPTIONS)


def test_pretraining_leaves_out_counts_and_lists(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train" / "class_info.pickle").unlink()
    bad = [truncate(data, "train", 5), truncate(data, "validation", 2)]
    keys = [say_nothing(data, "train", 30), say_nothing(data, "validation", 7)]
    out = tmp_path / "m.vlm.pt"
    assert command(data, out, "--skip-bad") == 0
    listed = out.with_name("m.vlm.pt.skipped.txt")
    assert lines(listed) == sorted([*map(str, bad), *keys])
    printed = capsys.readouterr().out
    assert "left out 2 of 20 pictures of the validation split" in printed
    assert "validation: R@1 of 18" in printed
    assert f"left out 4 unusable pictures: see {listed}" in printed
    # A later run of the same name begins its own list.
    out.unlink()
    assert command(tiny.birds(), out, "--skip-bad") == 0
    assert not listed.exists()


@pytest.mark.parametrize("flag", [True, False])
def test_interrupted_pretraining_keeps_leaving_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: bool
) -> None:
    truncate(data, "train", 5)
    say_nothing(data, "validation", 7)
    whole = pretrain(data, tmp_path / "whole.vlm.pt", **OPTIONS, skip_bad=True)
    out, original, calls = tmp_path / "cut.vlm.pt", Evaluator.__call__, []

    def evaluate(self: Evaluator, vlm: VLM) -> dict[str, float]:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("interrupted")
        return original(self, vlm)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluate)
        with pytest.raises(RuntimeError, match="interrupted"):
            pretrain(data, out, **OPTIONS, skip_bad=True)
    state = torch.load(out.with_name("cut.vlm.pt.state"), weights_only=True)
    assert state["skip_bad"] is True
    listed = out.with_name("cut.vlm.pt.skipped.txt")
    with listed.open("a", encoding="utf-8") as file:
        file.write("~somewhere/else.jpg\n")
    resumed = pretrain(data, out, **OPTIONS, skip_bad=flag)
    assert resumed.fingerprint == whole.fingerprint
    assert lines(listed) == [*lines(tmp_path / "whole.vlm.pt.skipped.txt"), "~somewhere/else.jpg"]


def test_a_bad_positive_gives_way_to_another_view(data: Path) -> None:
    """The picture itself is sound: it must not be left out with its partner."""
    records = [record._replace(class_id=i // 2) for i, record in enumerate(open_split(data, "train")[:4])]
    bad = truncate(data, "train", 1)
    images = CaptionedImages(records, 16, train=True)
    with pytest.raises(BadSampleError):
        Pairs(images, records, None)[0]
    pair = Pairs(images, records, None, skip_bad=True)[0]
    assert pair.first.key == pair.second.key == records[0].key
    assert not torch.equal(pair.first.image, pair.second.image)
    first, second = collate_pairs([pair, Pairs(images, records, None, skip_bad=True)[2].in_place_of(["x"])])
    assert (first.skipped, second.skipped) == (["x"], [str(bad)])
    with pytest.raises(BadSampleError):
        Pairs(images, records, None, skip_bad=True)[1]


def test_held_out_words_are_known(data: Path, tmp_path: Path) -> None:
    """Otherwise one held-out caption of new words would end pretraining; ids of unknown words would not train."""
    for split, word in (("train", "teapot"), ("validation", "accordion"), ("test", "trombone")):
        key = open_split(data, split)[0].key
        (data / "text" / f"{key}.txt").write_text(f"{word}\n", encoding="utf-8")
    vlm = pretrain(data, tmp_path / "m.vlm.pt", **{**OPTIONS, "epochs": 1})
    assert [word in vlm.vocabulary for word in ("teapot", "accordion", "trombone")] == [True, True, False]


def test_a_split_of_bad_pictures_has_no_scores(data: Path) -> None:
    records = open_split(data, "validation")[:3]
    for number in range(3):
        truncate(data, "validation", number)
    with pytest.raises(ValueError, match="expected one usable sample in 3, found none"):
        Evaluator(records, 16, None, CPU, skip_bad=True)


def test_attributes_are_those_of_the_pictures_that_are_left(tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny.birds(), tmp_path / "birds"))
    truncate(data, "test", 3)
    evaluator = Evaluator(open_split(data, "test"), 16, BirdTruth(data), CPU, skip_bad=True)
    (batch,) = evaluator.batches()
    keys = [record.key for i, record in enumerate(open_split(data, "test")) if i != 3]
    assert sorted(batch.keys) == sorted(keys)
    assert set(evaluator(tiny.build_matcher())) > {"local_r1", "general_swapped"}


# ---------------------------------------------------------------------------------------------------------------------
# A handful of pictures
# ---------------------------------------------------------------------------------------------------------------------


def test_twenty_pictures_of_a_caption_each_without_classes(tmp_path: Path) -> None:
    """No test split, no classes, no boxes: from pretraining to a table of very few captions."""
    data, names = tmp_path / "pictures", [f"p{i:02d}" for i in range(20)]
    images, texts, train = data / "CUB_200_2011" / "images", data / "text", data / "train"
    for folder in (images, texts, train):
        folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new("RGB", (40 + i, 50 - i), (i * 12, 0, 255 - i * 12)).save(images / f"{name}.jpg")
        (texts / f"{name}.txt").write_text(f"picture of a thing called {name}\n", encoding="utf-8")
    (train / "filenames.pickle").write_bytes(pickle.dumps(names))
    held_out = len(open_split(data, "test"))
    assert 1 <= held_out < 10
    out = tmp_path / "m.vlm.pt"
    options = ["--encoder", "conv", "--batch", "4", "--epochs", "2", "--embed-dim", "8", "--device", "cpu"]
    assert main(["pretrain", "--data", str(data), "--out", str(out), *options]) == 0
    cfg = tiny.config(tmp_path / "tiny.yml", evaluated=1000)
    folder = run("--vlm", out, "--data", data, "--steps", 2, "--batch", 2, "--out", tmp_path / "runs", "--cfg", cfg)
    assert checkpoint(folder)["step"] == 2
    assert (folder / "evaluation.md").exists()


def test_held_out_pictures_that_are_not_used_are_not_looked_at(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool is filled up from the rest of the split, and no more of it is read than that takes."""
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOL", 10)
    monkeypatch.setattr("vlm_plugin.pretraining.evaluator.POOLS", 1)
    records = open_split(data, "train")
    (whole,) = Evaluator(records, tiny.SIZE, None, CPU).pools
    assert len(whole) == 10
    rest = [index for index in range(len(records)) if index not in whole]
    for index in rest:
        truncate(data, "train", index)
    assert Evaluator(records, tiny.SIZE, None, CPU).pools == [whole]
    bad = truncate(data, "train", whole[3])
    with pytest.raises(BadSampleError, match=re.escape(str(bad))):
        Evaluator(records, tiny.SIZE, None, CPU)
    evaluator = Evaluator(records, tiny.SIZE, None, CPU, skip_bad=True)
    assert evaluator.pools == [whole[:3] + whole[4:]]
    assert len(evaluator.skipped) == 31
    # With something left to fill up with.
    shutil.copyfile(records[whole[0]].image, records[rest[7]].image)
    evaluator = Evaluator(records, tiny.SIZE, None, CPU, skip_bad=True)
    assert evaluator.pools == [[*whole[:3], *whole[4:], rest[7]]]
    assert str(bad) in evaluator.skipped


def test_coco_pictures_without_captions(tmp_path: Path) -> None:
    pictures = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    content = {"images": pictures, "annotations": [{"id": 7, "image_id": 1, "caption": "a red bird"}]}
    for folder in ("annotations", "train2014"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annotations" / "captions_train2014.json").write_text(json.dumps(content), encoding="utf-8")
    for picture in pictures:
        Image.new("RGB", (16, 16), "red").save(tmp_path / "train2014" / picture["file_name"])
    with pytest.raises(
        BadSampleError, match=r"captions_train2014\.json, 0\.jpg \(id 0\): expected at least one caption"
    ):
        open_records(tmp_path, "train", skip_bad=False)
    records, lost = open_records(tmp_path, "train", skip_bad=True)
    assert [record.image.name for record in records] == ["1.jpg"]
    assert [where.rpartition(", ")[2] for where in lost] == ["0.jpg (id 0)", "2.jpg (id 2)"]
