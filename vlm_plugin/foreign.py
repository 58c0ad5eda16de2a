"""What lies in a file that cannot be read as what it should be: the usual accidents of downloads, in words."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

# Bytes that are looked at: titles of error pages and the first member's name in an archive lie well before that.
_HEAD = 4096
_POINTER = re.compile(r"version https?://(git-lfs|hawser)\.github\.com/spec/")
_PAGE = re.compile(
    r"(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|title|meta|script|style|center|h[1-6]|p|div)\b", re.I | re.S
)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.I | re.S)
_CODE = re.compile(r"<code>(.*?)</code>", re.I | re.S)
_PACKED = {
    b"BZh": "a bzip2",
    b"\xfd7zXZ\0": "an xz",
    b"\x28\xb5\x2f\xfd": "a zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z",
    b"Rar!": "a RAR",
}
_OTHERS = {
    b"\x89HDF\r\n": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"%PDF": "a PDF", b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
}  # fmt: skip


def foreign(path: str | os.PathLike[str]) -> str | None:
    """What a file is that could not be read as what it should be.

    Args:
        path: a file that was just opened.

    Returns:
        For example "a web page", with its title where it has one, "a Git LFS pointer: git lfs pull fetches the file" or
        "an empty file"; None where it is nothing known here.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    return _named(head) or _archive(head, path) or _text(head)


def _named(head: bytes) -> str | None:
    """What the first bytes alone tell."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file that begins with zeros alone: a download or a copy that broke off"
    for start, name in _OTHERS.items():
        if head.startswith(start):
            return name
    size = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= size < 1 << 27 and b'"' in head[9:16]:
        return "a safetensors file: load it with safetensors.torch.load_file and torch.save the result"
    return None


def _archive(head: bytes, path: Path) -> str | None:
    """An archive, and what to do with it; what a gzip holds decides, since servers send pages that way too."""
    for start, name in _PACKED.items():
        if head.startswith(start):
            return f"{name} archive: unpack it"
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                inside = file.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            return "a gzip archive that is cut short or damaged: fetch it again"
        found = "a gzip archive with a tar archive in it: unpack it" if _is_tar(inside) else _text(inside)
        return found or "a gzip archive: unpack it"
    if _is_tar(head):
        try:
            with tarfile.open(path, "r:") as tar:
                return f"a tar archive{_holding([first.name] if (first := tar.next()) else [])}: unpack it"
        except (tarfile.TarError, OSError, ValueError):
            return "a tar archive that is cut short or damaged: fetch it again"
    return _zip(path) if head.startswith(b"PK\x03\x04") else None


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _zip(path: Path) -> str | None:
    """A zip archive that is none of `torch.save`'s, or part of one."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a file that is cut short or damaged: a download or a copy that broke off"
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        return "a TorchScript archive (of torch.jit.save), expected weights of torch.save"
    if "data.pkl" in parts:
        return None
    # What a user looks for in it comes first.
    names.sort(key=lambda name: not name.endswith((".pth", ".pt", ".bin", ".pickle", ".pkl")))
    return f"a zip archive{_holding(names)}: unpack it"


def _holding(names: list[str]) -> str:
    return f" that holds {_short(names[0])}" if names else ""


def _text(head: bytes) -> str | None:
    """A page, a pointer, or whatever message a server sent in the file's place."""
    marks = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    mark = next((mark for mark in marks if head.startswith(mark)), b"")
    text = head[len(mark) :].decode(marks.get(mark, "utf-8"), "replace").strip()
    if _POINTER.match(text):
        return "a Git LFS pointer: git lfs pull fetches the file"
    if re.match(r"(\.\./)*(\.git|/)?/?annex/objects/", text):
        return "a git-annex pointer: git annex get fetches the file"
    declared = re.sub(r"^<\?xml.*?\?>\s*", "", text, flags=re.S)
    if _PAGE.match(declared):
        title = _TITLE.search(text)
        return f"a web page{f' ({_short(title[1])})' if title and title[1].strip() else ''}"
    if declared != text or re.match(r"<\w+[\s>]", text):
        code = _CODE.search(text)
        return f"an XML message ({_short(code[1] if code else declared)})"
    if text.startswith(("{", "[")) and _is_json(text, len(head) == _HEAD):
        return f"a JSON message ({_short(text)})"
    first = text.partition("\n")[0]
    # A pickle of protocol 0 is text too, and has no blank in its first line.
    if " " in first and "\ufffd" not in text[:-4] and all(c.isprintable() or c in "\r\n\t" for c in text[:-4]):
        return f"a text that begins {_short(first)}"
    return None


def _is_json(text: str, is_part: bool) -> bool:
    if is_part:
        return re.match(r'[{\[]\s*["{\[]', text) is not None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _short(text: str) -> str:
    """A quotation in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def without_wrappers(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict by the network's own names.

    `nn.DataParallel` and `DistributedDataParallel` put `module.` before each name; `torch.compile` of the network or of
    its parts puts `_orig_mod.`.

    Args:
        state: any mapping; where two names would become one it stays as it is.
    """
    own = {_bare_name(name): value for name, value in state.items()}
    return own if len(own) == len(state) else dict(state)


def _bare_name(name: object) -> object:
    # A network may have a part of its own that is called "module": of those only what stands first is a wrapper's.
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", "")) if isinstance(name, str) else name
