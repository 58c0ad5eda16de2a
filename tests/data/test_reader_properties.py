"""Folders of any names and captions are read as they were written, in every layout, in the same order each time."""

from __future__ import annotations

import csv
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from properties import CAPTIONS, FEW

from vlm_plugin.data import open_split
from vlm_plugin.data.captions import read_captions

Content = dict[str, list[str]]
"""Name of a picture without its extension -> its captions."""

NAMES = st.text("abz019 ._-'\u00e9\u00df\u4e2d\U0001f426", min_size=1, max_size=8).filter(
    # As every system and each reader's own marks allow them: hidden files, and blanks or dots at the ends.
    lambda name: name == name.strip(" .") and not name.endswith(("-", "_"))
)
CONTENTS = st.dictionaries(NAMES, st.lists(CAPTIONS, min_size=1, max_size=3), min_size=1, max_size=4)
# A second split: where there is one alone, the readers divide it.
OTHER: Content = {"other": ["a bird"]}


def pictures(folder: Path, content: Content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in content:
        Image.new("RGB", (2, 2)).save(folder / f"{name}.png")


def texts(folder: Path, content: Content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in content.items():
        (folder / f"{name}.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def write_jsonl(root: Path, content: Content) -> None:
    pictures(root / "train", content)
    pictures(root / "test", OTHER)
    (root / "test" / "metadata.jsonl").write_text('{"file_name": "other.png", "text": "a bird"}\n', encoding="utf-8")
    rows = [json.dumps({"file_name": f"{name}.png", "text": captions}) for name, captions in content.items()]
    (root / "train" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def write_csv(root: Path, content: Content) -> None:
    pictures(root / "train", content)
    pictures(root / "test", OTHER)
    (root / "test" / "metadata.csv").write_text("file_name,text\nother.png,a bird\n", encoding="utf-8")
    with (root / "train" / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([f"{name}.png", caption] for name, captions in content.items() for caption in captions)


def write_pairs(root: Path, content: Content) -> None:
    for split, part in (("train", content), ("test", OTHER)):
        pictures(root / split, part)
        texts(root / split, part)


def write_coco(root: Path, content: Content) -> None:
    pictures(root / "train2014", content)
    pictures(root / "val2014", OTHER)
    (root / "annotations").mkdir()
    for split, part in (("train", content), ("val", OTHER)):
        images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(part)]
        told = [{"image_id": i, "caption": c} for i, captions in enumerate(part.values()) for c in captions]
        told = [{"id": number, **row} for number, row in enumerate(told)]
        path = root / "annotations" / f"captions_{split}2014.json"
        path.write_text(json.dumps({"images": images, "annotations": told}), encoding="utf-8")


def write_originals(root: Path, content: Content) -> None:
    for split, part in (("train", content), ("test", OTHER)):
        pictures(root / "images", part)
        texts(root / "text", part)
        (root / split).mkdir()
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(list(part), protocol=2))


WRITERS = {
    "jsonl": write_jsonl, "csv": write_csv, "pairs": write_pairs, "coco": write_coco, "originals": write_originals,
}  # fmt: skip


def read(root: Path) -> list[tuple[str, list[str]]]:
    return [(Path(record.key).name, list(record.captions)) for record in open_split(root, "train")]


@pytest.mark.parametrize("layout", WRITERS)
@FEW
@given(content=CONTENTS)
def test_a_folder_is_read_as_it_was_written(layout: str, content: Content) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        WRITERS[layout](root, content)
        found = read(root)
        assert dict(found) == content
        assert len(found) == len(content)
        assert found == read(root)


@FEW
@given(content=CONTENTS, order=st.randoms(use_true_random=False))
def test_the_order_of_a_table_changes_no_picture(content: Content, order: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = list(content)
        order.shuffle(names)
        for number, those in enumerate((list(content), names)):
            write_csv(Path(folder) / str(number), {name: content[name] for name in those})
        assert sorted(read(Path(folder) / "0")) == sorted(read(Path(folder) / "1"))


ONE_EACH = st.dictionaries(NAMES, CAPTIONS, min_size=1, max_size=4)


def captions_json(path: Path, content: dict[str, str]) -> None:
    path.write_text(json.dumps({f"{name}.png": caption for name, caption in content.items()}), encoding="utf-8")


def captions_csv(path: Path, content: dict[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows([f"{name}.png", caption] for name, caption in content.items())


@pytest.mark.parametrize(("name", "write"), [("c.json", captions_json), ("c.csv", captions_csv)])
@FEW
@given(content=ONE_EACH)
def test_a_file_of_captions_is_read_as_it_was_written(
    name: str, write: Callable[[Path, dict[str, str]], None], content: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, content)
        pictures(Path(folder) / "images", {key: [] for key in content})
        assert read_captions(Path(folder) / name, Path(folder) / "images") == {
            f"{key}.png": caption for key, caption in content.items()
        }
