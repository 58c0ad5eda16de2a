"""The layout of AttnGAN and DF-GAN, as its users really have it, and what the reader says when it is broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from vlm_plugin.data import Problem, Record, list_splits, open_split
from vlm_plugin.data.layouts.originals import read_originals

KEYS = ["001.Albatross/one", "001.Albatross/two", "002.Wren/three"]


def read(root: Path, split: str = "train") -> list[Record]:
    return list(read_originals(root, split))


def problems(root: Path, split: str = "train") -> tuple[list[Record], list[str], list[bool]]:
    """What is left of a broken folder, its problems and which of them are fatal."""
    found: list[Problem] = []
    records = list(read_originals(root, split, found.append))
    return records, [f"{Path(problem.where).name}: {problem.what}" for problem in found], [p.fatal for p in found]


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
    records = read(root)
    assert [record.key for record in records] == KEYS
    assert [record.class_id for record in records] == [1, 1, 2]
    assert records[0].box == (60.0, 27.0, 325.0, 304.0)
    assert records[2].box == (5.5, 6.0, 7.0, 8.0)
    assert records[2].image == root / "CUB_200_2011/images/002.Wren/three.jpg"
    assert records[1].captions == ("caption of 001.Albatross/two", "another one")
    (root / "test").mkdir()
    (root / "test/filenames.pickle").write_bytes(pickle.dumps(KEYS[:1]))
    assert open_split(root, "train") == records
    assert [record.key for record in open_split(root, "test")] == KEYS[:1]
    assert list_splits(root) == ["test", "train"]


def test_without_a_test_split_one_is_made_of_the_train_split(root: Path) -> None:
    train, test = open_split(root, "train"), open_split(root, "test")
    assert len(test) == 1
    assert sorted([*train, *test]) == sorted(read(root))


def test_boxes_belong_to_names_and_not_to_positions(root: Path) -> None:
    (root / "CUB_200_2011/images.txt").write_text(f"7 {KEYS[2]}.jpg\n8 {KEYS[0]}.jpg\n9 {KEYS[1]}.jpg\n")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("9 9 9 9 9\n8 8 8 8 8\n7 7 7 7 7\n")
    boxes = [record.box for record in read(root)]
    assert [box[0] for box in boxes if box] == [8.0, 9.0, 7.0]


def test_captions_of_any_encoding(root: Path) -> None:
    path = root / f"text/{KEYS[0]}.txt"
    path.write_bytes("\ufeffa bird with a caf\u00e9 crown\r\n\r\n   \na \u201cred\u201d bird".encode())
    assert read(root)[0].captions == ("a bird with a caf\u00e9 crown", "a \u201cred\u201d bird")
    path.write_bytes(b"a caf\xe9 bird\x85 with wings\n")
    assert read(root)[0].captions == ("a caf\u00e9 bird\x85 with wings",)


def test_python_2_pickles_and_arrays(root: Path) -> None:
    # Python 2 strings, protocol 0: what pickle.dump(["001.Albatross/one"], f) wrote there.
    (root / "train/filenames.pickle").write_bytes(b"(lp0\nS'001.Albatross/one'\np1\na.")
    (root / "train/class_info.pickle").write_bytes(pickle.dumps(np.array([5]), protocol=2))
    (record,) = read(root)
    assert (record.key, record.class_id) == ("001.Albatross/one", 5)
    assert type(record.class_id) is int


def test_python_2_names_in_utf8(root: Path) -> None:
    (root / "train/filenames.pickle").write_bytes(b"(lp0\nS'001.Albatross/caf\\xc3\\xa9'\np1\na.")
    (root / "train/class_info.pickle").unlink()
    (root / "text/001.Albatross/caf\u00e9.txt").write_text("a bird")
    (root / "CUB_200_2011/images.txt").write_text("1 001.Albatross/caf\u00e9.jpg\n", encoding="utf-8")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1 0 0 1 1\n")
    (record,) = read(root)
    assert record.key == "001.Albatross/caf\u00e9"
    assert record.class_id is None


def test_no_boxes_only_if_both_files_are_absent(root: Path) -> None:
    names, boxes = root / "CUB_200_2011/images.txt", root / "CUB_200_2011/bounding_boxes.txt"
    content = names.read_text()
    names.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.txt: expected beside bounding_boxes\.txt"):
        read(root)
    boxes.unlink()
    assert [record.box for record in read(root)] == [None] * 3
    names.write_text(content)
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes\.txt: expected beside images\.txt"):
        read(root)


@pytest.mark.parametrize(
    "key", ["../../x", "001.Albatross/../../../x", "/etc/passwd", "..\\x", "C:\\x", "a//b", "", "a/b\0c", 7]
)
def test_keys_that_leave_the_folder_are_refused(root: Path, key: object) -> None:
    (root.parent / "x.txt").write_text("a secret")
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([KEYS[0], key, KEYS[1]]))
    with pytest.raises(ValueError, match=r"train.filenames\.pickle: expected names (of files inside|that are strings)"):
        read(root)


def test_unknown_split_lists_those_there(root: Path) -> None:
    (root / "test").mkdir()
    (root / "test/filenames.pickle").write_bytes(pickle.dumps(KEYS))
    (root / "other/filenames.pickle").mkdir(parents=True)
    for split in ("validation", "../birds/train"):
        with pytest.raises(ValueError, match=r"filenames\.pickle \(there: test, train\), got '"):
            read(root, split)


def test_missing_and_empty_caption_files(root: Path) -> None:
    path = root / f"text/{KEYS[1]}.txt"
    path.write_text("\n  \n")
    with pytest.raises(ValueError, match=r"two\.txt: expected at least one caption"):
        read(root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.txt: expected the captions"):
        read(root)


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
        read(root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images.txt", "1\n", r"images\.txt, line 1: expected '<id> <class>/<name>\.jpg'"),
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
        read(root)


def test_a_picture_without_a_line_in_images_txt(root: Path) -> None:
    (root / "CUB_200_2011/images.txt").write_text(f"1 {KEYS[0]}.jpg\n")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1 1 1 1 1\n")
    with pytest.raises(ValueError, match=r"images\.txt: expected a line for 001\.Albatross/two\.jpg"):
        read(root)


def test_folders_of_another_kind(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected a data folder"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"expected a data folder with one of these layouts: .*filenames\.pickle"):
        open_split(tmp_path, "train")
    (root / "CUB_200_2011/images").rmdir()
    with pytest.raises(FileNotFoundError, match="images: expected a folder of the CUB layout"):
        read(root)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three empty picture files, without a place yet; both splits, no classes, no boxes."""
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    (root / "text").mkdir()
    for split, keys in {"train": ["COCO_train2014_1", "COCO_train2014_2"], "test": ["COCO_val2014_3"]}.items():
        (root / split).mkdir()
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(keys))
        for key in keys:
            (root / f"text/{key}.txt").write_text(f"what {key} shows\n")
    return root


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("images", "images"),
        ("images/train2014", "images/val2014"),
        ("images/train", "images/val"),
        ("images/train", "images/test"),
        ("images/train2014", "images/test2014"),
    ],
)
def test_coco_has_its_pictures_in_one_of_several_folders(coco: Path, train: str, test: str) -> None:
    pictures = [coco / train / f"COCO_train2014_{i}.jpg" for i in (1, 2)]
    put(*pictures, coco / test / "COCO_val2014_3.jpg")
    records = read(coco)
    assert [record.image for record in records] == pictures
    assert records[0].captions == ("what COCO_train2014_1 shows",)
    assert [record.class_id for record in records] == [None, None]
    assert [record.box for record in records] == [None, None]
    assert [record.image for record in read(coco, "test")] == [coco / test / "COCO_val2014_3.jpg"]


def test_class_info_of_coco_is_used(coco: Path) -> None:
    (coco / "train/class_info.pickle").write_bytes(pickle.dumps([11, 4]))
    assert [record.class_id for record in read(coco)] == [11, 4]


def test_other_extensions_count_where_there_is_no_jpg(root: Path) -> None:
    images = root / "CUB_200_2011/images"
    put(images / f"{KEYS[0]}.png", images / f"{KEYS[0]}.jpg", images / f"{KEYS[1]}.txt", images / f"{KEYS[1]}.PNG")
    put(images / "002.Wren/three.x.jpg", images / "002.Wren/three")
    assert [record.image for record in read(root)] == [
        images / f"{KEYS[0]}.jpg",
        images / f"{KEYS[1]}.PNG",
        images / f"{KEYS[2]}.jpg",  # is nowhere: loading it says so
    ]


def test_a_missing_picture_is_expected_in_the_folder_of_its_split(coco: Path) -> None:
    put(coco / "images/train2014/COCO_train2014_1.jpg")
    assert read(coco)[1].image == coco / "images/train2014/COCO_train2014_2.jpg"


@pytest.mark.parametrize("name", ["valid", "val"])
def test_the_validation_split_may_have_another_folder_name(coco: Path, name: str) -> None:
    (coco / "test").rename(coco / name)
    put(coco / "images/val2014/COCO_val2014_3.jpg")
    assert list_splits(coco) == ["test", "train", "validation"]
    assert [record.image.name for record in open_split(coco, "validation")] == ["COCO_val2014_3.jpg"]
    assert read(coco, "validation")[0].image.parent == coco / "images/val2014"


def test_a_folder_named_validation_goes_before_one_named_val(coco: Path) -> None:
    (coco / "test").rename(coco / "val")
    (coco / "validation").mkdir()
    (coco / "validation/filenames.pickle").write_bytes(pickle.dumps(["COCO_train2014_1"]))
    assert [record.key for record in read(coco, "validation")] == ["COCO_train2014_1"]


def test_captions_that_are_still_packed(coco: Path) -> None:
    for path in (coco / "text").iterdir():
        path.unlink()
    (coco / "text").rmdir()
    with pytest.raises(FileNotFoundError, match=r"text: expected a folder of captions, .* found none"):
        open_split(coco, "train")
    (coco / "text.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"text: expected .* found text\.zip, which must be unpacked first"):
        open_split(coco, "train")
    records, found, _ = problems(coco)
    assert (records, len(found)) == ([], 1)


def test_a_folder_without_pictures(coco: Path) -> None:
    (coco / "images").rmdir()
    with pytest.raises(FileNotFoundError, match=r"images: expected a folder of pictures .* found none"):
        read(coco)
    assert problems(coco)[0] == []


class RunsCode:
    """What a hostile file would do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("name", ["filenames", "class_info"])
def test_a_pickle_that_runs_code_is_refused(root: Path, name: str) -> None:
    mark = root.parent / "was here"
    (root / f"train/{name}.pickle").write_bytes(pickle.dumps([RunsCode(mark)]))
    with pytest.raises(ValueError, match=rf"train.{name}\.pickle: refused to load"):
        read(root)
    records, found, _ = problems(root)
    assert [record.class_id for record in records] == ([] if name == "filenames" else [None] * 3)
    assert len(found) == 1
    assert found[0].startswith(f"{name}.pickle: refused to load")
    assert not mark.exists()


def test_without_usable_class_info_the_pictures_have_no_classes(root: Path) -> None:
    for content in ([1, 1], [1, 1, 2, 2], [1, 1, True], [1, 1, 2**70], "112"):
        (root / "train/class_info.pickle").write_bytes(pickle.dumps(content))
        records, found, _ = problems(root)
        assert [(record.key, record.class_id) for record in records] == [(key, None) for key in KEYS]
        assert len(found) == 1
        assert found[0].startswith("class_info.pickle: expected")


def test_the_same_picture_twice(root: Path) -> None:
    # With "\\" it is the same file on Windows, and a leading "./" is the same file everywhere.
    names = [KEYS[0], KEYS[0], KEYS[1], KEYS[1].replace("/", "\\"), f"./{KEYS[0]}"]
    (root / "train/filenames.pickle").write_bytes(pickle.dumps(names))
    (root / "train/class_info.pickle").write_bytes(pickle.dumps([1, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match=r"once, got '001\.Albatross/one' at positions 0 and 1"):
        read(root)
    records, found, _ = problems(root)
    assert [(record.key, record.class_id) for record in records] == [(KEYS[0], 1), (KEYS[1], 3)]
    assert [what[-7:] for what in found] == ["0 and 1", "2 and 3", "0 and 4"]


def test_names_with_spaces_and_dots(root: Path) -> None:
    key = "002.Wren/Wren of St. Kilda 1.5"
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([key]))
    (root / "train/class_info.pickle").unlink()
    (root / f"text/{key}.txt").write_text("a wren\n")
    (root / "CUB_200_2011/images.txt").write_text(f"1\t{key}.jpg\r\n")
    (root / "CUB_200_2011/bounding_boxes.txt").write_text("1\t1 2 3 4\r\n")
    (record,) = read(root)
    assert (record.key, record.box) == (key, (1.0, 2.0, 3.0, 4.0))


def test_every_problem_is_listed_and_only_good_pictures_are_left(root: Path) -> None:
    keys = [*KEYS, "002.Wren/four", "002.Wren/five", "../out", "002.Wren/six", "002.Wren/seven"]
    (root / "train/filenames.pickle").write_bytes(pickle.dumps(keys))
    (root / "train/class_info.pickle").write_bytes(pickle.dumps(list(range(7))))
    for name in ("four", "six", "seven"):
        (root / f"text/002.Wren/{name}.txt").write_text("a wren\n")
    (root / f"text/{KEYS[0]}.txt").write_bytes(b"a caf\xe9 bird\n")
    (root / f"text/{KEYS[1]}.txt").write_text("\n")
    images = [f"1 {KEYS[0]}.jpg", f"2 {KEYS[1]}.jpg", f"3 {KEYS[2]}.jpg", "4 002.Wren/four.jpg", "5 002.Wren/five.jpg"]
    (root / "CUB_200_2011/images.txt").write_text("\n".join([*images, "7 002.Wren/seven.jpg", "4 again.jpg", "8 /x"]))
    (root / "CUB_200_2011/bounding_boxes.txt").write_text(
        "1 1 1 1 1\n2 2 2 2 2\n3 3 3 0 3\n5 5 5 5 5\n6 6 6 6 6\n7 7 7 7 7\n7 7 7 7 8\n8 8 8 8 8\n"
    )
    records, found, fatal = problems(root)
    assert [(record.key, record.captions, record.class_id) for record in records] == [
        (KEYS[0], ("a caf\xe9 bird",), None)
    ]
    expected = [
        "class_info.pickle: expected 8 class ids",
        "images.txt, line 7: expected every id once",
        "images.txt, line 8: expected names of files inside",
        "bounding_boxes.txt, line 3: expected '<id> <x> <y>",
        "bounding_boxes.txt, line 5: expected an id of images.txt, got '6'",
        "bounding_boxes.txt, line 7: expected a box once for every picture",
        "bounding_boxes.txt: expected a box for every picture of images.txt, found none for 002.Wren/four.jpg",
        "one.txt: expected UTF-8, got byte 0xe9 at position 5",
        "two.txt: expected at least one caption",
        "five.txt: expected the captions",
        "filenames.pickle: expected names of files inside the data folder, got '../out'",
        "images.txt: expected a line for 002.Wren/six.jpg",
    ]
    assert len(found) == len(expected)
    for what, beginning in zip(found, expected, strict=True):
        assert what.startswith(beginning)
    assert [what for what, is_fatal in zip(found, fatal, strict=True) if not is_fatal] == [found[7]]


def test_nothing_is_written_to_the_data_folder(root: Path) -> None:
    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])

    before = listing()
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(open_split(root, "train")) + len(open_split(root, "test")) == 3
        assert listing() == before
    finally:
        for path in root.rglob("*"):
            path.chmod(0o755)
