"""COCO's captions as published, of 2014 or of 2017.

ROOT/annotations/captions_<part><year>.json    part: train, val or test; the year may be absent
ROOT/<part><year>/<file_name>                  the pictures, or in ROOT/images/<part><year>/; where neither folder is
                                               there in ROOT/images/ or else ROOT/<part>/

COCO publishes no captions of its test pictures, so the field tests on val: val is the split "test". Only where there is
a captions_test<year>.json with annotations in it is that the split "test", and val is "validation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

from vlm_plugin.data.names import NamesOnDisk
from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.text import checked_name, read_text, without_extension
from vlm_plugin.files import lies_at

__all__ = ["LAYOUT", "coco_splits", "is_coco", "read_coco"]

_CAPTIONS = re.compile(r"captions_(train|val|test)([0-9]*)\.json")
_FORM = '{"images": [...], "annotations": [...]}'
_IMAGE = '{"id": ..., "file_name": "..."}'
_ANNOTATION = '{"image_id": ..., "caption": "..."}'
# Files with the captions of one part, by year.
_Years = Mapping[str, Path]
_Id = int | str


def is_coco(root: str | Path) -> bool:
    """Whether there is a captions_<part><year>.json in the folder annotations of `root`."""
    return bool(_find_files(Path(root)))


def coco_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`, sorted; val is "test", or "validation" beside captioned test pictures."""
    return sorted(_parts(_find_files(Path(root))))


def read_coco(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Of several years the one is read whose pictures are there. Pictures are not opened: one that is missing is found
    when it is loaded.

    Args:
        root: the data folder.
        split: "train", "test" or "validation".
        complain: called with each problem; by default the first fatal one is raised. If it returns, the picture or the
            caption that the problem is about is left out; all pictures are where their folder or the file is missing,
            or there is no telling which year's to read. Blank captions among others are no fatal problem.

    Yields:
        The split's pictures in the order of "images", each with its captions in the order of "annotations". `class_id`
        and `box` are None.

    Raises:
        FileNotFoundError: the pictures' folder is missing.
        ValueError: an unknown split, several years, a file that is not JSON of COCO's form, a picture's name that
            leaves the folder or comes twice, a picture without a caption, or a caption of no picture. Each message
            names the file and, where it is about one entry, that entry.
    """
    root = Path(root)
    files = _find_files(root)
    parts = _parts(files)
    if split not in parts:
        there = ", ".join(sorted(parts)) or "none"
        what = f"expected one with captions in {root / 'annotations'} (there: {there}), got {split!r}"
        complain(Problem("split", what))
        return
    chosen = _choose(root, parts[split], files, complain)
    if chosen is None:
        return
    year, path = chosen
    folder = _picture_folder(root, parts[split], year, complain)
    content = _load(path, complain)
    if content is None:
        return
    images, annotations = content
    captions, names = _read_images(path, images, complain)
    _read_annotations(path, annotations, captions, complain)
    disk = NamesOnDisk(folder or root)
    for number, name in names.items():
        if not captions[number]:
            what = "expected at least one caption for every image, found none"
            complain(Problem(f"{path}, {name} (id {number!r})", what, picture=True))
        elif folder is not None:
            yield Record(without_extension(name), folder / disk.find(name), tuple(captions[number]), None, None)


def _find_files(root: Path) -> dict[str, dict[str, Path]]:
    """Files of captions by part and year."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted((root / "annotations").glob("captions_*.json")):
        match = _CAPTIONS.fullmatch(path.name)
        if match and lies_at(path):
            files.setdefault(match[1], {})[match[2]] = path
    return files


def _parts(files: Mapping[str, _Years]) -> dict[str, str]:
    """COCO's parts by the names of the splits."""
    captioned = any(_has_annotations(path) for path in files.get("test", {}).values())
    parts = {"train": "train", "validation": "val", "test": "test"} if captioned else {"train": "train", "test": "val"}
    return {split: part for split, part in parts.items() if part in files}


def _has_annotations(path: Path) -> bool:
    found: list[Problem] = []
    content = _load(path, found.append)
    # A file that cannot be read counts: to pass over it would be to test on val without a word.
    return content is None or bool(content[1])


def _choose(root: Path, part: str, files: Mapping[str, _Years], complain: Complain) -> tuple[str, Path] | None:
    """The year to read and its file, None after a problem."""
    usable = {name: _with_pictures(root, name, years) for name, years in files.items()}
    if len(usable[part]) > 1:
        several = " and ".join(path.name for path in usable[part].values())
        what = f"expected {part} captions of one year, got {several}; move those that are not wanted elsewhere"
        complain(Problem(str(root / "annotations"), what))
        return None
    ((year, path),) = usable[part].items()
    others = usable.get({"train": "val", "val": "train"}.get(part, ""), {})
    if year and others and not others.keys() & {year, ""}:
        # Most of val2014 is in train2017.
        names = " and ".join(other.name for other in others.values())
        what = f"expected train and val of one year, which have no picture in common, got {path.name} and {names}"
        complain(Problem(str(root / "annotations"), what))
        return None
    return year, path


def _with_pictures(root: Path, part: str, years: _Years) -> _Years:
    """Of several years those whose folder of pictures is there, all of them if none is."""
    there = {year: path for year, path in years.items() if any(map(Path.is_dir, _dated_folders(root, part, year)))}
    return there or years


def _dated_folders(root: Path, part: str, year: str) -> tuple[Path, Path]:
    return root / f"{part}{year}", root / "images" / f"{part}{year}"


def _picture_folder(root: Path, part: str, year: str, complain: Complain) -> Path | None:
    places = tuple(dict.fromkeys((*_dated_folders(root, part, year), root / "images", root / part)))
    for folder in places:
        if folder.is_dir():
            return folder
    tried = ", ".join(f"{folder.relative_to(root).as_posix()}/" for folder in places)
    complain(Problem(str(root), f"expected a folder of pictures ({tried}), found none of these", missing=True))
    return None


def _load(path: Path, complain: Complain) -> tuple[list[object], list[object]] | None:
    """What "images" and "annotations" hold."""
    text = read_text(path, complain)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        complain(Problem(str(path), f"expected JSON, but reading it failed ({error})"))
        return None
    if not isinstance(content, dict):
        complain(Problem(str(path), f"expected {_FORM}, got {_kind(content)}"))
        return None
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        got = ", ".join(f"{key!r:.50}: {_kind(value)}" for key, value in content.items())
        complain(Problem(str(path), f"expected {_FORM}, got an object of {got or 'nothing':.500}"))
        return None
    return images, annotations


def _read_images(path: Path, images: list[object], complain: Complain) -> tuple[dict[_Id, list[str]], dict[_Id, str]]:
    """An empty list of captions for each id, and the file names by id, of the good ones."""
    captions: dict[_Id, list[str]] = {}
    names: dict[_Id, str] = {}
    by_key: dict[str, str] = {}
    for i, image in enumerate(images):
        where = f"{path}, images[{i}]"
        number = image.get("id") if isinstance(image, dict) else None
        if not _is_id(number) or "file_name" not in image:
            complain(Problem(where, f"expected {_IMAGE}, got {image!r:.200}"))
            continue
        name = checked_name(where, image["file_name"], complain)
        if number in captions:
            what = f"expected every id once, got {number!r:.200} for {names.get(number)} and again for {name}"
            complain(Problem(where, what))
            continue
        captions[number] = []
        if name is None:
            continue
        key = without_extension(name)
        if key in by_key:
            what = f"expected names that differ without their extension, got {name} and {by_key[key]}"
            complain(Problem(where, what))
            continue
        by_key[key] = names[number] = name
    return captions, names


def _read_annotations(
    path: Path, annotations: list[object], captions: Mapping[_Id, list[str]], complain: Complain
) -> None:
    """Adds the captions to the lists of their images' ids."""
    blank: list[tuple[int, _Id]] = []
    for i, annotation in enumerate(annotations):
        fields = annotation if isinstance(annotation, dict) else {}
        number, caption = fields.get("image_id"), fields.get("caption")
        if not _is_id(number) or not isinstance(caption, str):
            complain(Problem(f"{path}, annotations[{i}]", f"expected {_ANNOTATION}, got {annotation!r:.200}"))
        elif number not in captions:
            what = f"expected the id of an image as image_id, got {number!r:.200}, which none has"
            complain(Problem(f"{path}, annotations[{i}]", what))
        elif caption.strip():
            captions[number].append(caption.strip())
        else:
            blank.append((i, number))
    for i, number in blank:
        # Without another caption the picture itself is the problem.
        if captions[number]:
            what = f"expected a caption for the image {number!r:.200}, got a blank one, which is left out"
            complain(Problem(f"{path}, annotations[{i}]", what, fatal=False))


def _is_id(value: object) -> TypeGuard[_Id]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


LAYOUT = Layout(
    "COCO as published (annotations/captions_train2014.json and the like, and the pictures in train2014/ or "
    "images/train2014/)",
    is_coco,
    coco_splits,
    read_coco,
)
