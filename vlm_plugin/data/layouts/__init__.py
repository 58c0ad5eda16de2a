"""How captioned pictures lie on disk: one module a layout, each read into the same records.

To add a layout, write a module here that ends in a `LAYOUT` (a `vlm_plugin.data.records.Layout`: how to recognise a
folder, list its splits and read one) and put it into `LAYOUTS`, the one line below. Nothing else knows of layouts:
`find_layout` names them all in its message, and tests/data/test_layouts.py tests every one alike by a function that
writes it. `folder` is a good one to copy from; `vlm_plugin.data.text` has what readers share. A reader is a generator
of records. It complains of each problem, leaves out what the problem is about and goes on, so that all problems of a
folder are seen at once; it opens no picture, and writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from vlm_plugin.data.layouts import coco, cub, folder, originals
from vlm_plugin.data.near_miss import what_is_there
from vlm_plugin.data.records import Layout
from vlm_plugin.files import check_folder

# The first that recognises a folder reads it: from the most particular to the most general.
LAYOUTS = (originals.LAYOUT, cub.LAYOUT, coco.LAYOUT, folder.LAYOUT)


def find_layout(root: str | Path) -> Layout:
    """The layout of a data folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder has no known layout (the message lists them, and says what was found).
    """
    root = Path(root)
    check_folder(root, "a data folder")
    for layout in LAYOUTS:
        if layout.recognise(root):
            return layout
    known = "; ".join(layout.looks_like for layout in LAYOUTS)
    what = f"expected a data folder with one of these layouts: {known}; {what_is_there(root)}"
    raise ValueError(f"{root}: {what}")
