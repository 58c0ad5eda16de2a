"""Text of any encoding, and names that may come from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_plugin.data import Problem
from vlm_plugin.data.records import stop
from vlm_plugin.data.text import caption_lines, checked_name, read_text, without_extension


def test_text_that_is_utf8_is_no_problem(tmp_path: Path) -> None:
    found: list[Problem] = []
    for content in (b"caf\xc3\xa9\n", b"\xef\xbb\xbfcaf\xc3\xa9\n"):
        (tmp_path / "text").write_bytes(content)
        assert read_text(tmp_path / "text", found.append) == "caf\xe9\n"
    assert found == []


def test_other_text_is_read_as_latin_1_and_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a caf\xe9\n")
    found: list[Problem] = []
    assert read_text(path, found.append) == "a caf\xe9\n"
    what = "expected UTF-8, got byte 0xe9 at position 5; it is read as Latin-1"
    assert found == [Problem(str(path), what, missing=False, fatal=False)]
    assert read_text(path, stop) == "a caf\xe9\n"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "wide").write_bytes("a caption".encode("utf-16-le"))
    for name, found in {"nothing": "no such file", "folder": "a folder", "file/below": "no such file"}.items():
        with pytest.raises(FileNotFoundError, match=f"{name}: expected a text file, found {found}"):
            read_text(tmp_path / name, stop)
    with pytest.raises(ValueError, match=r"n: expected a text file, but reading it failed \(File name too long\)"):
        read_text(tmp_path / ("n" * 300), stop)
    found: list[Problem] = []
    for name in ("nothing", "wide"):
        assert read_text(tmp_path / name, found.append) is None
        assert caption_lines(tmp_path / name, found.append) == ()
    assert [problem.missing for problem in found] == [True, True, False, False]
    assert all(problem.fatal for problem in found)
    assert "expected a text file, got NUL bytes" in found[2].what


def test_captions_are_stripped_and_otherwise_exact(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeff\tA  \u201cred\u201d bird \u2028 sings.\r\n\r\n \t\n\U0001f426\n".encode())
    assert caption_lines(path, stop) == ("A  \u201cred\u201d bird \u2028 sings.", "\U0001f426")
    path.write_bytes(b"a bird\r\ra fish\r\na dog\na cat\r")
    assert caption_lines(path, stop) == ("a bird", "a fish", "a dog", "a cat")
    path.write_bytes(b"\n \r\n")
    found: list[Problem] = []
    assert caption_lines(path, found.append) == ()
    assert found == [Problem(str(path), "expected at least one caption, got an empty file", picture=True)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("a\\b", "a/b"),
        ("./a/./b", "a/b"),
        ("..a/b..", "..a/b.."),
        ("a b/C: d", "a b/C: d"),
        ("12:30.jpg", "12:30.jpg"),
        ("caf\xc3\xa9", "caf\xc3\xa9"),  # a real name that looks like broken UTF-8
        ("\u9e1f", "\u9e1f"),
    ],
)
def test_names_inside_the_folder(name: str, expected: str) -> None:
    assert checked_name("index", name, stop) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("..", "../x", "a/../x", "a\\..\\..\\x"),
        *("/x", "\\x", "//host/x", "C:\\x", "c:x", "./C:/x"),
        *("a//b", "a/", "", ".", "./."),
        *("a\0b", "\ud800"),
    ],
)
def test_names_that_leave_the_folder(name: str) -> None:
    found: list[Problem] = []
    assert checked_name("index, line 3", name, found.append) is None
    what = f"expected names of files inside the data folder, got {name!r}"
    assert found == [Problem("index, line 3", what, missing=False, fatal=True)]


@pytest.mark.parametrize("name", [None, 7, b"a", ["a"], {"a": 1}])
def test_names_that_are_no_text(name: object) -> None:
    with pytest.raises(ValueError, match=r"^index: expected names that are strings, got .* of type "):
        checked_name("index", name, stop)


def test_only_extensions_of_pictures_are_dropped() -> None:
    assert without_extension("a/b.jpg") == "a/b"
    assert without_extension("a/b.c.TIFF") == "a/b.c"
    for name in ("001.Black_footed_Albatross", "a/St. Kilda 1.5", "a.txt", "a.jpg/b", ".jpg"):
        assert without_extension(name) == name
