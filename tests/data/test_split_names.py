"""Which split a name says, and how folders of pictures are divided by such names, columns and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_plugin.data import Problem, list_splits, open_split, split_names


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train training train2017 train_images my-train Training TRAIN trainA trainset 2017train train.v2", "train"),
        ("val valid validation dev val2014 val_split Dev-Set COCO_val2014_000000000042 valset", "validation"),
        ("test testing eval evaluation test_images Test-Set my-test TestSet testA test2 held_out heldout", "test"),
        ("val_test test-dev", "test"),
        (
            "trains contest latest devil evaluate medieval interval protest trainval train_val train_test_split été",
            None,
        ),
    ],
)
def test_what_a_name_says(names: str, split: str | None) -> None:
    assert {name: split_names.of_name(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_the_strictest_folder_counts_and_file_names_that_describe_say_nothing() -> None:
    assert split_names.of_folders("data/train/square/test/train_1.png") == "test"
    assert split_names.of_folders("dev/test/x") == split_names.of_folders("test/dev/x") == "test"
    assert split_names.of_folders("test_1.png") is None
    assert split_names.of_file("bus/my test-picture 3.png") == "test"
    assert split_names.of_file("bus/a dog takes a test.png") is None
    assert split_names.strictest(["train", "restval", None]) == "restval"
    assert split_names.strictest([]) is None


def put(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def pairs(root: Path, folders: str, number: int = 2) -> None:
    """Captioned pictures: in "a/" called 0, 1, ...; of "a/b_" called b_0, b_1, ... in a/."""
    for folder in folders.split():
        for i in range(number):
            put(root / f"{folder.replace('.', '')}{i}.png")
            put(root / f"{folder.replace('.', '')}{i}.txt", f"{folder} {i}")


def divided(root: Path) -> tuple[dict[str, set[str]], list[str]]:
    """The pictures of each split as "folder/number" without their number, and all that was told."""
    told: list[Problem] = []
    splits = {
        split: {record.image.relative_to(root).as_posix().rstrip("0123456789.png") for record in records}
        for split in list_splits(root)
        if (records := open_split(root, split, told.append))
    }
    assert all(problem.spoken and not problem.fatal for problem in told)
    return splits, sorted({problem.what for problem in told})


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("TRAIN/ VAL/ Test-Set/", {"train": "TRAIN/", "validation": "VAL/", "test": "Test-Set/"}),
        ("train2017/ val2017/ test2017/", {"train": "train2017/", "validation": "val2017/", "test": "test2017/"}),
        ("data/train/ data/test/", {"train": "data/train/", "test": "data/test/"}),
        ("sq/train/ sq/test/ di/train/", {"train": "sq/train/ di/train/", "test": "sq/test/"}),
        ("train/sq/ train/sq/test/", {"train": "train/sq/", "test": "train/sq/test/"}),
        ("train/ eval/ test/", {"train": "train/", "test": "eval/ test/"}),
        ("train/ val/ dev/ test/", {"train": "train/", "validation": "val/ dev/", "test": "test/"}),
        ("train_test_split/train/ train_test_split/test/", {"train": "train_test_split/train/",
                                                            "test": "train_test_split/test/"}),
    ],
)  # fmt: skip
def test_folders_of_other_names_and_depths(tmp_path: Path, folders: str, splits: dict[str, str]) -> None:
    pairs(tmp_path, folders)
    assert divided(tmp_path) == ({split: set(some.split()) for split, some in splits.items()}, [])


@pytest.mark.parametrize(
    ("folders", "splits", "told"),
    [
        # A class may be called train, dev or test: all its pictures are read, none held out by its name trains.
        ("bus/ car/ test/", {"train": "bus/ car/", "test": "test/"},
         "4 pictures (such as bus/0): in no split by any name, beside others that are; read as train"),
        ("bus/ car/ train/", {"train": "bus/ car/ train/", "test": ""},
         "4 pictures (such as bus/0): in no split by any name, beside others that are; read as train"),
        (". train/", {"train": ". train/", "test": ""},
         "2 pictures (such as 0): in no split by any name, beside others that are; read as train"),
        # Beside folders for both, another may hold the same pictures again.
        ("all/ train/ test/", {"train": "train/", "test": "test/"},
         "2 pictures (such as all/0): in no folder of a split, beside folders for train and held-out splits; left out"),
        # By the pictures' own names.
        ("train_ test_", {"train": "train_", "test": "test_"},
         "2 pictures (such as test_0): in the split test because of their own names"),
        (". my-test-", {"train": ".", "test": "my-test-"},
         "2 pictures (such as my-test-0): in the split test because of their own names"),
        ("train/a train/test_ test/", {"train": "train/a train/test_", "test": "test/"},
         "2 pictures (such as train/test_0): held out by their own names, but not by their folder, which counts; "
         "read as train"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_told_with_a_count(
    tmp_path: Path, folders: str, splits: dict[str, str], told: str
) -> None:
    pairs(tmp_path, folders)
    found, problems = divided(tmp_path)
    expected = {split: {name.replace(".", "") for name in some.split()} for split, some in splits.items()}
    if expected["test"]:
        assert found == expected
    else:  # a test split is made
        assert found["train"] | found["test"] == expected["train"]
        assert len(open_split(tmp_path, "train")) + len(open_split(tmp_path, "test")) == 2 * len(expected["train"])
    assert problems == [told]


def test_a_test_split_made_beside_a_validation_split_is_told(tmp_path: Path) -> None:
    pairs(tmp_path, "train2017/ val2017/")
    with pytest.warns(UserWarning, match="found validation but no test split: a tenth of train"):
        assert [record.image.parent.name for record in open_split(tmp_path, "test")] == ["train2017"]


def test_pictures_without_captions_beside_splits_are_counted(tmp_path: Path) -> None:
    pairs(tmp_path, "train/ test/")
    put(tmp_path / "preview.png")
    put(tmp_path / "README.txt", "read me")
    found, told = divided(tmp_path)
    assert found == {"train": {"train/"}, "test": {"test/"}}
    assert told == ["1 picture (such as preview): without captions and in no split by any name; left out"]


def rows(root: Path, form: str, table: list[dict[str, object]]) -> None:
    if form == "jsonl":
        put(root / "metadata.jsonl", "\n".join(map(json.dumps, table)))
    else:
        columns = list(table[0])
        lines = [",".join(str(row.get(column) or "") for column in columns) for row in table]
        put(root / "metadata.csv", "\n".join([",".join(columns), *lines]))
    for row in table:
        put(root / str(row["file_name"]))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_column_split_decides(tmp_path: Path, form: str) -> None:
    said = ["train", "Training", "val", "dev", "test", "eval", " TEST ", "restval", "", None]
    table = [{"file_name": f"{i}.png", "text": f"dog {i}", "split": split} for i, split in enumerate(said)]
    table[-1].pop("split") if form == "jsonl" else None
    rows(tmp_path, form, table)
    told: list[Problem] = []
    keys = {
        split: [record.key for record in open_split(tmp_path, split, told.append)] for split in list_splits(tmp_path)
    }
    assert keys == {"train": ["0", "1", "8", "9"], "validation": ["2", "3"], "test": ["4", "5", "6"], "restval": ["7"]}
    assert sorted({problem.what for problem in told}) == [
        "1 picture (such as 7): 'restval' in the column split, which is no train, validation or test; nothing trains "
        "on them",
        "2 pictures (such as 8): in no split by any name, beside others that are; read as train",
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_of_folder_column_and_two_tables_the_held_out_split_wins(tmp_path: Path, form: str) -> None:
    rows(tmp_path / "train", form, [{"file_name": f"{i}.png", "text": "a dog", "split": s} for i, s in
                                    enumerate(("train", "test"))])  # fmt: skip
    rows(tmp_path / "test", form, [{"file_name": "0.png", "text": "a cat", "split": "train"}])
    rows(tmp_path, form, [{"file_name": "train/0.png", "text": "a red dog", "split": "validation"}])
    told: list[Problem] = []
    keys = {
        split: [record.key for record in open_split(tmp_path, split, told.append)] for split in list_splits(tmp_path)
    }
    assert keys == {"validation": ["train/0"], "test": ["test/0", "train/1"]}
    assert sorted({problem.what for problem in told}) == [
        "1 picture (such as test/0): in a folder of test, but 'train' in the column split; test counts",
        "1 picture (such as train/0): in a folder of train, but 'validation' in the column split; validation counts",
        "1 picture (such as train/1): in a folder of train, but 'test' in the column split; test counts",
    ]
    assert open_split(tmp_path, "validation")[0].captions == ("a red dog", "a dog")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_holds_for_its_own_folder_and_those_below(tmp_path: Path, form: str) -> None:
    for folder in ("train/square", "train/disk", "test"):
        rows(tmp_path / folder, form, [{"file_name": f"{i}.png", "text": f"{folder} {i}"} for i in range(2)])
    pairs(tmp_path, "train/stripe/ train/disk/more/")
    told: list[Problem] = []
    train = open_split(tmp_path, "train", told.append)
    assert [record.key for record in train] == ["disk/0", "disk/1", "square/0", "square/1", "stripe/0", "stripe/1"]
    assert train[2].captions == ("train/square 0",)
    assert [record.key for record in open_split(tmp_path, "test")] == ["0", "1"]
    assert [(problem.what, problem.fatal) for problem in told] == [
        (
            "2 pictures (such as train/disk/more/0.png): in no row of the table that holds for their folder; left out",
            False,
        )
    ]
