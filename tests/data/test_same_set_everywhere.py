"""One small set in every layout on disk: the same pictures and captions come out, and nothing is written."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlm_plugin.data import Problem, Record, Records, find_layout, list_splits, open_split

CAPTIONS = {
    "train": {
        "red bird.png": ["a red bird", "un oiseau à côté 🐦"],
        "wing.jpg": ['a wing, "quoted"'],
        "été.png": ["一只鸟", "two words"],
    },
    "test": {"last.png": ["the last one"]},
}


def picture(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (9 + len(name), 12)
    Image.new("RGB", size, (len(name) * 20, 40, 200)).save(path)


def write_jsonl(root: Path) -> None:
    for split, pictures in CAPTIONS.items():
        rows = [{"file_name": name, "text": texts if len(texts) > 1 else texts[0]} for name, texts in pictures.items()]
        for name in pictures:
            picture(root / split / name, name)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / split / "metadata.jsonl").write_text(text, encoding="utf-8")


def write_csv(root: Path) -> None:
    for split, pictures in CAPTIONS.items():
        for name in pictures:
            picture(root / split / name, name)
        with (root / split / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("file_name", "text"))
            rows.writerows((name, text) for name, texts in pictures.items() for text in texts)


def write_pairs(root: Path) -> None:
    for split, pictures in CAPTIONS.items():
        for name, texts in pictures.items():
            picture(root / split / name, name)
            (root / split / name).with_suffix(".txt").write_text("\n".join(texts) + "\n\n", encoding="utf-8")


def write_coco(root: Path, year: str = "2014", images: str = "") -> None:
    (root / "annotations").mkdir(parents=True)
    for split, part in (("train", "train"), ("test", "val")):
        rows, notes = [], []
        for number, (name, texts) in enumerate(CAPTIONS[split].items()):
            picture(root / images / f"{part}{year}" / name, name)
            rows.append({"id": number, "file_name": name, "height": 12})
            notes += [{"id": len(notes), "image_id": number, "caption": f" {text} "} for text in texts]
        content = json.dumps({"images": rows, "annotations": notes[::2] + notes[1::2]})
        if split == "train":
            content = json.dumps({"images": rows, "annotations": notes})
        (root / "annotations" / f"captions_{part}{year}.json").write_text(content, encoding="utf-8")


def write_coco17(root: Path) -> None:
    write_coco(root, "2017", "images")


def write_originals(root: Path) -> None:
    for split, pictures in CAPTIONS.items():
        (root / split).mkdir(parents=True)
        keys = [f"001.x/{Path(name).stem}" for name in pictures]
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(keys, protocol=2))
        for name, texts in pictures.items():
            picture(root / "CUB_200_2011/images/001.x" / name, name)
            text = root / "text/001.x" / f"{Path(name).stem}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join(texts) + "\n", encoding="utf-8")


def write_published(root: Path) -> None:
    home, lines, marks = root / "CUB_200_2011", [], []
    for split, pictures in CAPTIONS.items():
        for name, texts in pictures.items():
            picture(home / "images/001.x" / name, name)
            lines.append(f"{len(lines) + 1} 001.x/{name}\n")
            marks.append(f"{len(lines)} {int(split == 'train')}\n")
            text = root / "text_c10/001.x" / f"{Path(name).stem}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join(texts) + "\n", encoding="utf-8")
    (home / "images.txt").write_text("".join(lines), encoding="utf-8")
    (home / "train_test_split.txt").write_text("".join(marks), encoding="utf-8")


WRITERS = (write_jsonl, write_csv, write_pairs, write_coco, write_coco17, write_originals, write_published)
every = pytest.mark.parametrize("write", WRITERS)


def state(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])


@every
def test_the_same_pictures_and_captions(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "set")
    before = state(tmp_path)
    assert list_splits(tmp_path / "set") == ["test", "train"]
    for split, pictures in CAPTIONS.items():
        records = open_split(tmp_path / "set", split)
        assert isinstance(records, Records)
        found = {record.image.name: record for record in records}
        assert set(found) == set(pictures)
        for name, texts in pictures.items():
            assert list(found[name].captions) == texts
            assert found[name].key.rsplit("/", 1)[-1] == Path(name).stem
            assert (found[name].class_id is None) == (write is not write_published)
            with Image.open(found[name].image) as opened:
                assert opened.size == (9 + len(name), 12)
    assert state(tmp_path) == before


@every
def test_a_split_that_is_not_there(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "set")
    with pytest.raises(ValueError, match=r"split: expected one of .*\(test, train\), got 'nowhere'"):
        open_split(tmp_path / "set", "nowhere")


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"AttnGAN.*CUB as published.*COCO.*a folder of captioned pictures"):
        find_layout(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        find_layout(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------------------------
# Bad indexes
# ---------------------------------------------------------------------------------------------------------------------


def collected(root: Path, split: str = "train") -> tuple[list[Record], list[Problem]]:
    problems: list[Problem] = []
    return list(open_split(root, split, problems.append)), problems


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "C:\\x.png", "a/../../x.png", "", "x\0.png"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco"])
def test_an_index_that_names_a_file_outside(tmp_path: Path, kind: str, name: str) -> None:
    if kind == "csv" and "\0" in name:
        name = "../y.png"
    if kind == "coco":
        write_coco(tmp_path)
        path = tmp_path / "annotations/captions_train2014.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"][1]["file_name"] = name
        path.write_text(json.dumps(content), encoding="utf-8")
    elif kind == "csv":
        write_csv(tmp_path)
        path = tmp_path / "train/metadata.csv"
        path.write_text(path.read_text(encoding="utf-8-sig").replace("wing.jpg", name), encoding="utf-8")
    else:
        write_jsonl(tmp_path)
        path = tmp_path / "train/metadata.jsonl"
        text = path.read_text(encoding="utf-8").replace('"wing.jpg"', json.dumps(name))
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="expected names of files inside the data folder"):
        open_split(tmp_path, "train")
    records, problems = collected(tmp_path)
    assert len(records) == 2  # the others are read
    assert any(path.name in problem.where and problem.fatal for problem in problems)


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_pairs, write_coco])
def test_two_pictures_of_one_name(tmp_path: Path, write: Callable[[Path], None], monkeypatch) -> None:
    twice = {"train": {**CAPTIONS["train"], "wing.png": ["another"]}, "test": CAPTIONS["test"]}
    monkeypatch.setitem(globals(), "CAPTIONS", twice)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"expected pictures of different names, got wing\.png beside wing\.jpg"):
        open_split(tmp_path, "train")
    records, problems = collected(tmp_path)
    assert len(records) == 3
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c["annotations"].append({"image_id": 77, "caption": "x"}), "got id 77"),
        (lambda c: c["annotations"].append({"image_id": 0}), "expected an object with 'image_id' and 'caption'"),
        (lambda c: c["images"].append({"file_name": "x.png"}), "expected an object with 'id' and 'file_name'"),
        (lambda c: c["images"].append({"id": 0, "file_name": "x.png"}), "expected ids that are distinct"),
        (lambda c: c["images"].append({"id": 9, "file_name": "x.png"}), r"at least one caption for x\.png"),
        (lambda c: c.pop("images"), "the lists 'images' and 'annotations'"),
    ],
)
def test_bad_coco_annotations(tmp_path: Path, change: Callable[[dict], object], what: str) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/captions_train2014.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"captions_train2014\.json.*{what}"):
        open_split(tmp_path, "train")
    assert len(collected(tmp_path)[1]) == 1


def test_coco_that_is_no_json_and_empty_captions(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/captions_train2014.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("two words", ""), encoding="utf-8")
    records, problems = collected(tmp_path)
    assert [len(record.captions) for record in records] == [2, 1, 1]
    assert [(problem.fatal, problem.what) for problem in problems] == [(False, "expected a caption, got an empty one")]
    assert len(open_split(tmp_path, "train")) == 3  # not fatal
    path.write_text(whole[:-5], encoding="utf-8")
    with pytest.raises(ValueError, match="expected JSON"):
        open_split(tmp_path, "train")


def test_the_year_whose_pictures_are_there(tmp_path: Path) -> None:
    write_coco(tmp_path)
    other = tmp_path / "annotations/captions_train2017.json"
    other.write_text('{"images": [], "annotations": []}', encoding="utf-8")
    assert len(open_split(tmp_path, "train")) == 3
    (tmp_path / "train2017").mkdir()
    with pytest.raises(ValueError, match=r"got captions_train2014\.json and captions_train2017\.json: leave"):
        open_split(tmp_path, "train")


def test_captions_of_a_test_set_make_val_the_validation(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations/captions_test2014.json").write_bytes(
        (tmp_path / "annotations/captions_val2014.json").read_bytes()
    )
    assert list_splits(tmp_path) == ["test", "train", "validation"]
    (record,) = open_split(tmp_path, "validation")
    assert record.image == tmp_path / "val2014/last.png"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"file_name": "a.png"}', r"metadata\.jsonl, line 4: expected text, got file_name"),
        ("[1]", "line 4: expected a JSON object, got list"),
        ("{", "line 4: expected a JSON object, got something else"),
        ('{"file_name": "a.png", "text": 7}', "expected text that is a string or a list of strings"),
        ('{"file_name": "a.png", "text": [" "]}', r"expected at least one caption for a\.png"),
    ],
)
def test_bad_lines_of_metadata(tmp_path: Path, text: str, what: str) -> None:
    write_jsonl(tmp_path)
    with (tmp_path / "train/metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    with pytest.raises(ValueError, match=what):
        open_split(tmp_path, "train")
    records, problems = collected(tmp_path)
    assert len(records) == 3
    assert sum(problem.fatal for problem in problems) == 1


def test_bad_tables(tmp_path: Path) -> None:
    write_csv(tmp_path)
    path = tmp_path / "train/metadata.csv"
    whole = path.read_text(encoding="utf-8-sig")
    path.write_text(whole.replace("file_name,text", "file,caption"), encoding="utf-8")
    with pytest.raises(
        ValueError, match="expected the columns file_name and text, no file_name and text in file, caption"
    ):
        open_split(tmp_path, "train")
    path.write_text(whole + "x.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected 2 fields, got another number"):
        open_split(tmp_path, "train")
    path.write_text(whole + '"wing.jpg","two\nlines"\n', encoding="utf-8")
    assert open_split(tmp_path, "train")[1].captions == ('a wing, "quoted"', "two lines")
    path.write_text(whole + "wing.jpg," + "word " * 100_000 + "\n", encoding="utf-8")
    assert len(open_split(tmp_path, "train")[1].captions[1].split()) == 100_000
    (tmp_path / "train/metadata.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="got both"):
        open_split(tmp_path, "train")


def test_pairs_that_are_none(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "train/wing.txt").rename(tmp_path / "train/swing.txt")
    picture(tmp_path / "train/.hidden/x.png", "x")
    with pytest.raises(FileNotFoundError, match=r"wing\.txt"):
        open_split(tmp_path, "train")
    records, problems = collected(tmp_path)
    assert [record.key for record in records] == ["red bird", "été"]
    assert [problem.fatal for problem in problems] == [True, False]
    assert "swing.txt" in problems[1].where


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for name in ("val", "dev"):
        picture(tmp_path / name / "a.png", "a")
        (tmp_path / name / "a.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected one folder of the split 'validation', got val and dev"):
        open_split(tmp_path, "validation")


# ---------------------------------------------------------------------------------------------------------------------
# The test split that is missing
# ---------------------------------------------------------------------------------------------------------------------


def test_a_tenth_by_the_stated_hash(tmp_path: Path) -> None:
    import hashlib

    for number in range(300):
        picture(tmp_path / f"p{number}.png", "p")
        (tmp_path / f"p{number}.txt").write_text(f"picture {number}\n", encoding="utf-8")
    train, test = open_split(tmp_path, "train"), open_split(tmp_path, "test")
    names = {record.key for record in test}
    assert names == {f"p{n}" for n in range(300) if int(hashlib.sha256(f"p{n}".encode()).hexdigest(), 16) % 10 == 0}
    assert 15 <= len(names) <= 45
    assert names.isdisjoint(record.key for record in train)
    assert len(train) + len(test) == 300
    # The same in another layout, and after some are gone.
    rows = [json.dumps({"file_name": f"p{n}.png", "text": "x"}) for n in reversed(range(200))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert {record.key for record in open_split(tmp_path, "test")} == {name for name in names if int(name[1:]) < 200}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_neither_split_of_a_handful_is_empty(tmp_path: Path, count: int) -> None:
    rows = [json.dumps({"file_name": f"{n}/same.png", "text": "x"}) for n in range(count)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert (len(open_split(tmp_path, "train")), len(open_split(tmp_path, "test"))) == (count - 1, 1)


def test_an_empty_split(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metadata.jsonl").write_text("\n", encoding="utf-8")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=f"expected at least one picture in the split {split}, found none"):
            open_split(tmp_path, split)


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def test_records_come_out_as_they_went_in() -> None:
    strange = os.fsdecode(b"x\xff.png")
    given = [
        Record("a", Path("p/a.png"), ("one", "zwei 🐦"), 3, (0.0, 1.5, 2.0, 3.0)),
        Record("b", Path(strange), ("x",), None, None),
        Record("c", Path("c"), ("", "y", "z"), 0, None),
    ]
    packed = Records(given)
    assert list(packed) == given
    assert packed == given
    assert packed != given[:2]
    assert packed[-1] == given[2]
    assert list(packed[::-2]) == given[::-2]
    assert isinstance(packed[1:], Records)
    assert list(pickle.loads(pickle.dumps(packed))) == given
    assert not Records()
    assert list(Records()) == []
    for index in (3, -4):
        with pytest.raises(IndexError):
            packed[index]
