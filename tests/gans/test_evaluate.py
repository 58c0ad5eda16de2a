"""`vlm-plugin evaluate` on tiny runs: the same numbers again, also from the written pictures, and what is refused."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageChops

from vlm_plugin import VLM, Vocabulary
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.cli.evaluate import add_arguments
from vlm_plugin.cli.main import main
from vlm_plugin.data import CaptionedImages, open_split
from vlm_plugin.data.images import as_written, from_bytes, to_bytes, to_image
from vlm_plugin.evaluation.captions import spread, with_known_words
from vlm_plugin.evaluation.distances import frechet_distance
from vlm_plugin.evaluation.examination import Examination
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.evaluation.scorers import choose_evaluator
from vlm_plugin.evaluation.split import Split
from vlm_plugin.gans.evaluate import EvaluateSettings, evaluate
from vlm_plugin.gans.find import find_networks
from vlm_plugin.gans.run import run as train
from vlm_plugin.matcher.choose import load_matcher
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.report.album import extremes, word_maps
from vlm_plugin.report.report import write_report


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        cfg = tiny.config(root / "tiny.yml", steps=2, evaluated=10)
        words = [
            "--vlm",
            tiny.matcher(),
            "--data",
            tiny.birds(),
            "--out",
            root / "runs",
            "--cfg",
            cfg,
            "--device",
            "cpu",
        ]
        return train("dfgan", tiny.ROOT / "baselines" / "dfgan", DFGAN, list(map(str, words)))


def use_tiny(patch: pytest.MonkeyPatch) -> None:
    judge = Judge.load(tiny.judge())
    patch.setattr(Judge, "load", classmethod(lambda cls: judge))
    patch.setattr("vlm_plugin.evaluation.scorers.EVALUATOR", tiny.evaluator())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "00000-dfgan-vlm"))


def result(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def numbers(folder: Path, row: int = -1) -> dict[str, float]:
    return {name: number["value"] for name, number in result(folder)["rows"][row]["values"].items()}


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


def test_the_run_itself_was_evaluated_by_this_code(run: Path) -> None:
    """The same captions, noise and generator: what the run wrote at its end comes out again, bit for bit."""
    there = evaluate(run, count=10, batch=50, device="cpu", out=run.parent / "again")
    assert numbers(there) == numbers(run)
    assert numbers(there, 0) == numbers(run, 0)
    first, again = result(run)["manifest"], result(there)["manifest"]
    assert first == again
    assert (first["split"], first["pictures"], first["ema"], first["truncation"]) == ("test", 10, True, None)


def test_a_generators_memory_layout_does_not_reach_the_evaluator() -> None:
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = as_written(pictures.contiguous(memory_format=torch.channels_last))
    assert other.is_contiguous()
    assert torch.equal(other, as_written(pictures))


def test_every_caption_of_the_split(run: Path) -> None:
    there = evaluate(run, batch=64, device="cpu", out=run.parent / "all")
    assert result(there)["manifest"]["pictures"] == 200
    assert result(there)["rows"][-1]["name"] == run.name


def test_another_batch_size_changes_rounding_alone(run: Path) -> None:
    whole, parts = (
        numbers(evaluate(run, count=40, batch=size, device="cpu", out=run.parent / str(size))) for size in (40, 7)
    )
    for name, value in whole.items():
        if name.startswith("r_precision"):
            assert abs(value - parts[name]) <= 1 / 40 + 1e-9
        elif name.startswith("vlms") or name == "attribute_accuracy":
            assert parts[name] == pytest.approx(value, rel=1e-5)


def test_the_numbers_from_the_written_pictures(run: Path) -> None:
    """An independent way: pictures and captions read one at a time, no shared code but the networks."""
    there = evaluate(run, count=30, device="cpu", pictures=True, out=run.parent / "written")
    with (there / "pictures" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    vlm, scores = VLM.load(tiny.evaluator()), []
    for row in rows:
        pixels = np.asarray(Image.open(there / "pictures" / row["file_name"]), dtype=np.float32)
        picture = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            logit = vlm.scorer(vlm.encode_image(picture), vlm.encode_text([row["caption"]]), "caption")
        scores.append(float(logit.sigmoid()))
    assert numbers(there)["vlms"] == pytest.approx(sum(scores) / 30, rel=1e-5)
    assert main(["score", "--vlm", str(tiny.evaluator()), "--images", str(there / "pictures"), "--captions",
                 str(there / "pictures" / "captions.csv"), "--out", str(there / "scores.csv")]) == 0  # fmt: skip
    with (there / "scores.csv").open(encoding="utf-8", newline="") as file:
        scored = [float(row["vlms"]) for row in csv.DictReader(file)]
    assert sum(scored) / 30 == pytest.approx(numbers(there)["vlms"], rel=1e-3)  # the CSV has four digits


def test_other_real_pictures_of_the_same_names_and_captions_are_another_evaluation(run: Path, tmp_path: Path) -> None:
    inverted = Path(shutil.copytree(tiny.birds(), tmp_path / tiny.birds().name))
    for path in inverted.rglob("*.jpg"):
        with Image.open(path) as image:
            ImageChops.invert(image.convert("RGB")).save(path)
    folders = {
        name: evaluate(run, data, count=10, batch=batch, device="cpu", out=tmp_path / name)
        for name, data, batch in (("a", tiny.birds(), 50), ("b", tiny.birds(), 3), ("c", inverted, 50))
    }
    own, again, other = (result(folder)["manifest"] for folder in folders.values())
    assert own == again
    assert {name for name in own if own[name] != other[name]} == {"data_digest"}
    with pytest.raises(ValueError, match=r"got differences: data_digest: [0-9a-f]{16} and [0-9a-f]{16}$"):
        write_report([folders["a"], folders["c"]], tmp_path / "both.html")


def test_the_manifest_names_the_generator_and_generators_may_be_compared(run: Path, tmp_path: Path) -> None:
    folders = [evaluate(run, count=4, device="cpu", averaged=a, out=tmp_path / str(a)) for a in (True, False)]
    own, as_trained = (result(folder)["manifest"]["generator"] for folder in folders)
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["trainer"]
    assert (own, as_trained) == (fingerprint(weights["average"]), fingerprint(weights["generator"]))
    assert own != as_trained
    assert write_report(folders, tmp_path / "both.html").is_file()


def test_what_changes_the_pictures_changes_numbers_and_manifest(run: Path) -> None:
    base = evaluate(run, count=10, device="cpu", out=run.parent / "base")
    options = {"seed": {"seed": 3}, "truncation": {"truncation": 0.5}, "ema": {"averaged": False}}
    for name, option in options.items():
        other = evaluate(run, count=10, device="cpu", out=run.parent / name, **option)
        assert result(other)["manifest"][name] != result(base)["manifest"][name]
        assert numbers(other)["vlms"] != numbers(base)["vlms"], name


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train"), ("validation", "train")])
def test_the_real_pictures_distance_is_that_of_another_split(run: Path, split: str, other: str) -> None:
    there = evaluate(run, count=20, split=split, device="cpu", out=run.parent / split)
    judge, features = Judge.load(), []
    for records in (spread(open_split(tiny.birds(), split), 20), open_split(tiny.birds(), other)[-20:]):
        images = CaptionedImages(records, tiny.SIZE, train=False)
        with torch.no_grad():
            features.append(judge.features(torch.stack([sample.image for sample in images])))
    assert numbers(there, 0)["frechet_distance"] == pytest.approx(frechet_distance(*features), rel=1e-3)


def test_without_another_split_the_real_pictures_have_no_distance(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(tiny.birds(), tmp_path / "alone", ignore=shutil.ignore_patterns("train", "valid*")))
    there = evaluate(run, alone, count=4, device="cpu", out=tmp_path / "there")
    assert "frechet_distance" not in numbers(there, 0)
    assert "frechet_distance" in numbers(there)
    assert any(note.startswith("real: no distance") for note in result(there)["notes"])


def test_a_first_caption_without_known_words_is_left_out(run: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny.birds(), tmp_path / "birds"))
    first = open_split(data, "test")[0]
    text = data / "text" / f"{first.key}.txt"
    text.write_text("zzz qqq\n" + text.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")
    there = evaluate(run, data, count=4, device="cpu", out=tmp_path / "there")
    assert any("captions are left out: a matcher knows no word of them" in note for note in result(there)["notes"])


def test_unknown_words_are_told_of_with_the_matcher_that_does_not_know_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, count=4, device="cpu", out=tmp_path / "there")
    assert "unknown to" not in capsys.readouterr().out
    data, known = Path(shutil.copytree(tiny.birds(), tmp_path / "birds")), VLM.load(tiny.evaluator())
    *words, last = known.vocabulary.words
    for record in open_split(data, "test"):
        text = f"zzz {record.captions[0].replace(last, '')} qqq"
        (data / "text" / f"{record.key}.txt").write_text(text, encoding="utf-8")
    evaluate(run, data, count=4, device="cpu", out=tmp_path / "there")
    told = [line for line in capsys.readouterr().out.splitlines() if "unknown to" in line]
    (line,) = told  # the two have one vocabulary
    assert re.fullmatch(r"8 of \d\d words in 4 captions are unknown to evaluator.vlm.pt: zzz, qqq", line)
    vocabulary = Vocabulary([*words, "zzz"])
    VLM(known.image_encoder, known.text_encoder, vocabulary, known.scorer).save(tmp_path / "other.vlm.pt")
    evaluate(run, data, count=4, device="cpu", evaluator=tmp_path / "other.vlm.pt", out=tmp_path / "there")
    told = [line for line in capsys.readouterr().out.splitlines() if "unknown to" in line]
    assert told == [
        line.replace("evaluator.vlm.pt", "tiny.vlm.pt"),
        line.replace("8 of", "4 of").replace("evaluator.vlm.pt: zzz, ", "other.vlm.pt: "),
    ]


def test_circular_where_the_evaluator_trained_the_generator(run: Path) -> None:
    there = evaluate(run, count=10, device="cpu", evaluator=tiny.matcher(), out=run.parent / "own")
    columns = result(there)["columns"]
    assert {name for name, column in columns.items() if column["circular"]} == {"r_precision", "vlms"}
    assert "r_precision_training" not in columns
    assert "| R-precision* |" in (there / "evaluation.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_earlier_results_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = (run / "evaluation.json").read_bytes()
    for number in (1, 2):
        assert main(["evaluate", str(run), "--count", "10", "--seed", str(number), "--device", "cpu"]) == 0
        assert f"earlier results are kept as evaluation-{number}.json" in capsys.readouterr().out
    assert (run / "evaluation-1.json").read_bytes() == first
    assert {"evaluation-2.json", "evaluation-2.md", "report-1.html", "report.html"} <= {p.name for p in run.iterdir()}


def test_earlier_pictures_are_kept_with_their_numbers(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for count, pictures in ((7, True), (4, True), (3, False), (5, True)):
        evaluate(run, count=count, out=there, pictures=pictures, device="cpu")
    found = {}
    for name in ("evaluation-1", "evaluation-2", "evaluation-3", "evaluation"):
        folder = there / name.replace("evaluation", "pictures")
        count = json.loads((there / f"{name}.json").read_text(encoding="utf-8"))["manifest"]["pictures"]
        found[name] = count, len(list(folder.glob("*.png")))
        if folder.exists():
            with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
                assert [row["file_name"] for row in csv.DictReader(file)] == sorted(
                    p.name for p in folder.glob("*.png")
                )
    assert found == {"evaluation-1": (7, 7), "evaluation-2": (4, 4), "evaluation-3": (3, 0), "evaluation": (5, 5)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize(("owner", "method"), [(Painter, "all"), (Painter, "some"), (Examination, "manifest")])
def test_what_ends_too_early_leaves_the_earlier_results_as_they_are(
    run: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: type[BaseException]
) -> None:
    evaluate(run, count=4, pictures=True, device="cpu")
    before = contents(run)

    def stop(*_: object, **__: object) -> None:
        raise error

    def draw_some(*_: object) -> Iterator[torch.Tensor]:
        yield torch.zeros(3, 3, tiny.SIZE, tiny.SIZE)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, draw_some if method == "all" else stop)
        with pytest.raises(error):
            evaluate(run, count=5, pictures=True, device="cpu")
    assert contents(run) == before
    evaluate(run, count=3, pictures=True, device="cpu")
    assert len(list((run / "pictures").glob("*.png"))) == result(run)["manifest"]["pictures"] == 3
    # The run's own results, and those of four captions.
    assert {p.name for p in run.glob("evaluation*.json")} == {f"evaluation{n}.json" for n in ("", "-1", "-2")}


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_second_evaluation_of_one_folder_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, original = (run / "evaluation.json").read_bytes(), Examination.add_real
    refusal = f"^{re.escape(str(run))}: another process is evaluating into it; wait, or stop it first$"

    def second(self: Examination) -> None:
        with pytest.raises(ValueError, match=refusal):
            evaluate(run, device="cpu")
        assert (run / "evaluation.json").read_bytes() == before
        original(self)

    monkeypatch.setattr(Examination, "add_real", second)
    evaluate(run, device="cpu", count=4)
    assert (run / "evaluation.json").read_bytes() != before
    assert not (run / ".lock").exists()


def test_a_folder_of_pictures_that_is_somebody_elses_stays(run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "pictures" / "theirs.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"a picture")
    for _ in range(2):
        evaluate(run, count=2, out=tmp_path, device="cpu")
    assert (tmp_path / "evaluation-1.json").is_file()
    message = (
        rf"^{theirs.parent}: expected no such folder, or that of an earlier evaluation, got one without captions.csv"
    )
    with pytest.raises(FileExistsError, match=message):
        evaluate(run, count=2, out=tmp_path, pictures=True, device="cpu")
    assert list(theirs.parent.iterdir()) == [theirs]
    assert theirs.read_bytes() == b"a picture"


def test_results_elsewhere_show_the_run_as_well(run: Path, tmp_path: Path) -> None:
    folder = evaluate(run, count=4, out=tmp_path / "elsewhere", device="cpu")
    assert folder == tmp_path / "elsewhere"
    for name in ("log.jsonl", "options.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Settings of training" in page
    assert "No curves" not in page
    other = shutil.copytree(run, tmp_path / "00001-dfgan-vlm")
    before = (other / "options.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"--out .*00001-dfgan-vlm: expected a folder for .* got that of another run"):
        evaluate(run, count=4, out=other, device="cpu")
    assert (other / "options.json").stat().st_mtime_ns == before


def test_without_a_place_for_results_nothing_is_scored(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_plugin.gans.evaluate.Examination", None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("vlm_plugin.files._beside", lambda path: path / "nowhere")
    for out, there in ((None, run), (tmp_path / "file" / "ev", tmp_path / "file" / "ev")):
        message = rf"^{there / 'evaluation.json'}: expected a file that can be written, got "
        with pytest.raises(OSError, match=message):
            evaluate(run, out=out, device="cpu")
    other = shutil.copytree(run, tmp_path / "00001-dfgan-vlm")
    with pytest.raises(ValueError, match="got that of another run"):
        evaluate(run, out=other, device="cpu")


def test_a_checkpoint_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = tiny.ROOT / "baselines" / "dfgan" / "assets" / "birds.pt"
    there = evaluate(start, tiny.birds(), count=4, device="cpu")
    assert there == Path("runs/00000-dfgan-evaluation")
    assert result(there)["manifest"]["ema"] is None
    assert result(there)["manifest"]["trained_with"] == []
    assert result(there)["rows"][-1]["name"] == "birds.pt"


def test_the_vocabulary_is_looked_for_where_the_data_lies_now(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DAMSM text encoder's is in the data folder, which may have moved since."""
    options = json.loads((run / "options.json").read_text(encoding="utf-8"))
    looked, load = [], load_matcher
    monkeypatch.setattr(
        "vlm_plugin.gans.evaluate.load_matcher",
        lambda name, data, place: looked.append(data) or load(name, data, place),
    )
    for data in (options["data"], str(tmp_path / "gone")):
        (run / "options.json").write_text(json.dumps(options | {"data": data}), encoding="utf-8")
        moved = tmp_path / "moved"
        if not moved.exists():
            shutil.copytree(tiny.birds(), moved)
        evaluate(run, moved, count=2, device="cpu", out=tmp_path / "there")
    assert looked == [Path(options["data"]), tmp_path / "moved"]


def test_a_run_says_how_to_name_what_has_moved(tmp_path: Path) -> None:
    """A run that was copied to another machine, say."""
    data, matcher = (
        shutil.copytree(tiny.birds(), tmp_path / "birds"),
        shutil.copy(tiny.matcher(), tmp_path / "m.vlm.pt"),
    )
    cfg = tiny.config(tmp_path / "tiny.yml", steps=1)
    given = ("--data", data, "--text-encoder", matcher, "--out", tmp_path / "runs", "--cfg", cfg, "--device", "cpu")
    run = train("dfgan", tiny.ROOT / "baselines" / "dfgan", DFGAN, list(map(str, given)))
    data.rename(tmp_path / "moved")
    message = rf"^{data}: expected a data folder, found no such folder; {run}/options.json names {data}: say where it "
    with pytest.raises(FileNotFoundError, match=message + r"lies now with --data DIR$"):
        evaluate(run, device="cpu")
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/no: expected a data folder, found no such folder$"):
        evaluate(run, tmp_path / "no", device="cpu")
    matcher.rename(tmp_path / "moved.vlm.pt")
    message = rf"^{matcher}: no such file \(.*\); {run}/options.json names {matcher}: say where it lies now with "
    with pytest.raises(FileNotFoundError, match=message + r"--text-encoder FILE$"):
        evaluate(run, tmp_path / "moved", device="cpu")
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/no.pt: no such file \([^)]*\)$"):
        evaluate(run, tmp_path / "moved", text_encoder=str(tmp_path / "no.pt"), device="cpu")
    again = evaluate(run, tmp_path / "moved", text_encoder=str(tmp_path / "moved.vlm.pt"), count=4, device="cpu")
    assert result(again)["manifest"]["pictures"] == 4


def test_captions_with_lone_surrogates_are_written_with_escapes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON may hold half an emoji; a file name may be no valid UTF-8."""
    data = tmp_path / "captioned"
    for split, count in (("train", 4), ("test", 5)):
        (data / split).mkdir(parents=True)
        rows = []
        for number, record in enumerate(open_split(tiny.birds(), split)[:count]):
            name = f"{number}\udcff.jpg"
            shutil.copyfile(record.image, data / split / name)
            rows.append(json.dumps({"file_name": name, "text": f"a bird \ud83d {record.captions[0]}"}))
        (data / split / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (data / "test" / "0\udcff.jpg").write_bytes(b"no picture")
    there = tmp_path / "there"
    words = ["evaluate", run, "--data", data, "--count", 3, "--device", "cpu", "--out", there]
    assert main([*map(str, words), "--pictures", "--skip-bad"]) == 0
    with (there / "pictures" / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert len(captions) == 3
    assert all(caption.startswith("a bird \\ud83d ") for caption in captions)
    assert main(["score", "--vlm", str(tiny.matcher()), "--images", str(there / "pictures"), "--captions",
                 str(there / "pictures" / "captions.csv"), "--out", str(there / "scores.csv")]) == 0  # fmt: skip
    assert any(note.endswith("0\udcff.jpg)") for note in result(there)["notes"])
    assert "0\\udcff.jpg)" in (there / "evaluation.md").read_text(encoding="utf-8")
    assert "0\\udcff.jpg)" in capsys.readouterr().out


def test_pictures_in_the_order_of_their_classes(run: Path, tmp_path: Path) -> None:
    """A few captions are of pictures of the whole split, and so are the real ones that they are measured against."""
    data = tmp_path / "captioned"
    for split, count in (("train", 30), ("test", 20)):
        (data / split).mkdir(parents=True)
        for number, record in enumerate(open_split(tiny.birds(), split)[:count]):
            shutil.copyfile(record.image, data / split / f"{number:02d}{record.image.suffix}")
            (data / split / f"{number:02d}.txt").write_text(record.captions[0], encoding="utf-8")
    seen: list[tuple[list[str], list[str]]] = []

    class Seen(Examination):
        def __init__(self, split: Split, *rest: object, **options: object) -> None:
            super().__init__(split, *rest, **options)
            chosen = [split.records[item.record].key for item in self.items]
            seen.append((chosen, [record.key for record in split.others]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_plugin.gans.evaluate.Examination", Seen)
        evaluate(run, data, count=5, device="cpu", out=tmp_path / "there")
    ((chosen, others),) = seen
    assert [int(Path(key).stem) for key in chosen] == [0, 4, 8, 12, 16]
    assert [int(Path(key).stem) for key in others] == [0, 6, 12, 18, 24]


def test_a_command_of_its_own_process_finds_the_baselines(run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vlm_plugin", "evaluate", str(run), "--count", "0"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tiny.ROOT, check=False)
    assert done.returncode == 2
    assert "count: expected at least 1, got 0" in done.stderr


def test_the_command_line_has_every_setting_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(parser.parse_args(["RUN"]))
    settings = {field.name: field.default for field in dataclasses.fields(EvaluateSettings)}
    assert given == settings | {"source": Path("RUN")}


def test_birds_are_drawn_for_the_packaged_text_encoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = tiny.ROOT / "baselines" / "dfgan" / "assets" / "birds.pt"
    with pytest.raises(ValueError, match=r"^--data: expected a folder of captioned pictures for the text encoder"):
        evaluate(start, text_encoder=str(tiny.matcher()), device="cpu")
    assert not list(tmp_path.iterdir())


def test_what_every_baseline_says_is_said_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{run}/checkpoint.pt: this is a run's checkpoint: name its folder, {run}$"):
        evaluate(run / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: expected a run's folder with options.json$"):
        evaluate(tmp_path)


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing there"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "x.pt").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"x\.pt: expected a run's folder or a checkpoint of a baseline \(attngan: .*dfgan"
    ):
        find_networks(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="seed: expected a number from 0 to 4294967295, got -1"):
        evaluate(tmp_path / "x.pt", seed=-1)
    with pytest.raises(ValueError, match="--evaluator: expected a matcher's file"):
        choose_evaluator(None, None, None)
    matcher = VLM.load(tiny.matcher())
    for truncation in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"truncation: expected a positive, finite number, got {truncation}"):
            Painter(lambda noise, text: noise, matcher, 4, truncation=truncation)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing and gallery
# ---------------------------------------------------------------------------------------------------------------------


def painter(**options: object) -> tuple[Painter, list[torch.Tensor]]:
    seen: list[torch.Tensor] = []

    def draw(noise: torch.Tensor, text: object) -> torch.Tensor:
        seen.append(noise)
        return noise[:, :3, None, None].expand(-1, -1, 2, 2) / 4

    return Painter(draw, VLM.load(tiny.matcher()), 64, **options), seen


def joined(batches: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(batches))


def test_a_picture_depends_on_seed_and_number_alone() -> None:
    captions = ["a red bird"] * 9
    whole = joined(painter()[0].all(captions, 9))
    assert torch.equal(whole, joined(painter()[0].all(captions, 2)))
    assert torch.equal(whole[[7, 2]], painter()[0].some(captions[:2], [7, 2]))
    assert not torch.equal(whole, joined(painter(seed=1)[0].all(captions, 9)))
    assert len(whole.flatten(1).unique(dim=0)) == 9


def test_truncation_cuts_the_noise_off() -> None:
    for truncation, least, most in ((None, 2.0, 9.0), (0.5, 0.45, 0.5)):
        draws, seen = painter(truncation=truncation)
        list(draws.all(["a red bird"] * 20))
        assert least < float(seen[0].abs().max()) <= most


def test_pictures_are_as_a_file_holds_them() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
    values = torch.linspace(-1.2, 1.2, 301)
    assert torch.equal(as_written(as_written(values)), as_written(values))
    assert float((as_written(values) - values.clamp(-1, 1)).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pictures_that_are_no_numbers_are_refused(value: float) -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[1, 2, 3, 3] = value
    with pytest.raises(ValueError, match="pictures: expected finite values, got NaN or infinity"):
        to_bytes(pictures)
    broken = Painter(lambda noise, text: pictures, VLM.load(tiny.matcher()), 4)
    with pytest.raises(ValueError, match="pictures: expected finite values"):
        list(broken.all(["a red bird"] * 2))
    with pytest.raises(ValueError, match="pictures: expected finite values"):
        to_image(pictures[1])


def test_best_and_worst() -> None:
    scores = torch.tensor([0.2, 0.9, 0.1, 0.9, 0.5])
    assert extremes(scores, 2) == ([1, 3], [2, 0])
    assert extremes(scores, 9) == ([1, 3, 4, 0, 2], [2, 0, 4, 3, 1])


def test_word_maps_have_each_word_its_own_range() -> None:
    vlm = VLM.load(tiny.matcher())
    real, fake = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = word_maps(vlm, "a red bird", real, fake)
    assert maps["words"] == vlm.words("a red bird")
    for name in ("real_maps", "fake_maps"):
        assert maps[name].shape == (3, 8, 8)
        assert torch.equal(maps[name].amin((1, 2)), torch.zeros(3))
        assert torch.allclose(maps[name].amax((1, 2)), torch.ones(3))
    assert torch.equal(maps["fake"], to_bytes(fake))


def test_captions_that_a_matcher_does_not_know_are_left_out() -> None:
    from vlm_plugin.data import Record

    first, second = Vocabulary.build(["red bird", "wing"]), Vocabulary.build(["red wing"])
    records = [Record("a", Path("a"), ("bird", "red", "!"), None, None), Record("b", Path("b"), ("bird",), None, None)]
    assert [r.captions for r in with_known_words(records, [first])] == [("bird", "red"), ("bird",)]
    assert [(r.key, r.captions) for r in with_known_words(records, [first, second])] == [("a", ("red",))]
