"""Pictures in a folder, with a table of captions or with a text file beside each picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vlm_plugin.data import Problem, Record, list_splits, open_split
from vlm_plugin.data.layouts.folder import folder_splits, is_folder, read_folder

Captions = dict[str, Sequence[str]]


def jsonl(where: Path, pictures: Captions) -> None:
    rows = [{"file_name": name, "text": list(captions)} for name, captions in pictures.items()]
    put(where / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def table(where: Path, pictures: Captions) -> None:
    rows = [f'{name},"{caption}"\r\n' for name, captions in pictures.items() for caption in captions]
    put(where / "metadata.csv", "".join(["file_name,text\r\n", *rows]))


def pairs(where: Path, pictures: Captions) -> None:
    for name, captions in pictures.items():
        put(where / name)
        put((where / name).with_suffix(".txt"), "\n".join(captions))


def put(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")


FORMS = pytest.mark.parametrize("form", [jsonl, table, pairs])
TABLES = pytest.mark.parametrize("form", [jsonl, table])
Form = Callable[[Path, Captions], None]
SOME = {"a/one.jpg": ["a dog", "a \U0001f600 dog"], "two.PNG": ["a caf\u00e9, red"]}


def read(root: Path, split: str = "train") -> list[Record]:
    return list(read_folder(root, split))


def problems(root: Path, split: str = "train") -> tuple[list[Record], list[str], list[bool]]:
    """What is left of a broken folder, its problems and which of them are fatal."""
    found: list[Problem] = []
    records = list(read_folder(root, split, found.append))
    return records, [f"{Path(p.where).name}: {p.what}" for p in found], [p.fatal for p in found]


@FORMS
def test_everything_in_the_folder_is_train(tmp_path: Path, form: Form) -> None:
    form(tmp_path, SOME)
    assert is_folder(tmp_path)
    assert folder_splits(tmp_path) == ["train"]
    assert read(tmp_path) == [
        Record("a/one", tmp_path / "a/one.jpg", ("a dog", "a \U0001f600 dog"), None, None),
        Record("two", tmp_path / "two.PNG", ("a caf\u00e9, red",), None, None),
    ]


@FORMS
@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_folders_of_splits(tmp_path: Path, form: Form, validation: str) -> None:
    for name in ("train", validation, "test"):
        form(tmp_path / name, {f"{name}.jpg": [f"a {name} picture"]})
    put(tmp_path / "elsewhere/x.jpg")
    assert list_splits(tmp_path) == ["test", "train", "validation"]
    for split, name in {"train": "train", "validation": validation, "test": "test"}.items():
        assert open_split(tmp_path, split) == [
            Record(name, tmp_path / name / f"{name}.jpg", (f"a {name} picture",), None, None)
        ]


@FORMS
@pytest.mark.parametrize("names", [("Train", "TEST", "Val"), ("training", "Testing", "DEV")])
def test_other_names_of_the_folders_hide_no_test_pictures(tmp_path: Path, form: Form, names: Sequence[str]) -> None:
    for name in names:
        form(tmp_path / name, {f"{name}.jpg": ["a dog"]})
    assert is_folder(tmp_path)
    assert list_splits(tmp_path) == ["test", "train", "validation"]
    keys = [[record.key for record in open_split(tmp_path, split)] for split in ("train", "test", "validation")]
    assert keys == [[name] for name in names]


@FORMS
def test_a_test_split_is_made_by_name_and_adding_pictures_moves_none(tmp_path: Path, form: Form) -> None:
    def splits(root: Path, names: list[str]) -> list[list[str]]:
        form(root, {f"{name}.jpg": ["a dog"] for name in names})
        return [[record.key for record in open_split(root, split)] for split in ("train", "test")]

    few = [f"bird {i}" for i in range(30)]
    train, test = splits(tmp_path / "few", few)
    assert sorted(train + test) == sorted(few)
    # The SHA-256 of these names, as a number, is divisible by ten.
    assert test == ["bird 22", "bird 23"]
    more_train, more_test = splits(tmp_path / "more", [f"new {i}" for i in range(10)] + few)
    assert set(train) < set(more_train)
    assert sorted(more_test) == ["bird 22", "bird 23", "new 6", "new 7"]
    assert list_splits(tmp_path / "few") == ["test", "train"]


@FORMS
def test_no_made_split_is_empty(tmp_path: Path, form: Form) -> None:
    form(tmp_path, SOME)
    assert len(open_split(tmp_path, "train")) == len(open_split(tmp_path, "test")) == 1


def test_captions_have_their_extension_in_any_case(tmp_path: Path) -> None:
    put(tmp_path / "A.PNG")
    put(tmp_path / "A.TXT", "a dog\n")
    assert is_folder(tmp_path)
    assert read(tmp_path) == [Record("A", tmp_path / "A.PNG", ("a dog",), None, None)]
    put(tmp_path / "b.Txt", "a cat\n")
    put(tmp_path / "c.png")
    _, found, fatal = problems(tmp_path)
    assert [what.partition(",")[0] for what in found] == [
        "b.Txt: expected a picture of the same name beside the captions",
        "c.txt: expected the captions of a picture",
    ]
    assert fatal == [False, True]


def test_two_files_of_captions_for_one_picture(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for name in ("a.TXT", "a.txt"):
        put(tmp_path / name, f"{name}\n")
    records, found, fatal = problems(tmp_path)
    assert found == ["a.txt: expected one file of captions for a.png, got a.txt and a.TXT"]
    assert fatal == [True]
    assert [record.captions for record in records] == [("a.TXT",)]


@FORMS
def test_two_folders_for_one_split_are_one_split(tmp_path: Path, form: Form) -> None:
    for name in ("train", "val", "dev", "test", "eval"):
        form(tmp_path / name, SOME)
    assert len(read(tmp_path)) == 2
    assert [record.key for record in read(tmp_path, "validation")] == ["dev/a/one", "dev/two", "val/a/one", "val/two"]
    assert {record.image.parent.name for record in read(tmp_path, "test")} == {"a", "eval", "test"}
    assert problems(tmp_path, "validation")[1] == []


@FORMS
def test_an_unknown_split_lists_those_there(tmp_path: Path, form: Form) -> None:
    form(tmp_path / "train", SOME)
    form(tmp_path / "val", SOME)
    for split in ("val", "test", ""):
        with pytest.raises(ValueError, match=r"split: expected one of .*'s \(train, validation\), got "):
            read(tmp_path, split)


@TABLES
def test_metadata_here_and_in_folders_of_splits(tmp_path: Path, form: Form) -> None:
    form(tmp_path, {"one.jpg": ["a dog"], "test/two.jpg": ["a cat"]})
    form(tmp_path / "test", {"two.jpg": ["a cat", "a red cat"], "three.jpg": ["a cow"]})
    assert [(record.key, record.captions) for record in read(tmp_path)] == [("one", ("a dog",))]
    assert [(record.key, record.captions) for record in read(tmp_path, "test")] == [
        ("test/two", ("a cat", "a red cat")),
        ("test/three", ("a cow",)),
    ]


@TABLES
def test_pictures_in_folders_of_held_out_splits_are_held_out_whichever_table_names_them(
    tmp_path: Path, form: Form
) -> None:
    form(tmp_path, {"train/a.jpg": ["a dog"], "test/b.jpg": ["a cat"]})
    assert folder_splits(tmp_path) == ["test", "train"]
    assert [[record.key for record in read(tmp_path, split)] for split in ("train", "test")] == [
        ["train/a"],
        ["test/b"],
    ]


@TABLES
def test_pictures_in_no_row_are_counted_unless_they_are_a_split(tmp_path: Path, form: Form) -> None:
    form(tmp_path / "train", SOME)
    put(tmp_path / "train/unnamed.jpg")
    records, found, fatal = problems(tmp_path)
    assert (len(records), len(found), fatal) == (2, 1, [False])
    assert "1 picture (such as train/unnamed.jpg): in no row of the table" in found[0]
    put(tmp_path / "test/unnamed.jpg")
    # Else a test split would be made of train, beside a folder of that name.
    with pytest.raises(FileNotFoundError, match=r"unnamed\.txt: expected the captions"):
        open_split(tmp_path, "test")


def test_both_tables(tmp_path: Path) -> None:
    jsonl(tmp_path, SOME)
    table(tmp_path, SOME)
    with pytest.raises(ValueError, match=r"expected one of metadata\.jsonl and metadata\.csv, got both"):
        read(tmp_path)
    records, found, fatal = problems(tmp_path)
    assert (records, len(found), fatal) == ([], 1, [True])


def test_several_rows_of_one_picture(tmp_path: Path) -> None:
    rows = [("a.jpg", "one"), ("b.jpg", ["x", "y"]), ("./a.jpg", ["two", "three"]), ("a.jpg", "four")]
    put(tmp_path / "metadata.jsonl", "\n\n".join(json.dumps({"file_name": n, "text": t, "label": 3}) for n, t in rows))
    assert [(record.key, record.captions, record.class_id) for record in read(tmp_path)] == [
        ("a", ("one", "two", "three", "four"), None),
        ("b", ("x", "y"), None),
    ]
    put(tmp_path / "csv/metadata.csv", "text,label,file_name\none,3,a.jpg\nx,4,b.jpg\ntwo,3,a.jpg\n")
    assert [record.captions for record in read(tmp_path / "csv")] == [("one", "two"), ("x",)]


def test_quotes_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    content = '\ufefffile_name,text\r\n\r\na.jpg,"a ""red"", big\r\ndog\nhere\x85 "\r\nb.jpg, a cat \n'
    put(tmp_path / "metadata.csv", content)
    expected = [('a "red", big dog here',), ("a cat",)]
    assert [record.captions for record in read(tmp_path)] == expected
    rows = [
        {"file_name": "a.jpg", "text": 'a "red", big\r\ndog\rhere\u2028now\n'},
        {"file_name": "b.jpg", "text": "\x85"},
    ]
    put(tmp_path / "jsonl/metadata.jsonl", "\ufeff" + json.dumps(rows[0], ensure_ascii=False) + "\r\n")
    assert [record.captions for record in read(tmp_path / "jsonl")] == [('a "red", big dog here\u2028now',)]


@TABLES
def test_tables_that_are_not_utf8(tmp_path: Path, form: Form) -> None:
    form(tmp_path, {"a.jpg": ["a dog"]})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"a dog", b"a caf\xe9"))
    records, found, fatal = problems(tmp_path)
    assert ([record.captions for record in records], len(found), fatal) == ([("a caf\u00e9",)], 1, [False])


@pytest.mark.parametrize(
    ("header", "got"),
    [
        ("file_name,caption", "'file_name', 'caption'"),
        ("image;text", "'image;text'"),
        ("file_name,text,text", "'file_name', 'text', 'text'"),
    ],
)
def test_missing_columns(tmp_path: Path, header: str, got: str) -> None:
    put(tmp_path / "metadata.csv", f"{header}\na.jpg,a dog\nb.jpg,a cat\n")
    with pytest.raises(
        ValueError, match=rf"metadata\.csv, line 1: expected the columns file_name and text.*got {got}$"
    ):
        read(tmp_path)
    assert len(problems(tmp_path)[1]) == 1


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    good = 'file_name,text\n"a.jpg","a\ndog"\n'
    put(tmp_path / "metadata.csv", f"{good}b.jpg\nc.jpg,a dog, red\nd.jpg,a cat\n")
    records, found, fatal = problems(tmp_path)
    assert [record.key for record in records] == ["a", "d"]
    assert [what.partition(" (")[0] for what in found] == [
        "metadata.csv, line 4: expected 2 columns, got 1",
        "metadata.csv, line 5: expected 2 columns, got 3",
    ]
    assert fatal == [True, True]
    put(tmp_path / "metadata.csv", f'{good}b.jpg,"a cat\nc.jpg,a dog\n')
    records, found, _ = problems(tmp_path)
    assert ([record.key for record in records], len(found)) == (["a"], 1)
    assert found[0].startswith("metadata.csv, line 4: expected CSV, but reading it failed (")


def test_bad_lines_of_json(tmp_path: Path) -> None:
    lines = [
        '{"file_name": "a.jpg", "text": "a dog"}',
        '{"file_name": "b.jpg", "text": "a dog"',
        '["c.jpg", "a dog"]',
        '{"file_name": "d.jpg", "caption": "a dog"}',
        '{"file_name": "e.jpg", "text": null}',
        '{"file_name": "f.jpg", "text": ["a dog", 3]}',
        "[" * 100_000,
        '{"file_name": 7, "text": "a dog"}',
        "{}",
        "",
        '{"file_name": "z.jpg", "text": "a cat"}',
    ]
    put(tmp_path / "metadata.jsonl", "\n".join(lines))
    records, found, fatal = problems(tmp_path)
    assert [record.key for record in records] == ["a", "z"]
    expected = [
        "line 2: expected a JSON object, got no JSON (Expecting ',' delimiter at column 39)",
        'line 3: expected a JSON object, got \'["c.jpg", "a dog"]\'',
        "line 4: expected the columns file_name and text, once each ('caption' is to be called text), got 'file_name'",
        "line 5: expected a text that is a string or a list of strings, got None",
        "line 6: expected a text that is a string or a list of strings, got ['a dog', 3]",
        "line 7: expected a JSON object, but reading it failed (",
        "line 8: expected names that are strings, got 7",
        "line 9: expected the columns file_name and text, once each, got none",
    ]
    assert len(found) == len(expected)
    for what, beginning in zip(found, expected, strict=True):
        assert what.startswith(f"metadata.jsonl, {beginning}")
    assert all(fatal)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: expected a JSON object"):
        read(tmp_path)


@TABLES
def test_blank_texts(tmp_path: Path, form: Form) -> None:
    form(tmp_path, {"a.jpg": ["a dog", " "], "b.jpg": [" ", ""], "c.jpg": ["a cat"]})
    records, found, fatal = problems(tmp_path)
    assert [(record.key, record.captions) for record in records] == [("a", ("a dog",)), ("c", ("a cat",))]
    lines = (1, 2) if form is jsonl else (3, 4)
    assert [what.partition(", line ")[2].partition(", got")[0] for what in found] == [
        f"{lines[0]}: expected a caption of a.jpg",
        f"{lines[1]}: expected at least one caption of b.jpg",
    ]
    assert fatal == [False, True]
    form(tmp_path, {"a.jpg": ["a dog", " "]})
    assert len(read(tmp_path)) == 1


def test_an_empty_list_of_texts_is_blank(tmp_path: Path) -> None:
    jsonl(tmp_path, {"a.jpg": []})
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1: expected at least one caption of a\.jpg"):
        read(tmp_path)


@TABLES
@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "a//b.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, form: Form, name: str) -> None:
    form(tmp_path / "train", {"a.jpg": ["a dog"], name: ["a secret"]})
    with pytest.raises(ValueError, match=r"metadata\.\w+, line [23]: expected names of files inside"):
        read(tmp_path)
    assert [record.key for record in problems(tmp_path)[0]] == ["a"]


@FORMS
def test_two_pictures_of_one_name(tmp_path: Path, form: Form) -> None:
    form(tmp_path, {"b/a.jpg": ["a dog"], "b/a.png": ["a cat"], "c.jpg": ["a cow"]})
    with pytest.raises(ValueError, match=r"differ without their extension, got b/a\.png and b/a\.jpg"):
        read(tmp_path)
    records, found, fatal = problems(tmp_path)
    assert [record.image.name for record in records] == ["a.jpg", "c.jpg"]
    assert (len(found), fatal) == (1, [True])


def test_pairs_of_any_depth_sorted_by_path_without_hidden_ones(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.webp", "a/b/c/St. Kilda.jpeg", "a.b.png", ".hidden.jpg", ".folder/x.jpg", "a/.x/y.jpg"]
    pairs(tmp_path, {name: [name] for name in names})
    put(tmp_path / "a/notes.md")
    assert [record.key for record in read(tmp_path)] == ["a.b", "a/b/c/St. Kilda", "a/z", "b"]
    assert problems(tmp_path)[1] == []


def test_pictures_without_a_text_and_texts_without_a_picture(tmp_path: Path) -> None:
    pairs(tmp_path, {"a.jpg": ["a dog"], "b.jpg": ["a cat"], "e.jpg": [""]})
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    put(tmp_path / "only/d.jpg")
    records, found, fatal = problems(tmp_path)
    assert [record.key for record in records] == ["a"]
    assert [what.partition(",")[0] for what in found] == [
        "c.txt: expected a picture of the same name beside the captions",
        "b.txt: expected the captions of a picture",
        "e.txt: expected at least one caption",
        "d.txt: expected the captions of a picture",
    ]
    assert fatal == [False, True, True, True]
    with pytest.raises(FileNotFoundError, match=r"b\.txt: expected the captions of a picture"):
        read(tmp_path)


def test_a_text_without_a_picture_stops_nobody(tmp_path: Path) -> None:
    pairs(tmp_path, {"a.jpg": ["a dog"]})
    put(tmp_path / "README.txt", "read me")
    assert [record.key for record in read(tmp_path)] == ["a"]


def test_what_is_recognised(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.txt")
    put(tmp_path / "b")
    put(tmp_path / "deep/c/a.txt")
    put(tmp_path / ".hidden/a.jpg")
    put(tmp_path / ".hidden/a.txt")
    assert not is_folder(tmp_path)
    with pytest.raises(ValueError, match=r"one of these layouts: .*metadata\.csv"):
        open_split(tmp_path, "train")
    put(tmp_path / "deep/c/a.jpeg")
    assert is_folder(tmp_path)
    for name in ("metadata.csv", "train/metadata.jsonl", "dev/metadata.csv", "test/metadata.csv", "a/b/metadata.csv"):
        put(tmp_path / "tables" / name.replace("/", "-") / name)
        assert is_folder(tmp_path / "tables" / name.replace("/", "-"))


def test_recognising_looks_no_further_than_the_first_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path, {"a/x.jpg": ["a dog"], "b/c/y.jpg": ["a cat"]})
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path).name), scandir(path))[1])
    assert is_folder(tmp_path)
    assert listed == [tmp_path.name, "a"]


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    pairs(tmp_path / "elsewhere", {"a.jpg": ["a dog"]})
    (tmp_path / "root").mkdir()
    (tmp_path / "root/train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "elsewhere/self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    pairs(tmp_path / "third", {"b.jpg": ["a cat"]})
    (tmp_path / "elsewhere/third").symlink_to(tmp_path / "third", target_is_directory=True)
    train = tmp_path / "root/train"
    assert [record.image for record in read(tmp_path / "root")] == [train / "a.jpg", train / "third/b.jpg"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path, {"a.jpg": ["a dog"], "locked/b.jpg": ["a cat"]})
    scandir = os.scandir

    # Not by chmod, which does not keep the superuser out.
    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"locked: expected a folder of pictures, .* \(Permission denied\)"):
        read(tmp_path)
    assert is_folder(tmp_path)
    assert [record.key for record in problems(tmp_path)[0]] == ["a"]
