"""Files are whole or not there: one writer, any number of processes, and failures of every kind."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm_plugin.files import (
    check_writable,
    not_finite,
    previous,
    read_file,
    write_bytes,
    write_file,
    write_json,
    write_next,
    write_text,
    writing,
    writing_folder,
)

WRITERS: dict[str, Callable[[int, Path], None]] = {
    "bytes": lambda number, path: write_bytes(content(number), path),
    # Few enough that torch fills it with one thread: others would not live on in a forked process.
    "torch": lambda number, path: write_file(torch.full((30_000,), number), path),
}


def content(number: int) -> bytes:
    """What a writer of this number writes: enough that it goes to the file in several pieces."""
    return bytes([number]) * (500_000 + number)


def is_whole(path: Path, kind: str) -> bool:
    if kind == "bytes":
        found = path.read_bytes()
        return found == content(found[0])
    return len(set(read_file(path, "tensor").tolist())) == 1


def write_often(kind: str, number: int, path: Path) -> None:
    for _ in range(15):
        WRITERS[kind](number, path)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("by", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_writers_of_one_path_never_meet(tmp_path: Path, kind: str, by: Callable) -> None:
    path = tmp_path / "x.pt"
    WRITERS[kind](9, path)
    writers = [by(target=write_often, args=(kind, number, path)) for number in range(1, 5)]
    for writer in writers:
        writer.start()
    looks = 0
    while any(writer.is_alive() for writer in writers):
        assert is_whole(path, kind)
        looks += 1
    for writer in writers:
        writer.join()
        assert getattr(writer, "exitcode", 0) == 0
    assert looks > 1
    assert is_whole(path, kind)
    assert os.listdir(tmp_path) == ["x.pt"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text("old", path)
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        (beside,) = set(tmp_path.iterdir()) - {path}
        # What a kill here would leave: no reader of pictures, tables or checkpoints asks for such a name.
        assert beside.name.startswith(".x.txt.")
        assert beside.suffix == ".part"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


def fail_midway(writer: Callable, path: Path, error: type[BaseException]) -> None:
    with writer(path) as target:
        if isinstance(target, Path):
            (target / "a").write_text("half")
        else:
            target.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.txt"
    write_text("old", path)
    for target in (path, tmp_path / "new.txt"):
        with pytest.raises(error):
            fail_midway(writing, target, error)
    with pytest.raises(error):
        fail_midway(writing_folder, tmp_path / "folder", error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "\N{BIRD}" * 63])
def test_a_name_may_be_as_long_as_the_system_takes_it(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path / name)
    write_text("a bird", tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_stay(tmp_path: Path) -> None:
    path, fresh = tmp_path / "x.sh", tmp_path / "fresh"
    path.write_text("old")
    fresh.write_text("")
    path.chmod(0o751)
    write_text("new", path)
    write_text("new", tmp_path / "other")
    assert path.stat().st_mode & 0o777 == 0o751
    assert (tmp_path / "other").stat().st_mode == fresh.stat().st_mode


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set"
    for _ in range(2):
        with writing_folder(path) as folder:
            (folder / "a").write_text("a bird")
            assert not path.is_dir() or not any(path.iterdir())
        assert [p.name for p in path.iterdir()] == ["a"]
        assert os.listdir(path.parent) == ["set"]
        (path / "a").unlink()  # an empty folder may be filled
    (path / "b").write_text("other")
    with pytest.raises(OSError, match="not empty"), writing_folder(path):
        pass
    assert [p.name for p in path.iterdir()] == ["b"]
    assert os.listdir(path.parent) == ["set"]


def test_a_place_to_write_to_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.pt"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    check_writable(path)
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("x.pt", "old")]


@pytest.mark.parametrize("where", ["file/x.pt", "file/below/x.pt", "taken.pt", "too long" * 99])
def test_no_place_to_write_to_is_named(tmp_path: Path, where: str) -> None:
    """Whoever runs this: rights, which do not stop everybody, are the next test's."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken.pt").mkdir()
    path = tmp_path / where
    with pytest.raises(OSError, match=rf"^{re.escape(str(path))}: expected a file that can be written, got \S"):
        check_writable(path)
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.parametrize("what", ["open", "mkdir"])
def test_a_folder_without_the_right_to_write_is_named(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, what, refuse)
    path = tmp_path / "x.pt"
    with pytest.raises(OSError, match=rf"^{re.escape(str(path))}: expected .*, got .*Permission denied: '{tmp_path}"):
        check_writable(path)


@pytest.mark.full_disk
@pytest.mark.parametrize("size", [3, 3_000_000])
def test_a_full_disk_names_the_file(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda self, mode: open("/dev/full", "wb"))  # noqa: SIM115
    path = tmp_path / "x.pt"
    message = rf"^{re.escape(str(path))}: expected a file that can be written, on a disk with room, got .*No space left"
    with pytest.raises(OSError, match=message):
        write_file(torch.zeros(size), path)
    with pytest.raises(OSError, match=message):
        write_bytes(b"x" * size, path)


def test_failed_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    write_json({"name": "ä", "list": [1, None]}, path)
    with pytest.raises(TypeError):
        write_json({"bad": {1, 2}}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ä", "list": [1, None]}


def test_json_of_a_name_that_is_no_utf8_can_be_read_by_anyone(tmp_path: Path) -> None:
    path, content = tmp_path / "options.json", {"data": os.fsdecode(b"caf\xe9"), "out": "caf\xe9"}
    write_json(content, path)
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_json_is_utf_8_whatever_it_holds(tmp_path: Path) -> None:
    content = {"caption": "ein Vögelchen 🐦 \ud83d \udcff"}
    write_json(content, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "ein Vögelchen 🐦 \\ud83d \\udcff" in text
    assert json.loads(text) == content


def test_the_first_value_that_is_no_number_is_named() -> None:
    fine = {"a": torch.ones(3), "b": {0: {"step": 1.0}}, "text": "nan", "none": None, "whole": torch.tensor([1, 2])}
    assert not_finite(fine) is None
    broken = {"later": float("inf"), "last": torch.tensor([0.0, float("nan")])}
    assert not_finite(fine | broken) == "later"
    assert not_finite({"fine": fine, "adam": {"state": {7: broken}}}) == "adam.state.7.later"
    assert not_finite({"last": broken["last"]}) == "last"


def test_text_is_written_without_torch() -> None:
    """So that commands that edit text alone start at once."""
    code = "import sys, vlm_plugin.files; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------- checksums, and the former


def flipped(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_in_stored_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    weights = torch.arange(1, 65, dtype=torch.float32)
    write_file({"weights": {"a": weights}, "settings": {"width": 2}}, path)
    whole = path.read_bytes()
    place = whole.index(weights.numpy().tobytes())
    for offset in range(0, 256, 17):
        flipped(path, place + offset, offset % 8)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected the content that was written there"):
            read_file(path, "file")
        path.write_bytes(whole)
    assert torch.equal(read_file(path, "file")["weights"]["a"], weights)


def test_a_flipped_bit_anywhere_gives_the_content_or_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    content = {"weights": {"a": torch.arange(8.0)}, "settings": {"width": 2, "name": "bird", "notes": [1, (2.5, None)]}}
    write_file(content, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        flipped(path, place, place % 8)
        try:
            found = read_file(path, "file")
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            # Where the bit is one of the checksum's own name, the content is whole all the same.
            assert torch.equal(found["weights"]["a"], content["weights"]["a"])
            assert found["settings"] == content["settings"]
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": torch.zeros(0), "b": torch.tensor(3), "c": torch.zeros(2, 3).t(), "d": torch.zeros(2).bfloat16()},
        {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), 1: [True, None, math.nan, "\ud800"]},
        {"a": torch.nn.Linear(2, 3).state_dict(), "size": torch.Size([1, 2]), "b": torch.tensor([True])},
    ],
)  # fmt: skip
def test_what_is_written_is_read_again(tmp_path: Path, content: dict) -> None:
    write_file(content, tmp_path / "x.pt")
    found = read_file(tmp_path / "x.pt", "file")
    assert found.keys() == content.keys()
    assert repr(found) == repr(content)


def test_the_former_file_is_kept_and_one_of_both_is_always_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    seen = []

    def look(*_: object) -> None:
        there = [p for p in (path, previous(path)) if p.is_file()]
        seen.append([read_file(p, "file")["step"] for p in there])

    replace = os.replace

    def fail(*_: object) -> None:
        raise OSError("no links here")

    for link in (os.link, fail):  # the latter: a file system without hard links
        monkeypatch.setattr(os, "link", link)
        for step in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", lambda a, b: (look(), replace(a, b), look()))
                write_next({"step": step}, path)
            assert read_file(path, "file")["step"] == step
            if step:
                assert read_file(previous(path), "file")["step"] == step - 1
        assert set(os.listdir(tmp_path)) == {"x.pt", "x.previous.pt"}
    # Only before the very first is there none.
    assert [steps for steps in seen if not steps] == [[]]
