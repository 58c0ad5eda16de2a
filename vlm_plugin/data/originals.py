"""CUB-200-2011 as AttnGAN's users have it on disk (the synthetic birds use the same layout).

ROOT/CUB_200_2011/images/<class>/<name>.jpg
ROOT/CUB_200_2011/images.txt, bounding_boxes.txt     (both or neither)
ROOT/text/<class>/<name>.txt                          one caption a line
ROOT/<split>/filenames.pickle                         list of "<class>/<name>"
ROOT/<split>/class_info.pickle                        list of integers (optional)
"""

from __future__ import annotations

import contextlib
import math
import numbers
from pathlib import Path

import numpy as np

from vlm_plugin.data.records import Layout, Record
from vlm_plugin.unpickle import load_pickle

_Box = tuple[float, float, float, float]


def originals_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`: the folders that hold a filenames.pickle, sorted."""
    return sorted(path.parent.name for path in Path(root).glob("*/filenames.pickle"))


def is_originals(root: str | Path) -> bool:
    """Whether `root` looks like this layout: text/, CUB_200_2011/ and at least one split."""
    root = Path(root)
    return (root / "text").is_dir() and (root / "CUB_200_2011").is_dir() and bool(originals_splits(root))


def read_originals(root: str | Path, split: str) -> list[Record]:
    """Reads one split.

    Captions are decoded as UTF-8, or as Latin-1 where a file is not valid UTF-8; blank lines are skipped.

    Args:
        root: the data folder.
        split: name of a split, such as "train" or "test".

    Returns:
        The split's pictures in the order of filenames.pickle. `class_id` is None if there is no class_info.pickle,
        `box` is None if there is neither images.txt nor bounding_boxes.txt.

    Raises:
        FileNotFoundError: a folder, a caption file or one of the two box files is missing.
        ValueError: an unknown or empty split, a key that leaves the data folder, class ids that do not match the file
            names, a caption file without a caption, or a malformed file. Each message names the file.
    """
    root = Path(root)
    images, texts = root / "CUB_200_2011" / "images", root / "text"
    for folder in (images, texts):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of the CUB layout, found none")
    splits = originals_splits(root)
    if split not in splits:
        there = ", ".join(splits) if splits else "none"
        raise ValueError(
            f"split: expected one with {root / '<split>' / 'filenames.pickle'} (there: {there}), got {split!r}"
        )
    keys = _read_keys(root / split / "filenames.pickle")
    class_ids = _read_class_ids(root / split / "class_info.pickle", len(keys))
    boxes = _read_boxes(root / "CUB_200_2011")
    records = []
    for key, class_id in zip(keys, class_ids, strict=True):
        if boxes is not None and key not in boxes:
            raise ValueError(
                f"{root / 'CUB_200_2011' / 'images.txt'}: expected a line for {key}.jpg, "
                f"which {split}/filenames.pickle lists, found none"
            )
        box = None if boxes is None else boxes[key]
        records.append(Record(key, images / f"{key}.jpg", _read_captions(texts / f"{key}.txt"), class_id, box))
    return records


def _read_keys(path: Path) -> list[str]:
    content = load_pickle(path)
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{path}: expected a list of '<class>/<name>', got {type(content).__name__}")
    if not content:
        raise ValueError(f"{path}: expected at least one picture, got an empty list")
    return [_checked_key(path, key) for key in content]


def _checked_key(path: Path, key: object) -> str:
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    if not isinstance(key, str):
        raise ValueError(f"{path}: expected strings '<class>/<name>', got {key!r} of type {type(key).__name__}")
    if not key.isascii():
        # Python 2 stored bytes, which arrive as one character each: put UTF-8 names together again.
        with contextlib.suppress(UnicodeError):
            key = key.encode("latin-1").decode("utf-8")
    # The pickle may come from anywhere: it names files of this data folder and no others, on any system.
    parts = key.replace("\\", "/").split("/")
    if ".." in parts or "" in parts or ":" in parts[0] or "\0" in key:
        raise ValueError(f"{path}: expected names '<class>/<name>' inside the data folder, got {key!r}")
    return key


def _read_class_ids(path: Path, count: int) -> list[int] | list[None]:
    if not path.is_file():
        return [None] * count
    content = load_pickle(path)
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"{path}: expected a list of integers, got {type(content).__name__}")
    if len(content) != count:
        raise ValueError(f"{path}: expected {count} class ids, one per entry of filenames.pickle, got {len(content)}")
    for value in content:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ValueError(f"{path}: expected integers, got {value!r}")
    return [int(value) for value in content]


def _read_boxes(folder: Path) -> dict[str, _Box] | None:
    names_path, boxes_path = folder / "images.txt", folder / "bounding_boxes.txt"
    if not names_path.exists() and not boxes_path.exists():
        return None
    for path, other in ((names_path, boxes_path), (boxes_path, names_path)):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected beside {other.name}, found none (for no boxes, remove both)")
    names: dict[str, str] = {}
    for number, fields in _fields(names_path):
        if len(fields) != 2:
            raise ValueError(
                f"{names_path}, line {number}: expected '<id> <class>/<name>.jpg', got {' '.join(fields)!r}"
            )
        names[fields[0]] = fields[1]
    boxes: dict[str, _Box] = {}
    for number, fields in _fields(boxes_path):
        try:
            image_id, (x, y, width, height) = fields[0], (float(field) for field in fields[1:])
            good = all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                f"{boxes_path}, line {number}: expected '<id> <x> <y> <width> <height>' with a positive size, "
                f"got {' '.join(fields)!r}"
            )
        if image_id not in names:
            raise ValueError(f"{boxes_path}, line {number}: expected an id of {names_path.name}, got {image_id!r}")
        boxes[names[image_id].removesuffix(".jpg")] = (x, y, width, height)
    missing = next((name for name in names.values() if name.removesuffix(".jpg") not in boxes), None)
    if missing is not None:
        raise ValueError(
            f"{boxes_path}: expected a box for every picture of {names_path.name}, found none for {missing}"
        )
    return boxes


def _fields(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of a small table; blank lines are skipped. A name may not hold spaces in this format."""
    lines = _read_text(path).split("\n")
    return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]


def _read_captions(path: Path) -> tuple[str, ...]:
    try:
        text = _read_text(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(f"{path}: expected the captions of a picture, one a line, found no such file") from None
    # Not splitlines(): Latin-1 text may hold characters that it takes for line ends.
    captions = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not captions:
        raise ValueError(f"{path}: expected at least one caption, got an empty file")
    return captions


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


LAYOUT = Layout(
    "CUB as AttnGAN has it (text/, CUB_200_2011/images/ and <split>/filenames.pickle)",
    is_originals,
    originals_splits,
    lambda root, split, complain: read_originals(root, split),
)
