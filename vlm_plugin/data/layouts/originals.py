"""CUB, COCO and the like with the metadata of AttnGAN and DF-GAN (the synthetic birds use the same layout).

ROOT/<split>/filenames.pickle                         list of keys, "<class>/<name>" or "<name>"
ROOT/<split>/class_info.pickle                        list of integers (optional)
ROOT/text/<key>.txt                                   one caption a line
ROOT/CUB_200_2011/images/<key>.jpg                    the pictures, if there is a CUB_200_2011/
ROOT/CUB_200_2011/images.txt, bounding_boxes.txt      (both or neither)
ROOT/images/<key>.jpg                                 the pictures otherwise: here, or in one of
ROOT/images/<split>2014/<key>.jpg                         these folders, as DF-GAN has COCO; that of "test" and
ROOT/images/<split>/<key>.jpg                             "validation" may also be val2014 or val

The folder of the split "validation" may be called valid or val. Where a .jpg is not there, another picture's extension
is accepted.
"""

from __future__ import annotations

import contextlib
import numbers
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlm_plugin.data.layouts.cub import Box, read_boxes, read_names
from vlm_plugin.data.names import Alike, NamesOnDisk
from vlm_plugin.data.records import Complain, Layout, Problem, Record, stop
from vlm_plugin.data.text import (
    PICTURE_EXTENSIONS,
    caption_lines,
    checked_name,
    is_picture,
    picture_rank,
    without_extension,
)
from vlm_plugin.files import lies_at, refusal
from vlm_plugin.unpickle import load_pickle

__all__ = ["LAYOUT", "is_originals", "originals_splits", "read_originals"]

# The first that is there is the split's.
_OTHER_NAMES = {"validation": ("valid", "val")}
_VALIDATION_PICTURES = ("val2014", "val")


def originals_splits(root: str | Path) -> list[str]:
    """Names of the splits under `root`, sorted: the folders that hold a filenames.pickle, valid or val renamed."""
    return sorted(_split_folders(Path(root)))


def is_originals(root: str | Path) -> bool:
    """Whether `root` looks like this layout: it has at least one split."""
    return bool(_split_folders(Path(root)))


def read_originals(root: str | Path, split: str, complain: Complain = stop) -> Iterator[Record]:
    """Reads one split.

    Captions are decoded as UTF-8, or as Latin-1 where a file is not valid UTF-8; blank lines are skipped. Pictures are
    not opened: one that is missing is found when it is loaded.

    Args:
        root: the data folder.
        split: name of a split, such as "train" or "test".
        complain: called with each problem; by default the first fatal one is raised. If it returns, the picture that
            the problem is about is left out. Without a list of file names, pictures' folder or text/, all are; without
            usable class ids or without usable box files, pictures come without those.

    Yields:
        The split's pictures in the order of filenames.pickle. `class_id` is None if there is no class_info.pickle,
        `box` is None if there is neither images.txt nor bounding_boxes.txt.

    Raises:
        FileNotFoundError: a folder, a caption file or one of the two box files is missing.
        ValueError: an unknown or empty split, a key that leaves the data folder or comes twice, class ids that do not
            match the file names, a box missing, without an area or of no picture, a caption file without a caption, or
            a malformed file. Each message names the file.
    """
    root = Path(root)
    folders = _split_folders(root)
    if split not in folders:
        form, there = root / "<split>" / "filenames.pickle", ", ".join(sorted(folders)) or "none"
        complain(Problem("split", f"expected one with {form} (there: {there}), got {split!r}"))
        return
    pictures = _find_pictures(root, split, folders[split], complain)
    has_texts = _has_texts(root / "text", complain)
    names_path = folders[split] / "filenames.pickle"
    names = _read_list(names_path, "a list of '<class>/<name>'", complain)
    if names is None:
        return
    if not names:
        complain(Problem(str(names_path), "expected at least one picture, got an empty list"))
    class_ids = _read_class_ids(folders[split] / "class_info.pickle", len(names), complain)
    boxes = _read_boxes(root / "CUB_200_2011", complain)
    first: dict[str, int] = {}
    texts = NamesOnDisk(root / "text")
    for position, name in enumerate(names):
        key = checked_name(str(names_path), _python_2_text(name), complain)
        if key is None:
            continue
        if key in first:
            what = f"expected every picture once, got {key!r} at positions {first[key]} and {position}"
            complain(Problem(str(names_path), what))
            continue
        first[key] = position
        captions = caption_lines(root / "text" / texts.find(f"{key}.txt"), complain) if has_texts else ()
        if boxes is not None and key not in boxes:
            what = f"expected a line for {key}.jpg, which {names_path} lists, found none"
            complain(Problem(str(root / "CUB_200_2011" / "images.txt"), what))
        box = None if boxes is None else boxes.get(key)
        if captions and pictures is not None and (boxes is None or box is not None):
            yield Record(key, pictures.find(key), captions, class_ids[position], box)


class _Pictures:
    """Finds the files of pictures by listing each folder once, which takes no look at each of 120,000 files.

    Args:
        folders: where to look, in this order; the last is where a picture that is nowhere is expected.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._listed: dict[Path, dict[str, str]] = {}
        self._alike: dict[Path, Alike] = {}

    def find(self, key: str) -> Path:
        """The picture's path; with .jpg if there is no such picture."""
        parent, _, stem = key.rpartition("/")
        for folder in self._folders:
            folder = folder / NamesOnDisk(folder).find(parent)
            if folder not in self._listed:
                self._listed[folder] = _list_pictures(folder)
                self._alike[folder] = Alike(self._listed[folder])
            if (found := self._alike[folder].find(stem)) is not None:
                return folder / self._listed[folder][found]
        return self._folders[-1] / f"{key}.jpg"


def _list_pictures(folder: Path) -> dict[str, str]:
    """Names of a folder's pictures by their names without extension; .jpg wins over other extensions."""
    try:
        names = os.listdir(folder)
    except OSError:
        # No folder of this name here: its pictures are in another or missing, and loading one says so.
        return {}
    found: dict[str, str] = {}
    for name in sorted(names, key=_preference, reverse=True):
        if is_picture(name):
            found[without_extension(name)] = name
    return found


def _preference(name: str) -> tuple[int, int, bool, str]:
    extension = os.path.splitext(name)[1]
    rank = picture_rank(name)
    place = PICTURE_EXTENSIONS.index(extension.lower()) if rank == 0 else 0
    return 3 if rank is None else rank, place, extension != extension.lower(), name


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders of the splits by the splits' names."""
    # Not glob("*/filenames.pickle"), which passes over a link that leads nowhere.
    folders = {path.name: path for path in root.glob("*") if lies_at(path / "filenames.pickle")}
    for name, others in _OTHER_NAMES.items():
        for other in others:
            if other in folders and name not in folders:
                folders[name] = folders.pop(other)
    return folders


def _find_pictures(root: Path, split: str, folder: Path, complain: Complain) -> _Pictures | None:
    if (root / "CUB_200_2011").is_dir():
        images, within = root / "CUB_200_2011" / "images", ()
        expected = "a folder of the CUB layout with the pictures"
    else:
        images = root / "images"
        within = (*(_VALIDATION_PICTURES if split in ("test", "validation") else ()), folder.name, f"{folder.name}2014")
        expected = "a folder of pictures (here or in CUB_200_2011/images)"
    if not images.is_dir():
        complain(Problem(str(images), f"expected {expected}, found none", missing=True))
        return None
    return _Pictures([images, *(images / name for name in dict.fromkeys(within) if (images / name).is_dir())])


def _has_texts(folder: Path, complain: Complain) -> bool:
    if folder.is_dir():
        return True
    packed = sorted(path.name for path in folder.parent.glob(f"{folder.name}.*") if path.is_file())
    found = f"{' and '.join(packed)}, which must be unpacked first" if packed else "none"
    complain(Problem(str(folder), f"expected a folder of captions, <key>.txt each, found {found}", missing=True))
    return False


def _read_list(path: Path, expected: str, complain: Complain) -> list[object] | None:
    try:
        content = load_pickle(path)
    except OSError as error:
        complain(Problem(str(path), f"expected {expected}, {refusal(error)}"))
        return None
    except ValueError as error:
        complain(Problem(str(path), str(error).removeprefix(f"{path}: ")))
        return None
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, (list, tuple)):
        complain(Problem(str(path), f"expected {expected}, got {type(content).__name__}"))
        return None
    return list(content)


def _python_2_text(name: object) -> object:
    """A name put together again: Python 2 stored bytes, which arrive as such or as one character each."""
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if isinstance(text, str) and not text.isascii():
        with contextlib.suppress(UnicodeError):  # not UTF-8: Latin-1, or text after all
            text = text.encode("latin-1").decode("utf-8")
    return text


def _read_class_ids(path: Path, count: int, complain: Complain) -> list[int] | list[None]:
    none = [None] * count
    if not lies_at(path):
        return none
    content = _read_list(path, "a list of integers", complain)
    if content is None:
        return none
    if len(content) != count:
        what = f"expected {count} class ids, one per entry of filenames.pickle, got {len(content)}"
        complain(Problem(str(path), what))
        return none
    wrong = [value for value in content if not _is_class_id(value)]
    if wrong:
        complain(Problem(str(path), f"expected integers, got {wrong[0]!r:.200}"))
        return none
    return [int(value) for value in content]


def _is_class_id(value: object) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and -(2**63) <= int(value) < 2**63  # what fits into a tensor


def _read_boxes(folder: Path, complain: Complain) -> dict[str, Box | None] | None:
    """Boxes by key, None for a picture whose box is not good; None for all without usable files."""
    names_path, boxes_path = folder / "images.txt", folder / "bounding_boxes.txt"
    if not lies_at(names_path) and not lies_at(boxes_path):
        return None
    for path, other in ((names_path, boxes_path), (boxes_path, names_path)):
        if not lies_at(path):
            what = f"expected beside {other.name}, found none (for no boxes, remove both)"
            complain(Problem(str(path), what, missing=True))
            return None
    names = read_names(names_path, complain)
    boxes = None if names is None else read_boxes(boxes_path, names, complain)
    if names is None or boxes is None:
        return None
    return {without_extension(name): boxes.get(number) for number, name in names.items() if name is not None}


LAYOUT = Layout(
    "CUB or COCO as AttnGAN has them (<split>/filenames.pickle, text/ and CUB_200_2011/images/ or images/)",
    is_originals,
    originals_splits,
    read_originals,
)
