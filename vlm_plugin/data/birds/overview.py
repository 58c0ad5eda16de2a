"""Says what a set of synthetic birds holds, and shows some of it."""

from __future__ import annotations

import time
from pathlib import Path

from vlm_plugin.data.birds.attributes import SPLITS
from vlm_plugin.data.birds.make import make_birds
from vlm_plugin.data.birds.truth import BirdTruth
from vlm_plugin.data.contact_sheet import contact_sheet
from vlm_plugin.data.splits import open_split

_SHEET_PICTURES, _SHEET_COLUMNS = 24, 6


def make_and_describe(
    directory: str | Path, train: int, validation: int, test: int, size: int = 64, seed: int = 0
) -> Path:
    """Make a set of synthetic birds, print what it holds and write DIRECTORY/contact_sheet.png.

    Args:
        directory: the folder to make; it may exist if it is empty or holds this very set.
        train, validation, test: number of pictures of each split.
        size: side of the pictures in pixels.
        seed: picks classes, poses and sentences.

    Returns:
        The folder.

    Raises:
        ValueError: a bad count or size, or the folder holds anything else.
    """
    begin = time.perf_counter()
    root = make_birds(directory, train, validation, test, size, seed, progress=True)
    seconds = time.perf_counter() - begin
    print(f"{root}: {len(BirdTruth(root))} synthetic birds of {size} x {size} pixels, seed {seed} ({seconds:.1f} s)")
    shown = []
    for split, count in zip(SPLITS, (train, validation, test), strict=True):
        if count == 0:
            print(f"  {split:<10} no pictures")
            continue
        records = open_split(root, split)
        classes = len({record.class_id for record in records})
        captions = sum(len(record.captions) for record in records)
        print(f"  {split:<10} {len(records)} pictures, {classes} classes, {captions} captions")
        if not shown:
            # Spread over the split: neighbours are of one class and look alike.
            step = max(len(records) // _SHEET_PICTURES, 1)
            shown = records[::step][:_SHEET_PICTURES]
    sheet = contact_sheet(shown, [record.captions[0] for record in shown], _SHEET_COLUMNS, root / "contact_sheet.png")
    print(f"  what they look like: {sheet}")
    return root
