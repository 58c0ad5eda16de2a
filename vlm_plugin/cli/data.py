"""Makes data sets a user can start with, and checks those that a user has."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vlm_plugin.data import open_split
from vlm_plugin.data.birds.attributes import SPLITS
from vlm_plugin.data.birds.make import make_birds
from vlm_plugin.data.birds.truth import BirdTruth
from vlm_plugin.data.check import check, draw_sheet, render
from vlm_plugin.data.contact_sheet import contact_sheet
from vlm_plugin.terminal import check_outside, user_path

_SHEET_PICTURES, _SHEET_COLUMNS = 24, 6


def synthetic(directory: str | Path, train: int, validation: int, test: int, size: int = 64, seed: int = 0) -> Path:
    """Makes a set of synthetic birds, prints what it holds and writes DIRECTORY/contact_sheet.png.

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlm-plugin data`."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    birds = kinds.add_parser("synthetic", help="draw birds with captions whose truth is known, in the CUB layout")
    birds.add_argument("directory", type=user_path)
    birds.add_argument("--train", type=int, default=2500, help="pictures of the train split")
    birds.add_argument("--validation", type=int, default=500)
    birds.add_argument("--test", type=int, default=500)
    birds.add_argument("--size", type=int, default=64, help="pixels")
    birds.add_argument("--seed", type=int, default=0)
    birds.set_defaults(kind_run=_run_synthetic)
    checked = kinds.add_parser(
        "check", help="look at every picture and caption of a data folder; exit status 1 if any is bad"
    )
    checked.add_argument("directory", type=user_path)
    checked.add_argument(
        "--out",
        type=user_path,
        help="contact sheet to write, and with .txt behind its name the list of problems (default: data-check-NAME.png "
        "in this folder; inside the data, beside it)",
    )
    checked.set_defaults(kind_run=_run_check)


def run(arguments: argparse.Namespace) -> int | None:
    """Run `vlm-plugin data`."""
    return arguments.kind_run(arguments)


def _run_synthetic(arguments: argparse.Namespace) -> None:
    synthetic(
        arguments.directory, arguments.train, arguments.validation, arguments.test, arguments.size, arguments.seed
    )


def _run_check(arguments: argparse.Namespace) -> int:
    """Exit status: 1 if anything is fatal."""
    root = arguments.directory
    sheet = _sheet(root, arguments.out)
    report = check(root)
    # First of all: a sheet that cannot be written must not cost what was found.
    print(render(report))
    if report.findings:
        # Its name holds all of the one that the user gave: whoever has an overview.txt did not name that.
        listing = sheet.with_name(f"{sheet.name}.txt")
        listing.write_text(render(report, most=None) + "\n", encoding="utf-8", errors="replace")
        print(f"every problem: {listing}")
    if report.shown:
        draw_sheet(report, sheet)
        print(f"what the pictures look like to training: {sheet}")
    return int(report.fatal > 0)


def _sheet(root: Path, out: Path | None) -> Path:
    """Where the contact sheet goes, and the list of problems beside it.

    Never into the data folder: a .png is a picture there, and a .txt holds captions.
    """
    folder = root.resolve()
    sheet = Path(f"data-check-{folder.name}.png") if out is None else out
    if out is None and folder in sheet.resolve().parents:
        return folder.parent / sheet
    if sheet.suffix.lower() != ".png":
        raise ValueError(f"--out {sheet}: expected the name of a .png file")
    check_outside(sheet, root, "file")
    return sheet
