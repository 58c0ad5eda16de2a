"""CUB-200-2011 as its authors publish it, with captions beside it. HOME is ROOT or ROOT/CUB_200_2011.

HOME/images/<class>/<name>.jpg
HOME/images.txt                 "<id> <class>/<name>.jpg": which pictures there are, in this order
HOME/train_test_split.txt       "<id> <1 if train, else 0>" (without it there is only a train split)
HOME/image_class_labels.txt     "<id> <class id>" (without it the class is the picture's folder)
HOME/classes.txt                "<class id> <class>" (numbers those folders; without it they count from 1 when sorted)
HOME/bounding_boxes.txt         "<id> <x> <y> <width> <height>" (optional)
text_c10/<class>/<name>.txt     one caption a line; may be called text/ instead, in ROOT, in ROOT/CUB_200_2011 or, if
                                HOME is ROOT, beside ROOT

The splits are CUB's own: train and test share all their classes. The papers on text-to-image synthesis split by class
instead (150 classes to train on, 50 others to test with), which needs the pickles that `originals` reads. Figures of
the two splits do not compare.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from vlm_plugin.data.names import NamesOnDisk
from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.tables import lines_of
from vlm_plugin.data.text import caption_lines, checked_name, read_text, without_extension
from vlm_plugin.files import lies_at

__all__ = ["LAYOUT", "Box", "cub_splits", "is_cub", "read_boxes", "read_cub", "read_names"]

Box = tuple[float, float, float, float]
_Value = TypeVar("_Value")
_CAPTION_FOLDERS = ("text_c10", "text")


def is_cub(root: str | Path) -> bool:
    """Whether `root`, or CUB_200_2011 in it, holds images.txt and images/."""
    return _home(Path(root)) is not None


def cub_splits(root: str | Path) -> list[str]:
    """Names of the splits: "test" and "train", or only "train" where there is no train_test_split.txt."""
    home = _home(Path(root))
    return ["test", "train"] if home is not None and lies_at(home / "train_test_split.txt") else ["train"]


def read_cub(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Args:
        root: the folder CUB_200_2011, whatever its name, or the one that holds it.
        split: "train" or, if there is a train_test_split.txt, "test".
        complain: called with each problem; by default the first fatal one is raised. If it returns, the picture that
            the problem is about is left out; where there is no telling which pictures belong to the split, all are.

    Yields:
        The split's pictures in the order of images.txt. `class_id` is None only where the pictures have no folders and
        no labels, or the file with the classes cannot be read; `box` is None without bounding_boxes.txt.

    Raises:
        FileNotFoundError: images.txt, the captions' folder or a caption file is missing.
        ValueError: an unknown split, a name that leaves the folder or comes twice, a malformed line, an id of no
            picture, a picture without a line in one of the tables, or a caption file without a caption.
    """
    root = Path(root)
    home = _home(root)
    if home is None:
        what = "expected images.txt and images/ in it or in its folder CUB_200_2011, found no such pair"
        complain(Problem(str(root), what, missing=True))
        return
    there = cub_splits(root)
    if split not in there:
        complain(Problem("split", f"expected one of {home}'s ({', '.join(there)}), got {split!r}"))
        return
    texts = _captions_folder(root, home, complain)
    names = read_names(home / "images.txt", complain)
    if names is None:
        return
    chosen: Mapping[str, bool] | None = dict.fromkeys(names, True)
    if lies_at(home / "train_test_split.txt"):
        form = "'<id> <1 for train, 0 for test>'"
        chosen = _read_table(home / "train_test_split.txt", names, "a split", form, _is_train, complain)
    classes = _read_classes(home, names, complain)
    boxes = read_boxes(home / "bounding_boxes.txt", names, complain)
    if texts is None or chosen is None:
        return
    disk, texts_on_disk = NamesOnDisk(home / "images"), NamesOnDisk(texts)
    for number, name in names.items():
        if name is None or chosen.get(number) != (split == "train"):
            continue
        key = without_extension(name)
        captions = caption_lines(texts / texts_on_disk.find(f"{key}.txt"), complain)
        known = all(table is None or number in table for table in (classes, boxes))
        if captions and known:
            class_id = None if classes is None else classes[number]
            box = None if boxes is None else boxes[number]
            yield Record(key, home / "images" / disk.find(name), captions, class_id, box)


def read_names(path: Path, complain: Complain) -> dict[str, str | None] | None:
    """Reads an images.txt: lines of an id and the picture's name, which may hold spaces.

    Args:
        path: the file.
        complain: called (fatal) with each bad line, and with each id or picture that comes a second time.

    Returns:
        The names by id in the order of the file, None where a name is bad. None if the file cannot be read.
    """
    lines = _lines(path, complain)
    if lines is None:
        return None
    names: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for where, line in lines:
        number, rest = (*line.split(maxsplit=1), "")[:2]
        if not rest:
            names.setdefault(number, None)
            complain(Problem(where, f"expected '<id> <class>/<name>.jpg', got {line!r:.200}"))
            continue
        if number in names:
            complain(Problem(where, f"expected every id once, got {number!r} again for {rest!r:.200}"))
            continue
        name = checked_name(where, rest, complain)
        key = None if name is None else without_extension(name)
        if key is not None and key in first:
            complain(Problem(where, f"expected names that differ without their extension, got {name} and {first[key]}"))
            name = None
        elif key is not None:
            first[key] = name
        names[number] = name
    return names


def read_boxes(path: Path, names: Mapping[str, str | None], complain: Complain) -> dict[str, Box] | None:
    """Reads a bounding_boxes.txt.

    Args:
        path: the file.
        names: what `read_names` returned.
        complain: called (fatal) with each bad line, each id of no picture and each picture without a box.

    Returns:
        (x, y, width, height) in pixels by id, width and height above 0; an id without a good box is left out. None if
        there is no such file or it cannot be read.
    """
    form = "'<id> <x> <y> <width> <height>' with a positive size"
    return _read_table(path, names, "a box", form, _box, complain) if lies_at(path) else None


def _read_classes(home: Path, names: Mapping[str, str | None], complain: Complain) -> dict[str, int] | None:
    labels = home / "image_class_labels.txt"
    if lies_at(labels):
        return _read_table(labels, names, "a class", "'<id> <class id>'", _whole_number, complain)
    folders = {number: name.rpartition("/")[0] for number, name in names.items() if name is not None}
    if not any(folders.values()):
        return None
    numbers = {folder: i for i, folder in enumerate(sorted(set(folders.values())), 1)}
    if lies_at(home / "classes.txt"):
        numbers = _read_class_numbers(home / "classes.txt", set(folders.values()), complain)
        if numbers is None:
            return None
    return {number: numbers[folder] for number, folder in folders.items() if folder in numbers}


def _read_class_numbers(path: Path, folders: set[str], complain: Complain) -> dict[str, int] | None:
    lines = _lines(path, complain)
    if lines is None:
        return None
    numbers: dict[str, int] = {}
    for where, line in lines:
        first, name = (*line.split(maxsplit=1), "")[:2]
        number = _whole_number([first])
        if number is None or not name:
            complain(Problem(where, f"expected '<class id> <class>', got {line!r:.200}"))
        elif name in numbers:
            complain(Problem(where, f"expected every class once, got {name!r:.200} again"))
        else:
            numbers[name] = number
    for folder in sorted(folders - numbers.keys()):
        complain(Problem(str(path), f"expected a line for every folder of pictures, found none for {folder!r}"))
    return numbers


def _read_table(
    path: Path,
    names: Mapping[str, str | None],
    what: str,
    form: str,
    parse: Callable[[list[str]], _Value | None],
    complain: Complain,
) -> dict[str, _Value] | None:
    """Values by a picture's id; complains of every bad line and every picture that has none. `parse` takes the fields
    behind the id."""
    lines = _lines(path, complain)
    if lines is None:
        return None
    values: dict[str, _Value] = {}
    bad: set[str] = set()
    for where, line in lines:
        number, *fields = line.split()
        value = parse(fields)
        if value is None:
            complain(Problem(where, f"expected {form}, got {line!r:.200}"))
            bad.add(number)
        elif number not in names:
            complain(Problem(where, f"expected an id of images.txt, got {number!r:.200}"))
        elif number in values:
            complain(Problem(where, f"expected {what} once for every picture, got {line!r:.200} for the same id again"))
            bad.add(number)
        else:
            values[number] = value
    for number, name in names.items():
        if name is not None and number not in values and number not in bad:
            complain(Problem(str(path), f"expected {what} for every picture of images.txt, found none for {name}"))
    return {number: value for number, value in values.items() if number not in bad}


def _lines(path: Path, complain: Complain) -> list[tuple[str, str]] | None:
    """The lines that are not blank, stripped, each with the place it stands at."""
    text = read_text(path, complain)
    if text is None:
        return None
    return [(f"{path}, line {number}", line.strip()) for number, line in lines_of(text)]


def _box(fields: list[str]) -> Box | None:
    try:
        x, y, width, height = (float(field) for field in fields)
    except ValueError:
        return None
    good = all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0
    return (x, y, width, height) if good else None


def _whole_number(fields: list[str]) -> int | None:
    # At most 18 digits, which fit into a tensor.
    return int(fields[0]) if len(fields) == 1 and re.fullmatch("[0-9]{1,18}", fields[0]) else None


def _is_train(fields: list[str]) -> bool | None:
    return {("1",): True, ("0",): False}.get(tuple(fields))


def _home(root: Path) -> Path | None:
    for folder in (root, root / "CUB_200_2011"):
        if lies_at(folder / "images.txt") and os.path.isdir(folder / "images"):
            return folder
    return None


def _captions_folder(root: Path, home: Path, complain: Complain) -> Path | None:
    # Not root / "..", which would leave the folder that a link points to and not the one it stands in.
    places = (root, home) if home != root else (root, Path(os.path.abspath(root)).parent)
    for name in _CAPTION_FOLDERS:
        for place in places:
            if os.path.isdir(place / name):
                return place / name
    what = (
        f"expected a folder of captions, text_c10/ or text/, in {places[0]} or in {places[1]}, found none; "
        "the captions (text_c10, ten a picture) come separately from the pictures"
    )
    complain(Problem(str(root), what, missing=True))
    return None


LAYOUT = Layout(
    "CUB as published (images.txt and images/, in the folder or in its CUB_200_2011/, and captions in text_c10/)",
    is_cub,
    cub_splits,
    read_cub,
)
