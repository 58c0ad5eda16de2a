"""COCO's captions as published, and what the reader says when they are broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlm_plugin.data import Problem, Record, list_splits, open_split
from vlm_plugin.data.layouts.coco import is_coco, read_coco

ONE, TWO, THREE = "COCO_1.jpg", "COCO_2.jpg", "COCO_3.png"


def write(root: Path, part: str, pictures: dict[str, Sequence[str]], year: str = "2014", first_id: int = 1) -> Path:
    """A captions file; its annotations are not in the order of its images."""
    images = [{"id": i, "file_name": name, "license": 3} for i, name in enumerate(pictures, first_id)]
    ids = {image["file_name"]: image["id"] for image in images}
    pairs = [(ids[name], caption) for name, captions in reversed(pictures.items()) for caption in captions]
    annotations = [{"image_id": number, "id": i, "caption": caption} for i, (number, caption) in enumerate(pairs)]
    return dump(root, part, {"images": images, "annotations": annotations, "info": {}}, year)


def dump(root: Path, part: str, content: object, year: str = "2014") -> Path:
    path = root / f"annotations/captions_{part}{year}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(root: Path, split: str = "train") -> list[Record]:
    return list(read_coco(root, split))


def problems(root: Path, split: str = "train") -> tuple[list[Record], list[str], list[bool]]:
    """What is left of a broken folder, its problems and which of them are fatal."""
    found: list[Problem] = []
    records = list(read_coco(root, split, found.append))
    return records, [f"{Path(p.where).name}: {p.what}" for p in found], [p.fatal for p in found]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train and val of 2014 (the picture files are not needed to read the records)."""
    root = tmp_path / "coco"
    write(root, "train", {TWO: [" a cat\n", "a caf\u00e9 \U0001f600"], ONE: ["a dog"]})
    write(root, "val", {THREE: ["a cow"]}, first_id=9)
    for folder in ("train2014", "val2014"):
        (root / folder).mkdir()
    return root


def test_pictures_keep_the_order_of_images_and_captions_that_of_annotations(root: Path) -> None:
    assert read(root) == [
        Record("COCO_2", root / "train2014" / TWO, ("a cat", "a caf\u00e9 \U0001f600"), None, None),
        Record("COCO_1", root / "train2014" / ONE, ("a dog",), None, None),
    ]
    assert open_split(root, "train") == read(root)


def test_val_is_the_test_split(root: Path) -> None:
    assert list_splits(root) == ["test", "train"]
    assert [record.key for record in open_split(root, "test")] == ["COCO_3"]
    with pytest.raises(ValueError, match=r"split: expected one of .* \(test, train\), got 'validation'"):
        open_split(root, "validation")


def test_val_is_the_validation_split_beside_captions_of_test(root: Path) -> None:
    write(root, "test", {"t.jpg": ["a test"]})
    (root / "test2014").mkdir()
    assert list_splits(root) == ["test", "train", "validation"]
    assert [record.key for record in open_split(root, "validation")] == ["COCO_3"]
    assert [record.image for record in open_split(root, "test")] == [root / "test2014/t.jpg"]


def test_a_test_file_without_annotations_is_no_split(root: Path) -> None:
    dump(root, "test", {"images": [{"id": 1, "file_name": "t.jpg"}], "annotations": []})
    (root / "annotations/image_info_test2014.json").write_text("{}")
    assert list_splits(root) == ["test", "train"]
    assert [record.key for record in open_split(root, "test")] == ["COCO_3"]


def test_a_broken_test_file_is_not_passed_over(root: Path) -> None:
    dump(root, "test", {}).write_text("{")
    (root / "test2014").mkdir()
    assert list_splits(root) == ["test", "train", "validation"]
    with pytest.raises(ValueError, match=r"captions_test2014\.json: expected JSON"):
        open_split(root, "test")


def test_without_val_a_tenth_of_train_is_the_test_split(root: Path) -> None:
    (root / "annotations/captions_val2014.json").unlink()
    train, test = open_split(root, "train"), open_split(root, "test")
    assert len(train) == len(test) == 1
    assert sorted([*train, *test]) == sorted(read(root))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["images/train", "images", "train2014", "images/train2014", "train"], "train2014"),
        (["images", "images/train2014", "train"], "images/train2014"),
        (["images", "train"], "images"),
        (["train"], "train"),
    ],
)
def test_the_folder_of_pictures_is_the_first_that_is_there(root: Path, folders: list[str], expected: str) -> None:
    (root / "train2014").rmdir()
    for folder in folders:
        (root / folder).mkdir(exist_ok=True, parents=True)
    assert {record.image.parent for record in read(root)} == {root / expected}


def test_without_a_folder_of_pictures_the_file_is_checked_all_the_same(root: Path) -> None:
    (root / "train2014").rmdir()
    with pytest.raises(FileNotFoundError, match=r"pictures \(train2014/, images/train2014/, images/, train/\), found"):
        read(root)
    write(root, "train", {ONE: [], TWO: ["a cat"]})
    records, found, _ = problems(root)
    assert records == []
    assert len(found) == 2
    assert "COCO_1.jpg (id 1): expected at least one caption for every image, found none" in found[1]


def test_a_file_name_without_a_year(tmp_path: Path) -> None:
    write(tmp_path, "train", {ONE: ["a dog"]}, year="")
    (tmp_path / "train").mkdir()
    assert [record.image for record in read(tmp_path)] == [tmp_path / "train" / ONE]


def test_of_several_years_the_one_whose_pictures_are_there(root: Path) -> None:
    write(root, "train", {"2017.jpg": ["a later dog"]}, year="2017")
    write(root, "val", {"2017v.jpg": ["a later cow"]}, year="2017")
    assert [record.key for record in read(root)] == ["COCO_2", "COCO_1"]
    for part in ("train", "val"):
        (root / f"{part}2014").rmdir()
        (root / f"images/{part}2017").mkdir(parents=True)
    assert [record.image for record in read(root)] == [root / "images/train2017/2017.jpg"]
    assert [record.key for record in read(root, "test")] == ["2017v"]


@pytest.mark.parametrize("folders", [["train2014", "train2017"], ["images"]])
def test_several_years_of_which_none_is_chosen(root: Path, folders: list[str]) -> None:
    write(root, "train", {"2017.jpg": ["a later dog"]}, year="2017")
    (root / "train2014").rmdir()
    for folder in folders:
        (root / folder).mkdir()
    what = r"annotations: .* one year, got captions_train2014\.json and captions_train2017\.json; move those"
    with pytest.raises(ValueError, match=what):
        read(root)
    records, found, fatal = problems(root)
    assert (records, len(found), fatal) == ([], 1, [True])


def test_train_and_val_of_different_years_share_pictures_and_are_refused(root: Path) -> None:
    (root / "annotations/captions_train2014.json").rename(root / "annotations/captions_train2017.json")
    (root / "train2014").rename(root / "train2017")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"no picture in common, got captions_\w+\.json and captions_\w+\.json"):
            read(root, split)
        assert len(problems(root, split)[1]) == 1
    (root / "annotations/captions_train2017.json").rename(root / "annotations/captions_train.json")
    (root / "train2017").rename(root / "train")
    assert len(read(root)) == 2
    # Without a year there is no telling, and nothing to refuse.
    assert len(read(root, "test")) == 1


def test_ids_may_be_strings_and_differ_from_numbers(root: Path) -> None:
    images = [{"id": 1, "file_name": ONE}, {"id": "1", "file_name": TWO}]
    annotations = [{"image_id": "1", "caption": "a string"}, {"image_id": 1, "caption": "a number"}]
    dump(root, "train", {"images": images, "annotations": annotations})
    assert [record.captions for record in read(root)] == [("a number",), ("a string",)]


def test_names_with_folders_and_dots(root: Path) -> None:
    write(root, "train", {"b/St. Kilda.jpg": ["a wren"], "b/plain": ["a file"]})
    assert [(record.key, record.image) for record in read(root)] == [
        ("b/St. Kilda", root / "train2014/b/St. Kilda.jpg"),
        ("b/plain", root / "train2014/b/plain"),
    ]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "a\0.jpg", "", 7]
)
def test_names_that_leave_the_folder_are_refused(root: Path, name: object) -> None:
    images = [{"id": 1, "file_name": ONE}, {"id": 2, "file_name": name}]
    annotations = [{"image_id": number, "caption": "a dog"} for number in (1, 2)]
    dump(root, "train", {"images": images, "annotations": annotations})
    with pytest.raises(
        ValueError, match=r"captions_train2014\.json, images\[1\]: expected names (of files inside|that)"
    ):
        read(root)
    records, found, fatal = problems(root)
    assert ([record.key for record in records], len(found), fatal) == (["COCO_1"], 1, [True])


def test_two_pictures_of_one_name_or_one_id(root: Path) -> None:
    names = [ONE, "COCO_1.png", TWO, f"./{TWO}", THREE]
    images = [{"id": min(i, 3), "file_name": name} for i, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": f"{number}"} for number in range(4)]
    dump(root, "train", {"images": images, "annotations": annotations})
    with pytest.raises(ValueError, match=r"images\[1\]: expected names .*, got COCO_1\.png and COCO_1\.jpg"):
        read(root)
    records, found, _ = problems(root)
    assert [(record.key, record.captions) for record in records] == [("COCO_1", ("0",)), ("COCO_2", ("2",))]
    assert [what.partition(": ")[0].partition(", ")[2] for what in found] == ["images[1]", "images[3]", "images[4]"]
    assert "expected every id once, got 3 for None and again for COCO_3.png" in found[2]


def test_every_problem_is_listed_and_only_good_pictures_are_left(root: Path) -> None:
    images = [
        {"id": 1, "file_name": ONE},
        {"id": True, "file_name": "true.jpg"},
        {"id": 2, "file_name": TWO},
        {"id": 3},
        "no object",
        {"file_name": "no id.jpg"},
        {"id": 4, "file_name": "blank.jpg"},
        {"id": 5.0, "file_name": "float.jpg"},
    ]
    annotations = [
        {"image_id": 1, "caption": "a dog"},
        {"image_id": 1, "caption": " \n"},
        {"image_id": 77, "caption": "nobody's"},
        {"image_id": 1, "caption": None},
        {"image_id": [1], "caption": "a list"},
        {"caption": "no id"},
        None,
        {"image_id": True, "caption": "true"},
        {"image_id": 4, "caption": ""},
        {"image_id": 1, "caption": "another dog"},
    ]
    path = dump(root, "train", {"images": images, "annotations": annotations})
    records, found, fatal = problems(root)
    assert [(record.key, record.captions) for record in records] == [("COCO_1", ("a dog", "another dog"))]
    image, annotation = (
        'expected {"id": ..., "file_name": "..."}, got ',
        'expected {"image_id": ..., "caption": "..."}, got ',
    )
    expected = [
        f"images[1]: {image}{{'id': True",
        f"images[3]: {image}{{'id': 3}}",
        f"images[4]: {image}'no object'",
        f"images[5]: {image}{{'file_name'",
        f"images[7]: {image}{{'id': 5.0",
        "annotations[2]: expected the id of an image as image_id, got 77",
        f"annotations[3]: {annotation}{{'image_id': 1, 'caption': None}}",
        f"annotations[4]: {annotation}{{'image_id': [1]",
        f"annotations[5]: {annotation}{{'caption': 'no id'}}",
        f"annotations[6]: {annotation}None",
        f"annotations[7]: {annotation}{{'image_id': True",
        "annotations[1]: expected a caption for the image 1, got a blank one",
    ]
    for what, beginning in zip(found, expected, strict=False):
        assert what.startswith(f"{path.name}, {beginning}")
    assert found[len(expected) :] == [
        f"{path.name}, {name} (id {number}): expected at least one caption for every image, found none"
        for name, number in ((TWO, 2), ("blank.jpg", 4))
    ]
    assert [i for i, is_fatal in enumerate(fatal) if not is_fatal] == [11]


def test_a_blank_caption_among_others_stops_nobody(root: Path) -> None:
    write(root, "train", {ONE: ["", "a dog"]})
    assert [record.captions for record in read(root)] == [("a dog",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"expected JSON, but reading it failed \(.* column 13"),
        ("[" * 100_000, "expected JSON, but reading it failed"),
        ('{"images": [], "annotations": [' + "1" * 5000 + "]}", "expected JSON, but reading it failed"),
        ("", "expected JSON"),
        ("[]", r"expected \{\"images\": .*, got a list"),
        ("3.5", r"got a number"),
        ("{}", "got an object of nothing"),
        ('{"images": [], "annotation": [], "info": null}', "of 'images': a list, 'annotation': a list, 'info': null"),
        ('{"images": {"1": {}}, "annotations": []}', "of 'images': an object, 'annotations': a list"),
        ('{"images": [], "annotations": "none"}', "of 'images': a list, 'annotations': a string"),
    ],
)
def test_a_file_that_is_not_of_this_form(root: Path, content: str, message: str) -> None:
    (root / "annotations/captions_train2014.json").write_text(content)
    with pytest.raises(ValueError, match=rf"captions_train2014\.json: .*{message}"):
        read(root)
    records, found, _ = problems(root)
    assert (records, len(found)) == ([], 1)


def test_files_in_other_encodings(root: Path) -> None:
    path = root / "annotations/captions_val2014.json"
    content = '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "caf\u00e9"}]}'
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert problems(root, "test")[1] == []
    assert read(root, "test")[0].captions == ("caf\u00e9",)
    path.write_bytes(content.encode("latin-1"))
    assert read(root, "test")[0].captions == ("caf\u00e9",)
    assert problems(root, "test")[2] == [False]


def test_an_unknown_split_lists_those_there(root: Path) -> None:
    for split in ("validation", "val", "../train"):
        with pytest.raises(ValueError, match=r"split: .*annotations \(there: test, train\), got '"):
            read(root, split)


def test_what_is_recognised(root: Path, tmp_path: Path) -> None:
    assert is_coco(root)
    assert not is_coco(tmp_path)
    (tmp_path / "annotations/captions_train2014.json").mkdir(parents=True)
    for name in (
        "instances_train2014.json",
        "captions_train2014.json.zip",
        "captions_train14b.json",
        "captions_val.json.old.json",
    ):
        (tmp_path / "annotations" / name).touch()
    assert not is_coco(tmp_path)
