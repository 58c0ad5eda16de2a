"""COCO's captions as published, 2014 or 2017, and any set in that format.

ROOT/annotations/captions_<train|val|test><year>.json    (the year may be missing)
ROOT/<split><year>/, ROOT/images/<split><year>/, ROOT/<split>/, ROOT/images/<split>/ or ROOT/images/: the pictures

The text-to-image field trains on train and tests on val, so val is the split "test" here. Where there are captions of a
test set (COCO itself has published none), they are "test" and val is "validation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.text import checked_name, read_text, without_extension

_FILE = re.compile(r"captions_(train|val|test)(\d*)\.json")


class _Annotations(NamedTuple):
    """One captions file."""

    path: Path
    part: str
    """COCO's own name of the split."""
    year: str


def is_coco(root: str | Path) -> bool:
    """Whether `root` has captions in COCO's format."""
    return bool(_annotations(Path(root)))


def coco_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`."""
    return sorted(_by_split(Path(root)))


def read_coco(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Args:
        root: the data folder.
        split: "train", "validation" or "test".
        complain: called with each problem; what it is about is left out.

    Yields:
        The pictures in the order of the file's `images`, captions in the order of its `annotations`. There are neither
        classes nor boxes.
    """
    root = Path(root)
    annotations = _chosen(root, split, complain)
    if annotations is None:
        return
    content = _content(annotations.path, complain)
    if content is None:
        return
    images, captions = content
    folder = _pictures(root, annotations)
    seen: dict[str, str] = {}
    known: set[object] = set()
    for number, image in enumerate(images):
        where = f"{annotations.path}, images[{number}]"
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            complain(Problem(where, f"expected an object with 'id' and 'file_name', got {image!r:.100}"))
            continue
        if image["id"] in known:
            complain(Problem(where, f"expected ids that are distinct, got {image['id']!r} again"))
            continue
        known.add(image["id"])
        name = checked_name(where, image.get("file_name"), complain)
        if name is None:
            continue
        key = without_extension(name)
        if key in seen:
            complain(Problem(where, f"expected pictures of different names, got {name} beside {seen[key]}"))
            continue
        seen[key] = name
        if image["id"] not in captions:
            complain(Problem(where, f"expected at least one caption for {name}, found none"))
            continue
        yield Record(key, folder / name, tuple(captions[image["id"]]), None, None)
    for image_id in captions.keys() - known:
        complain(Problem(str(annotations.path), f"expected annotations of pictures in 'images', got id {image_id!r}"))


def _annotations(root: Path) -> list[_Annotations]:
    folder = root / "annotations"
    paths = sorted(folder.glob("captions_*.json")) if folder.is_dir() else []
    return [_Annotations(path, *match.groups()) for path in paths if (match := _FILE.fullmatch(path.name))]


def _by_split(root: Path) -> dict[str, list[_Annotations]]:
    found = _annotations(root)
    has_test = any(each.part == "test" for each in found)
    names = {"train": "train", "val": "validation" if has_test else "test", "test": "test"}
    splits: dict[str, list[_Annotations]] = {}
    for each in found:
        splits.setdefault(names[each.part], []).append(each)
    return splits


def _chosen(root: Path, split: str, complain: Complain) -> _Annotations | None:
    """The split's file; of several years the one whose pictures are there."""
    found = _by_split(root).get(split, [])
    if not found:
        there = ", ".join(coco_splits(root)) or "none"
        complain(Problem(str(root / "annotations"), f"expected captions of the split {split!r} (there: {there})"))
        return None
    with_pictures = [each for each in found if _folder_of(root, each) is not None] if len(found) > 1 else found
    if len(with_pictures) == 1:
        return with_pictures[0]
    names = " and ".join(each.path.name for each in found)
    what = f"expected one year's captions with their pictures, got {names}: leave the other year's file out"
    complain(Problem(str(root / "annotations"), what))
    return None


def _folder_of(root: Path, annotations: _Annotations) -> Path | None:
    dated = f"{annotations.part}{annotations.year}"
    places = (root / dated, root / "images" / dated)
    return next((place for place in places if place.is_dir()), None)


def _pictures(root: Path, annotations: _Annotations) -> Path:
    """The folder of the pictures; the published one where there is none, so that a missing picture says so."""
    others = (root / annotations.part, root / "images" / annotations.part, root / "images")
    published = root / f"{annotations.part}{annotations.year}"
    found = _folder_of(root, annotations)
    return found or next((place for place in others if place.is_dir()), published)


def _content(path: Path, complain: Complain) -> tuple[list[object], dict[object, list[str]]] | None:
    """The file's pictures, and the captions of each picture's id."""
    text = read_text(path, complain)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        complain(Problem(str(path), f"expected JSON, got something else ({error})"))
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        complain(Problem(str(path), "expected an object with the lists 'images' and 'annotations', got something else"))
        return None
    captions: dict[object, list[str]] = {}
    for number, row in enumerate(content["annotations"]):
        where = f"{path}, annotations[{number}]"
        good = isinstance(row, dict) and isinstance(row.get("caption"), str)
        if not good or not isinstance(row.get("image_id"), (int, str)):
            complain(Problem(where, f"expected an object with 'image_id' and 'caption', got {row!r:.100}"))
        elif caption := " ".join(row["caption"].split("\n")).strip():
            captions.setdefault(row["image_id"], []).append(caption)
        else:
            complain(Problem(where, "expected a caption, got an empty one", fatal=False))
    return content["images"], captions


LAYOUT = Layout(
    "COCO (annotations/captions_<split><year>.json and <split><year>/ or images/<split><year>/)",
    is_coco,
    coco_splits,
    read_coco,
)
