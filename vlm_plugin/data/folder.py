"""A folder of captioned pictures.

As Hugging Face's ImageFolder:
ROOT/<split>/metadata.jsonl or metadata.csv   rows of `file_name` and `text`; in JSON lines `text` may be a list
or with a text file beside each picture, one caption a line:
ROOT/<split>/**/<name>.png, <name>.txt
Without folders of splits, the same in ROOT itself is "train".
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.text import PICTURE_EXTENSIONS, caption_lines, checked_name, read_text, without_extension

_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "val", "valid", "dev"), "validation")
_METADATA = ("metadata.jsonl", "metadata.csv")


def is_folder(root: str | Path) -> bool:
    """Whether `root` holds captioned pictures in one of the two ways."""
    return bool(folder_splits(root))


def folder_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`."""
    return sorted(_split_folders(Path(root)))


def read_folder(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Args:
        root: the data folder.
        split: "train", "validation" or "test".
        complain: called with each problem; what it is about is left out.

    Yields:
        The pictures in the order of the metadata, or sorted by path. There are neither classes nor boxes. A picture
        that no metadata name is no part of the set.
    """
    folders = _split_folders(Path(root)).get(split, [])
    if len(folders) != 1:
        names = " and ".join(folder.name for folder in folders) or "none"
        complain(Problem(str(root), f"expected one folder of the split {split!r}, got {names}"))
        return
    folder = folders[0]
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        complain(Problem(str(folder), "expected one of metadata.jsonl and metadata.csv, got both"))
    elif metadata:
        yield from _from_metadata(metadata[0], complain)
    else:
        yield from _from_pairs(folder, complain)


def _split_folders(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, split in _SPLITS.items():
        if _has_captions(root / name):
            found.setdefault(split, []).append(root / name)
    if not found and _has_captions(root):
        found["train"] = [root]
    return found


def _has_captions(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if any((folder / name).is_file() for name in _METADATA):
        return True
    return any(picture.with_suffix(".txt").is_file() for picture in _pictures(folder))


def _pictures(folder: Path) -> Iterator[Path]:
    """Pictures below a folder, sorted; hidden files and folders are no part of it."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(PICTURE_EXTENSIONS):
                yield Path(place) / name


def _from_pairs(folder: Path, complain: Complain) -> Iterator[Record]:
    seen: dict[str, str] = {}
    for picture in _pictures(folder):
        name = picture.relative_to(folder).as_posix()
        key = without_extension(name)
        if key in seen:
            complain(Problem(str(picture), f"expected pictures of different names, got {name} beside {seen[key]}"))
            continue
        seen[key] = name
        if captions := caption_lines(picture.with_suffix(".txt"), complain):
            yield Record(key, picture, captions, None, None)
    for text in sorted(folder.rglob("*.txt")):
        name = text.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and name.as_posix().removesuffix(".txt") not in seen:
            complain(Problem(str(text), "expected a picture of the same name beside it, found none", fatal=False))


def _from_metadata(path: Path, complain: Complain) -> Iterator[Record]:
    """One record a file, its captions gathered from all of its rows."""
    captions: dict[str, list[str]] = {}
    for where, row in (_json_rows if path.suffix == ".jsonl" else _csv_rows)(path, complain):
        name = checked_name(where, row["file_name"], complain)
        texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
        if name is None:
            continue
        if not all(isinstance(text, str) for text in texts):
            complain(Problem(where, f"expected text that is a string or a list of strings, got {row['text']!r:.100}"))
            continue
        own = captions.setdefault(name, [])
        for text in texts:
            if caption := " ".join(text.splitlines()).strip():
                own.append(caption)
            else:
                complain(Problem(where, "expected a caption, got an empty one", fatal=False))
    seen: dict[str, str] = {}
    for name, own in captions.items():
        key = without_extension(name)
        if key in seen:
            complain(Problem(str(path), f"expected pictures of different names, got {name} beside {seen[key]}"))
        elif not own:
            complain(Problem(str(path), f"expected at least one caption for {name}, found none"))
        else:
            yield Record(key, path.parent / name, tuple(own), None, None)
        seen.setdefault(key, name)


def _json_rows(path: Path, complain: Complain) -> Iterator[tuple[str, dict[str, object]]]:
    # Not splitlines(): JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate((read_text(path, complain) or "").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            complain(Problem(where, f"expected a JSON object, got something else ({error})"))
            continue
        if not isinstance(row, dict):
            complain(Problem(where, f"expected a JSON object, got {type(row).__name__}"))
        elif missing := [name for name in ("file_name", "text") if name not in row]:
            complain(Problem(where, f"expected {' and '.join(missing)}, got {', '.join(map(str, row)) or 'nothing'}"))
        else:
            yield where, row


def _csv_rows(path: Path, complain: Complain) -> Iterator[tuple[str, dict[str, object]]]:
    text = read_text(path, complain)
    if text is None:
        return
    # A caption may be longer than csv's default limit of a field.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = rows.fieldnames or []
    if missing := [name for name in ("file_name", "text") if name not in columns]:
        what = f"expected the columns file_name and text, no {' and '.join(missing)} in {', '.join(columns) or 'none'}"
        complain(Problem(str(path), what))
        return
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if row["text"] is None or None in row:
            complain(Problem(where, f"expected {len(columns)} fields, got another number"))
        else:
            yield where, row


LAYOUT = Layout(
    "a folder of captioned pictures (metadata.jsonl or metadata.csv with file_name and text, or a .txt beside each "
    "picture; in train/ and test/, or all in one)",
    is_folder,
    folder_splits,
    read_folder,
)
