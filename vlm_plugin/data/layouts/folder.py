"""A folder of pictures with the captions in one table (Hugging Face's ImageFolder) or in a file beside each picture.

ROOT/<split>/metadata.jsonl or metadata.csv    rows of file_name, relative to the table's folder, and text
ROOT/<split>/<file_name>                       the pictures; those in no row are passed over

ROOT/<split>/<key>.txt                         without such a table: one caption a line,
ROOT/<split>/<key>.jpg                         and the picture of that name, in folders of any depth

The folders of the splits may be called train or training, validation, val, valid or dev, and test or testing, in upper
or lower case. Without any of them, everything in ROOT is the split "train". Files and folders whose name begins with a
dot are passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data.names import Alike, NamesOnDisk
from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.tables import BrokenTableError, captions_in, csv_rows, lines_of
from vlm_plugin.data.text import (
    LINE_END,
    caption_lines,
    checked_name,
    folder_of_that_name,
    is_picture,
    is_usual,
    picture_rank,
    read_text,
    without_extension,
)
from vlm_plugin.files import lies_at

__all__ = ["LAYOUT", "folder_splits", "is_folder", "read_folder"]

# In lower case.
_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_TABLES = ("metadata.jsonl", "metadata.csv")
_COLUMNS = ("file_name", "text")


def is_folder(root: str | Path) -> bool:
    """Whether `root` or a split's folder in it holds a metadata file, or any folder in it a picture with a .txt."""
    root = Path(root)
    folders = [root, *(folder for some in _named_folders(root).values() for folder in some)]
    return any(map(_tables, folders)) or any(_has_pair(names) for _, names in _walk(root, _ignore))


def folder_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`, sorted: those whose folder holds a metadata file or a picture."""
    return sorted(_split_folders(Path(root)))


def read_folder(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Pictures are not opened: one that a table names and that is missing is found when it is loaded.

    Args:
        root: the data folder.
        split: "train", "validation" or "test".
        complain: called with each problem; by default the first fatal one is raised. If it returns, the row or picture
            that the problem is about is left out; all are where there are two tables or two folders for the split.
            Blank texts among others and a .txt without a picture are no fatal problems.

    Yields:
        The split's pictures: in the order of their first rows, or, without a table, sorted by path. The rows of one
        picture are its captions in this order; a row may hold a list of them. Line ends inside a
        caption become spaces. `class_id` and `box` are None.

    Raises:
        FileNotFoundError: a picture without a .txt, where there is no table.
        ValueError: an unknown split, two tables or two folders for it, a table that is malformed or lacks a column
            (the message lists those found), a name that leaves the folder, two pictures with one name, or a picture
            without a caption. Each message names the file and, in a table, the line.
    """
    root = Path(root)
    folders = _split_folders(root)
    if split not in folders:
        complain(Problem("split", f"expected one of {root}'s ({', '.join(sorted(folders))}), got {split!r}"))
        return
    every = [folder for some in folders.values() for folder in some]
    if root in every and len(every) > 1:
        tables = " and ".join(table.relative_to(root).as_posix() for folder in every for table in _tables(folder))
        complain(Problem(str(root), f"expected metadata either here or in the folders of splits, got {tables}"))
        return
    if len(folders[split]) > 1:
        several = " and ".join(folder.name for folder in folders[split])
        complain(Problem(str(root), f"expected one folder for the split {split}, got {several}"))
        return
    (folder,) = folders[split]
    tables = _tables(folder)
    if len(tables) > 1:
        complain(Problem(str(folder), f"expected one of {' and '.join(_TABLES)}, got both; remove one"))
        return
    yield from _read_table(tables[0], complain) if tables else _read_pairs(folder, complain)


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """Folders by split; there should be one each."""
    at_root = bool(_tables(root))
    folders = {
        split: [folder for folder in some if _tables(folder) or (not at_root and _holds_pictures(folder))]
        for split, some in _named_folders(root).items()
    }
    if at_root or not any(folders.values()):
        folders["train"].insert(0, root)
    return {split: some for split, some in folders.items() if some}


def _named_folders(root: Path) -> dict[str, list[Path]]:
    """What lies in `root` under a name of a split, by split, whatever it holds."""
    there: dict[str, list[Path]] = defaultdict(list)
    # What cannot be listed is reported when it is read.
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(root)):
            there[name.casefold()].append(root / name)
    return {split: [path for name in names for path in there[name]] for split, names in _FOLDERS.items()}


def _tables(folder: Path) -> list[Path]:
    return [folder / name for name in _TABLES if lies_at(folder / name)]


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(is_picture(name) for _, names in _walk(folder, _ignore) for name in names)


def _has_pair(names: list[str]) -> bool:
    texts = Alike(filter(None, map(_captioned, names)))
    return any(is_picture(name) and texts.find(without_extension(name)) is not None for name in names)


def _captioned(name: str) -> str | None:
    """The name without .txt, in any case, as with pictures; None where it has no such extension."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() == ".txt" else None


def _ignore(problem: Problem) -> None:
    """For looking around: what cannot be listed is reported when it is read."""


def _walk(
    folder: Path, complain: Complain, within: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """The path of each folder below `folder` ("" or ending in "/"), and the names of its files, without hidden ones."""
    here = folder / within
    trail = (*above, os.path.realpath(here))
    inner: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (inner if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        complain(Problem(str(here), f"expected a folder of pictures, but listing it failed ({error.strerror})"))
        return
    yield within, files
    for name in sorted(inner):
        # A link to a folder above would lead around for ever.
        if os.path.realpath(here / name) not in trail:
            yield from _walk(folder, complain, f"{within}{name}/", trail)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads around, say: whoever opens it says so
        return False


def _read_pairs(folder: Path, complain: Complain) -> Iterator[Record]:
    files = sorted(within + name for within, names in _walk(folder, complain) for name in names)
    pictures: dict[str, str] = {}
    for name in filter(is_picture, files):
        other = pictures.setdefault(key := without_extension(name), name)
        if picture_rank(name) != picture_rank(other):
            pictures[key] = min(name, other, key=picture_rank)
        elif other != name:
            what = f"expected names that differ without their extension, got {name} and {other}"
            complain(Problem(str(folder / name), what, picture=True))
    texts: dict[str, str] = {}
    alike = Alike(pictures)
    for name in files:
        key = _captioned(name)
        if key is None:
            continue
        key = alike.find(key) or key
        if key not in pictures and (other := folder_of_that_name(folder / key)) is not None:
            complain(Problem(str(other), "expected a picture, found a folder", picture=True))
        elif key not in pictures:
            what = "expected a picture of the same name beside the captions, found none"
            complain(Problem(str(folder / name), what, fatal=False))
        elif (other := texts.setdefault(key, name)) != name and _captioned(name) != _captioned(other):
            # One of the two has the picture's name exactly.
            texts[key] = name if _captioned(name) == key else other
        elif other != name:
            what = f"expected one file of captions for {pictures[key]}, got {name} and {other}"
            complain(Problem(str(folder / name), what, picture=True))
    for key, name in pictures.items():
        if key not in texts and not is_usual(name):
            what = f"expected captions in {key}.txt beside it, found none; it is left out"
            complain(Problem(str(folder / name), what, fatal=False))
            continue
        captions = caption_lines(folder / texts.get(key, f"{key}.txt"), complain)
        if captions:
            yield Record(key, folder / name, captions, None, None)


class _Row(NamedTuple):
    where: str
    file_name: object
    text: object


def _read_table(path: Path, complain: Complain) -> Iterator[Record]:
    content = read_text(path, complain)
    if content is None:
        return
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    blank: dict[str, list[str]] = {}
    disk = NamesOnDisk(path.parent)
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    for row in rows(path, content, complain):
        name = checked_name(row.where, row.file_name, complain)
        texts = captions_in(row.text) if isinstance(row.text, str) else row.text
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            what = f"expected a text that is a string or a list of strings, got {row.text!r:.200}"
            complain(Problem(row.where, what, picture=True))
            continue
        if name is None:
            continue
        name = disk.find(name)
        key = without_extension(name)
        if names.setdefault(key, name) != name:
            what = f"expected names that differ without their extension, got {name} and {names[key]}"
            complain(Problem(row.where, what, picture=True))
            continue
        good = [LINE_END.sub(" ", text.strip()) for text in texts if text.strip()]
        captions.setdefault(key, []).extend(good)
        if not good or len(good) < len(texts):
            blank.setdefault(key, []).append(row.where)
    for key, name in names.items():
        if not captions[key]:
            what = f"expected at least one caption of {name}, got a blank text"
            complain(Problem(blank[key][0], what, picture=True))
            continue
        for where in blank.get(key, ()):
            what = f"expected a caption of {name}, got a blank text, which is left out"
            complain(Problem(where, what, fatal=False))
        yield Record(key, path.parent / name, tuple(captions[key]), None, None)


def _json_rows(path: Path, content: str, complain: Complain) -> Iterator[_Row]:
    for number, line in lines_of(content):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            complain(Problem(where, f"expected a JSON object, got no JSON ({error.msg} at column {error.colno})"))
            continue
        except (ValueError, RecursionError) as error:
            complain(Problem(where, f"expected a JSON object, but reading it failed ({error})"))
            continue
        if not isinstance(row, dict):
            complain(Problem(where, f"expected a JSON object, got {line.strip()!r:.200}"))
        elif _has_columns(where, list(row), complain):
            yield _Row(where, *(row[column] for column in _COLUMNS))


def _csv_rows(path: Path, content: str, complain: Complain) -> Iterator[_Row]:
    header: list[str] | None = None
    try:
        for line, row in csv_rows(content):
            where = f"{path}, line {line}"
            if header is None:
                header = row
                if not _has_columns(where, header, complain):
                    return
            elif len(row) != len(header):
                what = f"expected {len(header)} columns, got {len(row)} (a text with a comma stands in quotes)"
                complain(Problem(where, what))
            else:
                yield _Row(where, *(row[header.index(column)] for column in _COLUMNS))
    except BrokenTableError as error:
        complain(Problem(f"{path}, line {error.first}", f"expected CSV, but reading it failed ({error})"))


def _has_columns(where: str, columns: list[str], complain: Complain) -> bool:
    if all(columns.count(column) == 1 for column in _COLUMNS):
        return True
    got = ", ".join(map(repr, columns)) or "none"
    complain(Problem(where, f"expected the columns file_name and text, once each, got {got:.500}"))
    return False


LAYOUT = Layout(
    "a folder of pictures with captions, in it or in its folders train/, validation/ and test/ (a metadata.jsonl or "
    "metadata.csv with file_name and text, or a <name>.txt beside each picture)",
    is_folder,
    folder_splits,
    read_folder,
)
