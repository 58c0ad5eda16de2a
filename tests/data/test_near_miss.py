"""What is said of folders and files that no layout fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_plugin.data import find_layout, open_split
from vlm_plugin.data.near_miss import which_columns

NEAREST = "the nearest layout is a metadata.csv in the folder of the pictures, with the columns file_name and text"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
PAGE = "\ufeff<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


def put(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "found no pictures; no captions either"),
        ({"a.jpg": "", "b.jpg": ""}, "found 2 pictures; no captions"),
        ({"images.zip": "PK"}, "found no pictures; images.zip, which must be unpacked first"),
        ({"a.tar.gz": "", "b.7z": "", "c.zip": "", "d.rar": ""},
         "found no pictures; a.tar.gz, b.7z, c.zip and 1 more, which must be unpacked first"),
        ({"results_20130124.token": "1.jpg#0\ta dog", "flickr30k-images/1.jpg": ""},
         "found 1 picture; results_20130124.token, as Flickr's captions are listed (it begins '1.jpg#0\\ta dog'): "
         f"{NEAREST}, a row a caption"),
        ({"captions.txt": "image,caption\n1.jpg,a dog", "Images/1.jpg": ""},
         "found 1 picture; captions.txt, as Flickr's captions are listed (it begins 'image,caption'): "
         f"{NEAREST}, a row a caption"),
        ({"results.csv": "image_name| comment_number| comment\n", "flickr30k_images/1.jpg": ""},
         "found 1 picture; results.csv, as Flickr's captions are listed (it begins "
         f"'image_name| comment_number| comment'): {NEAREST}, a row a caption"),
        ({"a.jpg": "", "a.caption": "a dog"},
         "found 1 picture; a.caption beside pictures of those names: the extension of captions is .txt"),
        ({"images/train/a.jpg": "", "captions/train/a.txt": "a dog"},
         "found 1 picture; captions/train/a.txt apart from the pictures of those names: a .txt lies in the folder of "
         "its picture"),
        ({"labels.csv": "image,caption\na.jpg,a dog", "a.jpg": ""},
         "found 1 picture; labels.csv, a table of a name that no layout has (labels.csv begins 'image,caption'): "
         f"{NEAREST}"),
        ({"labels.csv": PAGE, "a.jpg": ""},
         "found 1 picture; labels.csv, a table of a name that no layout has (labels.csv begins 'a web page'): "
         f"{NEAREST}"),
        ({"data/train-00000-of-00001.parquet": ""},
         f"found no pictures; data/train-00000-of-00001.parquet, a table of a name that no layout has: {NEAREST}"),
    ],
)  # fmt: skip
def test_a_folder_without_a_layout_says_what_is_in_it(tmp_path: Path, files: dict[str, str], found: str) -> None:
    put(tmp_path, files)
    with pytest.raises(ValueError, match="expected a data folder with one of these layouts: ") as caught:
        find_layout(tmp_path)
    assert str(caught.value).endswith(f"; {found}")


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ("image caption", " ('image' is to be called file_name and 'caption' is to be called text)"),
        ("file_name prompt", " ('prompt' is to be called text)"),
        ("Path text", " ('Path' is to be called file_name)"),
        ("image filename text", ""),
        ("a b", ""),
    ],
)
def test_columns_of_other_names(columns: str, hint: str) -> None:
    assert which_columns(columns.split()) == hint


def test_pictures_that_are_still_packed(tmp_path: Path) -> None:
    put(tmp_path, {"train/metadata.jsonl": '{"file_name": "a.jpg", "text": "a dog"}', "images.zip": "PK"})
    with pytest.raises(
        FileNotFoundError, match=r"metadata\.jsonl names, found none of them, but images\.zip, which must"
    ):
        open_split(tmp_path, "train")
    put(tmp_path, {"train/a.jpg": ""})
    assert len(open_split(tmp_path, "train")) == 1


@pytest.mark.parametrize(("content", "what"), [(POINTER, r"a Git LFS pointer \(git lfs pull"), (PAGE, "a web page")])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "a.txt", "annotations/captions_train2017.json"])
def test_downloads_that_are_no_tables(tmp_path: Path, name: str, content: str, what: str) -> None:
    put(tmp_path, {"a.jpg": "", "train2017/a.jpg": "", name: content})
    with pytest.raises(ValueError, match=f"{Path(name).name}: expected .*, got {what}"):
        open_split(tmp_path, "train")
