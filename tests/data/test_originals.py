"""The CUB layout, as its users really have it, and what the reader says when it is broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from vlm_plugin.data import open_split
from vlm_plugin.data.originals import read_originals

KEYS = ["001.Albatross/one", "001.Albatross/two", "002.Wren/three"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures in `train` (the picture files are not needed to read the records)."""
    root = tmp_path / "birds"
    (root / "CUB_200_2011/images").mkdir(parents=True)
    (root / "train").mkdir()
    (root / "train/filenames.pickle").write_bytes(pickle.dumps(KEYS, protocol=2))
    (root / "train/class_info.pickle").write_bytes(pickle.dumps([1, 1, 2], protocol=2))
    (root / "CUB_200_2011/images.txt").write_text("".join(f"{i} {key}.jpg\n" for i, key in enumerate(KEYS, 1)))
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1 60.0 27.0 325.0 304.0\n2 1 2 3 4\n3 5.5 6 7 8\n")
    for key in KEYS:
        path = root / f"text/{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"caption of {key}\nanother one\n")
    return root


def test_reads_the_records(root: Path) -> None:
    records = read_originals(root, "train")
    assert [record.key for record in records] == KEYS
    assert [record.class_id for record in records] == [1, 1, 2]
    assert records[0].box == (60.0, 27.0, 325.0, 304.0)
    assert records[2].box == (5.5, 6.0, 7.0, 8.0)
    assert records[2].image == root / "CUB_200_2011/images/002.Wren/three.jpg"
    assert records[1].captions == ("caption of 001.Albatross/two", "another one")
    assert open_split(root, "train") == records


def test_boxes_belong_to_names_and_not_to_positions(root: Path) -> None:
    (root / "CUB_200_2011/images.txt").write_text(f"7 {KEYS[2]}.jpg\n8 {KEYS[0]}.jpg\n9 {KEYS[1]}.jpg\n")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("9 9 9 9 9\n8 8 8 8 8\n7 7 7 7 7\n")
    boxes = [record.box for record in read_originals(root, "train")]
    assert [box[0] for box in boxes if box] == [8.0, 9.0, 7.0]


def test_captions_of_any_encoding(root: Path) -> None:
    path = root / f"text/{KEYS[0]}.txt"
    path.write_bytes("\ufeffa bird with a caf\u00e9 crown\r\n\r\n   \na \u201cred\u201d bird".encode())
    assert read_originals(root, "train")[0].captions == ("a bird with a caf\u00e9 crown", "a \u201cred\u201d bird")
    path.write_bytes(b"a caf\xe9 bird\x85 with wings\n")
    assert read_originals(root, "train")[0].captions == ("a caf\u00e9 bird\x85 with wings",)


def test_python_2_pickles_and_arrays(root: Path) -> None:
    # Python 2 strings, protocol 0: what pickle.dump(["001.Albatross/one"], f) wrote there.
    (root / "train/filenames.pickle").write_bytes(b"(lp0\nS'001.Albatross/one'\np1\na.")
    (root / "train/class_info.pickle").write_bytes(pickle.dumps(np.array([5]), protocol=2))
    (record,) = read_originals(root, "train")
    assert (record.key, record.class_id) == ("001.Albatross/one", 5)
    assert type(record.class_id) is int


def test_python_2_names_in_utf8(root: Path) -> None:
    (root / "train/filenames.pickle").write_bytes(b"(lp0\nS'001.Albatross/caf\\xc3\\xa9'\np1\na.")
    (root / "train/class_info.pickle").unlink()
    (root / "text/001.Albatross/caf\u00e9.txt").write_text("a bird")
    (root / "CUB_200_2011/images.txt").write_text("1 001.Albatross/caf\u00e9.jpg\n", encoding="utf-8")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1 0 0 1 1\n")
    (record,) = read_originals(root, "train")
    assert record.key == "001.Albatross/caf\u00e9"
    assert record.class_id is None


def test_no_boxes_only_if_both_files_are_absent(root: Path) -> None:
    names, boxes = root / "CUB_200_2011/images.txt", root / "CUB_200_2011/bounding_boxes.txt"
    content = names.read_text()
    names.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.txt: expected beside bounding_boxes\.txt"):
        read_originals(root, "train")
    boxes.unlink()
    assert [record.box for record in read_originals(root, "train")] == [None] * 3
    names.write_text(content)
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes\.txt: expected beside images\.txt"):
        read_originals(root, "train")


@pytest.mark.parametrize(
    "key", ["../../x", "001.Albatross/../../../x", "/etc/passwd", "..\\x", "C:\\x", "a//b", "", "a/b\0c", 7]
)
def test_keys_that_leave_the_folder_are_refused(root: Path, key: object) -> None:
    (root.parent / "x.txt").write_text("a secret")
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([KEYS[0], key, KEYS[1]]))
    with pytest.raises(ValueError, match=r"train.filenames\.pickle: expected (names|strings) '<class>/<name>'"):
        read_originals(root, "train")


def test_unknown_split_lists_those_there(root: Path) -> None:
    (root / "test").mkdir()
    (root / "test/filenames.pickle").write_bytes(pickle.dumps(KEYS))
    for split in ("validation", "../birds/train"):
        with pytest.raises(ValueError, match=r"filenames\.pickle \(there: test, train\), got '"):
            open_split(root, split)


def test_missing_and_empty_caption_files(root: Path) -> None:
    path = root / f"text/{KEYS[1]}.txt"
    path.write_text("\n  \n")
    with pytest.raises(ValueError, match=r"two\.txt: expected at least one caption"):
        read_originals(root, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.txt: expected the captions"):
        read_originals(root, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("filenames", [], "expected at least one picture, got an empty list"),
        ("filenames", {"a": 1}, "expected a list of '<class>/<name>', got dict"),
        ("class_info", [1, 1], "expected 3 class ids, one per entry of filenames.pickle, got 2"),
        ("class_info", [1, 1, "2"], "expected integers, got '2'"),
        ("class_info", 3, "expected a list of integers, got int"),
    ],
)
def test_bad_pickles(root: Path, name: str, content: object, message: str) -> None:
    (root / f"train/{name}.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"train.{name}\.pickle: {message}"):
        read_originals(root, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.txt", "1 a b.jpg\n", r"images\.txt, line 1: expected '<id> <class>/<name>\.jpg'"),
        ("images.txt", f"1 {KEYS[0]}.jpg\n", r"bounding_boxes\.txt, line 2: expected an id of images\.txt, got '2'"),
        ("bounding_boxes.txt", "1 2 3 4\n", r"bounding_boxes\.txt, line 1: expected '<id> <x> <y>"),
        ("bounding_boxes.txt", "\n1 2 3 4 x\n", r"bounding_boxes\.txt, line 2: expected"),
        ("bounding_boxes.txt", "1 2 3 0 4\n", r"bounding_boxes\.txt, line 1: expected .* positive size"),
        ("bounding_boxes.txt", "1 nan 3 4 4\n", r"bounding_boxes\.txt, line 1: expected"),
        (
            "bounding_boxes.txt",
            "1 1 1 1 1\n",
            r"bounding_boxes\.txt: expected a box for every picture .* none for .*two\.jpg",
        ),
    ],
)
def test_bad_tables(root: Path, name: str, content: str, message: str) -> None:
    (root / "CUB_200_2011" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_originals(root, "train")


def test_a_picture_without_a_line_in_images_txt(root: Path) -> None:
    (root / "CUB_200_2011/images.txt").write_text(f"1 {KEYS[0]}.jpg\n")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1 1 1 1 1\n")
    with pytest.raises(ValueError, match=r"images\.txt: expected a line for 001\.Albatross/two\.jpg"):
        read_originals(root, "train")


def test_folders_of_another_kind(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected a data folder"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"expected a data folder with one of these layouts: .*filenames\.pickle"):
        open_split(tmp_path, "train")
    (root / "CUB_200_2011/images").rmdir()
    with pytest.raises(FileNotFoundError, match="images: expected a folder of the CUB layout"):
        read_originals(root, "train")
