"""Which files are pictures, and sound ones that Pillow alone refuses."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vlm_plugin.data import Problem, open_split
from vlm_plugin.data.captions import list_pictures
from vlm_plugin.data.check import check
from vlm_plugin.data.images import load_image
from vlm_plugin.data.records import BadSampleError, stop
from vlm_plugin.data.text import is_picture, is_unread, read_text

LARGE = 3 * PngImagePlugin.MAX_TEXT_CHUNK


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


NOTES = {
    "text": chunk(b"tEXt", b"Comment\0" + b"a" * LARGE),
    "packed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * LARGE)),
    "text of Unicode": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(b"a" * LARGE)),
    "many texts": b"".join(chunk(b"zTXt", b"n%d\0\0" % i + zlib.compress(b"a" * 2**20)) for i in range(66)),
    "profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"a" * LARGE)),
    "large EXIF as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * LARGE)),
}


def noted(path: Path, notes: bytes, behind: bool = False, orientation: int | None = None) -> np.ndarray:
    """Writes a PNG with notes before or behind its pixels; what it shows as stored."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    content = path.read_bytes()
    place = content.index(b"IEND" if behind else b"IDAT") - 4
    path.write_bytes(content[:place] + notes + content[place:])
    return pixels


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("notes", NOTES.values(), ids=NOTES)
def test_a_png_with_large_notes_is_read(tmp_path: Path, notes: bytes, behind: bool) -> None:
    pixels = noted(tmp_path / "a.png", notes, behind, orientation=3)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels[::-1, ::-1])
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_png_with_large_notes_is_turned_by_a_small_one(tmp_path: Path) -> None:
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    turn = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    pixels = noted(tmp_path / "a.png", turn + NOTES["packed text"])
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels[::-1, ::-1])


def test_damage_beside_large_notes_stays_damage(tmp_path: Path) -> None:
    noted(tmp_path / "a.png", NOTES["packed text"])
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) - 2000])
    with pytest.raises(BadSampleError, match=r"a\.png: expected a picture, but reading it failed"):
        load_image(tmp_path / "a.png")


def test_large_notes_on_several_threads(tmp_path: Path) -> None:
    noted(tmp_path / "a.png", NOTES["profile"])
    sizes: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: sizes.append(load_image(tmp_path / "a.png").size)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(50, 40)] * 8


def test_the_check_reads_them_too(tmp_path: Path) -> None:
    for name in "abc":
        noted(tmp_path / f"{name}.png", NOTES["packed text"] if name == "a" else b"")
        (tmp_path / f"{name}.txt").write_text(f"picture {name}")
    assert not [finding for finding in check(tmp_path).findings if "unreadable" in finding.kind]


@pytest.mark.parametrize("extension", ["jfif", "jpe", "JFIF", "avif", "jp2", "ppm", "tga", "apng", "ico", "qoi"])
def test_whatever_pillow_reads_is_a_picture(tmp_path: Path, extension: str) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.{extension}"
        try:
            Image.new("RGB", (32, 32), (9 * number, 9, 9)).save(path)
        except (ValueError, KeyError, OSError):
            pytest.skip("this Pillow does not write it")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    assert len(list_pictures(tmp_path)) == 3
    read = [*open_split(tmp_path, "train"), *open_split(tmp_path, "test")]
    assert {record.image.suffix for record in read} == {f".{extension}"}
    assert {load_image(record.image).size for record in read} == {(32, 32)}


def test_what_is_no_picture() -> None:
    for name in ("a.txt", "a.h5", "a.mpg", "a.pdf", "a.eps", "a.json", "a", "jpg"):
        assert not is_picture(name), name


def test_a_picture_that_this_pillow_does_not_read_is_named(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.cr2").write_bytes(b"II*\0\x10\0\0\0CR\x02\0" if number else b"raw")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    assert is_unread("0.CR2")
    findings = [finding for finding in check(tmp_path).findings if finding.fatal]
    assert {Path(finding.where).name for finding in findings} >= {"0.cr2", "1.cr2", "2.cr2"}
    Image.new("RGB", (40, 40)).save(tmp_path / "1.cr2", format="TIFF")  # its thumbnail
    for number in range(2):
        with pytest.raises(BadSampleError, match=rf"{number}\.cr2: expected a picture, got a \.cr2 file"):
            load_image(tmp_path / f"{number}.cr2")
    with pytest.raises(ValueError, match=r"found only 3 pictures that Pillow does not read here \(\.cr2\)"):
        list_pictures(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"3 pictures passed over .*\.cr2"):
        assert list_pictures(tmp_path) == ["a.png"]


def test_a_jpeg_beside_what_it_was_made_of(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text(f"picture {name}")
        (tmp_path / f"{name}.psd").write_bytes(b"8BPS")
        (tmp_path / f"{name}.heic").write_bytes(b"heic")
    Image.new("RGB", (40, 40)).save(tmp_path / "icon.ico")
    found: list[Problem] = []
    read = [*open_split(tmp_path, "train", found.append), *open_split(tmp_path, "test", found.append)]
    assert sorted(record.image.name for record in read) == ["a.jpg", "b.jpg"]
    assert {(Path(p.where).name, p.fatal) for p in found} == {("icon.ico", False)}


def test_a_picture_without_captions_is_missed_whatever_its_extension(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jfif", "c.jpg"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    for name in "ac":
        (tmp_path / f"{name}.txt").write_text("a picture")
    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"a Git LFS pointer \(git lfs pull"),
        (b"<!DOCTYPE html><html><title>Drive</title></html>", "a web page"),
        (b"\xef\xbb\xbf\n<!-- x --><HTML>", "a web page"),
        (b"", "an empty file"),
        (b"what is this", "a file of no format that Pillow knows"),
    ],
)
def test_what_lies_in_a_pictures_place_is_said(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadSampleError, match=f"a\\.jpg: expected a picture, got {found}"):
        load_image(tmp_path / "a.jpg")
    if found.startswith(("a Git", "a web")):
        with pytest.raises(ValueError, match=f"a\\.jpg: expected a text file, got {found}"):
            read_text(tmp_path / "a.jpg", stop)
