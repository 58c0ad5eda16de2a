"""What the readers share: text of any encoding, captions one a line, and the names that an index gives."""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

from vlm_plugin.data.encoding import decode
from vlm_plugin.data.records import Complain, Problem
from vlm_plugin.files import open_file, refusal

# In lower case; the first are preferred where several pictures would fit. Whatever else Pillow reads follows.
PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What Pillow reads and is no picture to train on: data, films, drawings that other programs draw.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# Pictures that Pillow reads with a plugin or not at all.
_NEED_MORE = (
    *(".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".exr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)
# A film, data or an icon beside the pictures is no fault; one of these without captions is.
_USUAL = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "TIFF", "WEBP"}
# Not splitlines(), here and where this is used: text may hold further characters that it takes for line ends.
LINE_END = re.compile(r"\r\n|\r|\n")
_POINTER = re.compile(r"version https?://(git-lfs|hawser)\.github\.com/spec/")
_PAGE = re.compile(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
_HEAD = 2000
_DRIVE = re.compile(r"[A-Za-z]:")


def read_text(path: Path, complain: Complain) -> str | None:
    """Reads a text file as UTF-8 (or what its byte order mark says), or as Latin-1 where it has a few accents of that.

    Args:
        path: the file.
        complain: called with a missing or unreadable file, one that is no text or of another encoding (fatal), and one
            that is Latin-1 (not fatal).

    Returns:
        The text with its line ends as they are, None after a fatal problem.
    """
    return _unless_mishap(path, "a text file", _read(path, "a text file", complain), complain)


def caption_lines(path: Path, complain: Complain) -> tuple[str, ...]:
    """Reads captions, one a line, stripped of surrounding white space; blank lines are skipped.

    Args:
        path: the file.
        complain: called as by `read_text`, and with a file without captions (fatal); all of it is about one picture.

    Returns:
        The captions, none after a fatal problem.
    """

    def about_one(problem: Problem) -> None:
        complain(problem._replace(picture=True))

    expected = "the captions of a picture, one a line"
    text = _unless_mishap(path, expected, _read(path, expected, about_one), about_one)
    if text is None:
        return ()
    captions = tuple(line.strip() for line in LINE_END.split(text) if line.strip())
    if not captions:
        about_one(Problem(str(path), "expected at least one caption, got an empty file"))
    return captions


def checked_name(where: str, name: object, complain: Complain) -> str | None:
    """A file name out of an index, which may come from anywhere: it may name files of the data folder and no others.

    Args:
        where: the index, for the message.
        name: what stands there.
        complain: called (fatal) with anything but a relative path that stays inside the folder on every system.

    Returns:
        The path, its parts separated by "/" on every system, None after a problem.
    """
    if not isinstance(name, str):
        complain(Problem(where, f"expected names that are strings, got {name!r:.200} of type {type(name).__name__}"))
        return None
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    leaves = not parts or ".." in parts or "" in parts or "\0" in name or _DRIVE.match(parts[0])
    if leaves or not _is_file_name(name):
        complain(Problem(where, f"expected names of files inside the data folder, got {name!r:.200}"))
        return None
    return "/".join(parts)


def mishap(content: str) -> str | None:
    """What a text is instead of a table or captions: the usual accidents of downloads. None for anything else."""
    head = content[:_HEAD].lstrip("\ufeff \t\r\n")
    if _POINTER.match(head):
        return "a Git LFS pointer (git lfs pull fetches the file)"
    return "a web page" if _PAGE.match(head) else None


def is_picture(name: str) -> bool:
    """Whether a file's name has the extension of a picture, in any case, be it one that Pillow does not read here."""
    return picture_rank(name) is not None


def is_unread(name: str) -> bool:
    """Whether it has the extension of a picture that this Pillow, with the plugins it has, does not read."""
    return picture_rank(name) == 2


def picture_rank(name: str) -> int | None:
    """Which of several pictures of one name counts: the least.

    Returns:
        0 for `PICTURE_EXTENSIONS`, 1 for what else Pillow reads, 2 for what it does not; None if it is no picture's.
    """
    extension = os.path.splitext(name)[1].lower()
    if extension in PICTURE_EXTENSIONS:
        return 0
    if _format(extension) is not None:
        return 1
    return 2 if extension in _NEED_MORE else None


def is_usual(name: str) -> bool:
    """Whether it has the extension of a picture that stands for nothing else: without captions something is missing."""
    extension = os.path.splitext(name)[1].lower()
    return extension in PICTURE_EXTENSIONS or _format(extension) in _USUAL


def without_extension(name: str) -> str:
    """The name without its extension if that is a picture's, in any case; other dots are part of the name."""
    return os.path.splitext(name)[0] if is_picture(name) else name


def folder_of_that_name(stem: Path) -> Path | None:
    """A folder that is called like a picture, by the picture's path without extension; None where there is none."""
    folders = (stem.with_name(stem.name + extension) for extension in PICTURE_EXTENSIONS)
    return next((folder for folder in folders if os.path.isdir(folder)), None)


def _format(extension: str) -> str | None:
    """The format that Pillow reads by this extension, None if there is none. Asked anew: a host may add plugins."""
    found = Image.registered_extensions().get(extension)
    known = found in Image.OPEN or found == "MPO"
    return found if known and found not in _NO_PICTURES else None


def _read(path: Path, expected: str, complain: Complain) -> str | None:
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError)) or os.path.isdir(path)
        complain(Problem(str(path), f"expected {expected}, {refusal(error)}", missing=missing))
        return None
    text, problem = decode(content)
    if problem is not None:
        what = problem if problem.startswith("expected") else f"expected {expected}, {problem}"
        complain(Problem(str(path), what, fatal=text is None))
    return text


def _unless_mishap(path: Path, expected: str, text: str | None, complain: Complain) -> str | None:
    instead = None if text is None else mishap(text)
    if instead is None:
        return text
    complain(Problem(str(path), f"expected {expected}, got {instead}"))
    return None


def _is_file_name(text: str) -> bool:
    """Whether the system can write it: a pickle or JSON may hold lone surrogates."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
