"""Captioned pictures: a reader for each layout on disk, one Dataset, and the synthetic birds.

A new layout is one module with a `LAYOUT`, named in `_LAYOUTS`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by, swap_caption, swap_word
from vlm_plugin.data.birds.make import make_birds
from vlm_plugin.data.birds.truth import BirdTruth, true_pairs
from vlm_plugin.data.contact_sheet import contact_sheet
from vlm_plugin.data.dataset import Batch, CaptionedImages, Sample, collate
from vlm_plugin.data.layouts import coco, cub, folder, originals
from vlm_plugin.data.records import Complain, Layout, Problem, Record, Records, stop

__all__ = [
    "ATTRIBUTES",
    "Batch",
    "BirdTruth",
    "CaptionedImages",
    "Problem",
    "Record",
    "Records",
    "Sample",
    "collate",
    "contact_sheet",
    "find_layout",
    "find_truth",
    "list_splits",
    "make_birds",
    "open_split",
    "said_by",
    "swap_caption",
    "swap_word",
    "true_pairs",
]

# The first that recognises a folder reads it: from the most particular to the most general.
_LAYOUTS = (originals.LAYOUT, cub.LAYOUT, coco.LAYOUT, folder.LAYOUT)
_TENTH = 10


def find_layout(root: str | Path) -> Layout:
    """The layout of a data folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder has no known layout (the message lists them).
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a data folder, found no such folder")
    for layout in _LAYOUTS:
        if layout.recognise(root):
            return layout
    known = "; ".join(layout.looks_like for layout in _LAYOUTS)
    raise ValueError(f"{root}: expected a data folder with one of these layouts: {known}")


def open_split(root: str | Path, split: str, complain: Complain = stop) -> Records:
    """Reads one split of a data folder, whichever known layout it has.

    Nothing is written to the folder. Without a test split, about a tenth of the train split serves as one: the pictures
    whose name (the last part of the key) has a SHA-256 digest that, as a number, is divisible by ten. That depends
    neither on order nor on machine, and adding pictures moves no other from one split to the other.

    Args:
        root: the data folder.
        split: name of the split, such as "train" or "test".
        complain: called with each problem of the split; by default the first fatal one is raised.

    Returns:
        The split's pictures in the order of the data set.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: the folder has no known layout (the message lists them), no such split, no pictures in it, or a
            file's content is not what was expected.
    """
    root = Path(root)
    layout = find_layout(root)
    own = layout.splits(root)
    made = "test" not in own and split in ("train", "test")
    if split not in own and not made:
        raise ValueError(f"split: expected one of {root}'s ({', '.join(list_splits(root))}), got {split!r}")
    told: list[Problem] = []

    def tell(problem: Problem) -> None:
        told.append(problem)
        complain(problem)

    records = Records(layout.read(root, "train" if made else split, tell))
    if made:
        in_test = _tenth([record.key for record in records])
        records = Records(r for r, chosen in zip(records, in_test, strict=True) if chosen == (split == "test"))
    if not records and not any(problem.fatal for problem in told):
        complain(Problem(str(root), f"expected at least one picture in the split {split}, found none"))
    return records


def list_splits(root: str | Path) -> list[str]:
    """Names of the splits that `open_split` can read; errors as its."""
    own = find_layout(root).splits(Path(root))
    return sorted({*own, "test"})


def _tenth(keys: list[str]) -> list[bool]:
    """Which pictures go to a test split that the data lack, see `open_split`."""
    numbers = [int(hashlib.sha256(_name(key).encode("utf-8", "surrogatepass")).hexdigest(), 16) for key in keys]
    chosen = [number % _TENTH == 0 for number in numbers]
    if len(keys) > 1 and len(set(chosen)) == 1:
        # A handful of pictures, or all of one name: neither split may be empty.
        first = min(range(len(keys)), key=lambda i: (numbers[i], keys[i]))
        chosen = [i == first for i in range(len(keys))]
    return chosen


def _name(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def find_truth(root: str | Path) -> BirdTruth | None:
    """The attributes of a folder of synthetic birds, None for any other data."""
    return BirdTruth(root) if (Path(root) / "attributes.json").is_file() else None
