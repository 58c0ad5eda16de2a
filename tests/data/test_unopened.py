"""What has the name of a file and cannot be opened: links that lead around or nowhere, pipes, sockets, devices.

None of it may stop a program for ever, hide what lies beside it, or escape as another error than a reader's own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlm_plugin.data import Problem, open_split
from vlm_plugin.data.captions import list_pictures, read_captions
from vlm_plugin.data.check import check
from vlm_plugin.data.dataset import CaptionedImages
from vlm_plugin.data.images import load_image
from vlm_plugin.data.layouts import find_layout
from vlm_plugin.data.records import BadSampleError, MissingPictureError, stop
from vlm_plugin.data.text import caption_lines, read_text
from vlm_plugin.files import NotAFileError, open_file, read_state_dict
from vlm_plugin.gans.sampling import read_captions as sampled_captions
from vlm_plugin.terminal import check_outside
from vlm_plugin.training.skipped import open_records, usable_indices
from vlm_plugin.unpickle import load_pickle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def broken(path: Path) -> None:
    path.symlink_to("gone")


def listening(path: Path) -> None:
    # Bound by a short relative name: a socket's address has 108 bytes at most.
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-S", "-c", code, path.name], cwd=path.parent, check=True)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "loop": (loop, "found a link that leads back to itself"),
    "broken": (broken, "found a link to gone, which is not there"),
    "pipe": (os.mkfifo, "found a pipe"),
    "socket": (listening, "found a socket"),
    "device": (device, "found a device"),
    "folder": (Path.mkdir, "found a folder"),
}
kinds = pytest.mark.parametrize(("make", "found"), KINDS.values(), ids=KINDS)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (hash(path.name) % 255, 9, 9)).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in "abcd":
        picture(root / f"train/{name}.png")
        (root / f"train/{name}.txt").write_text(f"a picture {name}")
    return root


@kinds
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(NotAFileError, match=f"^{tmp_path / 'x'}: expected a file, {found}$"):
        open_file(tmp_path / "x")
    with pytest.raises(BadSampleError, match=f"x: expected a picture, {found}") as caught:
        load_image(tmp_path / "x")
    assert caught.value.where == str(tmp_path / "x")
    assert isinstance(caught.value, MissingPictureError) == ("gone" in found)
    for read in (load_pickle, read_state_dict):
        with pytest.raises(OSError, match=found):
            read(tmp_path / "x")
    with pytest.raises((ValueError, OSError), match=f"x: expected a text file, {found}"):
        read_text(tmp_path / "x", stop)
    problems: list[Problem] = []
    assert caption_lines(tmp_path / "x", problems.append) == ()
    assert [(p.where, p.picture, p.fatal) for p in problems] == [(str(tmp_path / "x"), True, True)]


def test_a_file_is_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError, match="No such file"):
        open_file(tmp_path / "nothing")


def test_what_takes_a_files_place_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    status = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: status)
    with pytest.raises(NotAFileError, match="found a pipe"):
        open_file(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    picture(tmp_path / "a.png")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        BadSampleError, match=r"a\.png: expected a picture, but reading it failed \(Permission denied\)"
    ):
        load_image(tmp_path / "a.png")


@kinds
def test_one_bad_picture_hides_no_others(pairs: Path, make: Callable[[Path], None], found: str) -> None:
    bad = pairs / "train" / "bad.png"
    make(bad)
    (pairs / "train" / "bad.txt").write_text("a bad picture")
    findings = [finding for finding in check(pairs).findings if finding.fatal]
    assert [(f.where, f.what) for f in findings] == [(str(bad), f"expected a picture, {found}")]
    records, left_out = open_records(pairs, "train", skip_bad=True)
    others, _ = open_records(pairs, "test", skip_bad=True)
    good, skipped = usable_indices(CaptionedImages([*records, *others], 16, train=False), skip_bad=True)
    assert len(good) == 4
    assert str(bad) in {*left_out, *skipped}


@kinds
def test_captions_that_cannot_be_opened(pairs: Path, make: Callable[[Path], None], found: str) -> None:
    (pairs / "train" / "b.txt").unlink()
    make(pairs / "train" / "b.txt")
    problems: list[Problem] = []
    open_split(pairs, "train", problems.append)
    (problem,) = (problem for problem in problems if problem.fatal)
    assert problem.where == str(pairs / "train" / "b.txt")
    if "folder" not in found:  # a folder is no file of captions, and another one might be
        assert found in problem.what


files = pytest.mark.parametrize(
    ("make", "found"),
    [pair for name, pair in KINDS.items() if name != "folder"],
    ids=[n for n in KINDS if n != "folder"],
)  # a folder of a table's name is none


@files
def test_tables_that_cannot_be_opened(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        root = tmp_path / name.partition(".")[2]
        picture(root / "train/a.png")
        make(root / "train" / name)
        with pytest.raises((ValueError, OSError), match=f"{name}: expected a text file, {found}"):
            open_split(root, "train")
    coco = tmp_path / "coco"
    picture(coco / "train2014/a.png")
    (coco / "annotations").mkdir()
    make(coco / "annotations/captions_train2014.json")
    with pytest.raises((ValueError, OSError), match=f"train2014.json: expected a text file, {found}"):
        open_split(coco, "train")
    cub = tmp_path / "cub"
    picture(cub / "images/a.jpg")
    (cub / "text").mkdir()
    (cub / "text/a.txt").write_text("a bird")
    make(cub / "images.txt")
    with pytest.raises((ValueError, OSError), match=f"images.txt: expected a text file, {found}"):
        open_split(cub, "train")
    (cub / "images.txt").unlink()
    (cub / "images.txt").write_text("1 a.jpg")
    for name in ("train_test_split.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        make(cub / name)
        with pytest.raises((ValueError, OSError), match=f"{name}: expected a text file, {found}"):
            open_split(cub, "train")
        (cub / name).unlink()


@files
def test_pickles_that_cannot_be_opened(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    picture(tmp_path / "images/a.jpg")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("a bird")
    (tmp_path / "train").mkdir()
    make(tmp_path / "train/class_info.pickle")
    (tmp_path / "train/filenames.pickle").write_bytes(pickle.dumps(["a"]))
    with pytest.raises((ValueError, OSError), match=f"class_info.pickle: expected a list of integers, {found}"):
        open_split(tmp_path, "train")
    (tmp_path / "train/filenames.pickle").unlink()
    make(tmp_path / "train/filenames.pickle")
    with pytest.raises((ValueError, OSError), match=f"filenames.pickle: expected a list .*, {found}"):
        open_split(tmp_path, "train")


def test_a_link_to_itself_in_the_place_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop(tmp_path / "data")
    for look in (check, find_layout, list_pictures):
        with pytest.raises(FileNotFoundError, match=r"data: expected a .*folder.*, found a link that leads back to"):
            look(tmp_path / "data")
    check_outside(tmp_path / "out.png", tmp_path / "data")  # raises nothing of its own
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        find_layout(tmp_path / "nothing")


def test_a_link_to_itself_in_any_layout_hides_nothing(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("coco", "cub", "originals")}
    picture(roots["coco"] / "train2014/a.png")
    (roots["coco"] / "annotations").mkdir()
    (roots["coco"] / "annotations/captions_train2014.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a bird"}]}'
    )
    picture(roots["cub"] / "images/a.png")
    (roots["cub"] / "images.txt").write_text("1 a.png")
    picture(roots["originals"] / "images/a.jpg")
    (roots["originals"] / "train").mkdir()
    (roots["originals"] / "train/filenames.pickle").write_bytes(pickle.dumps(["a"]))
    for name in ("cub", "originals"):
        (roots[name] / "text").mkdir()
        (roots[name] / "text/a.txt").write_text("a bird")
    for root in roots.values():
        for folder in [root, *(path for path in root.iterdir() if path.is_dir())]:
            loop(folder / "loop")
            loop(folder / "loop.png")
        (record,) = open_split(root, "train")
        assert record.captions == ("a bird",)


@kinds
def test_captions_named_by_a_user(tmp_path: Path, make: Callable[[Path], None], found: str) -> None:
    picture(tmp_path / "pictures/a.png")
    for name in ("captions.csv", "captions.txt", "captions.json"):
        make(tmp_path / name)
        with pytest.raises((ValueError, OSError), match=f"{name}: expected a text file, {found}"):
            read_captions(tmp_path / name, tmp_path / "pictures")
        with pytest.raises((ValueError, OSError), match="got a folder" if "folder" in found else found):
            sampled_captions([str(tmp_path / name)])


def test_a_folder_of_pictures_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path: object) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="locked"):
        list_pictures(tmp_path)
