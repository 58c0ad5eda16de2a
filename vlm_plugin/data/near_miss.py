"""What lies in a data folder that no layout fits, or in a table that cannot be read, and which layout is nearest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm_plugin.data.text import is_picture, mishap, without_extension
from vlm_plugin.files import open_file, refusal

__all__ = ["archives", "what_is_there", "which_columns"]

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".token", ".parquet", ".arrow", ".xlsx", ".pickle", ".pkl")
_FLICKR = re.compile(r"results.*\.token|results(_\d+)?\.csv|flickr.*\.(token|csv|txt)|captions\.txt", re.I)
_CAPTIONS = (".caption", ".captions", ".cap", ".text", ".tags", ".prompt", ".json")
_MEANS = {
    "file_name": "image img file filename filepath path image_path image_file image_name img_path image_id picture",
    "text": "caption captions prompt description sentence sentences comment label title txt",
}
# Enough to see what a folder is; it may hold a million files.
_MOST_FILES = 20_000
# Files and columns that are named.
_MOST_NAMED = 3
_HEAD = 2000


def what_is_there(root: str | Path) -> str:
    """What lies in a folder that has no known layout, and how it becomes one: for the end of a message."""
    root = Path(root)
    files = [name for name, _ in zip(_files(root), range(_MOST_FILES), strict=False)]
    pictures = list(filter(is_picture, files))
    found = [*_packed(files), *(_beside(pictures, files) or _lists(root, files))]
    number = f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}" if pictures else "no pictures"
    if len(files) == _MOST_FILES:
        number = f"{number} among the first {_MOST_FILES:,} files"
    return "; ".join([f"found {number}", *(found or ["no captions" if pictures else "no captions either"])])


def archives(files: Sequence[str]) -> str | None:
    """The archives among files, in words; None where there are none."""
    packed = sorted(name for name in files if os.path.splitext(name)[1].lower() in _ARCHIVES)
    return f"{_named(packed)}, which must be unpacked first" if packed else None


def which_columns(columns: Sequence[str]) -> str:
    """How columns must be renamed to be file_name and text, in brackets; empty where that is not plain."""
    renamed = []
    for name, others in _MEANS.items():
        plain = [column.strip().casefold().replace(" ", "_").replace("-", "_") for column in columns]
        if name not in columns:
            fits = [column for column, bare in zip(columns, plain, strict=True) if bare in (name, *others.split())]
            if len(fits) != 1:
                return ""
            renamed.append(f"{fits[0]!r} is to be called {name}")
    return f" ({' and '.join(renamed)})" if renamed else ""


def _files(root: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        within = Path(folder).relative_to(root).as_posix()
        yield from (name if within == "." else f"{within}/{name}" for name in sorted(names) if name[0] != ".")


def _packed(files: Sequence[str]) -> list[str]:
    packed = archives(files)
    return [packed] if packed else []


def _beside(pictures: Sequence[str], files: Sequence[str]) -> list[str]:
    """Captions of single pictures that have another extension, or lie in another folder."""
    stems = set(map(without_extension, pictures))
    ending = [name for name in files if name.endswith(_CAPTIONS) and os.path.splitext(name)[0] in stems]
    if ending:
        return [f"{_named(ending)} beside pictures of those names: the extension of captions is .txt"]
    names = {stem.rpartition("/")[2] for stem in stems}
    apart = [n for n in files if n.lower().endswith(".txt") and os.path.splitext(n)[0].rpartition("/")[2] in names]
    if apart:
        return [f"{_named(apart)} apart from the pictures of those names: a .txt lies in the folder of its picture"]
    return []


def _lists(root: Path, files: Sequence[str]) -> list[str]:
    """Tables and lists of captions under names or in forms that no layout has."""
    form = "the nearest layout is a metadata.csv in the folder of the pictures, with the columns file_name and text"
    lists = [name for name in files if _FLICKR.fullmatch(name.rpartition("/")[2])]
    if lists:
        first = _first_line(root / lists[0])
        return [f"{_named(lists)}, as Flickr's captions are listed (it begins {first!r:.100}): {form}, a row a caption"]
    tables = [name for name in files if os.path.splitext(name)[1].lower() in _TABLES]
    if not tables:
        return []
    readable = [name for name in tables if name.endswith((".csv", ".tsv", ".jsonl", ".json"))]
    begins = f" ({readable[0]} begins {_first_line(root / readable[0])!r:.100})" if readable else ""
    kind = "a table of a name" if len(tables) == 1 else "tables of names"
    return [f"{_named(tables)}, {kind} that no layout has{begins}: {form}"]


def _first_line(path: Path) -> str:
    try:
        with open_file(path) as file:
            head = file.read(_HEAD).decode("utf-8", "replace")
    except OSError as error:
        return f"({refusal(error)})"
    return mishap(head) or head.lstrip("\ufeff").partition("\n")[0].strip()


def _named(names: Sequence[str]) -> str:
    some = ", ".join(names[:_MOST_NAMED])
    return some if len(names) <= _MOST_NAMED else f"{some} and {len(names) - _MOST_NAMED} more"
