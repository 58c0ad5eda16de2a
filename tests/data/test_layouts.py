"""The same pictures and captions in every layout, and the packed records that every layout is read into."""

from __future__ import annotations

import csv
import importlib
import io
import json
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vlm_plugin.data import CaptionedImages, Problem, Record, Records, find_layout, layouts, list_splits, open_split
from vlm_plugin.data.records import nothing_to_learn, stop


class Picture(NamedTuple):
    """What is written: a picture's file within its folder, its width and height, and its captions."""

    file: str
    size: tuple[int, int]
    captions: tuple[str, ...]


Splits = dict[str, list[Picture]]
Write = Callable[[Path, Splits], None]

SPLITS: Splits = {
    "train": [
        Picture("001.Black Bird/a bird 1.jpg", (9, 5), ("a black bird", "a \u201cdark\u201d bird, perched")),
        Picture("001.Black Bird/\u00e9t\u00e9.png", (4, 7), ("a bird in summer \U0001f426\u2600\ufe0f",)),
        Picture(
            "002.Wren/St. Kilda's wren 1.5.jpg", (6, 6), ("a small wren", "un troglodyte \u00e0 l'\u00eele", "it's")
        ),
    ],
    "test": [
        Picture("001.Black Bird/b.png", (3, 8), ("another; black bird",)),
        Picture("002.Wren/\u9d6a.jpg", (8, 3), ("\u9e1f", 'a "wren"')),
    ],
}


def put_pictures(folder: Path, pictures: list[Picture]) -> None:
    for picture in pictures:
        path = folder / picture.file
        path.parent.mkdir(parents=True, exist_ok=True)
        # No two pictures have the same pixels.
        Image.new("RGB", picture.size, tuple(str(picture).encode()[-3:])).save(path)


def put_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


def key(picture: Picture) -> str:
    return picture.file.rpartition(".")[0]


def write_texts(folder: Path, pictures: list[Picture]) -> None:
    for picture in pictures:
        put_text(folder / f"{key(picture)}.txt", "\n".join(picture.captions) + "\n")


def write_jsonl(root: Path, splits: Splits) -> None:
    for split, pictures in splits.items():
        put_pictures(root / split, pictures)
        rows = [{"file_name": picture.file, "text": picture.captions} for picture in pictures]
        put_text(root / split / "metadata.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(root: Path, splits: Splits) -> None:
    for split, pictures in splits.items():
        put_pictures(root / split, pictures)
        content = io.StringIO()
        writer = csv.writer(content)
        writer.writerow(["file_name", "text"])
        writer.writerows([picture.file, caption] for picture in pictures for caption in picture.captions)
        put_text(root / split / "metadata.csv", content.getvalue())


def write_pairs(root: Path, splits: Splits) -> None:
    for split, pictures in splits.items():
        put_pictures(root / split, pictures)
        write_texts(root / split, pictures)


def write_coco(root: Path, splits: Splits, year: str = "2014", folder: str = ".") -> None:
    for split, pictures in splits.items():
        part = {"train": "train", "test": "val"}[split]
        (root / folder / f"{part}{year}").mkdir(parents=True)
        put_pictures(root / folder / f"{part}{year}", pictures)
        content = {
            "images": [{"id": i, "file_name": picture.file} for i, picture in enumerate(pictures)],
            "annotations": [
                {"image_id": i, "id": 10 * i + j, "caption": caption}
                for i, picture in enumerate(pictures)
                for j, caption in enumerate(picture.captions)
            ],
        }
        put_text(root / f"annotations/captions_{part}{year}.json", json.dumps(content))


def write_coco_2017(root: Path, splits: Splits) -> None:
    write_coco(root, splits, "2017", "images")


def write_originals(root: Path, splits: Splits) -> None:
    for split, pictures in splits.items():
        put_pictures(root / "CUB_200_2011/images", pictures)
        write_texts(root / "text", pictures)
        (root / split).mkdir(parents=True)
        for name, content in {
            "filenames": [key(picture) for picture in pictures],
            "class_info": [int(picture.file[:3]) for picture in pictures],
        }.items():
            (root / split / f"{name}.pickle").write_bytes(pickle.dumps(content, protocol=2))


def write_cub(root: Path, splits: Splits) -> None:
    (root / "images").mkdir(parents=True)
    lines, belongs = [], []
    for split, pictures in splits.items():
        put_pictures(root / "images", pictures)
        write_texts(root / "text_c10", pictures)
        for picture in pictures:
            lines.append(f"{len(lines) + 1} {picture.file}\n")
            belongs.append(f"{len(lines)} {int(split == 'train')}\n")
    put_text(root / "images.txt", "".join(lines))
    put_text(root / "train_test_split.txt", "".join(belongs))


INDEXED = [write_jsonl, write_csv, write_coco, write_coco_2017, write_originals, write_cub]
LAYOUTS = [*INDEXED, write_pairs]
EVERY_LAYOUT = pytest.mark.parametrize("write", LAYOUTS)


@EVERY_LAYOUT
def test_every_layout_gives_the_same_pictures_and_captions(tmp_path: Path, write: Write) -> None:
    root, expected = tmp_path / "data", tmp_path / "expected"
    write(root, SPLITS)
    problems: list[Problem] = []
    assert list_splits(root) == ["test", "train"]
    for split, pictures in SPLITS.items():
        put_pictures(expected / split, pictures)
        records = open_split(root, split, problems.append)
        found = {record.key: (record.image.read_bytes(), record.captions) for record in records}
        assert found == {key(p): ((expected / split / p.file).read_bytes(), p.captions) for p in pictures}
        assert len(records) == len(pictures)
        # Without an index they are sorted by path.
        assert [r.key for r in records] == (sorted(found) if write is write_pairs else [key(p) for p in pictures])
        for record in records:
            assert record.image.resolve().is_relative_to(root)
            in_classes = write in (write_originals, write_cub)
            assert record.class_id == (int(record.key[:3]) if in_classes else None)
            assert record.box is None
        assert CaptionedImages(records, 4, train=False)[0].image.shape == (3, 4, 4)
    assert problems == []


@EVERY_LAYOUT
def test_a_split_that_is_not_there_lists_those_that_are(tmp_path: Path, write: Write) -> None:
    write(tmp_path, SPLITS)
    for split in ("validation", "val", "Train", "", "../train"):
        with pytest.raises(ValueError, match=r"split: expected one of .*'s \(test, train\), got '"):
            open_split(tmp_path, split)


def test_an_unknown_layout_lists_every_layout(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(ValueError, match="expected a data folder with one of these layouts") as caught:
        open_split(tmp_path, "train")
    for write in LAYOUTS:
        write(tmp_path / write.__name__, SPLITS)
        assert find_layout(tmp_path / write.__name__).looks_like in str(caught.value)
    for word in ("filenames.pickle", "images.txt", "captions_train2014.json", "metadata.jsonl", "metadata.csv", ".txt"):
        assert word in str(caught.value)


def test_each_layout_is_taken_for_itself(tmp_path: Path) -> None:
    modules = {"originals": [write_originals], "cub": [write_cub], "coco": [write_coco, write_coco_2017]}
    for module, writes in {**modules, "folder": [write_jsonl, write_csv, write_pairs]}.items():
        for write in writes:
            write(tmp_path / write.__name__, SPLITS)
            assert find_layout(tmp_path / write.__name__).read.__module__ == f"vlm_plugin.data.layouts.{module}"


def test_every_module_of_the_room_is_a_layout() -> None:
    found = [
        importlib.import_module(f"{layouts.__name__}.{module.name}")
        for module in pkgutil.iter_modules(layouts.__path__)
    ]
    assert {module.LAYOUT for module in found} == set(layouts.LAYOUTS)
    assert len({layout.looks_like for layout in layouts.LAYOUTS}) == len(found)


@pytest.mark.parametrize("write", INDEXED)
def test_a_split_without_pictures(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"train": SPLITS["train"], "test": []})
    assert len(open_split(tmp_path, "train")) == len(SPLITS["train"])
    with pytest.raises(ValueError, match="expected at least one picture"):
        open_split(tmp_path, "test")
    problems: list[Problem] = []
    assert len(open_split(tmp_path, "test", problems.append)) == 0
    assert len(problems) == 1


@EVERY_LAYOUT
def test_nothing_is_written_to_the_folder(tmp_path: Path, write: Write) -> None:
    def listing() -> list[tuple[str, int, int]]:
        paths = [tmp_path, *tmp_path.rglob("*")]
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)

    write(tmp_path, SPLITS)
    before = listing()
    for split in list_splits(tmp_path):
        open_split(tmp_path, split)
    assert listing() == before


@pytest.mark.parametrize("write", INDEXED)
@pytest.mark.parametrize(
    "name", ["../outside.jpg", "001.Black Bird/../../outside.jpg", "/outside.jpg", "C:\\outside.jpg"]
)
def test_an_index_that_names_a_file_outside_the_folder(tmp_path: Path, write: Write, name: str) -> None:
    root = tmp_path / "data"
    write(root, SPLITS)
    for path in root.rglob("*"):
        # Only the index: the files stay where they are.
        if (path.is_file() and path.suffix in (".jsonl", ".csv", ".json", ".pickle")) or path.name == "images.txt":
            replace_name(path, SPLITS["train"][0].file, name)
    with pytest.raises(ValueError, match="expected names of files inside the data folder, got '"):
        open_split(root, "train")
    problems: list[Problem] = []
    records = open_split(root, "train", problems.append)
    assert {record.key for record in records} <= {key(picture) for picture in SPLITS["train"][1:]}
    assert any("expected names of files inside" in problem.what and problem.fatal for problem in problems)


def replace_name(path: Path, old: str, new: str) -> None:
    if path.suffix == ".pickle":
        content = pickle.loads(path.read_bytes())
        old, new = old.rpartition(".")[0], new.rpartition(".")[0]
        path.write_bytes(pickle.dumps([new if entry == old else entry for entry in content], protocol=2))
    else:
        content = path.read_text(encoding="utf-8")
        put_text(path, content.replace(old, json.dumps(new)[1:-1] if path.suffix.startswith(".json") else new))


@EVERY_LAYOUT
def test_two_pictures_of_one_name(tmp_path: Path, write: Write) -> None:
    first = SPLITS["train"][0]
    clash = first._replace(file=first.file.replace(".jpg", ".png"), captions=("the other",))
    write(tmp_path, {**SPLITS, "train": [*SPLITS["train"], clash]})
    # The pickles have no extensions: they name the key twice.
    what = (
        "a bird 1' at positions 0 and 3"
        if write is write_originals
        else r"a bird 1\.png and 001\.Black Bird/a bird 1\.jpg"
    )
    with pytest.raises(ValueError, match=what):
        open_split(tmp_path, "train")
    problems: list[Problem] = []
    records = open_split(tmp_path, "train", problems.append)
    assert sorted(record.key for record in records) == sorted(map(key, SPLITS["train"]))
    assert [problem.fatal for problem in problems] == [True]


@EVERY_LAYOUT
def test_the_test_split_that_is_made_is_the_same_in_every_layout(tmp_path: Path, write: Write) -> None:
    # Of these names the SHA-256, as a number, is divisible by ten for two.
    pictures = [Picture(f"001.Bird/bird {i}.jpg", (2, 2), (f"bird number {i}",)) for i in range(20, 30)]
    write(tmp_path, {"train": pictures})
    if write is write_cub:
        (tmp_path / "train_test_split.txt").unlink()
    assert [record.key for record in open_split(tmp_path, "test")] == ["001.Bird/bird 22", "001.Bird/bird 23"]
    assert len(open_split(tmp_path, "train")) == 8


RECORDS = [
    Record("a/one", Path("root/a/one.jpg"), ("a dog", "a \U0001f600 caf\u00e9"), 3, (1.5, 0.1, 3.25, 1e9)),
    Record("two", Path("root/two.png"), ("a cat",), None, None),
    Record("zero", Path("root/zero.jpg"), ("", "\x00", "\u2028\n"), 0, (0.0, 0.0, 0.0, 0.0)),
    # A file name that is no UTF-8, as the file system gives it, and half an emoji, as JSON may give it.
    Record("caf\udce9", Path("root/caf\udce9.jpg"), ("\ud83d",), -(2**63), None),
    Record("none", Path("root/none.jpg"), (), 2**63 - 1, None),
]


def test_records_give_back_what_they_were_made_of() -> None:
    packed = Records(RECORDS)
    assert list(packed) == RECORDS
    for record, original in zip(packed, RECORDS, strict=True):
        assert [type(field) for field in record] == [type(field) for field in original]
        assert record.box is None or {type(side) for side in record.box} == {float}
    assert len(packed) == len(RECORDS)
    assert repr(packed) == "Records(5 pictures, 7 captions)"


def test_records_are_indexed_like_a_list() -> None:
    packed = Records(iter(RECORDS))
    for index in range(-len(RECORDS), len(RECORDS)):
        assert packed[index] == RECORDS[index]
    for index in (len(RECORDS), -len(RECORDS) - 1):
        with pytest.raises(IndexError, match=f"index: expected one of 5 records, got {index}"):
            packed[index]
    for part in (
        slice(1, 3),
        slice(None, None, 2),
        slice(None, None, -1),
        slice(-2, None),
        slice(4, 0, -3),
        slice(7, 9),
    ):
        assert isinstance(packed[part], Records)
        assert list(packed[part]) == RECORDS[part]
    assert RECORDS[1] in packed
    assert packed.index(RECORDS[3]) == 3


def test_records_compare_like_a_list() -> None:
    packed = Records(RECORDS)
    assert packed == RECORDS
    assert packed == Records(RECORDS)
    assert packed != RECORDS[:-1]
    assert packed != RECORDS[::-1]
    for field, other in {"key": "x", "image": Path("x"), "captions": ("x",), "class_id": 1, "box": (9.0,) * 4}.items():
        assert packed != [RECORDS[0]._replace(**{field: other}), *RECORDS[1:]]


def test_no_records() -> None:
    for empty in (Records(), Records([]), Records(RECORDS)[2:2]):
        assert len(empty) == 0
        assert not empty
        assert list(empty) == []
        assert empty == []
        with pytest.raises(IndexError, match="index: expected one of 0 records, got 0"):
            empty[0]


def send_back(records: Records, sender: Connection) -> None:
    sender.send((list(records), records))


def test_records_travel_to_a_spawned_process_and_back() -> None:
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=send_back, args=(Records(RECORDS), sender))
    process.start()
    sender.close()
    plain, packed = receiver.recv()
    process.join()
    assert plain == RECORDS
    assert isinstance(packed, Records)
    assert packed == RECORDS


def test_packed_records_are_a_few_arrays_whatever_their_number() -> None:
    parts = [
        part for value in vars(Records(RECORDS)).values() for part in getattr(value, "__dict__", {"": value}).values()
    ]
    assert len(parts) < 20
    assert {type(part) for part in parts} == {np.ndarray}


def test_only_fatal_problems_stop_and_a_missing_file_says_so() -> None:
    stop(Problem("a.txt", "expected this, got that", fatal=False))
    with pytest.raises(ValueError, match=r"^a\.txt, line 3: expected this, got that$"):
        stop(Problem("a.txt, line 3", "expected this, got that"))
    with pytest.raises(FileNotFoundError, match=r"^a\.txt: expected this$"):
        stop(Problem("a.txt", "expected this", missing=True))


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        ([], "expected two pictures or more, got none"),
        ([(None, "a dog")], "expected two pictures or more, got 1"),
        (
            [(7, "a dog"), (7, "a cat"), (7, "a cow")],
            "expected pictures of two classes or more, got 3 of the one class 7",
        ),
        ([(None, "a dog"), (None, "A  dog")], "expected captions that tell pictures apart, got the same for all 2"),
        ([(1, "a dog"), (2, "a dog")], "expected captions that tell pictures apart, got the same for all 2"),
        ([(0, "a dog"), (0, "a dog")], "expected pictures of two classes or more, got 2 of the one class 0"),
        ([(None, "a dog"), (None, "a cat")], None),
        ([(1, "a dog"), (1, "a cat"), (2, "a dog")], None),
    ],
)
def test_nothing_to_learn(pictures: list[tuple[int | None, str]], reason: str | None) -> None:
    records = [Record(str(i), Path(f"{i}.png"), (text,), group, None) for i, (group, text) in enumerate(pictures)]
    found = nothing_to_learn(Records(records))
    assert found is None if reason is None else found.startswith(reason)
