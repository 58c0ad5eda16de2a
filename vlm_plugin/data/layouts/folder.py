"""A folder of pictures with the captions in tables (Hugging Face's ImageFolder) or in a file beside each picture.

ROOT/<split>/metadata.jsonl or metadata.csv    rows of file_name, relative to the table's folder, and text; a column
                                               split, if there is one, names the split of each row
ROOT/<split>/<file_name>                       the pictures; those in no row are left out

ROOT/<split>/<key>.txt                         where neither the folder nor one above has a table: one caption a line,
ROOT/<split>/<key>.jpg                         and the picture of that name

All of this lies in folders of any depth, and there may be several tables. The folders on the way to a picture say which
split it belongs to, and the column split; where both are silent, its own name does (`vlm_plugin.data.split_names`).
Where they disagree, the strictest counts: what is held out by one of them is never "train". A picture of which nothing
is said is "train" too, but where there are folders both for train and for a held-out split, it is left out. Files and
folders whose name begins with a dot are passed over.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data import split_names
from vlm_plugin.data.names import Alike, NamesOnDisk
from vlm_plugin.data.near_miss import archives, which_columns
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

__all__ = ["LAYOUT", "folder_splits", "is_folder", "read_folder"]

_TABLES = ("metadata.jsonl", "metadata.csv")
_COLUMNS = ("file_name", "text")
_SPLIT_COLUMN = "split"


def is_folder(root: str | Path) -> bool:
    """Whether any folder in `root` holds a metadata file, or a picture with a .txt."""
    root = Path(root)
    return any(_tables(names) or _has_pair(names) for _, names in _walk(root, _ignore))


def folder_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`, sorted: those to which a picture or a metadata file belongs."""
    return sorted(_Folder(Path(root)).splits)


def read_folder(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Pictures are not opened: one that a table names and that is missing is found when it is loaded.

    Args:
        root: the data folder.
        split: "train", "validation", "test", or another name that a column split has.
        complain: called with each problem; by default the first fatal one is raised. If it returns, the row or picture
            that the problem is about is left out; all of a folder's are where it has two tables. No fatal problems are
            blank texts among others, a .txt without a picture, and how pictures were divided where that is not plain:
            what is in no row or in no split, and what is said to be in two.

    Yields:
        The split's pictures: in the order of their first rows, then those without a table, sorted by path. The rows of
        one picture are its captions in this order; a row may hold a list of them. Line ends inside a
        caption become spaces. `class_id` and `box` are None.

    Raises:
        FileNotFoundError: a picture without a .txt, where there is no table.
        ValueError: an unknown split, two tables in one folder, a table that is malformed or lacks a column
            (the message lists those found), a name that leaves the folder, two pictures with one name, or a picture
            without a caption. Each message names the file and, in a table, the line.
    """
    folder = _Folder(Path(root))
    if split not in folder.splits:
        complain(Problem("split", f"expected one of {root}'s ({', '.join(sorted(folder.splits))}), got {split!r}"))
        return
    yield from folder.read(split, complain)


class _Named(NamedTuple):
    """A picture of a table."""

    name: str
    captions: tuple[str, ...]
    split: str | None
    """What the column says."""


class _Folder:
    """The pictures under a data folder, divided into splits.

    Attributes:
        splits: the names of those that are there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # With the split that is told of them; None for all.
        self._problems: list[tuple[str | None, Problem]] = []
        self._files: list[str] = []
        self._tables: dict[str, list[str]] = {}
        self._loose: list[str] = []
        self._look()
        self._rows: dict[str, _Named] = {}
        self._seen: set[str] = set()
        empty = [within for within, names in self._tables.items() if not self._read_tables(within, names)]
        self._said: dict[str, str | None] = {}
        self._in_no_split: set[str] = set()
        self._divide()
        splits = {self._split_of(key) for key in self._said}
        named = {split_names.of_folders(within) or ("train" if not self._both else None) for within in empty}
        self.splits: set[str] = (splits | named) - {None} or {"train"}

    def _split_of(self, key: str) -> str | None:
        """The split of a picture, by its path from the root without extension; None if it is left out."""
        said = self._said[key] if key in self._said else self._named_split(key, None)
        return None if key in self._in_no_split else said or (None if self._both else "train")

    def read(self, split: str, complain: Complain) -> Iterator[Record]:
        for told_to, problem in self._problems:
            if told_to in (None, split):
                complain(problem)
        rows = [key for key in self._rows if self._split_of(key) == split]
        loose = [name for name in self._loose if self._split_of(_key(name)) == split]
        base = self._base(split, [*rows, *filter(is_picture, loose)])
        for key in rows:
            row = self._rows[key]
            yield Record(key[len(base) :], self._root / row.name, row.captions, None, None)
        within = [name.removeprefix(base) for name in loose if name.startswith(base)]
        yield from _read_pairs(self._root / base, within, complain)

    def _look(self) -> None:
        """Lists all files, and which of them are under no table."""
        governed: dict[str, bool] = {}

        def locked(problem: Problem) -> None:
            within = Path(problem.where).relative_to(self._root).as_posix()
            self._problems.append((split_names.of_folders(f"{within}/"), problem))

        for within, names in _walk(self._root, locked):
            tables = _tables(names)
            if tables:
                self._tables[within] = tables
            above = within.rstrip("/").rpartition("/")[0]
            governed[within] = bool(tables) or governed.get(f"{above}/" if above else "", False)
            files = [within + name for name in names]
            self._files += files
            if not governed[within]:
                self._loose += files
        self._loose.sort()

    def _read_tables(self, within: str, names: Sequence[str]) -> bool:
        """Reads a folder's table; whether any picture came of it."""
        folder, split, before = self._root / within, split_names.of_folders(within), len(self._rows)

        def complain(problem: Problem) -> None:
            self._problems.append((split, problem))

        if len(names) > 1:
            complain(Problem(str(folder), f"expected one of {' and '.join(_TABLES)}, got both; remove one"))
            return False
        seen: set[str] = set()
        for row in _read_table(folder / names[0], seen, complain):
            name = within + row.name
            first = self._rows.setdefault(without_extension(name), row._replace(name=name))
            if first.name != name:
                what = f"expected names that differ without their extension, got {name} and {first.name}"
                complain(Problem(str(folder / names[0]), what, picture=True))
            elif len(self._rows) == before or first.captions != row.captions or first.split != row.split:
                # Another table has named it: what is new is added.
                captions = tuple(dict.fromkeys((*first.captions, *row.captions)))
                split_said = split_names.strictest((first.split, row.split))
                self._rows[without_extension(name)] = _Named(name, captions, split_said)
        if seen and (packed := archives(self._files)) and not self._any_is_there(within, seen):
            what = f"expected the pictures that {names[0]} names, found none of them, but {packed}"
            complain(Problem(str(folder), what, missing=True))
        self._seen.update(_composed(within + name) for name in seen)
        return len(self._rows) > before

    def _any_is_there(self, within: str, names: Iterable[str]) -> bool:
        there = set(self._files)
        return any(within + name in there for name in names)

    def _divide(self) -> None:
        """Says of each picture which split it belongs to, and of what is left out or not plain how much there is."""
        pictures = list(filter(is_picture, self._loose))
        columns = {key: row.split for key, row in self._rows.items()}
        names = list(dict.fromkeys([*columns, *map(without_extension, pictures)]))
        folders = {key: split_names.of_folders(key) for key in names}
        by_folder = set(folders.values()) - {None}
        self._both = "train" in by_folder and bool(by_folder.intersection(split_names.HELD_OUT))
        self._said = {key: self._named_split(key, columns.get(key)) for key in names}
        groups: dict[tuple[str | None, str], list[str]] = defaultdict(list)
        captioned = Alike(key for name in self._loose if (key := _captioned(name)) is not None)
        for key in names:
            folder, column, said = folders[key], columns.get(key), self._said[key]
            if said is None and (by_folder or self._tables) and key not in columns and captioned.find(key) is None:
                self._in_no_split.add(key)
                groups["train", "without captions and in no split by any name; left out"].append(key)
            elif said is None and self._both:
                groups[
                    "train", "in no folder of a split, beside folders for train and held-out splits; left out"
                ].append(key)
            elif said is None and (by_folder or any(columns.values())):
                groups["train", "in no split by any name, beside others that are; read as train"].append(key)
            elif folder is None and column is None and said in split_names.HELD_OUT:
                groups[said, f"in the split {said} because of their own names"].append(key)
            elif folder is not None and column is not None and folder != column:
                groups[None, f"in a folder of {folder}, but {column!r:.80} in the column split; {said} counts"].append(
                    key
                )
            elif column is not None and column == said and column not in ("train", *split_names.HELD_OUT):
                what = (
                    f"{column!r:.80} in the column split, which is no train, validation or test; nothing trains on them"
                )
                groups[None, what].append(key)
            elif said == "train" and split_names.of_file(key) in split_names.HELD_OUT:
                groups[
                    "train", "held out by their own names, but not by their folder, which counts; read as train"
                ].append(key)
        for name in self._in_no_row():
            groups[
                self._split_of(_key(name)) or "train", "in no row of the table that holds for their folder; left out"
            ].append(name)
        for (split, what), keys in groups.items():
            number = f"{len(keys)} picture{'' if len(keys) == 1 else 's'}"
            problem = Problem(str(self._root), f"{number} (such as {min(keys)}): {what}", fatal=False, spoken=True)
            self._problems.append((split, problem))

    def _named_split(self, key: str, column: str | None) -> str | None:
        return split_names.strictest((split_names.of_folders(key), column)) or split_names.of_file(key)

    def _in_no_row(self) -> Iterator[str]:
        """Pictures that are under a table and in no row, in whichever way their accents are composed."""
        loose = set(self._loose)
        # A table of which nothing could be read has a problem of its own.
        for name in self._files if self._seen else ():
            known = name in self._seen or name in loose or _composed(name) in self._seen
            # A .psd, say, that the picture of a row was made of is none of its own.
            made_of = picture_rank(name) != 0 and without_extension(name) in self._rows
            if is_picture(name) and not known and not made_of:
                yield name

    def _base(self, split: str, names: Iterable[str]) -> str:
        """The folder that keys of a split begin behind: the first on the way to all of its pictures that names it."""
        folders = [name.split("/")[:-1] for name in names]
        first, last = (min(folders), max(folders)) if folders else ([], [])
        within = ""
        for part, other in zip(first, last, strict=False):
            if part != other:
                break
            within += f"{part}/"
            if split_names.of_name(part) == split:
                # Keys of a table are the names in it.
                return within if not any(within.startswith(table) for table in self._tables if table != within) else ""
        return ""


def _key(name: str) -> str:
    """What a picture and its captions share: the path without extension."""
    return without_extension(name) if is_picture(name) else _captioned(name) or name


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _tables(names: Sequence[str]) -> list[str]:
    return [name for name in _TABLES if name in names]


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


def _read_pairs(folder: Path, files: Sequence[str], complain: Complain) -> Iterator[Record]:
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
    split: object


def _read_table(path: Path, seen: set[str], complain: Complain) -> Iterator[_Named]:
    """The good pictures of a table. The names of all of them are added to `seen`."""
    content = read_text(path, complain)
    if content is None:
        return
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    blank: dict[str, list[str]] = {}
    disk = NamesOnDisk(path.parent)
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    for row in rows(path, content, complain):
        name = checked_name(row.where, row.file_name, complain)
        if name is not None:
            seen.add(name := disk.find(name))
        texts = captions_in(row.text) if isinstance(row.text, str) else row.text
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            what = f"expected a text that is a string or a list of strings, got {row.text!r:.200}"
            complain(Problem(row.where, what, picture=True))
            continue
        if name is None:
            continue
        key = without_extension(name)
        if names.setdefault(key, name) != name:
            what = f"expected names that differ without their extension, got {name} and {names[key]}"
            complain(Problem(row.where, what, picture=True))
            continue
        splits[key] = split_names.strictest((splits.get(key), _split_said(row, complain)))
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
        yield _Named(name, tuple(captions[key]), splits[key])


def _split_said(row: _Row, complain: Complain) -> str | None:
    """What the column split says: "train", "validation" or "test" where it means that, None where it is blank."""
    if row.split is None or (isinstance(row.split, str) and not row.split.strip()):
        return None
    if not isinstance(row.split, str):
        what = f"expected a split that is a string, got {row.split!r:.200}; the picture is not trained on"
        complain(Problem(row.where, what, fatal=False))
    said = str(row.split).strip()
    return split_names.of_name(said) or said[:80]


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
            yield _Row(where, *(row[column] for column in _COLUMNS), row.get(_SPLIT_COLUMN))


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
                split = row[header.index(_SPLIT_COLUMN)] if _SPLIT_COLUMN in header else None
                yield _Row(where, *(row[header.index(column)] for column in _COLUMNS), split)
    except BrokenTableError as error:
        complain(Problem(f"{path}, line {error.first}", f"expected CSV, but reading it failed ({error})"))


def _has_columns(where: str, columns: list[str], complain: Complain) -> bool:
    if all(columns.count(column) == 1 for column in _COLUMNS):
        return True
    got = ", ".join(map(repr, columns)) or "none"
    what = f"expected the columns file_name and text, once each{which_columns(columns)}, got {got:.500}"
    complain(Problem(where, what))
    return False


LAYOUT = Layout(
    "a folder of pictures with captions, in it or in its folders train/, validation/ and test/ (metadata.jsonl or "
    "metadata.csv with file_name and text, or a <name>.txt beside each picture)",
    is_folder,
    folder_splits,
    read_folder,
)
