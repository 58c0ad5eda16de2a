"""CUB as its authors publish it, and what the reader says when it is broken."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from vlm_plugin.data import Problem, Record, find_layout, list_splits, open_split
from vlm_plugin.data.layouts.cub import LAYOUT, read_cub

NAMES = [
    "001.Albatross/one.jpg",
    "001.Albatross/two 2.5.jpg",
    "002.Wren/three.jpg",
    "002.Wren/four.jpg",
    "003.Tern/five.jpg",
]
KEYS = [name.removesuffix(".jpg") for name in NAMES]
TRAIN = [1, 0, 1, 1, 0]
CLASSES = [1, 1, 2, 2, 3]
BOXES = [(60.0, 27.0, 325.0, 304.0), (1, 2, 3, 4), (5.5, 6, 7, 8), (9, 9, 9, 9), (0, 0, 2, 1)]


def table(path: Path, values: list[object]) -> None:
    """One line a value, behind an id."""
    path.write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """CUB_200_2011/ with five pictures, whose files are not needed, and the captions beside it."""
    home = tmp_path / "birds/CUB_200_2011"
    (home / "images").mkdir(parents=True)
    table(home / "images.txt", NAMES)
    table(home / "train_test_split.txt", TRAIN)
    table(home / "image_class_labels.txt", CLASSES)
    table(home / "classes.txt", ["001.Albatross", "002.Wren", "003.Tern"])
    table(home / "bounding_boxes.txt", [" ".join(map(str, box)) for box in BOXES])
    for key in KEYS:
        path = home.parent / f"text_c10/{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"caption of {key}\nanother one\n")
    return home


@pytest.fixture
def root(home: Path) -> Path:
    return home.parent


def read(root: Path, split: str = "train") -> list[Record]:
    return list(read_cub(root, split))


def problems(root: Path, split: str = "train") -> tuple[list[str], list[str], list[bool]]:
    """The keys left of a broken folder, its problems and which of them are fatal."""
    found: list[Problem] = []
    keys = [record.key for record in read_cub(root, split, found.append)]
    return keys, [f"{Path(problem.where).name}: {problem.what}" for problem in found], [p.fatal for p in found]


def test_reads_the_records(root: Path) -> None:
    train = read(root)
    assert [record.key for record in train] == [KEYS[0], KEYS[2], KEYS[3]]
    assert [record.class_id for record in train] == [1, 2, 2]
    assert [record.box for record in train] == [BOXES[0], BOXES[2], BOXES[3]]
    test = read(root, "test")
    assert test == [
        Record(KEYS[1], root / "CUB_200_2011/images" / NAMES[1], (f"caption of {KEYS[1]}", "another one"), 1, BOXES[1]),
        Record(KEYS[4], root / "CUB_200_2011/images" / NAMES[4], (f"caption of {KEYS[4]}", "another one"), 3, BOXES[4]),
    ]
    assert find_layout(root) is LAYOUT
    assert list_splits(root) == ["test", "train"]
    assert open_split(root, "train") == train
    assert open_split(root, "test") == test


def test_the_folder_itself_reads_like_the_one_that_holds_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_layout(home) is LAYOUT
    assert read(home) == read(home.parent)
    monkeypatch.chdir(home)
    assert [record.key for record in read(Path())] == [KEYS[0], KEYS[2], KEYS[3]]


@pytest.mark.parametrize("place", ["text_c10", "text", "CUB_200_2011/text_c10", "CUB_200_2011/text"])
def test_captions_are_found_in_four_places(home: Path, place: str) -> None:
    expected = [record.captions for record in read(home.parent)]
    (home.parent / "text_c10").rename(home.parent / place)
    assert [record.captions for record in read(home.parent)] == expected
    assert [record.captions for record in read(home)] == expected


def test_without_captions_both_places_are_named(home: Path) -> None:
    (home.parent / "text_c10").rename(home.parent.parent / "text_c10")
    with pytest.raises(FileNotFoundError) as error:
        read(home.parent)
    assert f"text_c10/ or text/, in {home.parent} or in {home}, found none; the captions (text_c10, " in str(
        error.value
    )
    assert "come separately from the pictures" in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        read(home)
    assert f"in {home} or in {home.parent}, found none" in str(error.value)
    # Tables are looked at all the same.
    table(home / "train_test_split.txt", [1, 0, 1, 1, 7])
    keys, found, _ = problems(home)
    assert keys == []
    assert [what.split(":")[0] for what in found] == ["CUB_200_2011", "train_test_split.txt, line 5"]


def test_tables_belong_to_ids_and_not_to_lines(home: Path) -> None:
    expected = [read(home), read(home, "test")]
    for path in home.glob("*.txt"):
        if path.name not in ("images.txt", "classes.txt"):
            path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert [read(home), read(home, "test")] == expected


def test_without_a_split_file_there_is_a_train_split_and_a_made_one(home: Path) -> None:
    (home / "train_test_split.txt").unlink()
    assert LAYOUT.splits(home) == ["train"]
    assert [record.key for record in read(home)] == KEYS
    train, test = open_split(home, "train"), open_split(home, "test")
    assert len(test) >= 1
    assert sorted([*train, *test]) == sorted(read(home))
    with pytest.raises(ValueError, match=r"^split: expected one of .*CUB_200_2011's \(train\), got 'test'"):
        read(home, "test")


def test_unknown_and_empty_splits(home: Path) -> None:
    for split in ("validation", "../train"):
        with pytest.raises(ValueError, match=r"^split: expected one of .* \(test, train\), got '"):
            read(home, split)
    table(home / "train_test_split.txt", [1] * 5)
    with pytest.raises(ValueError, match="expected at least one picture in the split test, found none"):
        open_split(home, "test")


def test_without_labels_the_folder_is_the_class(home: Path) -> None:
    (home / "image_class_labels.txt").unlink()
    (home / "classes.txt").write_text("10 003.Tern\n30 001.Albatross\r\n20 002.Wren\n")
    assert [record.class_id for record in read(home)] == [30, 20, 20]
    (home / "classes.txt").write_text("10 003.Tern\n\n30 001.Albatross\n")
    keys, found, _ = problems(home)
    assert keys == [KEYS[0]]
    assert found == ["classes.txt: expected a line for every folder of pictures, found none for '002.Wren'"]
    (home / "classes.txt").write_text("1 001.Albatross\nx 002.Wren\n2\n3 003.Tern\n4 003.Tern\n")
    keys, found, _ = problems(home, "test")
    assert keys == [KEYS[1], KEYS[4]]
    assert len(found) == 4
    assert found[0] == "classes.txt, line 2: expected '<class id> <class>', got 'x 002.Wren'"
    assert found[1] == "classes.txt, line 3: expected '<class id> <class>', got '2'"
    assert found[2] == "classes.txt, line 5: expected every class once, got '003.Tern' again"
    assert found[3].endswith("found none for '002.Wren'")
    (home / "classes.txt").unlink()
    assert [record.class_id for record in read(home)] == [1, 2, 2]
    # Numbered over both splits, so that a class has one number.
    assert [record.class_id for record in read(home, "test")] == [1, 3]


def test_pictures_without_folders_have_no_classes(home: Path) -> None:
    (home / "image_class_labels.txt").unlink()
    table(home / "images.txt", [f"{i}.jpg" for i in range(5)])
    for i in range(5):
        (home.parent / f"text_c10/{i}.txt").write_text("a bird\n")
    assert [(record.key, record.class_id) for record in read(home)] == [("0", None), ("2", None), ("3", None)]


def test_without_a_file_of_boxes_there_are_none(home: Path) -> None:
    (home / "bounding_boxes.txt").unlink()
    assert [record.box for record in read(home)] == [None] * 3


def test_both_layouts_of_one_set_read_the_same(home: Path) -> None:
    published = {split: read(home.parent, split) for split in ("train", "test")}
    (home.parent / "text_c10").rename(home.parent / "text")
    for split, records in published.items():
        (home.parent / split).mkdir()
        for name, values in {
            "filenames": [record.key for record in records],
            "class_info": [record.class_id for record in records],
        }.items():
            (home.parent / split / f"{name}.pickle").write_bytes(pickle.dumps(values))
    assert find_layout(home.parent) is not LAYOUT
    for split, records in published.items():
        assert open_split(home.parent, split) == records
    # The folder below still has CUB's own layout.
    assert find_layout(home) is LAYOUT


@pytest.mark.parametrize(
    "name", ["../../x.jpg", "001.Albatross/../../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg", "a//b.jpg", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(home: Path, name: str) -> None:
    for folder in (home.parent, home.parent.parent):
        (folder / "x.txt").write_text("a secret")
    table(home / "images.txt", [name, *NAMES[1:]])
    with pytest.raises(ValueError, match=r"images\.txt(, line 1: expected names of files inside|: .* NUL)"):
        read(home)


def test_two_pictures_with_one_key(home: Path) -> None:
    table(home / "images.txt", [*NAMES[:3], "001.Albatross/one.png", NAMES[4]])
    with pytest.raises(ValueError, match=r"line 4: expected names that differ .* got \S*/one\.png and \S*/one\.jpg"):
        read(home)
    keys, found, _ = problems(home)
    assert keys == [KEYS[0], KEYS[2]]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "number", "line", "message"),
    [
        ("images", 2, "2", r"images\.txt, line 2: expected '<id> <class>/<name>\.jpg', got '2'"),
        ("images", 2, "1 x.jpg", r"images\.txt, line 2: expected every id once, got '1' again for 'x\.jpg'"),
        ("train_test_split", 1, "1 yes", r"line 1: expected '<id> <1 for train, 0 for test>', got '1 yes'"),
        ("train_test_split", 3, "", r"expected a split for every picture of images\.txt, found none for \S*three\.jpg"),
        ("image_class_labels", 1, "1 001.Albatross", r"line 1: expected '<id> <class id>', got '1 001\.Albatross'"),
        ("image_class_labels", 1, "1 1 1", "line 1: expected '<id> <class id>'"),
        ("image_class_labels", 1, "1 1000000000000000000000", "line 1: expected '<id> <class id>'"),
        ("image_class_labels", 3, "", r"expected a class for every picture of images\.txt, found none for \S*three"),
        ("image_class_labels", 3, "9 2", r"line 3: expected an id of images\.txt, got '9'"),
        ("bounding_boxes", 3, "3 1 1 5 0", r"line 3: expected .* with a positive size, got '3 1 1 5 0'"),
        ("bounding_boxes", 3, "3 1 1 -5 5", r"line 3: expected .* with a positive size"),
        ("bounding_boxes", 3, "3 1 1 inf 5", r"line 3: expected .* with a positive size"),
        ("bounding_boxes", 3, "3 1 1 5", r"line 3: expected .* with a positive size"),
        ("bounding_boxes", 3, "", r"expected a box for every picture of images\.txt, found none for \S*three\.jpg"),
        ("bounding_boxes", 3, "4 1 1 5 5", r"line 4: expected a box once for every picture, got '4 9 9 9 9'"),
    ],
)
def test_bad_tables(home: Path, name: str, number: int, line: str, message: str) -> None:
    path = home / f"{name}.txt"
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read(home)


def test_every_problem_is_listed_and_only_good_pictures_are_left(home: Path) -> None:
    names = [*NAMES, "003.Tern/six.jpg", "../out.jpg", "003.Tern/eight.jpg", "003.Tern/nine.jpg", "003.Tern/ten.jpg"]
    table(home / "images.txt", names)
    table(home / "train_test_split.txt", [1, 1, 1, 1, 1, 1, 1, 1, "?", 1])
    table(home / "image_class_labels.txt", [1, "x", 2, 2, 3, 3, 3, 3, 3, 3])
    table(home / "bounding_boxes.txt", ["1 1 1 1"] * 2 + ["1 1 0 0"] + ["1 1 1 1"] * 6 + ["1 1 1 1\n12 1 1 1 1"])
    for name in ("eight", "ten"):
        (home.parent / f"text_c10/003.Tern/{name}.txt").write_text("a tern")
    (home.parent / f"text_c10/{KEYS[3]}.txt").write_text(" \n\n")
    (home.parent / f"text_c10/{KEYS[0]}.txt").write_bytes(b"a caf\xe9 bird\n")
    (home.parent / f"text_c10/{KEYS[2]}.txt").unlink()
    keys, found, fatal = problems(home)
    assert keys == [KEYS[0], KEYS[4], "003.Tern/eight", "003.Tern/ten"]
    expected = [
        "images.txt, line 7: expected names of files inside the data folder, got '../out.jpg'",
        "train_test_split.txt, line 9: expected '<id> <1 for train, 0 for test>'",
        "image_class_labels.txt, line 2: expected '<id> <class id>', got '2 x'",
        "bounding_boxes.txt, line 3: expected '<id> <x> <y> <width> <height>' with a positive size",
        "bounding_boxes.txt, line 11: expected an id of images.txt, got '12'",
        "one.txt: expected UTF-8, got byte 0xe9",
        "three.txt: expected the captions of a picture, one a line, found no such file",
        "four.txt: expected at least one caption",
        "six.txt: expected the captions",
    ]
    assert len(found) == len(expected)
    for what, beginning in zip(found, expected, strict=True):
        assert what.startswith(beginning)
    assert [what for what, is_fatal in zip(found, fatal, strict=True) if not is_fatal] == [found[5]]


def test_a_picture_of_no_known_split_is_in_neither(home: Path) -> None:
    table(home / "train_test_split.txt", [1, 0, "?", 1, 0])
    assert problems(home)[0] == [KEYS[0], KEYS[3]]
    assert problems(home, "test")[0] == [KEYS[1], KEYS[4]]


def test_what_is_wrong_with_a_name_is_said_once(home: Path) -> None:
    # A nameless picture that the tables know, and one outside the folder that they do not.
    (home / "images.txt").write_text((home / "images.txt").read_text().replace(NAMES[1], "") + "6 ../x.jpg\n")
    keys, found, _ = problems(home, "test")
    assert keys == [KEYS[4]]
    assert [what.partition(":")[0] for what in found] == ["images.txt, line 2", "images.txt, line 6"]


def test_a_table_that_cannot_be_read_costs_only_what_it_says(home: Path) -> None:
    (home / "bounding_boxes.txt").write_bytes(b"\0")
    (home / "image_class_labels.txt").write_bytes(b"\0")
    found: list[Problem] = []
    records = list(read_cub(home, "train", found.append))
    assert [(record.class_id, record.box) for record in records] == [(None, None)] * 3
    assert len(found) == 2
    (home / "train_test_split.txt").write_bytes(b"\0")
    assert problems(home)[0] == []


def test_folders_of_another_kind(home: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a data folder with one of these layouts: .*images\.txt and images/"
    ):
        open_split(tmp_path, "train")
    (home / "images.txt").unlink()
    assert not LAYOUT.recognise(home)
    assert not LAYOUT.recognise(home.parent)
    with pytest.raises(FileNotFoundError, match=r"birds: expected images\.txt and images/ in it or in"):
        read(home.parent)


def test_nothing_is_written_to_the_data_folder(root: Path) -> None:
    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])

    before = listing()
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(open_split(root, "train")) + len(open_split(root, "test")) == 5
        assert listing() == before
    finally:
        for path in root.rglob("*"):
            path.chmod(0o755)
