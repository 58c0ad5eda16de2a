"""`vlm-plugin data check`: what it counts, every fault it finds, and that it leaves the data alone."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_plugin.cli.main import main
from vlm_plugin.data import open_split
from vlm_plugin.data.check import Finding, Report, Split, check, draw_sheet, render

NOTHING = "nothing to tell apart"
Row = tuple[str, str | Sequence[str]]


def picture(path: Path, size: tuple[int, int] = (40, 50), seed: int | None = None, mode: str = "RGB", **save) -> Path:
    """A picture of noise, so that no two are equal; of another seed than its name's if told so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(path.name.encode()) if seed is None else seed)
    noise = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    (noise if mode == "RGB" else noise.convert(mode)).save(path, **save)
    return path


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """An ImageFolder's table, and the pictures that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _ in rows:
        if name != "missing.png" and not (folder / name).exists():
            picture(folder / name)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    root = tmp_path / "clean"
    for name, size in {"a.png": (64, 40), "b.png": (90, 100), "c.png": (33, 32)}.items():
        picture(root / "train" / name, size)
    rows = [("a.png", ["A red bird.", "a small red bird on a branch"]), ("b.png", "two birds"), ("c.png", "no bird!")]
    write_rows(root / "train", rows)
    write_rows(root / "test", [("d.png", "a red red fish swims"), ("e.png", "a red bird")])
    return root


def of(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def names_of(report: Report, fatal: bool) -> dict[str, set[str]]:
    """Names of the places by kind."""
    result: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.fatal == fatal:
            result.setdefault(finding.kind, set()).add(Path(finding.where).name)
    return result


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


# ---------------------------------------------------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------------------------------------------------


def test_counts_of_a_sound_set(clean: Path) -> None:
    report = check(clean)
    assert report.findings == []
    assert report.fatal == 0
    assert not report.made
    assert report.splits == [
        # Words: a red bird small on branch two birds no.
        Split("train", 3, 4, 0, 9, (2, 2.5, 7), ((33, 32), (64, 40), (90, 100)), 0),
        Split("test", 2, 2, 0, 5, (3, 4, 5), ((40, 50),) * 3, 0),
    ]
    assert report.unseen == (2, 2 / 8)  # fish, swims


def test_the_table(clean: Path) -> None:
    lines = render(check(clean)).splitlines()
    assert lines[0].startswith(f"{clean}: a folder of pictures with captions")
    assert lines[2].split("  ")[0] == "split"
    assert lines[3].split() == [
        "train", "3", "4", "none", "none", "9", "2", "/", "2.5", "/", "7", "33x32", "/", "64x40", "/", "90x100",
    ]  # fmt: skip
    assert "words of test that train never says: 2 (25.0% of all words)" in lines
    assert lines[-1] == "no problems"


def test_a_test_split_made_by_hash_is_said(clean: Path) -> None:
    shutil.rmtree(clean / "test")
    write_rows(clean / "train", [(f"{i}.png", f"bird {i}") for i in range(30)])
    report = check(clean)
    assert report.made
    assert "the test split is made of a tenth of train, chosen by a hash of the names" in render(report)
    assert {split.name: split.pictures for split in report.splits} == {
        name: len(open_split(clean, name)) for name in ("train", "test")
    }
    assert sum(split.pictures for split in report.splits) == 30


def test_nothing_is_written_into_the_folder(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clean.parent)
    before = snapshot(clean)
    assert main(["data", "check", str(clean)]) == 0
    assert snapshot(clean) == before
    assert (tmp_path / "data-check-clean.png").is_file()


@pytest.mark.parametrize("here", ["pairs", "pairs/more"])
def test_from_inside_the_folder_nothing_is_written_into_it_either(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "pairs"
    for name in ("a", "b", "more/c"):
        # A palette is worth a note, so that there is a list of problems as well.
        picture(root / f"{name}.png", mode="P").with_suffix(".txt").write_text(f"{name}\n")
    before = snapshot(root)
    monkeypatch.chdir(tmp_path / here)
    assert main(["data", "check", "." if here == "pairs" else ".."]) == 0
    assert snapshot(root) == before
    out = capsys.readouterr().out
    for file in (tmp_path / "data-check-pairs.png", tmp_path / "data-check-pairs.png.txt"):
        assert file.is_file()
        assert f": {file}\n" in out


@pytest.mark.parametrize("out", ["sheet.png", "train/sheet.png", "new/sheet.png"])
def test_a_sheet_inside_the_folder_is_refused(clean: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(clean)
    assert main(["data", "check", str(clean), "--out", str(clean / out)]) == 2
    assert snapshot(clean) == before
    message = f"--out {clean / out}: expected a file outside of the data folder {clean}, got one inside\n"
    assert capsys.readouterr().err == f"vlm-plugin data: {message}"


def test_the_sheet_shows_what_training_sees(clean: Path, tmp_path: Path) -> None:
    for path in (clean / "train").glob("*.png"):
        Image.new("RGB", (80, 80), "red").save(path)
    Image.new("RGB", (80, 80), "blue").save(clean / "test" / "d.png")
    draw_sheet(check(clean), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    red = (pixels == (255, 0, 0)).all(1).sum()
    assert red == 3 * 192 * 192
    assert not (pixels == (0, 0, 255)).all(1).any()
    assert (pixels.astype(int).sum(1) < 300).any()  # letters


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong
# ---------------------------------------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 50,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.fixture
def faulty(clean: Path) -> Path:
    """`clean` with each kind of picture that is bad or that training changes."""
    folder = clean / "train"
    halved = picture(folder / "halved.jpg", (64, 64))
    halved.write_bytes(halved.read_bytes()[: halved.stat().st_size // 2])
    (folder / "notes.png").write_text("this is no picture")
    (folder / "nothing.png").touch()
    bomb(folder / "bomb.png")
    picture(folder / "cmyk.jpg", mode="CMYK")
    Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(folder / "deep.png")
    picture(folder / "palette.png", mode="P")
    picture(folder / "clear.png", mode="RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "turned.jpg", (64, 48), exif=exif)
    picture(folder / "dot.png", (1, 1))
    names = ["halved.jpg", "notes.png", "nothing.png", "bomb.png", "missing.png"]
    names += ["cmyk.jpg", "deep.png", "palette.png", "clear.png", "turned.jpg", "dot.png"]
    for name in ("b.png", "c.png"):
        (folder / name).unlink()
    write_rows(folder, [("a.png", "a bird"), *((name, f"bird {name}") for name in names)])
    return clean


def test_every_fault_of_pictures(faulty: Path) -> None:
    report = check(faulty)
    assert names_of(report, fatal=True) == {
        "unreadable pictures": {"halved.jpg", "notes.png", "nothing.png", "bomb.png"},
        "missing files": {"missing.png"},
    }
    assert names_of(report, fatal=False) == {
        "CMYK": {"cmyk.jpg"},
        "16-bit": {"deep.png"},
        "palette": {"palette.png"},
        "transparency": {"clear.png"},
        "EXIF rotation": {"turned.jpg"},
        "very small pictures": {"dot.png"},
    }
    (small,) = of(report, "very small pictures")
    assert small.what == "1 x 1 pixels, enlarged"
    assert any("pixels" in finding.what for finding in report.findings if finding.where.endswith("bomb.png"))
    # A quarter turn: 48 x 64 pixels; the least and the greatest are the others.
    assert report.splits[0].sizes == ((1, 1), (40, 50), (48, 64))


def test_a_clear_colour_of_a_palette_is_both(clean: Path) -> None:
    picture(clean / "train" / "a.png", mode="P", transparency=0)
    assert names_of(check(clean), fatal=False) == {"palette": {"a.png"}, "transparency": {"a.png"}}


def test_every_fault_of_captions(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    texts = {
        "good": b"a bird\n",
        "empty": b"\n \n",
        "marks": b"?!... --\n",
        "partly": b"...\na bird\n",
        "endless": b"bird " * 10_000,
        "latin": "un \u00eele\n".encode("latin-1"),
        "binary": b"a\0b",
    }
    for name, content in texts.items():
        picture(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(content)
    picture(folder / "alone.png")
    (folder / "nobody.txt").write_text("a bird")
    report = check(folder)
    fatal, notes = names_of(report, fatal=True), names_of(report, fatal=False)
    assert fatal == {
        "metadata and captions": {"empty.txt", "binary.txt"},
        "missing files": {"alone.txt"},
        "captions without a word": {"marks"},
    }
    assert notes.keys() == {"metadata and captions", "captions without a word", "long captions", NOTHING}
    assert notes["metadata and captions"] == {"latin.txt", "nobody.txt"}
    assert notes["captions without a word"] == {"partly"}
    (long,) = of(report, "long captions")
    assert long.what.startswith("1 of ")
    assert max(split.lengths[2] for split in report.splits) == 10_000


def write_cub(root: Path, boxes: Sequence[str]) -> Path:
    """CUB as its authors publish it, a box a picture of 40 x 50 pixels, the last picture in test."""
    images = [f"001.Wren/{i}.jpg" for i in range(len(boxes))]
    for i, name in enumerate(images):
        picture(root / "images" / name)
        caption = root / "text" / Path(name).with_suffix(".txt")
        caption.parent.mkdir(parents=True, exist_ok=True)
        caption.write_text(f"a small bird, {i}\n")
    tables = {
        "images.txt": images,
        "classes.txt": ["001.Wren"],
        "image_class_labels.txt": [str(1 + i % 2) for i in range(len(boxes))],
        "train_test_split.txt": ["1"] * (len(boxes) - 1) + ["0"],
        "bounding_boxes.txt": boxes,
    }
    for name, lines in tables.items():
        (root / name).write_text("".join(f"{i} {line}\n" for i, line in enumerate(lines, 1)))
    return root


def test_every_fault_of_boxes(tmp_path: Path) -> None:
    root = write_cub(
        tmp_path / "CUB_200_2011",
        ["5 5 20 20", "5 5 0 20", "30 40 20 20", "100 100 10 10", "-5 -5 10 10", "0 0 40 50", "1 1 8 8"],
    )
    report = check(root)
    bad = {name for names in names_of(report, fatal=True).values() for name in names}
    assert any(name.startswith("1.jpg") or "line 2" in name for name in bad)  # no area
    assert "3.jpg" in bad  # wholly outside
    assert len(bad) == 2
    assert names_of(report, fatal=False) == {"boxes that reach outside": {"2.jpg", "4.jpg"}, NOTHING: {"split test"}}
    assert "it is cut off there" in of(report, "boxes that reach outside")[0].what
    assert report.splits[0].classes == 2
    assert report.splits[1].boxes == 1


def test_splits_of_other_names_come_last(tmp_path: Path) -> None:
    for split in ("val", "extra", "test", "train", "example"):
        name = f"001.Wren/{split}"
        picture(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "text" / "001.Wren").mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / f"{name}.txt").write_text("a bird\n")
        (tmp_path / split).mkdir()
        (tmp_path / split / "filenames.pickle").write_bytes(pickle.dumps([name], protocol=2))
    report = check(tmp_path)
    assert [split.name for split in report.splits] == ["train", "validation", "test", "example", "extra"]
    assert names_of(report, fatal=True) == {NOTHING: {"split train"}}


def test_metadata_of_differing_lengths(tmp_path: Path) -> None:
    root = tmp_path / "originals"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        names = [f"001.Wren/{split}{i}" for i in range(3)]
        for name in names:
            picture(root / "CUB_200_2011" / "images" / f"{name}.jpg")
            caption = root / "text" / f"{name}.txt"
            caption.parent.mkdir(parents=True, exist_ok=True)
            caption.write_text(f"{name}\n")
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(names, protocol=2))
        (root / split / "class_info.pickle").write_bytes(pickle.dumps([1, 1], protocol=2))
    report = check(root)
    assert report.fatal
    assert names_of(report, fatal=True) == {"metadata and captions": {"class_info.pickle"}}


@pytest.mark.parametrize(
    ("same_text", "classes", "what"),
    [
        (True, None, "expected captions that tell pictures apart, got the same for all 6"),
        (True, 1, "expected captions that tell pictures apart, got the same for all 6"),
        (False, 0, "expected pictures of two classes or more, got 6 of the one class 1"),
        (False, None, None),
        (False, 1, None),
    ],
)
def test_nothing_to_learn_is_said(tmp_path: Path, same_text: bool, classes: int | None, what: str | None) -> None:
    (tmp_path / "text").mkdir()
    names = [str(i) for i in range(8)]
    for name in names:
        picture(tmp_path / "images" / f"{name}.png")
        (tmp_path / "text" / f"{name}.txt").write_text("a photo" if same_text else f"a photo of {name}")
    for split, some in {"train": names[:6], "test": names[6:]}.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / "filenames.pickle").write_bytes(pickle.dumps(some, protocol=2))
        if classes is not None:
            ids = [1 + classes * (int(name) % 2) for name in some]
            (tmp_path / split / "class_info.pickle").write_bytes(pickle.dumps(ids, protocol=2))
    found = [
        (finding.where, finding.fatal, finding.what.partition(" (")[0]) for finding in of(check(tmp_path), NOTHING)
    ]
    in_test = None if what is None else what.replace("6", "2")
    told = [] if what is None else [("split train", True, what), ("split test", False, in_test)]
    assert [(where, fatal, said.partition(":")[0]) for where, fatal, said in found] == told
    assert main(["data", "check", str(tmp_path), "--out", str(tmp_path.parent / "nothing.png")]) == bool(told)


def test_one_usable_picture_of_a_split_is_too_few(clean: Path) -> None:
    (clean / "test" / "e.png").write_bytes(b"no picture")
    report = check(clean)
    assert [(finding.where, finding.fatal) for finding in of(report, NOTHING)] == [("split test", False)]
    assert of(report, NOTHING)[0].what.startswith("expected two pictures or more, got 1: no matcher can be chosen")
    (clean / "test" / "d.png").write_bytes(b"no picture")
    assert of(check(clean), NOTHING)[0].what.startswith("expected two pictures or more, got none")


def test_two_pictures_of_one_name(clean: Path) -> None:
    (clean / "train" / "c.png").unlink()
    write_rows(clean / "train", [("a.png", "a bird"), ("a.jpg", "another bird"), ("b.png", "a third")])
    report = check(clean)
    (finding,) = report.findings
    assert finding.fatal
    assert "a.jpg and a.png" in finding.what
    assert report.splits[0].pictures == 2  # the others are looked at all the same


def test_an_empty_split(clean: Path) -> None:
    (clean / "test" / "metadata.jsonl").write_text("")
    report = check(clean)
    assert report.fatal == 1
    assert "expected at least one picture in the split test, found none" in render(report)
    assert "none readable" in render(report)
    shutil.rmtree(clean / "train")
    with_none = check(clean)
    assert "expected a train split, found test" in render(with_none)


def test_duplicates(clean: Path) -> None:
    train, test = clean / "train", clean / "test"
    shutil.copy(train / "a.png", train / "again.png")
    shutil.copy(train / "b.png", test / "leak.png")
    # As long as a.png, and another picture.
    same_size = bytearray((train / "a.png").read_bytes())
    other = picture(train / "other.png", (64, 40))
    other.write_bytes(other.read_bytes()[: len(same_size)].ljust(len(same_size), b"\0"))
    write_rows(train, [(name, "a bird") for name in ("a.png", "b.png", "again.png", "other.png")])
    write_rows(test, [("d.png", "a bird"), ("leak.png", "a bird")])
    report = check(clean)
    (leak,) = of(report, "pictures in two splits")
    assert leak.fatal
    assert leak.where == str(test / "leak.png")
    assert str(train / "b.png") in leak.what
    assert "train and test" in leak.what
    (twice,) = of(report, "pictures twice in a split")
    assert not twice.fatal
    assert twice.where == str(train / "again.png")


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def test_exit_statuses(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        return main(["data", "check", str(clean), "--out", str(tmp_path / "sheet.png")])

    assert run() == 0
    assert not (tmp_path / "sheet.png.txt").exists()
    picture(clean / "train" / "a.png", mode="P")
    assert run() == 0  # a note alone
    assert "note: palette (1)" in capsys.readouterr().out
    (clean / "train" / "a.png").write_bytes(b"")
    assert run() == 1
    out = capsys.readouterr().out
    assert "FATAL: unreadable pictures (1)\n  train/a.png: expected a picture" in out
    assert "1 fatal problems, 0 notes" in out


def test_a_sheet_of_an_earlier_call_is_not_announced(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    said = f"what the pictures look like to training: {sheet}\n"
    assert main(["data", "check", str(clean), "--out", str(sheet)]) == 0
    assert said in capsys.readouterr().out
    for path in clean.rglob("*.png"):
        path.write_bytes(b"no picture")
    assert main(["data", "check", str(clean), "--out", str(sheet)]) == 1
    assert said not in capsys.readouterr().out


def test_a_sheet_that_cannot_be_written_loses_no_finding(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.mkdir()  # stops whoever runs this, also one whom no rights stop
    (clean / "train" / "a.png").write_bytes(b"")
    assert main(["data", "check", str(clean), "--out", str(sheet)]) == 2
    out, err = capsys.readouterr()
    assert "FATAL: unreadable pictures (1)\n  train/a.png: expected a picture" in out
    assert "1 fatal problems, 0 notes" in out
    assert str(sheet) in err
    assert "train/a.png" in (tmp_path / "sheet.png.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["nowhere"], ["empty"], ["clean", "--out", "sheet.jpg"]])
def test_what_is_no_data_folder(
    clean: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clean.parent)
    Path("empty").mkdir()
    assert main(["data", "check", *words]) == 2
    error = capsys.readouterr().err
    assert words[-1] in error
    assert error.count("\n") == 1


def test_ten_of_a_kind_are_printed_and_all_are_listed(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{i:02}.png", "a bird") for i in range(13)]
    write_rows(clean / "train", rows)
    for name, _ in rows:
        (clean / "train" / name).write_bytes(b"no picture")
    assert main(["data", "check", str(clean), "--out", str(tmp_path / "out.png")]) == 1
    out = capsys.readouterr().out
    assert "FATAL: unreadable pictures (13)" in out
    assert "train/09.png" in out
    assert "train/10.png" not in out
    assert "  and 3 more\n" in out
    listing = (tmp_path / "out.png.txt").read_text(encoding="utf-8")
    assert all(f"train/{name}: expected a picture" in listing for name, _ in rows)
    assert "more\n" not in listing


def test_the_list_of_problems_replaces_no_file_that_nobody_named(clean: Path, tmp_path: Path) -> None:
    mine = tmp_path / "overview.txt"
    mine.write_text("my notes", encoding="utf-8")
    (clean / "train" / "a.png").write_bytes(b"")
    assert main(["data", "check", str(clean), "--out", str(tmp_path / "overview.png")]) == 1
    assert mine.read_text(encoding="utf-8") == "my notes"
    assert "train/a.png" in (tmp_path / "overview.png.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_an_encoding_without_a_name_of_the_data_loses_no_finding(
    encoding: str, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Python names a file whose bytes are no UTF-8, b"caf\xe9.png".
    name = os.fsdecode(b"caf\xe9.png") if encoding == "utf-8" else "caf\xe9.png"
    for path in (clean / "train").iterdir():
        path.unlink()
    picture(clean / "train" / name, seed=0).with_suffix(".txt").write_text("a dog\n")
    for broken in ("b", "c"):
        (clean / "train" / f"{broken}{name}").write_bytes(b"")
        (clean / "train" / f"{broken}{name}").with_suffix(".txt").write_text("a dog\n")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["data", "check", str(clean), "--out", str(tmp_path / "sheet.png")]) == 1
    terminal.flush()
    escaped = r"caf\udce9.png" if encoding == "utf-8" else r"caf\xe9.png"
    assert f"train/b{escaped}" in terminal.buffer.getvalue().decode("ascii")
    assert (tmp_path / "sheet.png").is_file()
    assert "train/bcaf" in (tmp_path / "sheet.png.txt").read_text(encoding="utf-8")


UNDIVIDED = {
    "Thai": ("แผ่นกลมสีแดงบนพื้นเรียบ", "แผ่นกลม สีแดง บน พื้น เรียบ"),
    "kana": ("あかいまるいいたがあります", "あかい まるい いた が あります"),
    "Lao": ("ນົກນ້ອຍສີແດງນັ່ງຢູ່ເທິງກິ່ງໄມ້", "ນົກ ນ້ອຍ ສີແດງ ນັ່ງ ຢູ່ ເທິງ ກິ່ງໄມ້"),
    "Khmer": ("បក្សីពណ៌ក្រហមនៅលើមែកឈើ", "បក្សី ពណ៌ ក្រហម នៅ លើ មែក ឈើ"),
    "Burmese": ("သစ်ကိုင်းပေါ်မှာငှက်နီလေးရှိတယ်", "သစ်ကိုင်း ပေါ်မှာ ငှက် နီ လေး ရှိတယ်"),
    "Chinese": (None, "一个红色的圆盘在白色的背景上面"),
    "Japanese": (None, "赤い円盤があります"),
    "English": (None, "incomprehensibilities"),
}


@pytest.mark.parametrize(("together", "apart"), UNDIVIDED.values(), ids=UNDIVIDED)
def test_captions_without_blanks_are_one_word_each(tmp_path: Path, together: str | None, apart: str) -> None:
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    for text in filter(None, (together, apart)):
        for number in range(3):
            (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
        found = [
            finding.what for finding in check(tmp_path).findings if finding.kind == "captions that are not divided"
        ]
        assert bool(found) == (text == together)
        assert all("one word" in what and "put blanks between" in what for what in found)
