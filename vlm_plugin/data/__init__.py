"""Captioned pictures: a reader for each layout on disk, one Dataset, and the synthetic birds.

A new layout is one module with a function that recognises it and one that reads it, and an entry in `_LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.data.birds import (
    ATTRIBUTES,
    BirdTruth,
    contact_sheet,
    make_birds,
    said_by,
    swap_caption,
    swap_word,
    true_pairs,
)
from vlm_plugin.data.cub import cub_splits, is_cub, read_cub
from vlm_plugin.data.dataset import Batch, CaptionedImages, Sample, collate
from vlm_plugin.data.records import Record

__all__ = [
    "ATTRIBUTES",
    "Batch",
    "BirdTruth",
    "CaptionedImages",
    "Record",
    "Sample",
    "collate",
    "contact_sheet",
    "find_truth",
    "list_splits",
    "make_birds",
    "open_split",
    "read_cub",
    "said_by",
    "swap_caption",
    "swap_word",
    "true_pairs",
]


class Layout(NamedTuple):
    """How to recognise one layout on disk, list its splits and read one."""

    looks_like: str
    recognise: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str], list[Record]]


_LAYOUTS = (
    Layout(
        "CUB as AttnGAN has it (text/, CUB_200_2011/images/ and <split>/filenames.pickle)", is_cub, cub_splits, read_cub
    ),
)


def _layout(root: Path) -> Layout:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a data folder, found no such folder")
    for layout in _LAYOUTS:
        if layout.recognise(root):
            return layout
    known = "; ".join(layout.looks_like for layout in _LAYOUTS)
    raise ValueError(f"{root}: expected a data folder with one of these layouts: {known}")


def open_split(root: str | Path, split: str) -> list[Record]:
    """Reads one split of a data folder, whichever known layout it has.

    Args:
        root: the data folder.
        split: name of the split, such as "train" or "test".

    Returns:
        The split's pictures in the order of the data set.

    Raises:
        FileNotFoundError: there is no such folder, or the reader misses a file.
        ValueError: the folder has no known layout (the message lists them), or the reader refuses its content.
    """
    return _layout(Path(root)).read(Path(root), split)


def list_splits(root: str | Path) -> list[str]:
    """Names of the splits that a data folder has; errors as `open_split`'s."""
    return list(_layout(Path(root)).splits(Path(root)))


def find_truth(root: str | Path) -> BirdTruth | None:
    """The attributes of a folder of synthetic birds, None for any other data."""
    return BirdTruth(root) if (Path(root) / "attributes.json").is_file() else None
