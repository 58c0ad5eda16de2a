"""Captioned pictures: a reader for each layout on disk, one Dataset, and the synthetic birds.

`layouts` has the readers (its docstring says how to add one), `splits` opens a split with whichever fits, `records` is
what they return, `dataset` makes samples and batches of that, `images` reads the pictures. `captions` reads captions of
given pictures, `check` looks a data folder over, `birds` draws data whose truth is known. `split_names`
has the words that name a split, `near_miss` says what a folder without a layout holds.
"""

from vlm_plugin.data.birds import (
    ATTRIBUTES,
    BirdTruth,
    find_truth,
    make_birds,
    said_by,
    swap_caption,
    swap_word,
    true_pairs,
)
from vlm_plugin.data.contact_sheet import contact_sheet
from vlm_plugin.data.dataset import Batch, CaptionedImages, Sample, collate
from vlm_plugin.data.layouts import find_layout
from vlm_plugin.data.records import Problem, Record, Records
from vlm_plugin.data.splits import list_splits, open_split

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
