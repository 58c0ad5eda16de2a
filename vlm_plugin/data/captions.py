"""Captions of given pictures, from tables and text files."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlm_plugin.data.names import Alike
from vlm_plugin.data.records import Problem, stop
from vlm_plugin.data.tables import BrokenTableError, captions_in, csv_rows, lines_of
from vlm_plugin.data.text import LINE_END, PICTURE_EXTENSIONS, checked_name, is_picture, is_unread, read_text
from vlm_plugin.files import check_folder

# The extensions of tables; any other file has one caption a line.
TABLES = (".csv", ".tsv", ".jsonl", ".json")
# Where it stands, file name and caption, neither of them checked.
_Entries = Iterator[tuple[str, object, object]]


def read_captions(path: str | Path, images: str | Path) -> dict[str, str]:
    """Read one caption for each picture of a folder.

    What the file holds is told by its extension. ".csv" and ".tsv": a header with file_name and caption (or else text),
    and a row for each picture; ".jsonl": the same as an object a line; ".json": one object of file names and captions;
    any other: one caption a line, the i-th line for the i-th picture in natural order. Further columns do no harm, so
    what `vlm-plugin score` writes can be read again.

    Args:
        path: the captions file.
        images: the folder of the pictures.

    Returns:
        Picture's path within the folder -> caption without surrounding white space, in natural order.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        ValueError: the file is not what its extension says, it names a picture twice or one outside the folder, a
            caption is empty, or a picture or a caption is without the other. The message names the file.
    """
    path = Path(path)
    listed = list_pictures(images)
    text = read_text(path, _complain)
    known, result = Alike(listed), {}
    entries = _entries(path, text) if path.suffix.lower() in TABLES else _plain(path, text, listed)
    for where, name, caption in entries:
        caption = _caption(where, caption)
        # A name that the folder has is right as it stands, whatever characters are in it.
        key = known.find(name) if isinstance(name, str) else None
        key = checked_name(where, name, stop) if key is None else key
        key = known.find(key) or key
        if key in result:
            raise ValueError(f"{where}: expected each picture once, got {key} again")
        result[key] = caption
    _check_complete(path, images, listed, result)
    return {name: result[name] for name in sorted(result, key=natural_key)}


def table_captions(path: str | Path) -> list[str]:
    """The captions of a table (`TABLES`) as `read_captions` reads it, in its order, whatever files it names.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not what its extension says, or a caption is empty. The message names the file.
    """
    path = Path(path)
    entries = _entries(path, read_text(path, _complain))
    return [_caption(where, caption) for where, _, caption in entries]


def list_pictures(folder: str | Path) -> list[str]:
    """Paths of the pictures within a folder and its subfolders, in natural order; hidden files are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it, or a folder in it, cannot be listed.
        ValueError: there are no pictures in it.
    """
    check_folder(folder, "a folder of pictures")

    def refuse(error: OSError) -> None:
        raise error

    names: list[str] = []
    unread: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if is_picture(name) and not name.startswith("."):
                within = Path(parent, name).relative_to(folder).as_posix()
                (unread if is_unread(name) else names).append(within)
    kinds = ", ".join(sorted({os.path.splitext(name)[1].lower() for name in unread}))
    if not names:
        found = f"only {counted(unread, 'picture')} that Pillow does not read here ({kinds})" if unread else "none"
        raise ValueError(
            f"{folder}: expected pictures ({', '.join(PICTURE_EXTENSIONS)} or what else Pillow reads), found {found}"
        )
    if unread:
        what = f"{counted(unread, 'picture')} passed over that Pillow does not read here ({kinds})"
        warnings.warn(f"{folder}: {what}: convert them to PNG or JPEG", stacklevel=2)
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people do: "2.png" before "10.png"."""
    # Text and digits alternate, so that a number never meets a text.
    parts = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def counted(items: Sequence, noun: str) -> str:
    """Their number and what they are, as in "1 picture" and "2 pictures"."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _entries(path: Path, text: str) -> _Entries:
    """What a table holds, by its extension."""
    extension = path.suffix.lower()
    if extension == ".json":
        return _json(path, text)
    return _json_lines(path, text) if extension == ".jsonl" else _csv(path, text, "\t" if extension == ".tsv" else ",")


def _csv(path: Path, text: str, delimiter: str) -> _Entries:
    rows = csv_rows(text, delimiter)
    try:
        header = next(rows, (0, []))[1]
        title = "caption" if "caption" in header else "text"
        if "file_name" not in header or title not in header:
            raise ValueError(f"{path}: expected a header with file_name and caption (or text), got {header!r:.200}")
        for line, row in rows:
            where = f"{path}, line {line}"
            if len(row) != len(header):
                raise ValueError(f"{where}: expected {len(header)} fields as in the header, got {len(row)}")
            yield where, row[header.index("file_name")], _single(where, row[header.index(title)])
    except BrokenTableError as error:
        raise ValueError(f"{path}, line {error.last}: expected a table, but reading it failed ({error})") from None


def _single(where: str, cell: str) -> str:
    """The caption of a cell that may hold a list of one."""
    captions = captions_in(cell)
    if captions is None or len(captions) > 1:
        raise ValueError(f"{where}: expected one caption, got a list of several or a broken one: {cell!r:.80}")
    return captions[0] if captions else ""


def _json_lines(path: Path, text: str) -> _Entries:
    for number, line in lines_of(text):
        where = f"{path}, line {number}"
        content = _parsed(where, line)
        if "file_name" not in content or not {"caption", "text"} & content.keys():
            raise ValueError(f"{where}: expected an object with file_name and caption (or text), got {line:.80}")
        yield where, content["file_name"], content.get("caption", content.get("text"))


def _json(path: Path, text: str) -> _Entries:
    for name, caption in _parsed(path, text).items():
        yield f"{path}, {name!r:.80}", name, caption


def _parsed(where: object, text: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{where}: expected each name once, got {key!r:.80} again")
            found[key] = value
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, but reading it failed ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {text.strip():.80}")
    return content


def _plain(path: Path, text: str, listed: Sequence[str]) -> _Entries:
    lines = LINE_END.split(text.rstrip())
    if len(lines) != len(listed):
        raise ValueError(
            f"{path}: expected one caption a line for each of the {counted(listed, 'picture')}, "
            f"got {counted(lines, 'line')}"
        )
    for number, (name, line) in enumerate(zip(listed, lines, strict=True), 1):
        yield f"{path}, line {number}", name, line


def _caption(where: str, caption: object) -> str:
    if not isinstance(caption, str):
        raise ValueError(f"{where}: expected a caption, got {caption!r:.80} of type {type(caption).__name__}")
    if not caption.strip():
        raise ValueError(f"{where}: expected a caption, got an empty one")
    return caption.strip()


def _check_complete(path: Path, images: str | Path, listed: Sequence[str], captions: Mapping[str, str]) -> None:
    known = set(listed)
    problems = []
    if lost := [name for name in captions if name not in known and not Path(images, name).is_file()]:
        problems.append(f"{counted(lost, 'caption')} without a picture (the first: {lost[0]})")
    if bare := [name for name in listed if name not in captions]:
        problems.append(f"{counted(bare, 'picture')} without a caption (the first: {bare[0]})")
    if problems:
        raise ValueError(f"{path}: expected one caption for each picture in {images}, got {' and '.join(problems)}")


def _complain(problem: Problem) -> None:
    stop(problem)
    warnings.warn(f"{problem.where}: {problem.what}", stacklevel=3)
