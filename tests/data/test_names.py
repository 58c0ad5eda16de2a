"""Names that look the same and are composed otherwise, in every layout."""

from __future__ import annotations

import json
import pickle
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlm_plugin.data import open_split
from vlm_plugin.data.captions import read_captions
from vlm_plugin.data.images import load_image
from vlm_plugin.data.names import Alike, NamesOnDisk

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its file system holds both forms for one name")

FORMS = ("NFC", "NFD")
NAME, FOLDER = "café", "écru"


def picture(path: Path, colour: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (colour, 9, 9)).save(path)


def form_of(which: str) -> Callable[[str], str]:
    return lambda text: unicodedata.normalize(which, text)


def table(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / disk(f"{FOLDER}/{NAME}.png"))
    rows = f"file_name,text\n{index(f'{FOLDER}/{NAME}')}.png,a bird\n"
    (root / "metadata.csv").write_text(rows, encoding="utf-8")


def lines(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / disk(f"{FOLDER}/{NAME}.png"))
    row = {"file_name": index(f"{FOLDER}/{NAME}.png"), "text": "a bird"}
    (root / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")


def pairs(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / disk(f"{FOLDER}/{NAME}.png"))
    (root / disk(FOLDER) / index(f"{NAME}.txt")).write_text("a bird")


def coco(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / "train2014" / disk(f"{NAME}.png"))
    (root / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": index(f"{NAME}.png")}],
        "annotations": [{"image_id": 1, "caption": "a bird"}],
    }
    (root / "annotations/captions_train2014.json").write_text(json.dumps(content))


def cub(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / "images" / disk(f"{FOLDER}/{NAME}.png"))
    (root / "images.txt").write_text(f"1 {index(FOLDER)}/{index(NAME)}.png\n", encoding="utf-8")
    (root / "text" / disk(FOLDER)).mkdir(parents=True)
    (root / "text" / disk(f"{FOLDER}/{NAME}.txt")).write_text("a bird")


def originals(root: Path, disk: Callable[[str], str], index: Callable[[str], str]) -> None:
    picture(root / "images" / disk(f"{FOLDER}/{NAME}.jpg"))
    (root / "train").mkdir()
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([index(f"{FOLDER}/{NAME}")]))
    (root / "text" / disk(FOLDER)).mkdir(parents=True)
    (root / "text" / disk(f"{FOLDER}/{NAME}.txt")).write_text("a bird")


@pytest.mark.parametrize("index", FORMS)
@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("write", [table, lines, pairs, coco, cub, originals])
def test_names_are_found_in_every_layout(tmp_path: Path, write: Callable, disk: str, index: str) -> None:
    write(tmp_path, form_of(disk), form_of(index))
    (record,) = open_split(tmp_path, "train")
    assert record.captions == ("a bird",)
    assert load_image(record.image).size == (40, 40)


@pytest.mark.parametrize("index", FORMS)
@pytest.mark.parametrize("disk", FORMS)
def test_names_are_found_by_score(tmp_path: Path, disk: str, index: str) -> None:
    stored = form_of(disk)(f"{NAME}.png")
    picture(tmp_path / "pictures" / stored)
    (tmp_path / "c.csv").write_text(f"file_name,text\n{form_of(index)(NAME)}.png,a bird\n", encoding="utf-8")
    assert read_captions(tmp_path / "c.csv", tmp_path / "pictures") == {stored: "a bird"}


def test_an_exact_name_goes_first(tmp_path: Path) -> None:
    for number, form in enumerate(FORMS):
        picture(tmp_path / form_of(form)(f"{NAME}.png"), 100 * number)
    rows = [f"{form_of(form)(NAME)}.png,a bird of {form}\n" for form in FORMS]
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(rows), encoding="utf-8")
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert {record.captions[0]: load_image(record.image).getpixel((0, 0))[0] for record in read} == {
        "a bird of NFC": 0,
        "a bird of NFD": 100,
    }
    for form in FORMS:
        (tmp_path / form_of(form)(f"{NAME}.txt")).write_text(f"a bird of {form}")
    (tmp_path / "metadata.csv").unlink()
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert {record.captions[0]: load_image(record.image).getpixel((0, 0))[0] for record in read} == {
        "a bird of NFC": 0,
        "a bird of NFD": 100,
    }


def test_rows_in_both_forms_are_one_picture(tmp_path: Path) -> None:
    picture(tmp_path / form_of("NFD")(f"{NAME}.png"))
    rows = [f"{form_of(form)(NAME)}.png,a bird of {form}\n" for form in FORMS]
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(rows), encoding="utf-8")
    (record,) = open_split(tmp_path, "train")
    assert record.captions == ("a bird of NFC", "a bird of NFD")


def test_blanks_around_a_name_in_a_table(tmp_path: Path) -> None:
    for name in ("a.png", " b.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("text,file_name\na cat, a.png \na dog, b.png\n")
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert {record.image.name: record.captions for record in read} == {"a.png": ("a cat",), " b.png": ("a dog",)}
    assert read_captions(tmp_path / "metadata.csv", tmp_path) == {" b.png": "a dog", "a.png": "a cat"}


def test_plain_names_are_not_looked_up(tmp_path: Path) -> None:
    assert NamesOnDisk(tmp_path / "nowhere").find("a/b.png") == "a/b.png"
    assert NamesOnDisk(tmp_path / "nowhere").find("é/b.png") == "é/b.png"
    assert Alike(["a"]).find("b") is None
